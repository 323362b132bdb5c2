"""Causal attention of a packed batch, each sequence to itself.

    out[t, h] = sum_j softmax_j(scale * q[t, h] . k[j, g(h)]) v[j, g(h)]    over j <= t of t's sequence, t - j < window

Flash attention (Dao, arXiv:2307.08691): one pass over the keys with a running maximum and sum, in base 2, accumulated
in float32. Grouped-query: query head h reads key head g(h) = h // (NQ / NKV). Knows no caches: see paged_attention.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from onebeat.kernels.attention_tile import attend, tile_rows, tile_start
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
from onebeat.kernels.checks import FLOATS, expect, expect_heads, expect_sequences, expect_window, refuse
from onebeat.kernels.cpu.attention import attention as cpu_attention
from onebeat.kernels.tuning import AttentionConfig, attention_config

LOG2_E = 1.4426950408889634


@jit
def _attention_kernel(
    q: tl.pointer_type,  # [T, NQ, D]
    k: tl.pointer_type,  # [T, NKV, D], or a cache [B, CACHE_BLOCK, NKV, D]
    v: tl.pointer_type,  # as k
    out: tl.pointer_type,  # [T, NQ, D], contiguous
    cu_seqlens: tl.pointer_type,  # int32 [S+1]
    context_tokens: tl.pointer_type,  # int32 [S], or None
    block_table: tl.pointer_type,  # int32 [S, maxB], or None
    tokens: tl.tensor,  # T: no bound in cu_seqlens reaches beyond it
    q_stride: tl.tensor,  # from token to token
    kv_stride: tl.tensor,  # from token to token, in k and in v alike
    table_stride: tl.tensor,  # maxB
    blocks: tl.tensor,  # B
    window: tl.tensor,
    scale: tl.tensor,  # times log2(e)
    GROUP: tl.constexpr,  # query heads of a key head
    HEAD: tl.constexpr,  # D
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CACHE_BLOCK: tl.constexpr,
    PAGED: tl.constexpr,
    WIDE: tl.constexpr,  # whether offsets in k and v take more than 31 bits
    WINDOW: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    key_head = tl.program_id(0)
    sequence = tl.program_id(2)
    start = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence), 0), tokens)
    end = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence + 1), start), tokens)
    queries = end - start
    # The tiles with the most keys go first, so that no long one is left to run alone at the end.
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * TOKENS
    if first >= queries:
        return
    context = queries
    table = block_table
    base = start.to(tl.int64) * kv_stride + key_head * HEAD
    if PAGED:
        context = tl.minimum(tl.load(context_tokens + sequence), table_stride * CACHE_BLOCK)
        context = tl.maximum(context, queries)
        table = block_table + sequence.to(tl.int64) * table_stride
        base = key_head.to(tl.int64) * HEAD
    row = tl.arange(0, BLOCK_M)
    token = first + row // GROUP
    valid = (row < TOKENS * GROUP) & (token < queries)
    head = key_head * GROUP + row % GROUP
    lane = tl.arange(0, BLOCK_D)
    inside = valid[:, None] & (lane < HEAD)[None, :]
    row_start = (start + token).to(tl.int64)
    queried = tl.load(q + (row_start * q_stride + head * HEAD)[:, None] + lane[None, :], mask=inside, other=0.0)
    before = context - queries  # tokens of the sequence ahead of this chunk
    position = before + token
    last = tl.minimum(before + first + TOKENS, context)
    low = 0
    clear = (before + first + 1) // BLOCK_N * BLOCK_N
    if WINDOW:
        low = tl.maximum(before + first - window + 1, 0) // BLOCK_N * BLOCK_N
        clear = low
    total = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    peak = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    weight = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for key in tl.range(low, clear, BLOCK_N):
        at = tile_start(key, base, kv_stride, table, blocks, CACHE_BLOCK, BLOCK_N, PAGED)
        rows = tile_rows(key, kv_stride, table, blocks, context, CACHE_BLOCK, BLOCK_N, PAGED, WIDE)
        total, peak, weight = attend(
            queried, total, peak, weight, k, v, at, rows, key, position, context, window, scale,
            HEAD, BLOCK_D, BLOCK_N, False, WINDOW,
        )  # fmt: skip
    for key in tl.range(clear, last, BLOCK_N):
        at = tile_start(key, base, kv_stride, table, blocks, CACHE_BLOCK, BLOCK_N, PAGED)
        rows = tile_rows(key, kv_stride, table, blocks, context, CACHE_BLOCK, BLOCK_N, PAGED, WIDE)
        total, peak, weight = attend(
            queried, total, peak, weight, k, v, at, rows, key, position, context, window, scale,
            HEAD, BLOCK_D, BLOCK_N, True, WINDOW,
        )  # fmt: skip
    # A row that is stored weighs at least 1; rows beyond the tile's tokens may weigh nothing.
    result = tl.div_rn(total, tl.zeros_like(total) + tl.maximum(weight, 0.5)[:, None])
    heads = tl.num_programs(0) * GROUP
    places = out + (row_start * heads * HEAD + head * HEAD)[:, None] + lane[None, :]
    tl.store(places, result.to(out.dtype.element_ty), mask=inside)


def plan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    out: Tensor,
    *,
    scale: float,
    window: int | None,
    paged: tuple[Tensor, Tensor] | None = None,
    config: AttentionConfig | None = None,
    gpu: Facts,
) -> Launch:
    """A program for BLOCK_M rows (tokens times the heads of a group) of one key head of one sequence.

    `paged` is (context_tokens, block_table) where k and v are caches [B, block, NKV, D].
    """
    _, query_heads, head_size = q.shape
    key_heads = k.shape[-2]
    group = query_heads // key_heads
    if config is None:
        config = attention_config(gpu, head_size, q.element_size())
    if group > config.block_m:
        refuse("attention", "the group of query heads a key head", group, f"at most {config.block_m}")
    context_tokens, block_table = paged or (None, None)
    tiles = -(-max_seqlen // (config.block_m // group))
    table_stride, blocks = (0, 0) if block_table is None else (block_table.stride(0), k.shape[0])
    strides = (q.stride(0), k.stride(-3), table_stride, blocks)
    return Launch(
        _attention_kernel,
        (key_heads, tiles, len(cu_seqlens) - 1),
        (q, k, v, out, cu_seqlens, context_tokens, block_table, q.shape[0], *strides, window or 0, scale * LOG2_E),
        {
            "GROUP": group,
            "HEAD": head_size,
            "BLOCK_D": power_of_two(head_size),
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "CACHE_BLOCK": 1 if paged is None else k.shape[1],
            "PAGED": paged is not None,
            "WIDE": paged is not None and k.numel() >= 2**31,
            "WINDOW": window is not None,
            "PDL": gpu.pdl,
        },
        config.warps,
        config.stages,
        pdl_options(gpu.pdl),
    )


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attends every token to its own sequence up to itself.

    q [T, NQ, D], k and v [T, NKV, D] (slices of a fused qkv will do), cu_seqlens [S+1] int32 -> [T, NQ, D].
    `scale` is 1/sqrt(D) unless told; `window` is how many tokens a query sees, itself included. Raises KernelError.
    """
    expect("attention", "q", q, FLOATS, (None, None, None), dense=False)
    tokens, query_heads, head_size = q.shape
    expect("attention", "k", k, (q.dtype,), (tokens, None, head_size), q.device, dense=False)
    expect("attention", "v", v, (q.dtype,), (tokens, k.shape[1], head_size), q.device, dense=False)
    expect_heads("attention", query_heads, k.shape[1], head_size)
    expect_window("attention", window)
    expect_sequences("attention", cu_seqlens, tokens, max_seqlen, q.device)
    scale = expect_scale("attention", scale, head_size)
    if q.is_cpu:
        return cpu_attention(q, k, v, cu_seqlens, max_seqlen, scale=scale, window=window)
    expect_dense_heads("attention", q=q, k=k, v=v)
    if k.stride(0) != v.stride(0):
        refuse(
            "attention", "the stride between tokens", f"{k.stride(0)} in k and {v.stride(0)} in v", "the same in both"
        )
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    plan(q, k, v, cu_seqlens, max_seqlen, out, scale=scale, window=window, gpu=facts(q.device)).run()
    return out


