"""A decoder layer on any device in float32, bfloat16 or int8, through the op wrappers.

Enters: states [T, H] and a batch. Leaves: the next states. What differs between Qwen2, Qwen3, Llama and Mistral is data
(biases, q/k norms, a window, the rotary tables), never a subclass. int8 on the CPU has a layer of its own, `cpu_layer`,
whose weights lie in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onebeat.engine.batch import Batch
from onebeat.engine.config import BackboneConfig
from onebeat.engine.rotary import Rotation
from onebeat.kernels.attention import attention
from onebeat.kernels.cpu.hadamard import hadamard_block
from onebeat.kernels.int8_matmul import int8_matmul, int8_matmul_swiglu
from onebeat.kernels.paged_attention import paged_attention
from onebeat.kernels.quantize import quantize_rows
from onebeat.kernels.rms_norm import rms_norm, rms_norm_quantize
from onebeat.kernels.rope import rope_
from onebeat.kernels.swiglu import swiglu


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """One weight [N, K]: float, or int8 with one float32 scale per row [N], transformed as `hadamard_block(K)` says."""

    weight: Tensor
    scale: Tensor | None = None
    observer: Callable[[Tensor], None] | None = None
    """Shown the rows [T, K] that a float matrix is multiplied with: what calibration measures."""


@dataclass(frozen=True, slots=True, eq=False)
class Activation:
    """Rows on their way into a matrix: float [T, K], or int8 [T, K], transformed likewise, with their scales [T]."""

    rows: Tensor
    scale: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One decoder layer. q, k and v are one matrix; gate and up another, with their rows interleaved."""

    config: BackboneConfig
    state_dtype: torch.dtype
    """The residual stream's."""
    mixing_dtype: torch.dtype
    """That of q, k, v and the cache."""
    input_norm: Tensor
    qkv: Matrix
    attention_out: Matrix
    post_norm: Tensor
    gate_up: Matrix
    down: Matrix
    qkv_bias: Tensor | None = None
    attention_out_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None

    def forward(
        self, x: Tensor, batch: Batch, rotation: Rotation, keys: Tensor | None, values: Tensor | None
    ) -> Tensor:
        """[T, H] -> [T, H]. `keys` and `values` [B, chunk_tokens, NKV, D] are this layer's cache, where there is
        one."""
        x = self._attend(x, batch, rotation, keys, values)
        normed = self._normed(x, self.post_norm, self.gate_up)
        if normed.scale is not None and self.gate_up.scale is not None:
            gated = int8_matmul_swiglu(
                normed.rows, normed.scale, self.gate_up.weight, self.gate_up.scale, out_dtype=self.state_dtype
            )
        else:
            gated = swiglu(self._product(normed, self.gate_up))
        return self._product(_entering(gated, self.down), self.down, residual=x)

    def _attend(
        self, x: Tensor, batch: Batch, rotation: Rotation, keys: Tensor | None, values: Tensor | None
    ) -> Tensor:
        """Norm, q/k/v, rotary positions, attention, output projection, residual."""
        config = self.config
        normed = self._normed(x, self.input_norm, self.qkv)
        qkv = self._product(normed, self.qkv, dtype=self.mixing_dtype)  # [T, (NQ + 2 NKV) * D]
        rope_(
            qkv,
            rotation.cos,
            rotation.sin,
            batch.positions,
            query_heads=config.query_heads,
            key_heads=config.key_heads,
            bias=self.qkv_bias,
            q_norm=self.q_norm,
            k_norm=self.k_norm,
            norm_eps=config.norm_eps,
            key_cache=keys,
            value_cache=values,
            slots=batch.slots,
        )
        heads = qkv.view(qkv.shape[0], -1, config.head_size)
        q, k, v = torch.split(heads, [config.query_heads, config.key_heads, config.key_heads], dim=1)
        if keys is not None and values is not None:
            assert batch.context_tokens is not None and batch.block_table is not None
            mixed = paged_attention(
                q,
                keys,
                values,
                batch.cu_seqlens,
                batch.context_tokens,
                batch.block_table,
                batch.max_seqlen,
                window=config.window,
            )
        else:
            mixed = attention(q, k, v, batch.cu_seqlens, batch.max_seqlen, window=config.window)
        entering = _entering(mixed.flatten(1), self.attention_out)  # [T, NQ * D]
        return self._product(entering, self.attention_out, bias=self.attention_out_bias, residual=x)

    def _normed(self, x: Tensor, weight: Tensor, into: Matrix) -> Activation:
        """[T, H] normed, as the matrix `into` takes it."""
        if into.scale is None:
            return Activation(rms_norm(x, weight, self.config.norm_eps)[0])
        rows, scale, _ = rms_norm_quantize(x, weight, self.config.norm_eps, hadamard=hadamard_block(x.shape[1]))
        return Activation(rows, scale)

    def _product(
        self,
        activation: Activation,
        matrix: Matrix,
        *,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """[T, K] times [N, K] transposed, plus bias [N] and residual [T, N] -> [T, N] in `dtype` (or the state's)."""
        dtype = dtype or self.state_dtype
        if activation.scale is not None and matrix.scale is not None:
            return int8_matmul(
                activation.rows,
                activation.scale,
                matrix.weight,
                matrix.scale,
                bias=bias,
                residual=residual,
                out_dtype=dtype,
            )
        if matrix.observer is not None:
            matrix.observer(activation.rows)
        out = F.linear(activation.rows.to(matrix.weight.dtype), matrix.weight, bias)
        return (out if residual is None else out + residual).to(dtype)


def _entering(rows: Tensor, into: Matrix) -> Activation:
    """[T, K] as the matrix `into` takes it."""
    if into.scale is None:
        return Activation(rows)
    return Activation(*quantize_rows(rows, hadamard=hadamard_block(rows.shape[1])))
