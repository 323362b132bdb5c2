"""What bench/gpu.py times: every kernel at the shapes of one model, with its bytes, operations and baselines.

Enters: a device, a model shape. Leaves: cases. A case's inputs are made when it is run, as often as its timing
needs; on the meta device they are made without memory, which is how all cases are compiled ahead, in parallel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from gpu_baselines import packed_baselines, sdpa_baselines
from torch import Tensor

from onebeat.kernels import attention, embedding, int8_matmul, pool, quantize, rms_norm, rope, swiglu
from onebeat.kernels.backend import Facts, Launch
from onebeat.kernels.cpu.hadamard import hadamard, hadamard_block
from onebeat.kernels.shapes import ModelShape

Run = Callable[[], object]
COMPILED_AT = (64, 4096)
"""Tokens at which torch.compile is a baseline of the fused rows: it takes seconds a case."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one shape."""

    op: str
    name: str
    tokens: int
    flops: int
    bytes_moved: int
    ceiling: str
    """Which of the measured ceilings counts beside copy bandwidth: bf16_flops or int8_ops."""
    launch: Callable[[], Launch]
    """Makes fresh inputs and the launch over them."""
    baselines: dict[str, Callable[[], Run]] = field(default_factory=dict)
    """By name: makes fresh inputs and the function that computes the same with a library."""

    def floor_us(self, ceilings: dict[str, float]) -> float:
        """The time that the larger of bytes over bandwidth and operations over rate takes."""
        return max(self.bytes_moved / ceilings["copy_bytes_per_s"], self.flops / ceilings[self.ceiling]) * 1e6


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes inputs on one device."""

    device: torch.device
    gpu: Facts
    dtype: torch.dtype = torch.bfloat16

    def rand(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers in the activations' type."""
        return torch.randn(shape, device=self.device, dtype=torch.float32).to(dtype or self.dtype)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """An output."""
        return torch.empty(shape, device=self.device, dtype=dtype or self.dtype)

    def int8(self, *shape: int) -> Tensor:
        """Numbers over all of int8 but -128."""
        return torch.randint(-127, 128, shape, dtype=torch.int8, device=self.device)

    def scales(self, count: int) -> Tensor:
        """Small positive scales."""
        return torch.full((count,), 0.001, device=self.device)

    def signs(self, block: int) -> Tensor:
        """The transform's matrix of +1 and -1, for what is done in plain torch. [block, block]"""
        return hadamard(torch.eye(block, device=self.device), block).to(self.dtype)

    def bounds(self, lengths: list[int]) -> Tensor:
        """cu_seqlens of packed sequences."""
        return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(self.device)


