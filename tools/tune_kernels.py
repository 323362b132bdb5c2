"""Measures tile sizes on the GPU at hand and rewrites the tuning table's entries for it. One command, no editing.

    tools/tune_kernels                        every op, at the shapes of Qwen2.5-7B; about half an hour on an H200
    tools/tune_kernels --op attention         one op
    tools/tune_kernels --minutes 9            stops measuring in time and keeps what it has
    tools/tune_kernels --dry-run --out X      every code path, tiny, on the CPU; never touches the table

Candidates that do not fit shared memory, do not compile, or compute other numbers than the default are dropped, and
said so. An entry is written where the best candidate beats the default by more than both spreads. Attention gets
one entry a head size, the best over prompts of 128 to 4,096 tokens, for its tiles may not depend on the batch.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import torch  # noqa: E402

if not torch.cuda.is_available():
    import os

    os.environ["TRITON_INTERPRET"] = "1"

import gpu_timing  # noqa: E402
from gpu_cases import Maker  # noqa: E402
from torch import Tensor  # noqa: E402

from onebeat.kernels import attention, backend, int8_matmul, shapes, tuning  # noqa: E402
from onebeat.kernels.tuning import AttentionConfig, Entry, MatmulConfig  # noqa: E402

LENGTHS = ([128], [512], [4096], [200] * 64)
"""What attention's tiles are judged by, each counting the same."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate and its time; `why_not` where it was dropped."""

    config: MatmulConfig | AttentionConfig
    measured: gpu_timing.Measured | None
    why_not: str | None = None


def matmul_candidates(default: MatmulConfig, rows: int | None, gpu: backend.Facts) -> Iterator[MatmulConfig]:
    """The default first, then tiles around what the rows call for, whole and split."""
    yield default
    few = rows is not None and rows <= 64
    blocks = [(rows, 64), (rows, 128)] if few and rows else [(64, 128), (128, 128), (128, 256), (64, 256)]
    depths, stages = ((128, 256), (3, 4, 6)) if few else ((64, 128), (3, 4))
    splits = (1, 2, 4, 8) if few or (rows is not None and rows <= 256) else (1,)
    loads = (True, False) if gpu.hopper_or_newer else (False,)
    walks = (False,) if few or splits != (1,) else (False, True)
    for (m, n), k, depth, split, tma, walk in itertools.product(blocks, depths, stages, splits, loads, walks):
        if m * n > 128 * 256 or (m + n) * k * depth > 227 << 10:
            continue
        yield MatmulConfig(m, n, k, 4 if m * n <= 64 * 128 else 8, depth, 8, split, tma, few, walk)


def attention_candidates(default: AttentionConfig) -> Iterator[AttentionConfig]:
    """The default first."""
    yield default
    for m, n, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4)):
        yield AttentionConfig(m, n, warps, stages)


