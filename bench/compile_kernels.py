"""Compiles every kernel in every configuration of the tuning table, without a GPU, and reports what came out.

    python bench/compile_kernels.py [--arch sm_90 ...] [--full] [--jobs 2] [--out bench/results/compile_report.json]

For each: registers a thread, spilled bytes, shared memory, and the matrix instruction. The specialisation (types,
alignment, constants) is the one that a launch at the shapes of Qwen2.5-7B would get, for it is made by the same code.
`--full` adds the rarer variants: float16, float32, sliding window, paged, per-head norms, depths that do not divide.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.pop("TRITON_INTERPRET", None)

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from onebeat.kernels import attention, embedding, int8_matmul, pool, quantize, rms_norm, rope, swiglu, tuning  # noqa: E402
from onebeat.kernels.backend import Facts, Launch, triton  # noqa: E402
from onebeat.kernels.cpu.hadamard import hadamard_block  # noqa: E402
from onebeat.kernels.shapes import QWEN_7B, SMOLLM_135M, ModelShape  # noqa: E402

ARCHES = ("sm_80", "sm_89", "sm_90", "sm_100")
SHARED_LIMITS = {"sm_80": 163 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
"""Shared memory that one block may have, in bytes."""
INSTRUCTIONS = ("tcgen05.mma", "wgmma.mma_async", "mma.sync", "v_mfma")


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor that exists on paper."""
    return torch.empty(shape, dtype=dtype, device="meta")