def expect_scale(op: str, scale: float | None, head_size: int) -> float:
    """The scale given, or 1/sqrt(D). The running maximum is taken before scaling, so a scale has to be positive."""
    if scale is None:
        return float(head_size**-0.5)
    if not scale > 0:
        refuse(op, "scale", scale, "a positive number")
    return scale


def expect_dense_heads(op: str, **tensors: Tensor) -> None:
    """On a GPU, refuses heads of a token that do not lie side by side."""
    for name, tensor in tensors.items():
        if tensor.shape[1] > 1 and tensor.stride(1) != tensor.shape[2]:
            refuse(op, f"{name}'s stride between heads", tensor.stride(1), f"{tensor.shape[2]}, the head size")


def reference(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *, scale: float | None = None, window: int | None = None
) -> Tensor:
    """The maths in float64, one sequence at a time. [T, NQ, D] float64."""
    group = q.shape[1] // k.shape[1]
    scale = q.shape[2] ** -0.5 if scale is None else scale
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    bounds = cu_seqlens.tolist()
    for start, end in pairwise(bounds):
        rows = slice(start, end)
        keys = k[rows].double().repeat_interleave(group, dim=1)
        values = v[rows].double().repeat_interleave(group, dim=1)
        logits = torch.einsum("thd,jhd->htj", q[rows].double(), keys) * scale
        logits = logits.masked_fill(~visible(end - start, end - start, window, q.device), float("-inf"))
        out[rows] = torch.einsum("htj,jhd->thd", logits.softmax(-1), values)
    return out


def visible(queries: int, keys: int, window: int | None, device: torch.device | None = None) -> Tensor:
    """Which keys each of the last `queries` tokens of a sequence of `keys` tokens sees. [queries, keys] bool."""
    row = torch.arange(keys - queries, keys, device=device)[:, None]
    column = torch.arange(keys, device=device)[None, :]
    seen = column <= row
    return seen if window is None else seen & (row - column < window)


def pairs(lengths: list[int], window: int | None = None) -> int:
    """How many (query, key) pairs causal attention over sequences of these lengths has."""
    total = 0
    for length in lengths:
        seen = length if window is None else min(length, window)
        total += seen * (seen + 1) // 2 + (length - seen) * seen
    return total


def flops(lengths: list[int], query_heads: int, head_size: int, window: int | None = None) -> int:
    """Multiply-adds counted as two, for the pairs below the diagonal only."""
    return 4 * query_heads * head_size * pairs(lengths, window)


def bytes_moved(lengths: list[int], query_heads: int, key_heads: int, head_size: int, element_bytes: int = 2) -> int:
    """q, k and v read once, the output written once."""
    return sum(lengths) * head_size * element_bytes * 2 * (query_heads + key_heads)
