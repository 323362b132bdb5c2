"""Attention over a paged cache on the CPU: blocks are gathered, then it is attention of one sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from onebeat.kernels.cpu.attention import one_sequence


def paged_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cu_seqlens: Tensor,
    context_tokens: Tensor,
    block_table: Tensor,
    max_seqlen: int,
    *,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """See kernels.paged_attention."""
    out = torch.empty(q.shape, dtype=q.dtype)
    bounds = cu_seqlens.tolist()
    block = key_cache.shape[1]
    for index, context in enumerate(context_tokens.tolist()):
        rows = slice(bounds[index], bounds[index + 1])
        if rows.stop > rows.start:
            blocks = block_table[index, : -(-context // block)].long()
            keys = key_cache[blocks].flatten(0, 1)[:context]
            values = value_cache[blocks].flatten(0, 1)[:context]
            out[rows] = one_sequence(q[rows], keys, values, scale, window)
    return out