def matmul_launches(gpu: Facts, shape: ModelShape, full: bool) -> Iterator[tuple[str, Launch]]:
    """Every tile size of the table, split and whole."""
    for entry in tuning.table():
        here = tuning.fits(
            entry, entry.op, dataclasses.replace(gpu, name=entry.gpu or gpu.name), tuning.nearest_arch(gpu.arch)
        )
        if not here or entry.op == "attention" or replaced(entry):
            continue
        assert isinstance(entry.config, tuning.MatmulConfig)
        rows = entry.rows_to or 4096
        gate_up = entry.op == "int8_matmul_swiglu"
        for name in ("gate_up",) if gate_up else ("qkv", "down"):
            columns, depth = shape.matmuls[name]
            for odd in (0, 24) if full else (0,):
                a, weight = empty(rows, depth - odd, dtype=torch.int8), empty(columns, depth - odd, dtype=torch.int8)
                scales = empty(rows, dtype=torch.float32), empty(columns, dtype=torch.float32)
                out = empty(rows, columns // 2 if gate_up else columns)
                launch = int8_matmul.plan(
                    a, scales[0], weight, scales[1], out,
                    bias=empty(columns) if name == "qkv" else None, residual=out if name == "down" else None,
                    swiglu=gate_up, config=entry.config, gpu=gpu,
                )  # fmt: skip
                yield f"{entry.op} {name} to {entry.rows_to or 'any'} rows{' odd depth' * bool(odd)}", launch


def replaced(entry: tuning.Entry) -> bool:
    """Whether another entry takes this one's place under the Triton at hand."""
    own = dataclasses.replace(entry, triton=tuning.triton_version())
    place = ("op", "arch", "gpu", "triton", "rows_to", "columns", "depth")
    return entry.triton is None and any(
        all(getattr(other, name) == getattr(own, name) for name in place) for other in tuning.table()
    )


def attention_launches(gpu: Facts, full: bool) -> Iterator[tuple[str, Launch]]:
    """Every head size, plain and paged."""
    bounds = empty(65, dtype=torch.int32)
    tables = empty(64, dtype=torch.int32), empty(64, 16, dtype=torch.int32)
    for head_size in (64, 96, 128):
        for dtype in (torch.bfloat16, torch.float16, torch.float32) if full else (torch.bfloat16,):
            for block, window in ((None, None), (128, None), (16, None), (None, 4096), (16, 4096)):
                if (window is not None or block == 16) and not full and (head_size, gpu.arch) != (128, "sm_90"):
                    continue
                qkv = empty(4096, 36, head_size, dtype=dtype)
                cache = qkv[:, 28:32] if block is None else empty(512, block, 4, head_size, dtype=dtype)
                paged = None if block is None else tables
                launch = attention.plan(
                    qkv[:, :28], cache, cache, bounds, 512, empty(4096, 28, head_size, dtype=dtype),
                    scale=0.1, window=window, paged=paged, gpu=gpu,
                )  # fmt: skip
                name = f"attention {head_size} {str(dtype)[6:]}"
                yield name + (f" paged {block}" if block else "") + (" window" if window else ""), launch


def row_launches(gpu: Facts, shape: ModelShape, full: bool) -> Iterator[tuple[str, Launch]]:
    """The fused rows at the model's widths."""
    tokens, wide = 4096, shape.feed_forward
    x, weight, ids = empty(tokens, shape.hidden), empty(shape.hidden), empty(tokens, dtype=torch.int64)
    yield "rms_norm", rms_norm.plan(x, weight, 1e-6, x, x, None, x, gpu)
    yield "rms_norm first", rms_norm.plan(x, weight, 1e-6, None, x, None, None, gpu)
    yield "swiglu", swiglu.plan(empty(tokens, 2 * wide), empty(tokens, wide), None, gpu)
    yield "embedding", embedding.plan(ids, empty(shape.vocabulary, shape.hidden), x, gpu)
    for mode in ("mean", "last"):
        pooled = empty(64, shape.hidden, dtype=torch.float32)
        yield f"pool {mode}", pool.plan(x, empty(65, dtype=torch.int32), mode, pooled, gpu)
    features, head = empty(64, 2 * shape.hidden).float(), empty(16, 2 * shape.hidden).float()
    row = features[0]
    yield "head rms", pool.plan_head(features, head, head[:, 0], row, 1e-6, None, None, head, gpu)
    yield "head standardised", pool.plan_head(features, head, head[:, 0], None, 1e-6, row, row, head, gpu)
    for norms in (False, True) if full else (False,):
        for cached in (False, True):
            half = empty(32768, shape.head_size // 2, dtype=torch.float32)
            cache = empty(512, 128, shape.key_heads, shape.head_size)
            gains = (empty(shape.head_size), empty(shape.head_size)) if norms else None
            launch = rope.plan(
                empty(tokens, shape.qkv), half, half, ids, shape.query_heads, shape.key_heads, empty(shape.qkv), gains,
                1e-6, (cache, cache, ids) if cached else None, gpu,
            )  # fmt: skip
            yield "rope" + " norms" * norms + " cache" * cached, launch


def quantizing_launches(
    gpu: Facts, shape: ModelShape, hadamard: int, dtype: torch.dtype = torch.bfloat16
) -> Iterator[tuple[str, Launch]]:
    """The rows that end in int8, transformed as the engine does or not at all."""
    tokens, scale = 4096, empty(4096, dtype=torch.float32)
    x, gate_up = empty(tokens, shape.hidden, dtype=dtype), empty(tokens, 2 * shape.feed_forward, dtype=dtype)
    after = f" block {hadamard}" * (hadamard > 1) + f" {str(dtype)[6:]}" * (dtype != torch.bfloat16)
    for residual in (x, None):
        name = f"rms_norm_quantize {shape.hidden}{'' if residual is not None else ' first'}{after}"
        rows = empty(tokens, shape.hidden, dtype=torch.int8)
        yield name, rms_norm.plan(x, x[0], 1e-6, residual, rows, scale, residual, gpu, hadamard)
    for width in (shape.hidden, shape.feed_forward):
        rows = empty(tokens, width, dtype=torch.int8)
        given = empty(tokens, width, dtype=dtype)
        yield f"quantize_rows {width}{after}", quantize.plan(given, rows, scale, gpu, hadamard)
    yield f"swiglu_quantize {shape.feed_forward}{after}", swiglu.plan(gate_up, rows, scale, gpu, hadamard)


def single_token_launches(gpu: Facts, shape: ModelShape) -> Iterator[tuple[str, Launch]]:
    """A prompt of one token: Triton treats the number 1 as a constant unless it is told not to."""
    columns, depth = shape.matmuls["down"]
    a, weight = empty(1, depth, dtype=torch.int8), empty(columns, depth, dtype=torch.int8)
    scales = empty(1, dtype=torch.float32), empty(columns, dtype=torch.float32)
    yield "int8_matmul of 1 row", int8_matmul.plan(a, scales[0], weight, scales[1], empty(1, columns), gpu=gpu)
    qkv, bounds = empty(1, 36, 128), empty(2, dtype=torch.int32)
    cache, paged = empty(1, 128, 4, 128), (empty(1, dtype=torch.int32), empty(1, 1, dtype=torch.int32))
    for keys, where in ((qkv[:, 28:32], None), (cache, paged)):
        launch = attention.plan(
            qkv[:, :28], keys, keys, bounds, 1, empty(1, 28, 128), scale=0.1, window=None, paged=where, gpu=gpu
        )
        yield f"attention of 1 token{'' if where is None else ' paged'}", launch
    x = empty(1, shape.hidden)
    yield "pool of 1 token", pool.plan(x, bounds, "mean", empty(1, shape.hidden, dtype=torch.float32), gpu)


def launches(gpu: Facts, full: bool) -> Iterator[tuple[str, Launch]]:
    """Everything that is compiled for one GPU, and one of each kind for a single token."""
    yield from single_token_launches(gpu, QWEN_7B)
    yield from matmul_launches(gpu, QWEN_7B, full)
    yield from attention_launches(gpu, full)
    yield from row_launches(gpu, QWEN_7B, full)
    yield from quantizing_launches(gpu, QWEN_7B, 1)
    for shape in (QWEN_7B, SMOLLM_135M):
        for dtype in (torch.bfloat16, torch.float16, torch.float32) if full else (torch.bfloat16,):
            yield from quantizing_launches(gpu, shape, hadamard_block(shape.hidden), dtype)


def compile_launch(launch: Launch, arch: str) -> dict[str, Any]:
    """Compiles without a GPU, specialised as the launch would be, and reads the result."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    cuda = arch.startswith("sm_")
    target = GPUTarget("cuda", int(arch[3:]), 32) if cuda else GPUTarget("hip", arch, 64)
    backend = make_backend(target)
    kernel = launch.kernel
    options = {key: value for key, value in launch.options.items() if cuda or key != "launch_pdl"}
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = binder(*launch.arguments, **launch.constants, **options)
    signature, constants, attributes = {}, {}, {}
    for index, (name, (kind, attribute)) in enumerate(zip(bound, specialization, strict=True)):
        signature[name] = kind
        if kind == "constexpr":
            constants[(index,)] = bound[name] if attribute is None else attribute
        elif attribute:
            attributes[(index,)] = backend.parse_attr(attribute)
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=options)
    text = compiled.asm["ptx" if cuda else "amdgcn"]
    found = next((name for name in INSTRUCTIONS if name in text), None)
    usage = cuda_usage(compiled.asm["cubin"]) if cuda else amd_usage(text)
    usage["shared_bytes"] = compiled.metadata.shared
    return {**usage, "matrix_instruction": found}


def cuda_usage(cubin: bytes) -> dict[str, int]:
    """Registers a thread and bytes of stack (what is spilled lies there), as cuobjdump reads them from the binary."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert found is not None, text
    return {"registers": int(found[1]), "spilled_bytes": int(found[2]) + int(found[3])}


def amd_usage(text: str) -> dict[str, int]:
    """Vector registers a lane and scratch bytes, from the assembly's own metadata."""
    registers = re.search(r"\.vgpr_count:\s+(\d+)", text)
    spilled = re.search(r"\.private_segment_fixed_size:\s+(\d+)", text)
    assert registers is not None and spilled is not None
    return {"registers": int(registers[1]), "spilled_bytes": int(spilled[1])}


def compile_one(arch: str, full: bool, index: int) -> dict[str, Any]:
    """One line of the report."""
    name, launch = list(launches(gpu_of(arch), full))[index]
    line = {"arch": arch, "kernel": name, "warps": launch.warps, "stages": launch.stages}
    line["tiles"] = {key: value for key, value in launch.constants.items() if key.startswith("BLOCK")}
    line |= {key.lower(): launch.constants[key] for key in ("SPLIT", "TMA", "SWAP") if key in launch.constants}
    return line | compile_launch(launch, arch)


def gpu_of(arch: str) -> Facts:
    """A GPU of that arch, as large as the largest of its kind."""
    return Facts("", arch, {"sm_80": 108, "sm_89": 128, "sm_90": 132, "sm_100": 148}.get(arch, 304))


def seen_by_compiler(value: object) -> str:
    """What of an argument leads to another compilation: a tensor's type, whether a number is 1 or a multiple of 16."""
    if isinstance(value, Tensor):
        return str(value.dtype)
    return f"{type(value).__name__} {(value == 1, value % 16 == 0) if isinstance(value, int) else ''}"


def distinct(arch: str, full: bool) -> list[int]:
    """Indices of launches that differ in what the compiler sees."""
    seen: dict[str, int] = {}
    for index, (_, launch) in enumerate(launches(gpu_of(arch), full)):
        kinds = [seen_by_compiler(value) for value in launch.arguments]
        seen.setdefault(repr((launch.kernel, kinds, sorted(launch.constants.items()), launch.options)), index)
    return sorted(seen.values())


def main() -> int:
    """Compiles, writes the report, prints it. Returns 1 where something hot spills or does not fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=list(ARCHES), help="sm_80 sm_89 sm_90 sm_100 gfx942")
    parser.add_argument("--full", action="store_true", help="the rarer variants too")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    jobs = [(arch, args.full, index) for arch in args.arch for index in distinct(arch, args.full)]
    with ProcessPoolExecutor(args.jobs) as workers:
        lines = list(workers.map(compile_one, *zip(*jobs, strict=True)))
    for line in lines:
        print(
            f"{line['arch']:7}{line['kernel']:44}{line['registers']:4} regs {line['spilled_bytes']:5} spilled "
            f"{line['shared_bytes']:7} shared  {line['matrix_instruction'] or '-'}  {line['tiles']}"
        )
    report = {"triton": triton.__version__, "torch": torch.__version__, "full": args.full, "kernels": lines}
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if any(line["shared_bytes"] > SHARED_LIMITS[line["arch"]] for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