def matmul_cases(make: Maker, shape: ModelShape, tokens: int) -> Iterator[Case]:
    """The four products of a layer, each with the epilogue that the model gives it."""
    for name, (columns, depth) in shape.matmuls.items():
        gated = name == "gate_up"

        def launch(columns: int = columns, depth: int = depth, name: str = name, gated: bool = gated) -> Launch:
            out = make.empty(tokens, columns // 2 if gated else columns)
            return int8_matmul.plan(
                make.int8(tokens, depth), make.scales(tokens), make.int8(columns, depth), make.scales(columns), out,
                residual=make.rand(tokens, columns) if name in ("out", "down") else None, swiglu=gated, gpu=make.gpu,
            )  # fmt: skip

        def cublas(columns: int = columns, depth: int = depth) -> Run:
            x, w = make.rand(tokens, depth), make.rand(columns, depth)
            return lambda: F.linear(x, w)

        def int_mm(columns: int = columns, depth: int = depth) -> Run:
            a, w = make.int8(tokens, depth), make.int8(columns, depth)
            return lambda: torch._int_mm(a, w.t())

        moved = int8_matmul.bytes_moved(tokens, columns, depth, 1 if gated else 2, residual=name in ("out", "down"))
        yield Case(
            "int8_matmul_swiglu" if gated else "int8_matmul", name, tokens,
            int8_matmul.flops(tokens, columns, depth), moved, "int8_ops", launch,
            {"bf16 cuBLAS": cublas, "torch._int_mm": int_mm},
        )  # fmt: skip


def attention_case(make: Maker, shape: ModelShape, name: str, lengths: list[int]) -> Case:
    """Causal attention over sequences of these lengths."""
    heads, key_heads, size = shape.query_heads, shape.key_heads, shape.head_size
    tokens = sum(lengths)

    def qkv() -> tuple[Tensor, Tensor, Tensor]:
        fused = make.rand(tokens, heads + 2 * key_heads, size)
        return fused[:, :heads], fused[:, heads:-key_heads], fused[:, -key_heads:]

    def launch() -> Launch:
        q, k, v = qkv()
        return attention.plan(
            q, k, v, make.bounds(lengths), max(lengths), make.empty(tokens, heads, size),
            scale=size**-0.5, window=None, gpu=make.gpu,
        )  # fmt: skip

    baselines = sdpa_baselines(qkv) if len(lengths) == 1 else packed_baselines(qkv, make.bounds(lengths), max(lengths))
    flops = attention.flops(lengths, heads, size)
    moved = attention.bytes_moved(lengths, heads, key_heads, size)
    return Case("attention", name, tokens, flops, moved, "bf16_flops", launch, baselines)


def norm_cases(make: Maker, shape: ModelShape, tokens: int) -> Iterator[Case]:
    """Norm with residual and quantisation; quantisation alone; SwiGLU with and without.

    What is quantised is transformed first, as in the engine.
    """
    width, wide = shape.hidden, shape.feed_forward
    block, wide_block = hadamard_block(width), hadamard_block(wide)
    signs, wide_signs = make.signs(block), make.signs(wide_block)

    def norm_inputs() -> tuple[Tensor, Tensor, Tensor]:
        return make.rand(tokens, width), make.rand(width), make.rand(tokens, width)

    def norm() -> Launch:
        (x, weight, residual), out, summed = norm_inputs(), make.int8(tokens, width), make.empty(tokens, width)
        return rms_norm.plan(x, weight, 1e-6, residual, out, make.scales(tokens), summed, make.gpu, block)

    yield _row_case(
        "rms_norm_quantize", tokens, rms_norm.bytes_moved(tokens, width), norm, norm_inputs,
        lambda x, weight, residual: unfused_norm(x, weight, residual, signs),
    )  # fmt: skip
    for columns, run, matrix in ((width, block, signs), (wide, wide_block, wide_signs)):

        def rows(columns: int = columns) -> tuple[Tensor]:
            return (make.rand(tokens, columns),)

        def quantized(columns: int = columns, run: int = run) -> Launch:
            return quantize.plan(*rows(columns), make.int8(tokens, columns), make.scales(tokens), make.gpu, run)

        def unfused(x: Tensor, matrix: Tensor = matrix) -> object:
            return unfused_quantize(x, matrix)

        moved = quantize.bytes_moved(tokens, columns)
        yield _row_case(f"quantize_rows {columns}", tokens, moved, quantized, rows, unfused)

    def gate_up() -> tuple[Tensor]:
        return (make.rand(tokens, 2 * wide),)

    yield _row_case(
        "swiglu_quantize", tokens, swiglu.bytes_moved(tokens, wide),
        lambda: swiglu.plan(*gate_up(), make.int8(tokens, wide), make.scales(tokens), make.gpu, wide_block), gate_up,
        lambda pairs: unfused_quantize(unfused_swiglu(pairs), wide_signs),
    )  # fmt: skip
    yield _row_case(
        "swiglu", tokens, swiglu.bytes_moved(tokens, wide, quantized=False),
        lambda: swiglu.plan(*gate_up(), make.empty(tokens, wide), None, make.gpu), gate_up, unfused_swiglu,
    )  # fmt: skip


def other_row_cases(make: Maker, shape: ModelShape, tokens: int) -> Iterator[Case]:
    """Positions with bias and cache, embedding, pooling."""
    half, width = shape.head_size // 2, shape.hidden
    positions = torch.arange(tokens, device=make.device)
    cos, sin = make.rand(tokens, half, dtype=torch.float32), make.rand(tokens, half, dtype=torch.float32)

    def turned() -> tuple[Tensor, Tensor]:
        return make.rand(tokens, shape.qkv), make.rand(shape.qkv)

    def launch() -> Launch:
        qkv, bias = turned()
        blocks = -(-tokens // 128)
        caches = [make.empty(blocks, 128, shape.key_heads, shape.head_size) for _ in range(2)]
        cache = caches[0], caches[1], positions
        return rope.plan(
            qkv, cos, sin, positions, shape.query_heads, shape.key_heads, bias, None, 1e-6, cache, make.gpu
        )  # fmt: skip

    moved = rope.bytes_moved(tokens, shape.query_heads, shape.key_heads, shape.head_size, cached=True)
    yield _row_case(
        "rope", tokens, moved, launch, turned,
        lambda qkv, bias: unfused_rope(qkv, bias, cos, sin, shape.query_heads, shape.key_heads),
    )  # fmt: skip
    vocabulary = min(shape.vocabulary, 32768)

    def looked_up() -> tuple[Tensor, Tensor]:
        return torch.randint(vocabulary, (tokens,), device=make.device), make.rand(vocabulary, width)

    yield _row_case(
        "embedding", tokens, embedding.bytes_moved(tokens, width),
        lambda: embedding.plan(*looked_up(), make.empty(tokens, width), make.gpu), looked_up,
        lambda ids, table: F.embedding(ids, table),
    )  # fmt: skip
    lengths = [128] * (tokens // 128) + [tokens % 128] * (tokens % 128 > 0)
    bounds = make.bounds(lengths)

    def pooled() -> tuple[Tensor]:
        return (make.rand(tokens, width),)

    yield _row_case(
        "pool", tokens, pool.bytes_moved(tokens, len(lengths), width, "sum"),
        lambda: pool.plan(*pooled(), bounds, "sum", make.empty(len(lengths), width, dtype=torch.float32), make.gpu),
        pooled, lambda x: torch.stack([part.float().sum(0) for part in x.split(lengths)]),
    )  # fmt: skip


def _row_case(
    op: str,
    tokens: int,
    moved: int,
    launch: Callable[[], Launch],
    inputs: Callable[[], tuple[Tensor, ...]],
    unfused: Callable[..., object],
) -> Case:
    """A fused row op beside unfused torch and the same through torch.compile."""

    def eager() -> Run:
        given = inputs()
        return lambda: unfused(*given)

    def compiled() -> Run:
        torch._dynamo.reset()
        given, function = inputs(), torch.compile(unfused, dynamic=False)
        return lambda: function(*given)

    baselines = {"torch": eager, "torch.compile": compiled}
    if tokens not in COMPILED_AT:
        del baselines["torch.compile"]
    return Case(op, "", tokens, 0, moved, "bf16_flops", launch, baselines)


def unfused_norm(x: Tensor, weight: Tensor, residual: Tensor, signs: Tensor) -> object:
    """RMS norm of a sum, quantised, in plain torch."""
    summed = x + residual
    return unfused_quantize(F.rms_norm(summed, (x.shape[1],), weight, 1e-6), signs), summed


def unfused_quantize(x: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Rows times the transform's matrix, then one int8 scale a row, in plain torch."""
    wide = (x.view(-1, len(signs)) @ signs).view(x.shape).float()
    scale = wide.abs().amax(dim=1, keepdim=True) / 127
    return (wide / scale).round().to(torch.int8), scale


def unfused_swiglu(gate_up: Tensor) -> Tensor:
    """SwiGLU of interleaved pairs, in plain torch."""
    return F.silu(gate_up[:, 0::2]) * gate_up[:, 1::2]


def unfused_rope(
    qkv: Tensor, bias: Tensor, cos: Tensor, sin: Tensor, query_heads: int, key_heads: int
) -> object:  # fmt: skip
    """Bias, then rotation of q and k, in plain torch; v is copied as the cache's write would."""
    heads = (qkv + bias).view(len(qkv), query_heads + 2 * key_heads, -1)
    low, high = heads[:, : query_heads + key_heads].chunk(2, dim=-1)
    c, s = cos[:, None].to(qkv.dtype), sin[:, None].to(qkv.dtype)
    return torch.cat([low * c - high * s, high * c + low * s], dim=-1), heads[:, -key_heads:].clone()


def cases(make: Maker, shape: ModelShape, tokens: tuple[int, ...], lengths: list[int]) -> Iterator[Case]:
    """Everything that is timed. `lengths` is the packed batch of attention."""
    for count in tokens:
        yield from matmul_cases(make, shape, count)
    for count in tokens:
        if count >= 64 or count == tokens[0]:
            yield attention_case(make, shape, f"1 x {count}", [count])
    yield attention_case(make, shape, f"{len(lengths)} packed", lengths)
    for count in tokens:
        yield from norm_cases(make, shape, count)
        yield from other_row_cases(make, shape, count)
