"""Causal attention of a packed batch on the CPU, one sequence at a time through torch's flash kernel."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """See kernels.attention."""
    out = torch.empty(q.shape, dtype=q.dtype)
    bounds = cu_seqlens.tolist()
    for start, end in pairwise(bounds):
        if end > start:
            out[start:end] = one_sequence(q[start:end], k[start:end], v[start:end], scale, window)
    return out


def one_sequence(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """The last tokens of a sequence against all of it. q [Q, NQ, D], k and v [K, NKV, D] with Q <= K -> [Q, NQ, D]."""
    queries, keys = len(q), len(k)
    mask = None
    if queries != keys or (window is not None and window < keys):
        row = torch.arange(keys - queries, keys)[:, None]
        column = torch.arange(keys)[None, :]
        mask = column <= row
        if window is not None:
            mask &= row - column < window
    return scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )[0].transpose(0, 1)
