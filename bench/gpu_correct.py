"""Every kernel against float64 on fresh random inputs of odd shapes, and the promises about bits, on whatever runs
kernels.

Enters: a device. Leaves: one record a check: the error, what is allowed, and whether it holds. Without a GPU the
interpreter runs them: small, and in float16 and float32, for it multiplies bf16 wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from gpu_cases import Maker
from torch import Tensor

from onebeat.kernels import (
    attention,
    embedding,
    int8_matmul,
    paged_attention,
    pool,
    quantize,
    rms_norm,
    rope,
    swiglu,
    tuning,
)
from onebeat.kernels.cpu.hadamard import hadamard_block

ALLOWED = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Of a result's own size or the mean size, whichever is larger: a few roundings of the type."""


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison."""

    name: str
    error: float
    allowed: float

    @property
    def holds(self) -> bool:
        """NaN never holds."""
        return self.error <= self.allowed

    def json(self) -> dict[str, object]:
        """For the report."""
        return {"name": self.name, "error": self.error, "allowed": self.allowed, "holds": self.holds}


def close(name: str, actual: Tensor, expected: Tensor) -> Check:
    """The largest error, as a share of the value's size."""
    size = expected.double().abs().clamp(min=max(expected.double().abs().mean().item(), 1e-30))
    error = ((actual.double() - expected.double()).abs() / size).max().item() if actual.numel() else 0.0
    return Check(f"{name} {str(actual.dtype)[6:]}", error, ALLOWED[actual.dtype])


def same(name: str, actual: Tensor, expected: Tensor) -> Check:
    """How many elements differ; none may."""
    return Check(name, float((actual != expected).sum().item()), 0.0)


def poisoned(make: Maker, *shape: int, dtype: torch.dtype) -> Tensor:
    """An output full of NaN, or of 77."""
    return torch.full(shape, float("nan") if dtype.is_floating_point else 77, dtype=dtype, device=make.device)


def attention_checks(make: Maker, dtypes: tuple[torch.dtype, ...], small: bool) -> Iterator[Check]:
    """Lengths that end in the middle of tiles, groups of 1, 3, 7 and 8, windows, the paged cache, and bits."""
    packed = [123] * 2 + [0, 1, 40] if small else [123] * 5 + [0, 1, 700, 0, 65, *range(1, 40)]
    groups = ((3, 1, 64), (7, 1, 128)) if small else ((4, 4, 64), (9, 3, 64), (28, 4, 128), (16, 2, 96), (32, 4, 128))
    for dtype in dtypes:
        for heads, key_heads, size in groups:
            q, k, v = (make.rand(sum(packed), count, size, dtype=dtype) for count in (heads, key_heads, key_heads))
            for window in (None, 50):
                out = run_attention(make, q, k, v, packed, window)
                expected = attention.reference(q, k, v, make.bounds(packed), window=window)
                name = f"attention {heads}/{key_heads} of {size}{' window' if window else ''}"
                yield close(name, out, expected)
            yield from paged_checks(make, q, k, v, packed)


def run_attention(
    make: Maker, q: Tensor, k: Tensor, v: Tensor, lengths: list[int], window: int | None, paged: object = None
) -> Tensor:
    """The kernel over poisoned memory."""
    out = poisoned(make, *q.shape, dtype=q.dtype)
    attention.plan(
        q, k, v, make.bounds(lengths), max(lengths), out,
        scale=q.shape[-1] ** -0.5, window=window, paged=paged, gpu=make.gpu,
    ).run()  # fmt: skip
    return out


