"""W8A8 on the CPU: torch's int8 product (VNNI where there is one), exact for every M."""

from __future__ import annotations

import torch
from torch import Tensor

from onebeat.kernels.cpu.swiglu import swiglu


def int8_matmul(
    a: Tensor,
    a_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """See kernels.int8_matmul."""
    out = torch._int_mm(a, weight.t()).float()
    out.mul_(a_scale[:, None]).mul_(weight_scale)
    if bias is not None:
        out.add_(bias)
    if residual is not None:
        out.add_(residual)
    return out.to(out_dtype)


def int8_matmul_swiglu(
    a: Tensor, a_scale: Tensor, weight: Tensor, weight_scale: Tensor, *, out_dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """See kernels.int8_matmul."""
    return swiglu(int8_matmul(a, a_scale, weight, weight_scale, out_dtype=torch.float32)).to(out_dtype)
