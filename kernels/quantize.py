"""Symmetric int8 with one float32 scale a row: activations a token at a time, weights an output channel at a time.

    scale = max|x| / 127        q = round_half_even(x * (127 / max|x|))        x ~ q * scale

A row of zeros has scale 0; one below 1e-36 throughout becomes zeros. NaN and infinity are not looked for: whoever loads
weights refuses them.
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
from onebeat.kernels.checks import FLOATS, expect
from onebeat.kernels.cpu.quantize import quantize_rows as cpu_quantize_rows


@jit
def round_half_even(x: tl.tensor) -> Any:
    """Rounds float32 within +-2^22: adding 1.5 * 2^23 leaves no bit for a fraction, and sums round half to even."""
    return (x + 12582912.0) - 12582912.0


@jit
def quantized(row: tl.tensor) -> Any:
    """A float32 row as (int8 row, float32 scale)."""
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
    PDL: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    values = tl.load(x + row * width + column, mask=column < width, other=0.0).to(tl.float32)
    result, row_scale = quantized(values)
    tl.store(out + row * width + column, result, mask=column < width)
    tl.store(scale + row, row_scale)


def row_warps(block: int) -> int:
    """Warps for a row held in registers: 16 elements a thread. By the width alone, so that sums keep their order."""
    return min(max(block // 512, 1), 32)


def plan(x: Tensor, out: Tensor, scale: Tensor, gpu: Facts) -> Launch:
    """One program a row."""
    block = power_of_two(x.shape[1])
    constants = {"BLOCK": block, "PDL": gpu.pdl}
    grid = (x.shape[0],)
    return Launch(
        _quantize_kernel, grid, (x, out, scale, x.shape[1]), constants, row_warps(block), 1, pdl_options(gpu.pdl)
    )


def quantize_rows(x: Tensor, hadamard: int = 1) -> tuple[Tensor, Tensor]:
    """Quantises each row. x [T, K] -> (int8 [T, K], scale float32 [T]). Raises KernelError."""
    expect("quantize_rows", "x", x, FLOATS, (None, None))
    return cpu_quantize_rows(x, hadamard) if x.is_cpu else _launch(x)


def quantize_weight(w: Tensor, hadamard: int = 1) -> tuple[Tensor, Tensor]:
    """Quantises each output channel. w [N, K] -> (int8 [N, K], scale float32 [N]). Raises KernelError."""
    expect("quantize_weight", "w", w, FLOATS, (None, None))
    return cpu_quantize_rows(w / hadamard, hadamard) if w.is_cpu else _launch(w)


def _launch(x: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    plan(x, out, scale, facts(x.device)).run()
    return out, scale


def reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """The maths in float64: (the real numbers that were to be rounded, float64 [T, K]; scale float64 [T])."""
    peak = x.double().abs().amax(dim=1) if x.shape[1] else torch.zeros(len(x), dtype=torch.float64, device=x.device)
    inverse = torch.where(peak > 0, 127 / peak, torch.zeros_like(peak))
    return x.double() * inverse[:, None], peak / 127


def bytes_moved(tokens: int, width: int, element_bytes: int = 2) -> int:
    """x read once; int8 and the scales written once."""
    return tokens * (width * (element_bytes + 1) + 4)


def flops(tokens: int, width: int) -> int:
    """An absolute value, a maximum, a product and a rounding an element."""
    return 4 * tokens * width
