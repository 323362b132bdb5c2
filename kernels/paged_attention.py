"""Causal attention whose keys and values, this chunk's included, lie in a paged cache.

Sequence s has `context_tokens[s]` tokens in the cache; the last `cu_seqlens[s+1] - cu_seqlens[s]` of them are
the queries here. Token j lies in block `block_table[s, j // block]` at row `j % block`. The maths and the
kernel are attention's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onebeat.kernels.attention import expect_dense_heads, expect_scale, plan, visible
from onebeat.kernels.backend import facts
from onebeat.kernels.checks import FLOATS, INT32, expect, expect_heads, expect_sequences, expect_window, refuse
from onebeat.kernels.cpu.paged_attention import paged_attention as cpu_paged_attention


def paged_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cu_seqlens: Tensor,
    context_tokens: Tensor,
    block_table: Tensor,
    max_seqlen: int,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attends a chunk of each sequence to all its tokens so far.

    q [T, NQ, D]; key_cache and value_cache [B, block, NKV, D]; cu_seqlens [S+1], context_tokens [S] and block_table
    [S, maxB] int32; `max_seqlen` bounds the queries of one sequence -> [T, NQ, D]. Raises KernelError.
    """
    op = "paged_attention"
    expect(op, "q", q, FLOATS, (None, None, None), dense=False)
    tokens, query_heads, head_size = q.shape
    expect(op, "key_cache", key_cache, (q.dtype,), (None, None, None, head_size), q.device)
    expect(op, "value_cache", value_cache, (q.dtype,), tuple(key_cache.shape), q.device)
    blocks, block, key_heads, _ = key_cache.shape
    expect_heads(op, query_heads, key_heads, head_size)
    expect_window(op, window)
    expect_sequences(op, cu_seqlens, tokens, max_seqlen, q.device)
    sequences = len(cu_seqlens) - 1
    expect(op, "context_tokens", context_tokens, INT32, (sequences,), q.device)
    expect(op, "block_table", block_table, INT32, (sequences, None), q.device)
    if block < 1 or block & (block - 1):
        refuse(op, "the cache's block", block, "a power of two")
    if q.is_cpu:
        _expect_context(cu_seqlens, context_tokens, block_table, blocks, block)
    scale = expect_scale(op, scale, head_size)
    if q.is_cpu:
        return cpu_paged_attention(
            q, key_cache, value_cache, cu_seqlens, context_tokens, block_table, max_seqlen, scale=scale, window=window
        )
    expect_dense_heads(op, q=q)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    paged = context_tokens, block_table
    plan(
        q, key_cache, value_cache, cu_seqlens, max_seqlen, out,
        scale=scale, window=window, paged=paged, gpu=facts(q.device),
    ).run()  # fmt: skip
    return out


def _expect_context(cu_seqlens: Tensor, context_tokens: Tensor, block_table: Tensor, blocks: int, block: int) -> None:
    bounds, contexts = cu_seqlens.tolist(), context_tokens.tolist()
    for index, context in enumerate(contexts):
        queries = bounds[index + 1] - bounds[index]
        if context < queries:
            refuse("paged_attention", f"context_tokens[{index}]", context, f"at least the chunk's own {queries} tokens")
        used = -(-context // block)
        if used > block_table.shape[1]:
            have = block_table.shape[1] * block
            refuse("paged_attention", f"context_tokens[{index}]", context, f"at most the {have} tokens of block_table")
        if queries and used:
            row = block_table[index, :used]
            low, high = int(row.min()), int(row.max())
            if low < 0 or high >= blocks:
                refuse("paged_attention", f"block_table[{index}]", f"between {low} and {high}", f"0 to {blocks - 1}")


def gather(cache: Tensor, table: Tensor, tokens: int) -> Tensor:
    """The first `tokens` keys (or values) of a sequence, from its blocks. [B, block, NKV, D] -> [tokens, NKV, D]."""
    block = cache.shape[1]
    used = -(-tokens // block)
    return cache[table[:used].long()].reshape(used * block, *cache.shape[2:])[:tokens]


def reference(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cu_seqlens: Tensor,
    context_tokens: Tensor,
    block_table: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """The maths in float64, one sequence at a time. [T, NQ, D] float64."""
    group = q.shape[1] // key_cache.shape[2]
    scale = q.shape[2] ** -0.5 if scale is None else scale
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    bounds = cu_seqlens.tolist()
    for index, context in enumerate(context_tokens.tolist()):
        rows = slice(bounds[index], bounds[index + 1])
        queries = bounds[index + 1] - bounds[index]
        if not queries:
            continue
        keys = gather(key_cache, block_table[index], context).double().repeat_interleave(group, dim=1)
        values = gather(value_cache, block_table[index], context).double().repeat_interleave(group, dim=1)
        logits = torch.einsum("thd,jhd->htj", q[rows].double(), keys) * scale
        logits = logits.masked_fill(~visible(queries, context, window, q.device), float("-inf"))
        out[rows] = torch.einsum("htj,jhd->thd", logits.softmax(-1), values)
    return out


def pairs(queries: int, context: int, window: int | None = None) -> int:
    """How many (query, key) pairs a chunk of `queries` tokens at the end of `context` tokens has."""
    first = context - queries
    if window is None:
        return queries * first + queries * (queries + 1) // 2
    return sum(min(position + 1, window) for position in range(first, context))


def flops(chunks: list[tuple[int, int]], query_heads: int, head_size: int, window: int | None = None) -> int:
    """For (queries, context) pairs: multiply-adds counted as two, below the diagonal only."""
    return 4 * query_heads * head_size * sum(pairs(queries, context, window) for queries, context in chunks)


def bytes_moved(
    chunks: list[tuple[int, int]], query_heads: int, key_heads: int, head_size: int, element_bytes: int = 2
) -> int:
    """q read and the output written once, each sequence's keys and values read once."""
    queries = sum(chunk[0] for chunk in chunks)
    context = sum(chunk[1] for chunk in chunks)
    return 2 * head_size * element_bytes * (queries * query_heads + context * key_heads)
