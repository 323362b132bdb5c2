"""One step of attention: a tile of queries meets a tile of keys, which lie in a packed batch or in a paged cache.

Enters: queries, the running softmax (sums, peak, weight) in registers. Leaves: the softmax after these keys. The same
arithmetic with and without a mask, so that a row's bits do not depend on where in a tile it lies.
"""

from __future__ import annotations

from onebeat.kernels.backend import jit, tl


@jit
def attend(
    q: tl.tensor,  # [BLOCK_M, D]
    total: tl.tensor,  # float32 [BLOCK_M, D], with `peak` and `weight` the running state of the softmax
    peak: tl.tensor,  # float32 [BLOCK_M], base-2 logits
    weight: tl.tensor,  # float32 [BLOCK_M]
    k: tl.pointer_type,
    v: tl.pointer_type,
    start: tl.tensor,  # int64: offset of the tile in k and in v
    rows: tl.tensor,  # [BLOCK_N]: offsets of its rows from there
    first: tl.tensor,  # the position of the tile's first key
    position: tl.tensor,  # [BLOCK_M]: of each row's query
    context: tl.tensor,  # keys there are
    window: tl.tensor,
    scale: tl.tensor,  # times log2(e)
    HEAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOW: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    column = first + tl.arange(0, BLOCK_N)
    lane = tl.arange(0, BLOCK_D)
    at = rows[:, None] + lane[None, :]
    if MASKED or HEAD != BLOCK_D:
        inside = (column < context)[:, None] & (lane < HEAD)[None, :]
        keys = tl.load(k + start + at, mask=inside, other=0.0)
        values = tl.load(v + start + at, mask=inside, other=0.0)
    else:
        keys = tl.load(k + start + at)
        values = tl.load(v + start + at)
    logits = tl.dot(q, tl.trans(keys), input_precision="ieee")
    if MASKED:
        seen = column[None, :] <= position[:, None]
        if WINDOW:
            seen = seen & (position[:, None] - column[None, :] < window)
        logits = tl.where(seen, logits, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(logits, axis=1) * scale)
    base = new_peak
    if WINDOW:
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    shares = tl.exp2(tl.fma(logits, tl.zeros_like(logits) + scale, tl.zeros_like(logits) - base[:, None]))
    decay = tl.exp2(peak - base)
    weight = tl.fma(weight, decay, tl.sum(shares, axis=1))
    total = tl.dot(shares.to(values.dtype), values, total * decay[:, None], input_precision="ieee")
    return total, new_peak, weight


@jit
def tile_start(
    first: tl.tensor,
    base: tl.tensor,
    stride: tl.tensor,
    table: tl.pointer_type,
    blocks: tl.tensor,
    CACHE_BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGED: tl.constexpr,
) -> tl.tensor:
    """Offset of the tile whose first key is `first`; where blocks are smaller than tiles, of the cache."""
    start = base
    if not PAGED:
        start = base + tl.cast(first, tl.int64) * stride
    elif CACHE_BLOCK % BLOCK_N == 0:
        block = tl.load(table + first // CACHE_BLOCK)
        block = tl.minimum(tl.maximum(block, 0), blocks - 1).to(tl.int64)
        start = base + (block * CACHE_BLOCK + first % CACHE_BLOCK) * stride
    return start


@jit
def tile_rows(
    first: tl.tensor,
    stride: tl.tensor,
    table: tl.pointer_type,
    blocks: tl.tensor,
    context: tl.tensor,
    CACHE_BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGED: tl.constexpr,
    WIDE: tl.constexpr,
) -> tl.tensor:
    """Offsets of a tile's keys from its start. [BLOCK_N]"""
    row = tl.arange(0, BLOCK_N)
    if PAGED and CACHE_BLOCK % BLOCK_N != 0:
        column = first + row
        block = tl.load(table + column // CACHE_BLOCK, mask=column < context, other=0)
        block = tl.minimum(tl.maximum(block, 0), blocks - 1)
        if WIDE:
            block = block.to(tl.int64)
        rows = (block * CACHE_BLOCK + column % CACHE_BLOCK) * stride
    else:
        rows = row * stride
    return rows
