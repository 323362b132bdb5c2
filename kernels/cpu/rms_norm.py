"""RMS norm on the CPU."""

from __future__ import annotations

from torch import Tensor

from onebeat.kernels.cpu.quantize import quantize_rows


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See kernels.rms_norm."""
    normed, summed = _norm(x, weight, eps, residual)
    return normed.to(x.dtype), summed


def rms_norm_quantize(
    x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None, hadamard: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """See kernels.rms_norm."""
    normed, summed = _norm(x, weight, eps, residual)
    quantized, scale = quantize_rows(normed, hadamard)
    return quantized, scale, summed


def _norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    summed = x if residual is None else x + residual
    wide = summed.float()
    return wide * (wide.square().mean(dim=1, keepdim=True) + eps).rsqrt() * weight.float(), summed
