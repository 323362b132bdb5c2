"""Causal attention on the CPU, tile by tile.

Enters: packed queries, keys and values. Leaves: the attended values. Knows no batch beyond its rows: each tile of a
sequence is one computation over (the tile's rows, keys up to the tile's end), tiles begin at absolute multiples of
`TILE_ROWS`, and therefore no row's bits depend on what else is in the batch or on how the prompt was cut.

Written as two batched products and a softmax rather than as torch's flash kernel: for 128 rows and keys of 9 heads it
takes 180 microseconds in bfloat16 where the flash kernel takes 320 (2 cores of Zen 5), as the products run on
AVX512_BF16.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

TILE_ROWS = 128
"""Query rows of one computation; tiles begin at absolute multiples of it."""

SMALL_PRODUCT = 32 * 32
"""Rows times keys up to which float32 products are faster than bfloat16 ones, whose set-up takes 20 microseconds."""

FEW_KEYS = 256
"""Keys up to which a float32 softmax, conversions included, is faster than a bfloat16 one; beyond, memory decides."""

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_NOT_SEEN = {dtype: torch.full((TILE_ROWS, TILE_ROWS), float("-inf"), dtype=dtype).triu_(1) for dtype in _FLOATS}
_NOTHING = {dtype: torch.zeros(1, 1, 1, dtype=dtype) for dtype in _FLOATS}


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float,
    window: int | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """See kernels.attention. `out_dtype` is q's unless told."""
    out = torch.empty(q.shape, dtype=out_dtype or q.dtype)
    bounds = cu_seqlens.tolist()
    if len(bounds) == 2 and q.shape[0] <= TILE_ROWS:
        attend(q, k, v, out, scale, window)
        return out
    for begin, end in itertools.pairwise(bounds):
        for row in range(begin, end, TILE_ROWS):
            last = min(row + TILE_ROWS, end)
            first_key = begin + first_key_seen(row - begin, window)
            attend(q[row:last], k[first_key:last], v[first_key:last], out[row:last], scale, window)
    return out


def first_key_seen(first_row: int, window: int | None) -> int:
    """The first key that the row at position `first_row` sees."""
    return 0 if window is None else max(0, first_row - window + 1)


def attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor, scale: float, window: int | None) -> None:
    """q [R, NQ, D] are the last R of the C positions of k and v [C, NKV, D]; writes out [R, NQ, D]. R <= TILE_ROWS."""
    rows, query_heads, head_size = q.shape
    keys, key_heads, _ = k.shape
    group = query_heads // key_heads
    # The query heads that share a key head become rows of one product: [NKV, G*R, D].
    queries = q.view(rows, key_heads, group, head_size).permute(1, 2, 0, 3).reshape(key_heads, group * rows, head_size)
    turned, values = k.permute(1, 2, 0), v.transpose(0, 1)  # [NKV, D, C], [NKV, C, D]
    if rows * keys <= SMALL_PRODUCT:
        queries, turned, values = queries.float(), turned.float(), values.float()
    # alpha scales the scores on the way out; beta 0 ignores what they would be added to.
    weights = torch.baddbmm(_NOTHING[queries.dtype], queries, turned, beta=0, alpha=scale)  # [NKV, G*R, C]
    if keys <= FEW_KEYS:
        weights = weights.float()
    if rows > 1 or window is not None:
        scores = weights.view(key_heads, group, rows, keys)
        last = scores if keys == rows else scores[..., keys - rows :]
        last.add_(_NOT_SEEN[weights.dtype][:rows, :rows])
        if window is not None and keys > window:
            scores.masked_fill_(_beyond(rows, keys, window), float("-inf"))
    attended = torch.bmm(torch.softmax(weights, -1).to(values.dtype), values)  # [NKV, G*R, D]
    apart = out.view(rows, key_heads, group, head_size)
    apart.copy_(attended.view(key_heads, group, rows, head_size).permute(2, 0, 1, 3))


def _beyond(rows: int, keys: int, window: int) -> Tensor:
    """[R, C] bool: where the key is `window` or more positions before the row."""
    row = torch.arange(keys - rows, keys)[:, None]
    return row - torch.arange(keys)[None, :] >= window
