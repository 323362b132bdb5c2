"""Rotary positions on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    *,
    query_heads: int,
    key_heads: int,
    bias: Tensor | None = None,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    norm_eps: float = 1e-6,
    key_cache: Tensor | None = None,
    value_cache: Tensor | None = None,
    slots: Tensor | None = None,
) -> None:
    """See kernels.rope."""
    wide = qkv.float() if bias is None else qkv.float() + bias.float()
    heads = wide.view(len(qkv), query_heads + 2 * key_heads, 2 * cos.shape[1])
    turned = heads[:, : query_heads + key_heads]
    if q_norm is not None and k_norm is not None:
        norms = torch.cat([q_norm.float().expand(query_heads, -1), k_norm.float().expand(key_heads, -1)])
        turned = turned * (turned.square().mean(-1, keepdim=True) + norm_eps).rsqrt() * norms
    index = positions.long()
    c, s = cos[index].float()[:, None], sin[index].float()[:, None]
    low, high = turned.chunk(2, dim=-1)
    out = qkv.view(heads.shape)
    out[:, : query_heads + key_heads] = torch.cat([low * c - high * s, high * c + low * s], dim=-1)
    if bias is not None:
        out[:, query_heads + key_heads :] = heads[:, query_heads + key_heads :]
    if key_cache is not None and value_cache is not None and slots is not None:
        rows = slots.long()
        key_cache.view(-1, *key_cache.shape[2:])[rows] = out[:, query_heads : query_heads + key_heads]
        value_cache.view(-1, *value_cache.shape[2:])[rows] = out[:, query_heads + key_heads :]
