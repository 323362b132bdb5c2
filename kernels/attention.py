"""Causal attention of a packed batch, each sequence to itself.

    out[t, h] = sum_j softmax_j(scale * q[t, h] . k[j, g(h)]) v[j, g(h)]    over j <= t of t's sequence, t - j < window

Flash attention (Dao, arXiv:2307.08691): one pass over the keys with a running maximum and sum, in base 2, accumulated
in float32. Grouped-query: query head h reads key head g(h) = h // (NQ / NKV). Knows no caches: see paged_attention.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from onebeat.kernels.checks import FLOATS, expect, expect_heads, expect_sequences, expect_window
from onebeat.kernels.cpu.attention import attention as cpu_attention


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
    if scale is None:
        scale = head_size**-0.5
    return cpu_attention(q, k, v, cu_seqlens, max_seqlen, scale=scale, window=window)


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
