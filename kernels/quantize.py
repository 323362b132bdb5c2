"""Symmetric int8 with one float32 scale a row: activations a token at a time, weights an output channel at a time.

    scale = max|x| / 127        q = round_half_even(x * (127 / max|x|))        x ~ q * scale

A row of zeros has scale 0; one below 1e-36 throughout becomes zeros. NaN and infinity are not looked for: whoever loads
weights refuses them.

With `hadamard` above 1 it is the Walsh-Hadamard transform of the row, a run of so many values at a time, that is
quantised (see kernels.cpu.hadamard); of a weight that transform over `hadamard`, so that products are what they were.
"""

from __future__ import annotations

from typing import Any

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
from onebeat.kernels.checks import FLOATS, expect, expect_block
from onebeat.kernels.cpu.hadamard import hadamard as cpu_hadamard
from onebeat.kernels.cpu.quantize import quantize_rows as cpu_quantize_rows


@jit
def round_half_even(x: tl.tensor) -> Any:
    """Rounds float32 within +-2^22: adding 1.5 * 2^23 leaves no bit for a fraction, and sums round half to even."""
    return (x + 12582912.0) - 12582912.0


@jit
def transformed(row: tl.tensor, HADAMARD: tl.constexpr) -> Any:
    """A float32 row [BLOCK] whose runs of HADAMARD values are multiplied by the matrix of +1 and -1.

    Pairs at distance 1, 2, 4 ... become (low + high, low - high): what each value needs of the other is one shuffle, or
    a register's name where a thread holds both. A product with 1 or -1 is exact, so that fma rounds as a sum does.
    """
    BLOCK: tl.constexpr = row.shape[0]
    for stage in tl.static_range(0, 6):
        if (2 << stage) <= HADAMARD:
            pairs = tl.reshape(row, (BLOCK >> (stage + 1), 2, 1 << stage))
            sign = tl.where(tl.arange(0, 2) == 0, 1.0, -1.0)[None, :, None]
            row = tl.reshape(tl.fma(pairs, tl.zeros_like(pairs) + sign, tl.flip(pairs, 1)), (BLOCK,))
    return row


@jit
def quantized(row: tl.tensor, HADAMARD: tl.constexpr) -> Any:
    """A float32 row, transformed, as (int8 row, float32 scale)."""
    row = transformed(row, HADAMARD)
    peak = tl.max(tl.abs(row), axis=0)
    tiny = peak < 1e-36
    inverse = tl.where(tiny, 0.0, tl.div_rn(tl.full((), 127.0, tl.float32), tl.where(tiny, 1.0, peak)))
    return round_half_even(row * inverse).to(tl.int8), tl.div_rn(peak, tl.full((), 127.0, tl.float32))


@jit
def _quantize_kernel(
    x: tl.pointer_type,  # float [T, K]
    out: tl.pointer_type,  # int8 [T, K]
    scale: tl.pointer_type,  # float32 [T]
    width: tl.tensor,  # K, also the stride of a row
    BLOCK: tl.constexpr,
    HADAMARD: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    values = tl.load(x + row * width + column, mask=column < width, other=0.0).to(tl.float32)
    result, row_scale = quantized(values, HADAMARD)
    tl.store(out + row * width + column, result, mask=column < width)
    tl.store(scale + row, row_scale)


def row_warps(block: int) -> int:
    """Warps for a row held in registers: 16 elements a thread. By the width alone, so that sums keep their order."""
    return min(max(block // 512, 1), 32)


def plan(x: Tensor, out: Tensor, scale: Tensor, gpu: Facts, hadamard: int = 1) -> Launch:
    """One program a row."""
    block = power_of_two(x.shape[1])
    constants = {"BLOCK": block, "HADAMARD": hadamard, "PDL": gpu.pdl}
    grid = (x.shape[0],)
    return Launch(
        _quantize_kernel, grid, (x, out, scale, x.shape[1]), constants, row_warps(block), 1, pdl_options(gpu.pdl)
    )


def quantize_rows(x: Tensor, hadamard: int = 1) -> tuple[Tensor, Tensor]:
    """Quantises each row. x [T, K] -> (int8 [T, K], scale float32 [T]). Raises KernelError."""
    expect("quantize_rows", "x", x, FLOATS, (None, None))
    expect_block("quantize_rows", "x's width", x.shape[1], hadamard)
    return cpu_quantize_rows(x, hadamard) if x.is_cpu else _launch(x, hadamard)


def quantize_weight(w: Tensor, hadamard: int = 1) -> tuple[Tensor, Tensor]:
    """Quantises each output channel. w [N, K] -> (int8 [N, K], scale float32 [N]). Raises KernelError.

    The transform is divided by `hadamard`, which a power of two does exactly, and in the scale as well as in the rows.
    """
    expect("quantize_weight", "w", w, FLOATS, (None, None))
    expect_block("quantize_weight", "w's width", w.shape[1], hadamard)
    rows, scale = cpu_quantize_rows(w, hadamard) if w.is_cpu else _launch(w, hadamard)
    return rows, scale / hadamard


def _launch(x: Tensor, hadamard: int) -> tuple[Tensor, Tensor]:
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    plan(x, out, scale, facts(x.device), hadamard).run()
    return out, scale


def reference(x: Tensor, hadamard: int = 1) -> tuple[Tensor, Tensor]:
    """The maths in float64: (the real numbers that were to be rounded, float64 [T, K]; scale float64 [T])."""
    exact = cpu_hadamard(x.double(), hadamard)
    peak = exact.abs().amax(dim=1) if x.shape[1] else torch.zeros(len(x), dtype=torch.float64, device=x.device)
    inverse = torch.where(peak > 0, 127 / peak, torch.zeros_like(peak))
    return exact * inverse[:, None], peak / 127


def bytes_moved(tokens: int, width: int, element_bytes: int = 2) -> int:
    """x read once; int8 and the scales written once."""
    return tokens * (width * (element_bytes + 1) + 4)


def flops(tokens: int, width: int, hadamard: int = 1) -> int:
    """An absolute value, a maximum, a product and a rounding an element, and the transform's sums."""
    return 4 * tokens * width + transform_flops(tokens, width, hadamard)


def transform_flops(tokens: int, width: int, hadamard: int) -> int:
    """A sum an element for every doubling up to the block."""
    return (hadamard.bit_length() - 1) * tokens * width
