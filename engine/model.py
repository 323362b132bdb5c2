"""The backbone: a packed batch in, hidden states at the tap layers out, in one pass.

Enters: a `Batch` and the weights of the layers up to the last tap. Leaves: one [T, H] tensor per tap. Knows no text,
no head and no schedule. One code path serves Qwen2, Qwen3, Llama and Mistral, in float32, bfloat16 and int8 (W8A8),
on CPU and GPU: what differs between families is data (biases, q/k norms, a window, the rotary tables), never a
subclass.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onebeat.engine.batch import Batch
from onebeat.engine.config import BackboneConfig
from onebeat.engine.errors import InputError
from onebeat.engine.rotary import rotary_tables
from onebeat.kernels.attention import attention
from onebeat.kernels.embedding import embedding
from onebeat.kernels.int8_matmul import int8_matmul, int8_matmul_swiglu
from onebeat.kernels.paged_attention import paged_attention
from onebeat.kernels.quantize import quantize_rows
from onebeat.kernels.rms_norm import rms_norm, rms_norm_quantize
from onebeat.kernels.rope import rope_
from onebeat.kernels.swiglu import swiglu


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """One weight [N, K]: float, or int8 with one float32 scale per row [N]."""

    weight: Tensor
    scale: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """The weights of one decoder layer, fused: q, k, v in one matrix, gate and up in another with their rows
    interleaved."""

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


@dataclass(frozen=True, slots=True, eq=False)
class Activation:
    """Rows on their way into a matrix: float [T, K], or int8 [T, K] with one float32 scale per row [T]."""

    rows: Tensor
    scale: Tensor | None = None


class Backbone:
    """The layers up to the last tap, on one device, in one precision."""

    def __init__(
        self,
        config: BackboneConfig,
        table: Tensor,
        layers: Sequence[Layer],
        taps: Sequence[int],
        *,
        state_dtype: torch.dtype,
        mixing_dtype: torch.dtype,
        max_positions: int = 4096,
    ) -> None:
        """`table` [V, H] is the embedding. `state_dtype` is the residual stream's, `mixing_dtype` that of q, k and v.

        `taps` ascend; tap k is the output of layer k before any final norm, tap 0 the embedding. Prompts may have up to
        `max_positions` tokens.
        """
        assert list(taps) == sorted(set(taps)) and taps and taps[-1] == len(layers)
        self.config = config
        self.taps = tuple(taps)
        self.layers = tuple(layers)
        self.table = table
        self.device = table.device
        self.state_dtype = state_dtype
        self.mixing_dtype = mixing_dtype
        self.max_positions = min(max_positions, config.max_positions)
        self._cos, self._sin = rotary_tables(config, self.max_positions, table.device)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> tuple[Tensor, ...]:
        """[T, H] states in `state_dtype`, one per tap. Raises `InputError` for a prompt beyond `max_positions`.

        In int8 a row's bits depend on its prompt alone; in the float types a product of another size may round
        otherwise.
        """
        if batch.max_seqlen > self.max_positions:
            raise InputError(
                f"a prompt has {batch.max_seqlen} tokens and the backbone was prepared for {self.max_positions}; "
                "cut the prompt, or load the router with a larger max_prompt_tokens."
            )
        x = embedding(batch.token_ids, self.table).to(self.state_dtype)
        states = [x] if self.taps[0] == 0 else []
        for index, layer in enumerate(self.layers):
            x = self._attend(x, layer, index, batch)
            x = self._feed_forward(x, layer, batch)
            if index + 1 in self.taps:
                states.append(x)
        return tuple(states)

    def _attend(self, x: Tensor, layer: Layer, index: int, batch: Batch) -> Tensor:
        """[T, H] -> [T, H]: norm, q/k/v, rotary positions, attention, output projection, residual."""
        config = self.config
        normed = self._normed(x, layer.input_norm, layer.qkv)
        qkv = self._product(normed, layer.qkv, batch, dtype=self.mixing_dtype)  # [T, (NQ + 2 NKV) * D]
        keys = values = None
        if batch.cache is not None:
            keys, values = batch.cache.keys[index], batch.cache.values[index]
        rope_(
            qkv,
            self._cos,
            self._sin,
            batch.positions,
            query_heads=config.query_heads,
            key_heads=config.key_heads,
            bias=layer.qkv_bias,
            q_norm=layer.q_norm,
            k_norm=layer.k_norm,
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
        mixed = mixed.flatten(1)  # [T, NQ * D]
        rows = Activation(mixed) if layer.attention_out.scale is None else Activation(*quantize_rows(mixed))
        return self._product(rows, layer.attention_out, batch, bias=layer.attention_out_bias, residual=x)

    def _feed_forward(self, x: Tensor, layer: Layer, batch: Batch) -> Tensor:
        """[T, H] -> [T, H]: norm, gate and up, SwiGLU, down, residual."""
        normed = self._normed(x, layer.post_norm, layer.gate_up)
        if normed.scale is not None and layer.gate_up.scale is not None:
            gated = int8_matmul_swiglu(
                normed.rows, normed.scale, layer.gate_up.weight, layer.gate_up.scale, out_dtype=self.state_dtype
            )
        else:
            gated = swiglu(self._product(normed, layer.gate_up, batch))
        rows = Activation(gated) if layer.down.scale is None else Activation(*quantize_rows(gated))
        return self._product(rows, layer.down, batch, residual=x)

    def _normed(self, x: Tensor, weight: Tensor, into: Matrix) -> Activation:
        """[T, H] normed, as the matrix `into` takes it."""
        if into.scale is None:
            return Activation(rms_norm(x, weight, self.config.norm_eps)[0])
        rows, scale, _ = rms_norm_quantize(x, weight, self.config.norm_eps)
        return Activation(rows, scale)

    def _product(
        self,
        activation: Activation,
        matrix: Matrix,
        batch: Batch,
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
        return self._dense_product(activation.rows, matrix.weight, batch, bias, residual).to(dtype)

    def _dense_product(
        self, rows: Tensor, weight: Tensor, batch: Batch, bias: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        rows = rows.to(weight.dtype)
        if self.state_dtype == weight.dtype or not rows.is_cpu:
            out = F.linear(rows, weight, bias)
        else:
            # A matrix kept in bfloat16 among int8 ones: a float product's rounding may depend on its size, so each
            # chunk is a product of its own and its bits depend on its prompt alone.
            bounds = batch.chunk_bounds.tolist()
            pieces = [F.linear(rows[begin:end], weight, bias) for begin, end in itertools.pairwise(bounds)]
            out = torch.cat(pieces)
        return out if residual is None else residual + out
