"""Rotary positions on q and k, in place in the fused qkv; the bias is added before, the paged cache written after.

    (x1, x2) = halves of a head;  out = (x1 cos - x2 sin, x2 cos + x1 sin)   with cos, sin of the token's position

Source: Su et al., arXiv:2104.09864, in the half-split layout of Hugging Face's llama and qwen2. Qwen3 norms each
head of q and k before it turns them: `q_norm`, `k_norm`. `slots` are flat rows of the cache (block * block_size + row).
"""

from __future__ import annotations

import torch
from torch import Tensor

from onebeat.kernels.backend import (
    Facts,
    Launch,
    facts,
    gdc_launch_dependents,
    gdc_wait,
    jit,
    pdl_options,
    power_of_two,
    tl,
)
from onebeat.kernels.checks import FLOATS, INDEX, expect, expect_heads, expect_range, refuse
from onebeat.kernels.cpu.rope import rope_ as cpu_rope_


@jit
def _rope_kernel(
    qkv: tl.pointer_type,  # float [T, (NQ + 2 NKV) D], changed in place
    cos: tl.pointer_type,  # float [P, D/2]
    sin: tl.pointer_type,  # float [P, D/2]
    positions: tl.pointer_type,  # int [T]
    bias: tl.pointer_type,  # float [(NQ + 2 NKV) D], or None
    q_norm: tl.pointer_type,  # float [D], or None
    k_norm: tl.pointer_type,  # float [D], or None
    key_cache: tl.pointer_type,  # like qkv [slots, NKV, D], or None
    value_cache: tl.pointer_type,
    slots: tl.pointer_type,  # int [T], or None
    known_positions: tl.tensor,  # P
    cache_rows: tl.tensor,  # slots there are
    norm_eps: tl.tensor,
    QUERY_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HALF: tl.constexpr,  # D/2
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BIAS: tl.constexpr,
    NORM: tl.constexpr,
    CACHE: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    turned = (head < QUERY_HEADS + KEY_HEADS)[:, None]
    lane = tl.arange(0, BLOCK_HALF)
    inside = (head < QUERY_HEADS + 2 * KEY_HEADS)[:, None] & (lane < HALF)[None, :]
    place = (head * 2 * HALF)[:, None] + lane[None, :]
    row = qkv + token * (QUERY_HEADS + 2 * KEY_HEADS) * 2 * HALF
    low = tl.load(row + place, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(row + place + HALF, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        low += tl.load(bias + place, mask=inside, other=0.0).to(tl.float32)
        high += tl.load(bias + place + HALF, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        square = tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)
        inverse = tl.rsqrt(square / (2 * HALF) + norm_eps)[:, None]
        is_query = (head < QUERY_HEADS)[:, None] & (lane < HALF)[None, :]
        is_key = turned & (lane < HALF)[None, :]
        gain = tl.where(is_key, inverse, 1.0)
        at = tl.zeros_like(place) + lane[None, :]
        low_weight = tl.load(k_norm + at, mask=is_key & (is_query == 0), other=1.0).to(tl.float32)
        high_weight = tl.load(k_norm + at + HALF, mask=is_key & (is_query == 0), other=1.0).to(tl.float32)
        low_weight *= tl.load(q_norm + at, mask=is_query, other=1.0).to(tl.float32)
        high_weight *= tl.load(q_norm + at + HALF, mask=is_query, other=1.0).to(tl.float32)
        low *= gain * low_weight
        high *= gain * high_weight
    position = tl.load(positions + token).to(tl.int64)
    position = tl.minimum(tl.maximum(position, 0), known_positions - 1)
    c = tl.load(cos + position * HALF + lane, mask=lane < HALF, other=1.0).to(tl.float32)[None, :]
    s = tl.load(sin + position * HALF + lane, mask=lane < HALF, other=0.0).to(tl.float32)[None, :]
    new_low = tl.where(turned, low * c - high * s, low).to(qkv.dtype.element_ty)
    new_high = tl.where(turned, high * c + low * s, high).to(qkv.dtype.element_ty)
    tl.store(row + place, new_low, mask=inside)
    tl.store(row + place + HALF, new_high, mask=inside)
    if CACHE:
        slot = tl.load(slots + token).to(tl.int64)
        slot = tl.minimum(tl.maximum(slot, 0), cache_rows - 1)
        key = key_cache + (slot * KEY_HEADS - QUERY_HEADS) * 2 * HALF
        is_key = inside & turned & (head >= QUERY_HEADS)[:, None]
        tl.store(key + place, new_low, mask=is_key)
        tl.store(key + place + HALF, new_high, mask=is_key)
        value = value_cache + (slot * KEY_HEADS - QUERY_HEADS - KEY_HEADS) * 2 * HALF
        is_value = inside & (head >= QUERY_HEADS + KEY_HEADS)[:, None]
        tl.store(value + place, new_low, mask=is_value)
        tl.store(value + place + HALF, new_high, mask=is_value)


def plan(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    query_heads: int,
    key_heads: int,
    bias: Tensor | None,
    norms: tuple[Tensor, Tensor] | None,
    norm_eps: float,
    cache: tuple[Tensor, Tensor, Tensor] | None,
    gpu: Facts,
) -> Launch:
    """A program for eight heads of a token. Values are left out where nothing happens to them."""
    heads = query_heads + (key_heads if bias is None and cache is None else 2 * key_heads)
    q_norm, k_norm = norms or (None, None)
    key_cache, value_cache, slots = cache or (None, None, None)
    cache_rows = 0 if key_cache is None else key_cache.shape[0] * key_cache.shape[1]
    half = cos.shape[1]
    inputs = (qkv, cos, sin, positions, bias, q_norm, k_norm, key_cache, value_cache, slots)
    return Launch(
        _rope_kernel,
        (qkv.shape[0], -(-heads // 8)),
        (*inputs, cos.shape[0], cache_rows, norm_eps),
        {
            "QUERY_HEADS": query_heads,
            "KEY_HEADS": key_heads,
            "HALF": half,
            "BLOCK_HEADS": 8,
            "BLOCK_HALF": power_of_two(half),
            "BIAS": bias is not None,
            "NORM": norms is not None,
            "CACHE": cache is not None,
            "PDL": gpu.pdl,
        },
        4,
        1,
        pdl_options(gpu.pdl),
    )


def rope_(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    *,
    query_heads: int,
    key_heads: int,
    bias: Tensor | None = None,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    norm_eps: float = 1e-6,
    key_cache: Tensor | None = None,
    value_cache: Tensor | None = None,
    slots: Tensor | None = None,
) -> None:
    """qkv [T, (NQ + 2 NKV) D] becomes bias-added, normed and turned in place; a cache gets its k and v too.

    cos and sin [P, D/2]; positions [T]; bias [(NQ + 2 NKV) D]; q_norm and k_norm [D]; caches [B, block, NKV, D]
    with slots [T]. Raises KernelError.
    """
    op = "rope_"
    expect(op, "qkv", qkv, FLOATS, (None, None))
    tokens, width = qkv.shape
    heads = query_heads + 2 * key_heads
    if heads < 1 or width % heads:
        refuse(op, "qkv's width", width, f"a multiple of the {query_heads} + 2 * {key_heads} heads")
    head_size = width // heads
    expect_heads(op, query_heads, key_heads, head_size)
    expect(op, "cos", cos, FLOATS, (None, head_size // 2), qkv.device)
    expect(op, "sin", sin, (cos.dtype,), tuple(cos.shape), qkv.device)
    expect(op, "positions", positions, INDEX, (tokens,), qkv.device)
    expect_range(op, "positions", positions, len(cos))
    if bias is not None:
        expect(op, "bias", bias, FLOATS, (width,), qkv.device)
    if (q_norm is None) != (k_norm is None):
        refuse(op, "q_norm without k_norm (or the other way round)", "given", "both or neither")
    if q_norm is not None and k_norm is not None:
        expect(op, "q_norm", q_norm, FLOATS, (head_size,), qkv.device)
        expect(op, "k_norm", k_norm, (q_norm.dtype,), (head_size,), qkv.device)
    _check_cache(qkv, key_cache, value_cache, slots, key_heads, head_size)
    if not qkv.is_cpu:
        norms = (q_norm, k_norm) if q_norm is not None and k_norm is not None else None
        cache = None
        if key_cache is not None and value_cache is not None and slots is not None:
            cache = key_cache, value_cache, slots
        gpu = facts(qkv.device)
        plan(qkv, cos, sin, positions, query_heads, key_heads, bias, norms, norm_eps, cache, gpu).run()
        return
    cpu_rope_(
        qkv, cos, sin, positions, query_heads=query_heads, key_heads=key_heads, bias=bias, q_norm=q_norm, k_norm=k_norm,
        norm_eps=norm_eps, key_cache=key_cache, value_cache=value_cache, slots=slots,
    )  # fmt: skip


def _check_cache(
    qkv: Tensor,
    key_cache: Tensor | None,
    value_cache: Tensor | None,
    slots: Tensor | None,
    key_heads: int,
    head_size: int,
) -> None:
    if key_cache is None and value_cache is None and slots is None:
        return
    if key_cache is None or value_cache is None or slots is None:
        refuse("rope_", "key_cache, value_cache or slots", "missing", "all three or none")
    expect("rope_", "key_cache", key_cache, (qkv.dtype,), (None, None, key_heads, head_size), qkv.device)
    expect("rope_", "value_cache", value_cache, (qkv.dtype,), tuple(key_cache.shape), qkv.device)
    expect("rope_", "slots", slots, INDEX, (qkv.shape[0],), qkv.device)
    expect_range("rope_", "slots", slots, key_cache.shape[0] * key_cache.shape[1])


def reference(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    *,
    query_heads: int,
    key_heads: int,
    bias: Tensor | None = None,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    norm_eps: float = 1e-6,
) -> Tensor:
    """The maths in float64; writes nothing in place. [T, (NQ + 2 NKV) D] float64."""
    x = qkv.double() if bias is None else qkv.double() + bias.double()
    x = x.view(len(x), query_heads + 2 * key_heads, 2 * cos.shape[1])
    q, k, v = x[:, :query_heads], x[:, query_heads:-key_heads], x[:, -key_heads:]
    if q_norm is not None and k_norm is not None:
        q = q * (q.square().mean(-1, keepdim=True) + norm_eps).rsqrt() * q_norm.double()
        k = k * (k.square().mean(-1, keepdim=True) + norm_eps).rsqrt() * k_norm.double()
    c, s = cos.double()[positions.long(), None], sin.double()[positions.long(), None]
    return torch.cat([_turn(q, c, s), _turn(k, c, s), v], dim=1).flatten(1)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def bytes_moved(
    tokens: int, query_heads: int, key_heads: int, head_size: int, element_bytes: int = 2, *, cached: bool = False
) -> int:
    """q, k and v read and written once, cos and sin read once; k and v written once more where there is a cache."""
    heads = query_heads + 2 * key_heads
    moved = 2 * heads + (2 * key_heads if cached else 0)
    return tokens * head_size * (moved * element_bytes + 4)


def flops(tokens: int, query_heads: int, key_heads: int, head_size: int) -> int:
    """Three operations an element of q and k, one more for the bias."""
    return tokens * head_size * (4 * (query_heads + key_heads) + key_heads)
