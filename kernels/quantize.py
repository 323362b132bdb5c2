"""Symmetric int8 with one float32 scale a row: activations a token at a time, weights an output channel at a time.

    scale = max|x| / 127        q = round_half_even(x * (127 / max|x|))        x ~ q * scale

A row of zeros has scale 0. NaN and infinity are not looked for: whoever loads weights refuses them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onebeat.kernels.checks import FLOATS, expect
from onebeat.kernels.cpu.quantize import quantize_rows as cpu_quantize_rows


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises each row. x [T, K] -> (int8 [T, K], scale float32 [T]). Raises KernelError."""
    expect("quantize_rows", "x", x, FLOATS, (None, None))
    return cpu_quantize_rows(x)


def quantize_weight(w: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises each output channel. w [N, K] -> (int8 [N, K], scale float32 [N]). Raises KernelError."""
    expect("quantize_weight", "w", w, FLOATS, (None, None))
    return cpu_quantize_rows(w)


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