class Tuner:
    """Tries candidates against a deadline."""

    def __init__(self, make: Maker, shape: shapes.ModelShape, deadline: float, dry: bool) -> None:
        self._make, self._shape, self._deadline, self._dry = make, shape, deadline, dry

    def matmul(self, op: str, rows_to: int | None, columns: int, depth: int) -> Entry | None:
        """One row bucket of one weight shape."""
        make, rows = self._make, rows_to or 4096
        if self._dry:
            rows = min(rows, 40)
        gated = op == "int8_matmul_swiglu"
        copies = gpu_timing.copies_for(int8_matmul.bytes_moved(rows, columns, depth))
        given = [
            (make.int8(rows, depth), make.scales(rows), make.int8(columns, depth), make.scales(columns),
             make.empty(rows, columns // 2 if gated else columns))
            for _ in range(copies)
        ]  # fmt: skip
        residual = make.rand(rows, columns) if (columns, depth) != self._shape.matmuls["qkv"] and not gated else None
        expected: list[Tensor] = []

        def attempt(config: Any) -> gpu_timing.Measured:
            launches = [
                int8_matmul.plan(*one, residual=residual, swiglu=gated, config=config, gpu=make.gpu) for one in given
            ]
            launches[0].run()
            out = given[0][4]
            if not expected:
                expected.append(out.clone())
            if not torch.equal(out, expected[0]):
                raise ValueError("computes other numbers than the default")
            return gpu_timing.measure([launch.run for launch in launches])

        default = tuning.matmul_config(op, make.gpu, rows_to, columns, depth)
        tried = self._try(matmul_candidates(default, rows_to, make.gpu), attempt)
        label = f"{op} to {rows_to or 'any'} rows, {columns} x {depth}"
        return self._entry(label, tried, op=op, rows_to=rows_to, columns=columns, depth=depth)

    def attention(self, head_size: int) -> Entry | None:
        """One head size, over all lengths."""
        make, shape = self._make, self._shape
        lengths = ([9], [3, 5]) if self._dry else LENGTHS
        group = shape.query_heads // shape.key_heads
        given = []
        for packed in lengths:
            qkv = make.rand(sum(packed), (group + 2) * shape.key_heads, head_size)
            q, k, v = qkv.split([group * shape.key_heads, shape.key_heads, shape.key_heads], dim=1)
            out = make.empty(sum(packed), group * shape.key_heads, head_size)
            given.append((q, k, v, make.bounds(packed), max(packed), out))
        expected: list[Tensor] = []

        def attempt(config: Any) -> gpu_timing.Measured:
            times = []
            for index, one in enumerate(given):
                launch = attention.plan(*one, scale=head_size**-0.5, window=None, config=config, gpu=make.gpu)
                launch.run()
                if len(expected) == index:
                    expected.append(one[5].clone())
                if not torch.allclose(one[5].float(), expected[index].float(), atol=2e-2, rtol=2e-2):
                    raise ValueError("computes other numbers than the default")
                times.append(gpu_timing.measure([launch.run, launch.run]))
            mean = [math.prod(getattr(one, name) for one in times) ** (1 / len(times)) for name in FIELDS]
            return gpu_timing.Measured(*mean, samples=times[0].samples)

        bytes_each = make.dtype.itemsize
        default = tuning.attention_config(make.gpu, head_size, bytes_each)
        tried = self._try(attention_candidates(default), attempt)
        label = f"attention of {head_size}"
        return self._entry(label, tried, op="attention", head_size=head_size, element_bytes=bytes_each)

    def _try(self, candidates: Iterator[Any], attempt: Any) -> list[Tried]:
        tried: list[Tried] = []
        for config in dict.fromkeys(candidates):
            if tried and (time.monotonic() > self._deadline or (self._dry and len(tried) == 3)):
                break
            try:
                tried.append(Tried(config, attempt(config)))
            except (RuntimeError, ValueError, backend.triton.TritonError) as error:
                if not tried:
                    raise
                tried.append(Tried(config, None, f"{type(error).__name__}: {str(error)[:100]}"))
        return tried

    def _entry(self, label: str, tried: list[Tried], **where: Any) -> Entry | None:
        """The entry that the best candidate deserves, or None where the default is as good."""
        default, timed = tried[0], [one for one in tried if one.measured is not None]
        best = min(timed, key=lambda one: one.measured.median_us)  # type: ignore[union-attr]
        assert default.measured is not None and best.measured is not None
        better = best.measured.high_us < default.measured.low_us
        print(
            f"{label}: default {default.measured.median_us:.1f} us, best {best.measured.median_us:.1f} us "
            f"{best.config if better else '(the default stays)'}; {len(timed)} of {len(tried)} candidates ran"
        )
        for why in dict.fromkeys(one.why_not for one in tried if one.why_not):
            print(f"  dropped: {why}")
        if not better:
            return None
        gpu = self._make.gpu
        return Entry(
            arch=tuning.nearest_arch(gpu.arch), gpu=gpu.name, triton=tuning.triton_version(), config=best.config,
            measured={
                **best.measured.json(), "default_median_us": round(default.measured.median_us, 3),
                "when": datetime.now(UTC).date().isoformat(),
            },
            **where,
        )  # fmt: skip


FIELDS = ("median_us", "low_us", "high_us")


def merged(old: tuple[Entry, ...], new: list[Entry]) -> tuple[Entry, ...]:
    """The table with new entries in place of those for the same place."""

    def place(entry: Entry) -> tuple[Any, ...]:
        return tuple(getattr(entry, name) for name in PLACE)

    fresh = {place(entry) for entry in new}
    return (*(entry for entry in old if place(entry) not in fresh), *new)


PLACE = ("op", "arch", "gpu", "triton", "rows_to", "columns", "depth", "head_size", "element_bytes")


def main(argv: list[str] | None = None) -> int:
    """Tunes, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=sorted(tuning.KINDS), action="append", help="default: all")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=tuning.TABLE)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args(argv)
    if args.dry_run and args.out == tuning.TABLE:
        parser.error("a dry run's times mean nothing: give --out another file than the table")
    if not torch.cuda.is_available() and not args.dry_run:
        parser.error("torch sees no GPU here; give --dry-run to prove the code paths on the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    make = Maker(device, backend.facts(device), torch.bfloat16 if device.type == "cuda" else torch.float16)
    shape = shapes.TINY if args.dry_run else shapes.QWEN_7B
    tuner = Tuner(make, shape, time.monotonic() + args.minutes * 60, args.dry_run)
    ops, found = args.op or sorted(tuning.KINDS), list[Entry | None]()
    for op in ops:
        if op == "attention":
            found += [tuner.attention(head_size) for head_size in ((64,) if args.dry_run else (64, 96, 128))]
            continue
        buckets = (16, 128) if args.dry_run else (*tuning.ROW_BUCKETS, None)
        for rows_to, (name, size) in itertools.product(buckets, shape.matmuls.items()):
            if (name == "gate_up") == (op == "int8_matmul_swiglu"):
                found.append(tuner.matmul(op, rows_to, *size))
    new = [entry for entry in found if entry is not None]
    args.out.write_text(tuning.dump(merged(tuning.table(), new)), encoding="utf-8")
    print(f"{len(new)} entries written to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
