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
from onebeat.kernels.checks import FLOAT32, FLOATS, expect, expect_sequences, refuse
from onebeat.kernels.cpu.pool import head as cpu_head
from onebeat.kernels.cpu.pool import pool as cpu_pool

Pooling = Literal["mean", "last", "sum"]


@jit
def _pool_kernel(
    hidden: tl.pointer_type,  # float [T, H]
    cu_seqlens: tl.pointer_type,  # int32 [S+1]
    out: tl.pointer_type,  # float32 [S, H]
    tokens: tl.tensor,  # T: no bound in cu_seqlens reaches beyond it
    width: tl.tensor,  # H, also the stride of a row
    LAST: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    sequence = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = column < width
    start = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence), 0), tokens)
    end = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence + 1), start), tokens)
    total = tl.zeros((BLOCK_H,), dtype=tl.float32)
    if LAST:
        if end > start:
            total += tl.load(hidden + (end - 1).to(tl.int64) * width + column, mask=inside, other=0.0).to(tl.float32)
    else:
        for first in tl.range(start, end, BLOCK_T, num_stages=3):
            row = first + tl.arange(0, BLOCK_T)
            mask = (row < end)[:, None] & inside[None, :]
            places = hidden + row.to(tl.int64)[:, None] * width + column[None, :]
            total += tl.sum(tl.load(places, mask=mask, other=0.0).to(tl.float32), axis=0)
        if MEAN:
            total = tl.div_rn(total, tl.zeros_like(total) + tl.maximum(end - start, 1).to(tl.float32))
    tl.store(out + sequence.to(tl.int64) * width + column, total, mask=inside)


@jit
def _head_kernel(
    features: tl.pointer_type,  # float32 [S, F]
    weight: tl.pointer_type,  # float32 [M, F]
    bias: tl.pointer_type,  # float32 [M], or None
    norm_weight: tl.pointer_type,  # float32 [F], or None
    center: tl.pointer_type,  # float32 [F], or None
    spread: tl.pointer_type,  # float32 [F], or None
    out: tl.pointer_type,  # float32 [S, M]
    columns: tl.tensor,  # M
    width: tl.tensor,  # F
    eps: tl.tensor,
    BIAS: tl.constexpr,
    NORM: tl.constexpr,
    STANDARDIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    model = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inverse = 1.0
    if NORM:
        squares = tl.zeros((BLOCK_F,), dtype=tl.float32)
        for first in tl.range(0, width, BLOCK_F):
            column = first + tl.arange(0, BLOCK_F)
            values = tl.load(features + row * width + column, mask=column < width, other=0.0)
            squares += values * values
        inverse = tl.rsqrt(tl.sum(squares, axis=0) / width + eps)
    total = tl.zeros((BLOCK_M, BLOCK_F), dtype=tl.float32)
    for first in tl.range(0, width, BLOCK_F):
        column = first + tl.arange(0, BLOCK_F)
        inside = column < width
        values = tl.load(features + row * width + column, mask=inside, other=0.0)
        if NORM:
            values = values * inverse * tl.load(norm_weight + column, mask=inside, other=0.0)
        if STANDARDIZE:
            values = values - tl.load(center + column, mask=inside, other=0.0)
            values = tl.div_rn(values, tl.load(spread + column, mask=inside, other=1.0))
        mask = (model < columns)[:, None] & inside[None, :]
        rows = tl.load(weight + model.to(tl.int64)[:, None] * width + column[None, :], mask=mask, other=0.0)
        total = tl.fma(rows, tl.zeros_like(rows) + values[None, :], total)
    scores = tl.sum(total, axis=1)
    if BIAS:
        scores += tl.load(bias + model, mask=model < columns, other=0.0)
    tl.store(out + row * columns + model, scores, mask=model < columns)


def plan(hidden: Tensor, cu_seqlens: Tensor, mode: Pooling, out: Tensor, gpu: Facts) -> Launch:
    """A program for 32 columns of a sequence: tiles are fixed, so that sums never change their order."""
    return Launch(
        _pool_kernel,
        (out.shape[0], -(-out.shape[1] // 32)),
        (hidden, cu_seqlens, out, hidden.shape[0], hidden.shape[1]),
        {"LAST": mode == "last", "MEAN": mode == "mean", "BLOCK_T": 64, "BLOCK_H": 32, "PDL": gpu.pdl},
        4,
        3,
        pdl_options(gpu.pdl),
    )


def plan_head(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_eps: float,
    center: Tensor | None,
    spread: Tensor | None,
    out: Tensor,
    gpu: Facts,
) -> Launch:
    """A program for 8 models of a sequence."""
    (sequences, columns), width = out.shape, features.shape[1]
    return Launch(
        _head_kernel,
        (sequences, -(-columns // 8)),
        (features, weight, bias, norm_weight, center, spread, out, columns, width, norm_eps),
        {
            "BIAS": bias is not None,
            "NORM": norm_weight is not None,
            "STANDARDIZE": center is not None,
            "BLOCK_M": 8,
            "BLOCK_F": min(power_of_two(width), 512),
            "PDL": gpu.pdl,
        },
        4,
        1,
        pdl_options(gpu.pdl),
    )


def pool(hidden: Tensor, cu_seqlens: Tensor, mode: Pooling) -> Tensor:
    """hidden [T, H], cu_seqlens [S+1] int32 -> float32 [S, H]. "sum" is for chunked prompts. Raises KernelError."""
    expect("pool", "hidden", hidden, FLOATS, (None, None))
    expect_sequences("pool", cu_seqlens, hidden.shape[0], hidden.shape[0], hidden.device)
    if mode not in get_args(Pooling):
        refuse("pool", "mode", repr(mode), '"mean", "last" or "sum"')
    if hidden.is_cpu:
        return cpu_pool(hidden, cu_seqlens, mode)
    out = torch.empty(len(cu_seqlens) - 1, hidden.shape[1], dtype=torch.float32, device=hidden.device)
    plan(hidden, cu_seqlens, mode, out, facts(hidden.device)).run()
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
    if features.is_cpu:
        return cpu_head(
            features, weight, bias, norm_weight=norm_weight, norm_eps=norm_eps, center=center, spread=spread
        )
    out = torch.empty(features.shape[0], weight.shape[0], dtype=torch.float32, device=device)
    plan_head(features, weight, bias, norm_weight, norm_eps, center, spread, out, facts(device)).run()
    return out


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
