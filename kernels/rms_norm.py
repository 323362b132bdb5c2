"""Root-mean-square norm of each row, with the residual added first and, if asked, int8 quantisation after, in one pass.

    summed = x + residual                       (rounded to x's dtype: it is the next residual)
    normed = summed / sqrt(mean(summed^2) + eps) * weight      (in float32, rounded once)

Quantising, and the transform before it, are those of kernels.quantize. Source: Zhang and Sennrich, arXiv:1910.07467.
"""

from __future__ import annotations

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
from onebeat.kernels.cpu.rms_norm import rms_norm as cpu_rms_norm
from onebeat.kernels.cpu.rms_norm import rms_norm_quantize as cpu_rms_norm_quantize
from onebeat.kernels.quantize import quantized, row_warps, transform_flops


@jit
def _rms_norm_kernel(
    x: tl.pointer_type,  # float [T, H]
    residual: tl.pointer_type,  # like x, or None
    weight: tl.pointer_type,  # float [H]
    out: tl.pointer_type,  # like x, or int8 [T, H]
    scale: tl.pointer_type,  # float32 [T], or None
    summed: tl.pointer_type,  # like x, or None
    width: tl.tensor,  # H, also the stride of a row
    eps: tl.tensor,
    BLOCK: tl.constexpr,
    RESIDUAL: tl.constexpr,
    QUANTIZE: tl.constexpr,
    HADAMARD: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    values = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        values += tl.load(residual + row * width + column, mask=inside, other=0.0).to(tl.float32)
        rounded = values.to(summed.dtype.element_ty)
        tl.store(summed + row * width + column, rounded, mask=inside)
        values = rounded.to(tl.float32)
    mean = tl.sum(values * values, axis=0) / width
    normed = values * tl.rsqrt(mean + eps) * gain
    if QUANTIZE:
        result, row_scale = quantized(normed, HADAMARD)
        tl.store(out + row * width + column, result, mask=inside)
        tl.store(scale + row, row_scale)
    else:
        tl.store(out + row * width + column, normed.to(out.dtype.element_ty), mask=inside)


def plan(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None,
    out: Tensor,
    scale: Tensor | None,
    summed: Tensor | None,
    gpu: Facts,
    hadamard: int = 1,
) -> Launch:
    """One program a row; quantises where there is a scale to write."""
    block = power_of_two(x.shape[1])
    chosen = {"RESIDUAL": residual is not None, "QUANTIZE": scale is not None, "HADAMARD": hadamard}
    return Launch(
        _rms_norm_kernel,
        (x.shape[0],),
        (x, residual, weight, out, scale, summed, x.shape[1], eps),
        {"BLOCK": block, **chosen, "PDL": gpu.pdl},
        row_warps(block),
        1,
        pdl_options(gpu.pdl),
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x and residual [T, H], weight [H] -> (normed [T, H], summed [T, H]); without a residual, summed is x itself."""
    _check("rms_norm", x, weight, residual)
    if x.is_cpu:
        return cpu_rms_norm(x, weight, eps, residual=residual)
    out = torch.empty_like(x)
    summed = None if residual is None else torch.empty_like(x)
    plan(x, weight, eps, residual, out, None, summed, facts(x.device)).run()
    return out, x if summed is None else summed


def rms_norm_quantize(
    x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None, hadamard: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """x and residual [T, H], weight [H] -> (int8 [T, H], scale float32 [T], summed [T, H]).

    Transformed and scaled as in quantize.
    """
    _check("rms_norm_quantize", x, weight, residual)
    expect_block("rms_norm_quantize", "x's width", x.shape[1], hadamard)
    if x.is_cpu:
        return cpu_rms_norm_quantize(x, weight, eps, residual=residual, hadamard=hadamard)
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    summed = None if residual is None else torch.empty_like(x)
    plan(x, weight, eps, residual, out, scale, summed, facts(x.device), hadamard).run()
    return out, scale, x if summed is None else summed


def _check(op: str, x: Tensor, weight: Tensor, residual: Tensor | None) -> None:
    expect(op, "x", x, FLOATS, (None, None))
    expect(op, "weight", weight, FLOATS, (x.shape[1],), x.device)
    if residual is not None:
        expect(op, "residual", residual, (x.dtype,), tuple(x.shape), x.device)


def reference(x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The maths in float64, after the sum's rounding to x's dtype: (normed float64 [T, H], summed [T, H]).

    Where int8 is asked for, quantize.reference goes on from normed.
    """
    summed = x if residual is None else x + residual
    exact = summed.double()
    return exact * torch.rsqrt(exact.square().mean(dim=1, keepdim=True) + eps) * weight.double(), summed


def bytes_moved(
    tokens: int, width: int, element_bytes: int = 2, *, residual: bool = True, quantized: bool = True
) -> int:
    """x, residual and weight read once; sum, result and scales written once."""
    out = tokens * (width + 4) if quantized else tokens * width * element_bytes
    return tokens * width * element_bytes * (3 if residual else 1) + width * element_bytes + out


def flops(tokens: int, width: int, hadamard: int = 1) -> int:
    """A sum, a square, an add and two products an element, and the transform's sums."""
    return 5 * tokens * width + transform_flops(tokens, width, hadamard)
