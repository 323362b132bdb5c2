"""From token states to one row a sequence, and from that row to scores.

    pool:   mean, sum or last row of each sequence, in float32      (an empty sequence gives zeros)
    head:   normed(features) @ weight.T + bias                      (normed: RMS norm, standardising, or neither)

A sequence's rows are added one after the other in blocks that begin at its first row, whatever else is in the batch.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from onebeat.kernels.checks import FLOAT32, FLOATS, expect, expect_sequences, refuse
from onebeat.kernels.cpu.pool import head as cpu_head
from onebeat.kernels.cpu.pool import pool as cpu_pool

Pooling = Literal["mean", "last", "sum"]


def pool(hidden: Tensor, cu_seqlens: Tensor, mode: Pooling) -> Tensor:
    """hidden [T, H], cu_seqlens [S+1] int32 -> float32 [S, H]. "sum" is for chunked prompts. Raises KernelError."""
    expect("pool", "hidden", hidden, FLOATS, (None, None))
    expect_sequences("pool", cu_seqlens, hidden.shape[0], hidden.shape[0], hidden.device)
    if mode not in get_args(Pooling):
        refuse("pool", "mode", repr(mode), '"mean", "last" or "sum"')
    return cpu_pool(hidden, cu_seqlens, mode)


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
    """features [S, F], weight [M, F], bias [M], all float32 -> [S, M] float32.

    `norm_weight` [F] asks for an RMS norm first; `center` and `spread` [F] for (features - center) / spread instead.
    """
    expect("head", "features", features, FLOAT32, (None, None))
    width, device = features.shape[1], features.device
    expect("head", "weight", weight, FLOAT32, (None, width), device)
    if bias is not None:
        expect("head", "bias", bias, FLOAT32, (weight.shape[0],), device)
    if (center is None) != (spread is None):
        refuse("head", "center without spread (or the other way round)", "given", "both or neither")
    if norm_weight is not None and center is not None:
        refuse("head", "norm_weight beside center", "given", "one kind of norm")
    for name, row in (("norm_weight", norm_weight), ("center", center), ("spread", spread)):
        if row is not None:
            expect("head", name, row, FLOAT32, (width,), device)
    return cpu_head(features, weight, bias, norm_weight=norm_weight, norm_eps=norm_eps, center=center, spread=spread)


def reference(hidden: Tensor, cu_seqlens: Tensor, mode: Pooling) -> Tensor:
    """The pooling in float64. [S, H] float64."""
    bounds = cu_seqlens.tolist()
    out = torch.zeros(len(bounds) - 1, hidden.shape[1], dtype=torch.float64, device=hidden.device)
    for index, (start, end) in enumerate(pairwise(bounds)):
        if end > start:
            rows = hidden[start:end].double()
            out[index] = rows[-1] if mode == "last" else rows.sum(0) if mode == "sum" else rows.mean(0)
    return out


def reference_head(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
    center: Tensor | None = None,
    spread: Tensor | None = None,
) -> Tensor:
    """The norm and the head in float64. [S, M] float64."""
    x = features.double()
    if norm_weight is not None:
        x = x * (x.square().mean(dim=1, keepdim=True) + norm_eps).rsqrt() * norm_weight.double()
    if center is not None and spread is not None:
        x = (x - center.double()) / spread.double()
    out = x @ weight.double().t()
    return out if bias is None else out + bias.double()


def bytes_moved(tokens: int, sequences: int, width: int, mode: Pooling, element_bytes: int = 2) -> int:
    """The rows that the mode needs read once, the pooled rows written once."""
    read = sequences if mode == "last" else tokens
    return read * width * element_bytes + sequences * width * 4


def flops(tokens: int, width: int, mode: Pooling) -> int:
    """An add an element, unless only the last row is taken."""
    return 0 if mode == "last" else tokens * width
