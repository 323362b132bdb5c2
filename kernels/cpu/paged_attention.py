"""Attention over a paged cache on the CPU: a sequence's blocks are gathered, then its tiles are those of
`attention`."""

from __future__ import annotations

import torch
from torch import Tensor

from onebeat.kernels.cpu.attention import TILE_ROWS, attend, first_key_seen


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
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """See kernels.paged_attention. `out_dtype` is q's unless told.

    A sequence's rows are the last of its context; where they begin at a multiple of `TILE_ROWS`, the result has the
    same bits as `attention` over the whole sequence.
    """
    out = torch.empty(q.shape, dtype=out_dtype or q.dtype)
    bounds = cu_seqlens.tolist()
    block = key_cache.shape[1]
    for index, context in enumerate(context_tokens.tolist()):
        begin, end = bounds[index], bounds[index + 1]
        blocks = block_table[index, : -(-context // block)]
        keys, values = _gather(key_cache, blocks), _gather(value_cache, blocks)
        before = context - (end - begin)
        for row in range(begin, end, TILE_ROWS):
            last = min(row + TILE_ROWS, end)
            seen = slice(first_key_seen(before + row - begin, window), before + last - begin)
            attend(q[row:last], keys[seen], values[seen], out[row:last], scale, window)
    return out


def _gather(cache: Tensor, blocks: Tensor) -> Tensor:
    """cache [B, block, NKV, D] -> [tokens, NKV, D]: a sequence's blocks, one behind the other."""
    if blocks.shape[0] == 1:
        return cache[int(blocks[0])]
    return cache.index_select(0, blocks).flatten(0, 1)
