"""One forward pass under the profiler: a Chrome trace, and each op's time beside its roofline.

    tools/profile_gpu --tokens 128 --out trace.json
    nsys profile --capture-range cudaProfilerApi tools/profile_gpu --tokens 128     (every op is an NVTX range)
    tools/profile_gpu --dry-run                                                       tiny, on the CPU

The model is Qwen2.5-7B's shape on synthetic int8 weights, the ceilings are measured in the same run.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import gpu_model  # noqa: E402
import gpu_timing  # noqa: E402
import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile, record_function  # noqa: E402

from onebeat.engine import layer as engine_layer  # noqa: E402
from onebeat.engine import model as engine_model  # noqa: E402
from onebeat.engine import runner as engine_runner  # noqa: E402
from onebeat.engine.batch import pack  # noqa: E402
from onebeat.engine.loading import load_backbone  # noqa: E402
from onebeat.kernels import attention, embedding, int8_matmul, pool, quantize, rms_norm, rope, swiglu  # noqa: E402
from onebeat.kernels.cpu.hadamard import hadamard_block  # noqa: E402
from onebeat.kernels.shapes import QWEN_7B, TINY, ModelShape  # noqa: E402

PLACES = {
    engine_model: ("embedding",),
    engine_runner: ("pool",),
    engine_layer: (
        "attention", "int8_matmul", "int8_matmul_swiglu", "paged_attention", "quantize_rows", "rms_norm",
        "rms_norm_quantize", "rope_", "swiglu",
    ),
}  # fmt: skip
"""Where the forward pass looks its ops up."""


def ranged(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
    """The op inside a profiler range, and an NVTX range on a GPU, named after its weight's shape where it has one."""

    @functools.wraps(op)
    def call(*args: Any, **kwargs: Any) -> Any:
        weight = args[2] if name.startswith("int8_matmul") else args[0] if name == "quantize_rows" else None
        label = name if weight is None else f"{name} {' x '.join(map(str, weight.shape))}"
        nvtx = torch.cuda.nvtx.range(label) if torch.cuda.is_available() else nullcontext()
        with nvtx, record_function(label):
            return op(*args, **kwargs)

    return call


def work(shape: ModelShape, tokens: int) -> dict[str, tuple[int, int]]:
    """Bytes and operations of all calls of each range in one forward."""
    layers, width, wide = shape.layers, shape.hidden, shape.feed_forward
    mixed = shape.query_heads * shape.head_size
    heads = shape.query_heads, shape.key_heads, shape.head_size
    found: dict[str, tuple[int, int]] = {}

    def add(name: str, calls: int, moved: int, flops: int) -> None:
        before = found.get(name, (0, 0))
        found[name] = before[0] + calls * moved, before[1] + calls * flops

    add("embedding", 1, embedding.bytes_moved(tokens, width), 0)
    moved = rms_norm.bytes_moved(tokens, width, residual=False)
    add("rms_norm_quantize", 2 * layers, moved, rms_norm.flops(tokens, width, hadamard_block(width)))
    for name, (columns, depth) in shape.matmuls.items():
        op = "int8_matmul_swiglu" if name == "gate_up" else "int8_matmul"
        out_bytes, residual = (1 if name == "gate_up" else 2), name in ("out", "down")
        moved = int8_matmul.bytes_moved(tokens, columns, depth, out_bytes, residual=residual)
        add(f"{op} {columns} x {depth}", layers, moved, int8_matmul.flops(tokens, columns, depth))
    add("rope_", layers, rope.bytes_moved(tokens, *heads), rope.flops(tokens, *heads))
    flops = attention.flops([tokens], shape.query_heads, shape.head_size)
    add("attention", layers, attention.bytes_moved([tokens], *heads), flops)
    for columns in (mixed, wide):
        moved = quantize.bytes_moved(tokens, columns)
        flops = quantize.flops(tokens, columns, hadamard_block(columns))
        add(f"quantize_rows {tokens} x {columns}", layers, moved, flops)
    add("swiglu", layers, swiglu.bytes_moved(tokens, wide, quantized=False), swiglu.flops(tokens, wide))
    add("rms_norm", 2 * layers, rms_norm.bytes_moved(tokens, width, residual=False, quantized=False), 0)
    chunks = -(-tokens // 128)
    add("pool", 1, pool.bytes_moved(tokens, chunks, width, "sum"), pool.flops(tokens, width, "sum"))
    return found


def main(argv: list[str] | None = None) -> int:
    """Profiles one warmed forward and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("trace.json"), help="the Chrome trace")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args(argv)
    cuda = torch.cuda.is_available()
    if not cuda and not args.dry_run:
        parser.error("torch sees no GPU here; give --dry-run to prove the code paths on the CPU")
    shape, tokens = (TINY, 9) if args.dry_run else (QWEN_7B, args.tokens)
    device = torch.device("cuda" if cuda else "cpu")
    ceilings = gpu_timing.ceilings(args.dry_run)
    for module, names in PLACES.items():
        for name in names:
            setattr(module, name, ranged(name, getattr(module, name)))
    source = gpu_model.Synthetic(shape, device)
    # int8 on the CPU has a layer of its own without these ops, so a dry run there takes bfloat16.
    precision = "int8" if cuda else "bfloat16"
    backbone = load_backbone(
        gpu_model.config_of(shape), source, [shape.layers], precision, device=device, matrices=source
    )  # fmt: skip
    runner = engine_runner.Runner(backbone, ["mean"])
    batch = pack([[position % 100 for position in range(tokens)]], device)
    for _ in range(2):
        runner.step(batch)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    with profile(activities=activities) as profiler:
        runner.step(batch)
        if cuda:
            torch.cuda.synchronize()
    if cuda:
        torch.cuda.profiler.stop()
    profiler.export_chrome_trace(str(args.out))
    print_table(profiler, work(shape, tokens), ceilings, cuda)
    print(f"trace: {args.out} (open in chrome://tracing or ui.perfetto.dev)")
    return 0


def print_table(
    profiler: Any, expected: dict[str, tuple[int, int]], ceilings: dict[str, float], cuda: bool
) -> None:  # fmt: skip
    """One line a range: calls, microseconds, and the share of its roofline."""
    total = 0.0
    print(f"{'op':44}{'calls':>6}{'us':>12}{'floor us':>12}{'of roofline':>13}")
    for event in profiler.key_averages():
        if event.key not in expected:
            continue
        moved, flops = expected[event.key]
        rate = ceilings["int8_ops" if event.key.startswith("int8") else "bf16_flops"]
        floor = max(moved / ceilings["copy_bytes_per_s"], flops / rate) * 1e6
        spent = event.device_time_total if cuda else event.cpu_time_total
        total += spent
        print(f"{event.key:44}{event.count:6}{spent:12.1f}{floor:12.1f}{100 * floor / max(spent, 1e-9):11.1f} %")
    print(f"{'together':50}{total:12.1f}")


if __name__ == "__main__":
    sys.exit(main())
