"""Causal attention on the CPU, tile by tile.

Enters: packed queries, keys and values, or a paged cache. Leaves: the attended values. Knows no batch beyond its rows:
each tile of a sequence is one computation over (the tile's rows, keys up to the tile's end), tiles begin at absolute
multiples of `TILE_ROWS`, and therefore no row's bits depend on what else is in the batch or on how the prompt was cut.
"""

from __future__ import annotations

import functools
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_ROWS = 128
"""Query rows of one computation; tiles begin at absolute multiples of it."""


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
    """q [T, NQ, D], k and v [T, NKV, D], cu_seqlens [S+1] -> [T, NQ, D]. Every sequence begins at position 0."""
    out = torch.empty(q.shape, dtype=q.dtype)
    bounds = cu_seqlens.tolist()
    for begin, end in itertools.pairwise(bounds):
        for row in range(begin, end, TILE_ROWS):
            last = min(row + TILE_ROWS, end)
            first_key = begin + first_key_seen(row - begin, window)
            attend(q[row:last], k[first_key:last], v[first_key:last], out[row:last], scale, window)
    return out


def first_key_seen(first_row: int, window: int | None) -> int:
    return 0 if window is None else max(0, first_row - window + 1)


def attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor, scale: float | None, window: int | None) -> None:
    """q [R, NQ, D] are the last R of the C positions of k and v [C, NKV, D]; writes out [R, NQ, D]."""
    rows, keys = q.shape[0], k.shape[0]
    mask = None
    if rows > 1 or (window is not None and keys > window):
        mask = _mask(rows, keys, window, q.dtype)
    attended = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        attn_mask=mask,
        scale=scale,
        enable_gqa=True,
    )
    out.copy_(attended[0].transpose(0, 1))


@functools.lru_cache(maxsize=64)
def _mask(rows: int, keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """[rows, keys]: 0 where the row, one of the last `rows` positions, sees the key, minus infinity elsewhere."""
    row = torch.arange(keys - rows, keys)[:, None]
    key = torch.arange(keys)[None, :]
    seen = key <= row if window is None else (key <= row) & (key > row - window)
    return torch.zeros(rows, keys, dtype=dtype).masked_fill_(~seen, float("-inf"))