def paged_checks(make: Maker, q: Tensor, k: Tensor, v: Tensor, packed: list[int]) -> Iterator[Check]:
    """The last tokens of each sequence against a shuffled cache whose unused rows are NaN; and the same bits as
    unpaged.
    """
    block, chunk = 16, 37
    used = [-(-length // block) for length in packed]
    order = torch.randperm(sum(used) + 1).tolist()
    caches = [poisoned(make, len(order), block, *x.shape[1:], dtype=x.dtype) for x in (k, v)]
    table = torch.zeros(len(packed), max(used), dtype=torch.int32)
    start, rows, chunks = 0, [], []
    for index, length in enumerate(packed):
        for number in range(used[index]):
            place = table[index, number] = order.pop()
            piece = slice(start + number * block, start + min((number + 1) * block, length))
            for cache, x in zip(caches, (k, v), strict=True):
                cache[place, : piece.stop - piece.start] = x[piece]
        chunks.append(min(chunk, length))
        rows += range(start + length - chunks[-1], start + length)
        start += length
    context = torch.tensor(packed, dtype=torch.int32, device=make.device)
    table = table.to(make.device)
    at = torch.tensor(rows, device=make.device)
    out = run_attention(make, q[at], caches[0], caches[1], chunks, None, (context, table))
    clean = [cache.nan_to_num(0.0) for cache in caches]
    expected = paged_attention.reference(q[at], *clean, make.bounds(chunks), context, table)
    yield close(f"paged_attention {q.shape[1]}/{k.shape[1]} of {q.shape[2]}", out, expected)
    if make.device.type == "cuda":  # numpy's products depend on a row's place in its tile, so the interpreter's do too
        whole = run_attention(make, q, k, v, packed, None)
        yield same(f"paged and chunked bits {q.shape[1]}/{k.shape[1]} of {q.shape[2]}", out, whole[at])
        longest = max(range(len(packed)), key=packed.__getitem__)
        first = sum(packed[:longest])
        own = slice(first, first + packed[longest])
        alone = run_attention(make, q[own], k[own], v[own], [packed[longest]], None)
        yield same(f"alone and packed bits {q.shape[1]}/{k.shape[1]} of {q.shape[2]}", alone, whole[own])


def matmul_checks(make: Maker, small: bool) -> Iterator[Check]:
    """Exact sums at odd shapes, and every configuration of this GPU's table against the first, bit by bit."""
    shapes = [(1, 40, 96), (70, 272, 272)] if small else [(1, 4608, 3584), (17, 1000, 1040), (300, 3584, 18944)]
    arch = tuning.nearest_arch(make.gpu.arch)
    for rows, columns, depth in shapes:
        a, weight = make.int8(rows, depth), make.int8(columns, depth)
        ones = torch.ones(max(rows, columns), device=make.device)
        out = poisoned(make, rows, columns, dtype=torch.float32)
        int8_matmul.plan(a, ones[:rows], weight, ones[:columns], out, gpu=make.gpu).run()
        yield same(f"int8_matmul sums {rows} x {columns} x {depth}", out.double(), exact(a, weight))
    rows, columns, depth = shapes[1]
    a, weight, bias = make.int8(rows, depth), make.int8(columns, depth), make.rand(columns, dtype=torch.float32)
    a_scale, scale = (torch.rand(count, device=make.device) / 1000 for count in (rows, columns))
    first: dict[str, Tensor] = {}
    configs = {(entry.op, entry.config) for entry in tuning.table() if entry.arch == arch}
    for op, config in sorted(configs, key=repr):
        if not isinstance(config, tuning.MatmulConfig):
            continue
        gated = op == "int8_matmul_swiglu"
        for count in (rows, 1):
            out = poisoned(make, count, columns // 2 if gated else columns, dtype=torch.float32)
            int8_matmul.plan(
                a[:count], a_scale[:count], weight, scale, out,
                bias=None if gated else bias, swiglu=gated, config=config, gpu=make.gpu,
            ).run()  # fmt: skip
            first.setdefault(op, out)
            tile = f"{config.block_m}x{config.block_n}x{config.block_k}"
            yield same(f"{op} bits {tile} {count} rows", out, first[op][:count])
    expected = int8_matmul.reference(a, a_scale, weight, scale, bias=bias)
    yield close("int8_matmul with bias", first["int8_matmul"], expected)
    expected = int8_matmul.reference_swiglu(a, a_scale, weight, scale)
    yield close("int8_matmul_swiglu", first["int8_matmul_swiglu"], expected)


def exact(a: Tensor, weight: Tensor) -> Tensor:
    """Exact sums, a few columns at a time: float64 weights of a 7B layer would take gigabytes."""
    return torch.cat([int8_matmul.exact_sums(a, part) for part in weight.split(1024)], dim=1)


def row_checks(make: Maker, dtypes: tuple[torch.dtype, ...], small: bool) -> Iterator[Check]:
    """Norms, quantising (as it is and transformed), SwiGLU, positions, embedding, pooling, head."""
    tokens, width = (5, 96) if small else (123, 3584)
    blocks = (1, hadamard_block(width))
    for dtype in dtypes:
        x, residual, weight = (make.rand(*s, dtype=dtype) for s in ((tokens, width), (tokens, width), (width,)))
        summed, out = (poisoned(make, tokens, width, dtype=dtype) for _ in range(2))
        rms_norm.plan(x, weight, 1e-6, residual, out, None, summed, make.gpu).run()
        expected, expected_sum = rms_norm.reference(x, weight, 1e-6, residual=residual)
        yield close("rms_norm", out, expected)
        if make.device.type == "cuda" or dtype != torch.bfloat16:
            yield same("rms_norm sum", summed, expected_sum)
        rows = poisoned(make, tokens, width, dtype=torch.int8)
        scale = poisoned(make, tokens, dtype=torch.float32)
        for block in blocks:
            rms_norm.plan(x, weight, 1e-6, residual, rows, scale, summed, make.gpu, block).run()
            yield quantized("rms_norm_quantize", rows, scale, expected, block)
            quantize.plan(x, rows, scale, make.gpu, block).run()
            yield quantized("quantize_rows", rows, scale, x.double(), block)
            alike = quantize.quantize_rows(x.cpu(), block)[1]
            yield same(f"quantize_rows block {block}: scales of the CPU", scale.cpu(), alike)
        gate_up = make.rand(tokens, 2 * width, dtype=dtype)
        swiglu.plan(gate_up, out, None, make.gpu).run()
        yield close("swiglu", out, swiglu.reference(gate_up))
        for block in blocks:
            swiglu.plan(gate_up, rows, scale, make.gpu, block).run()
            yield quantized("swiglu_quantize", rows, scale, swiglu.reference(gate_up), block)
        yield from position_checks(make, dtype)
        lengths = [1, 0, tokens - 1]
        for mode in ("mean", "last", "sum"):
            pooled = poisoned(make, 3, width, dtype=torch.float32)
            pool.plan(x, make.bounds(lengths), mode, pooled, make.gpu).run()
            yield close(f"pool {mode}", pooled, pool.reference(x, make.bounds(lengths), mode))
    features, weight = make.rand(3, width, dtype=torch.float32), make.rand(7, width, dtype=torch.float32)
    out = poisoned(make, 3, 7, dtype=torch.float32)
    pool.plan_head(features, weight, None, weight[0], 1e-6, None, None, out, make.gpu).run()
    yield close("head", out, pool.reference_head(features, weight, norm_weight=weight[0]))


def position_checks(make: Maker, dtype: torch.dtype) -> Iterator[Check]:
    """Bias, norms and rotation at once, with the cache's write; and the embedding."""
    heads, key_heads, size = 9, 3, 64
    qkv = make.rand(5, (heads + 2 * key_heads) * size, dtype=dtype)
    bias, norm = make.rand(qkv.shape[1], dtype=dtype), make.rand(size, dtype=dtype)
    angles = make.rand(40, size // 2, dtype=torch.float32)
    at, slots = (torch.tensor(places, device=make.device) for places in ([0, 39, 7, 7, 1], [8, 0, 3, 15, 4]))
    expected = rope.reference(
        qkv, angles.cos(), angles.sin(), at, query_heads=heads, key_heads=key_heads, bias=bias, q_norm=norm, k_norm=norm
    )  # fmt: skip
    caches = [poisoned(make, 4, 4, key_heads, size, dtype=dtype) for _ in range(2)]
    cache = caches[0], caches[1], slots
    rope.plan(qkv, angles.cos(), angles.sin(), at, heads, key_heads, bias, (norm, norm), 1e-6, cache, make.gpu).run()
    yield close("rope", qkv, expected)
    yield same("rope's cache", caches[1].view(16, -1)[slots], qkv[:, -key_heads * size :])
    out = poisoned(make, 5, qkv.shape[1], dtype=dtype)
    embedding.plan(slots % 5, qkv, out, make.gpu).run()
    yield same("embedding", out, qkv[slots % 5])


def quantized(name: str, rows: Tensor, scale: Tensor, expected: Tensor, hadamard: int) -> Check:
    """How far the integers lie from the numbers that were to be rounded, beyond the half that rounding takes."""
    real, exact_scale = quantize.reference(expected, hadamard)
    error = ((rows.double() - real).abs() - 0.5).max().item()
    name += f" block {hadamard}" * (hadamard > 1)
    return Check(name, max(error, ((scale.double() - exact_scale).abs() / exact_scale).max().item(), 0.0), 1e-3)


def checks(make: Maker, small: bool) -> Iterator[Check]:
    """Everything."""
    dtypes = (torch.float16, torch.bfloat16) if make.device.type == "cuda" else (torch.float16,)
    yield from attention_checks(make, dtypes, small)
    yield from matmul_checks(make, small)
    yield from row_checks(make, (*dtypes, torch.float32), small)
