"""The end of an int8 product: what becomes of exact int32 sums before they are written, in every regime.

    out[m, n] = round(a_scale[m] * sums[m, n] * weight_scale[n] (+ bias[n]) (+ residual[m, n]))
    out[m, n] = round(silu(gate) * up)        with gate, up = scaled columns 2n, 2n + 1

Enters: a tile of sums in registers. Leaves: nothing; the tile is in `out`. Fused multiply-adds are spelled out, so that
every tile size rounds alike.
"""

from __future__ import annotations

from onebeat.kernels.backend import jit, tl
from onebeat.kernels.swiglu import gated


@jit
def _write(
    sums: tl.tensor,  # int32 [BLOCK_M, BLOCK_N]
    row: tl.tensor,
    column: tl.tensor,
    a_scale: tl.pointer_type,
    weight_scale: tl.pointer_type,
    bias: tl.pointer_type,
    residual: tl.pointer_type,
    out: tl.pointer_type,
    rows: tl.tensor,
    columns: tl.tensor,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SWIGLU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """The epilogue, one for every regime: scales, bias, residual or SwiGLU, and the one rounding."""
    left = tl.load(a_scale + row, mask=row < rows, other=0.0)
    right = tl.load(weight_scale + column, mask=column < columns, other=0.0)
    values = sums.to(tl.float32) * left[:, None]
    right = tl.zeros_like(values) + right[None, :]
    if BIAS:
        shift = tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)
        values = tl.fma(values, right, tl.zeros_like(values) + shift[None, :])
    else:
        values = values * right
    if SWIGLU:
        gate, up = tl.split(tl.reshape(values, (BLOCK_M, BLOCK_N // 2, 2)))
        values = gated(gate, up)
        width = columns // 2
        target = tl.min(column, axis=0) // 2 + tl.arange(0, BLOCK_N // 2)
    else:
        width = columns
        target = column
    inside = (row < rows)[:, None] & (target < width)[None, :]
    place = row.to(tl.int64)[:, None] * width + target[None, :]
    if RESIDUAL:
        values += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, values.to(out.dtype.element_ty), mask=inside)


@jit
def write_tile(
    sums: tl.tensor,  # int32 [BLOCK_M, BLOCK_N]
    row: tl.tensor,
    first: tl.tensor,  # the tile's first column
    a_scale: tl.pointer_type,
    weight_scale: tl.pointer_type,
    bias: tl.pointer_type,
    residual: tl.pointer_type,
    out: tl.pointer_type,
    rows: tl.tensor,
    columns: tl.tensor,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SWIGLU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Writes 64 columns of a wide tile at a time, for 256 at once would spill registers."""
    if BLOCK_N > 128:
        PART: tl.constexpr = BLOCK_N // 4
        low, high = tl.split(tl.permute(tl.reshape(sums, (BLOCK_M, 2, 2 * PART)), (0, 2, 1)))
        for half in tl.static_range(2):
            pair = low if half == 0 else high
            one, two = tl.split(tl.permute(tl.reshape(pair, (BLOCK_M, 2, PART)), (0, 2, 1)))
            for quarter in tl.static_range(2):
                _write(
                    one if quarter == 0 else two, row, first + (2 * half + quarter) * PART + tl.arange(0, PART),
                    a_scale, weight_scale, bias, residual, out, rows, columns, BIAS, RESIDUAL, SWIGLU, BLOCK_M, PART,
                )  # fmt: skip
    else:
        _write(
            sums, row, first + tl.arange(0, BLOCK_N), a_scale, weight_scale, bias, residual, out, rows, columns,
            BIAS, RESIDUAL, SWIGLU, BLOCK_M, BLOCK_N,
        )  # fmt: skip
