"""Root-mean-square norm of each row, with the residual added first and, if asked, int8 quantisation after, in one pass.

    summed = x + residual                       (rounded to x's dtype: it is the next residual)
    normed = summed / sqrt(mean(summed^2) + eps) * weight      (in float32, rounded once)

Source: Zhang and Sennrich, arXiv:1910.07467.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onebeat.kernels.checks import FLOATS, expect
from onebeat.kernels.cpu.rms_norm import rms_norm as cpu_rms_norm
from onebeat.kernels.cpu.rms_norm import rms_norm_quantize as cpu_rms_norm_quantize


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x and residual [T, H], weight [H] -> (normed [T, H], summed [T, H]); without a residual, summed is x itself."""
    _check("rms_norm", x, weight, residual)
    return cpu_rms_norm(x, weight, eps, residual=residual)


def rms_norm_quantize(
    x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """x and residual [T, H], weight [H] -> (int8 [T, H], scale float32 [T], summed [T, H]), scaled as in quantize."""
    _check("rms_norm_quantize", x, weight, residual)
    return cpu_rms_norm_quantize(x, weight, eps, residual=residual)


def _check(op: str, x: Tensor, weight: Tensor, residual: Tensor | None) -> None:
    expect(op, "x", x, FLOATS, (None, None))
    expect(op, "weight", weight, FLOATS, (x.shape[1],), x.device)
    if residual is not None:
        expect(op, "residual", residual, (x.dtype,), tuple(x.shape), x.device)


def reference(x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The maths in float64, after the sum's rounding to x's dtype: (normed float64 [T, H], summed [T, H])."""
    summed = x if residual is None else x + residual
    exact = summed.double()
    return exact * torch.rsqrt(exact.square().mean(dim=1, keepdim=True) + eps) * weight.double(), summed


def bytes_moved(
    tokens: int, width: int, element_bytes: int = 2, *, residual: bool = True, quantized: bool = True
) -> int:
    """x, residual and weight read once; sum, result and scales written once."""
    out = tokens * (width + 4) if quantized else tokens * width * element_bytes
    return tokens * width * element_bytes * (3 if residual else 1) + width * element_bytes + out


def flops(tokens: int, width: int) -> int:
    """A sum, a square, an add and two products an element."""
    return 5 * tokens * width
