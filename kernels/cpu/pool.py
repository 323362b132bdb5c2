"""Pooling and head on the CPU."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def pool(hidden: Tensor, cu_seqlens: Tensor, mode: str) -> Tensor:
    """See kernels.pool."""
    bounds = cu_seqlens.tolist()
    out = torch.zeros(len(bounds) - 1, hidden.shape[1], dtype=torch.float32)
    for index, (start, end) in enumerate(pairwise(bounds)):
        if end == start:
            continue
        if mode == "last":
            out[index] = hidden[end - 1]
        else:
            torch.sum(hidden[start:end], dim=0, dtype=torch.float32, out=out[index])
            if mode == "mean":
                out[index] /= end - start
    return out


def head(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
    center: Tensor | None = None,
    spread: Tensor | None = None,
) -> Tensor:
    """See kernels.pool.head. One row at a time, so that a score never depends on its company."""
    x = features
    if norm_weight is not None:
        x = x * (x.square().mean(dim=1, keepdim=True) + norm_eps).rsqrt() * norm_weight
    if center is not None and spread is not None:
        x = (x - center) / spread
    out = torch.stack([torch.mv(weight, row) for row in x]) if len(x) else x.new_zeros(0, len(weight))
    return out if bias is None else out + bias
