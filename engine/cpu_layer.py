"""A decoder layer in int8 on the CPU: the same mathematics as `layer.Layer` in as few passes over memory as torch
allows.

Enters: states float32 [T, H] and a batch. Leaves: the next states. Knows no other device or precision. At 128 tokens a
layer of SmolLM2-135M is 0.63 ms of int8 products; what is here beside them is arranged to cost less than that:

- scales of rows meet as late as they can: a norm's 1/rms multiplies the row's scale, never its H values;
- gate and up lie in two halves, and dimensions of q and k that rotate together lie side by side, so that torch's vector
  loops run over both (the rotation is one complex product); the weights' rows are put in that order when they are
  loaded;
- attention runs in bfloat16, everything between the products in float32.

A row's bits depend on its prompt alone, whatever it is batched with.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from onebeat.engine.batch import Batch
from onebeat.engine.config import BackboneConfig
from onebeat.engine.rotary import Rotation
from onebeat.kernels.cpu.attention import attention
from onebeat.kernels.cpu.packed_matmul import PackedMatrix
from onebeat.kernels.cpu.paged_attention import paged_attention
from onebeat.kernels.cpu.rows import LANES, LEVELS, gate, inverse_rms, quantize_in_place, turn_

TILE_TOKENS = 256
"""Rows that go through a layer's products and row operations at once: so many stay in the cores' own caches between one
operation and the next (at 2,048 rows at once, 32 prompts of 16 to 256 tokens took 1.17 s; one by one 0.94 s), while
the layer's weights stay in the shared cache from one run of rows to the next."""


class Product(Protocol):
    """A matrix [N, K] ready to be multiplied."""

    def __call__(self, rows: Tensor, chunks: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        """float32 [T, K], which it may overwrite -> (float32 [T, N], scale [T, 1] yet to be applied to its rows).

        `chunks` are the rows of each chunk, which add up to T.
        """


class Int8Product:
    """A matrix in int8: rows are transformed and quantised with one scale each."""

    def __init__(self, weight: Tensor, scale: Tensor, block: int) -> None:
        """weight int8 [N, K], scale float32 [N]; rows are transformed in runs of `block` values, as `weight` was."""
        self.packed = PackedMatrix(weight, scale / LEVELS)
        self.block = block

    def __call__(self, rows: Tensor, chunks: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        quantized, largest = quantize_in_place(rows, self.block)
        return self.packed.multiply(quantized), largest


class KeptProduct:
    """A matrix kept in bfloat16, because int8 would cost it too much."""

    def __init__(self, weight: Tensor) -> None:
        """weight bfloat16 [N, K]."""
        self.weight = weight

    def __call__(self, rows: Tensor, chunks: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        # A float product's rounding may depend on its size, so each chunk is a product of its own.
        pieces = torch.split(rows.to(self.weight.dtype), list(chunks))
        return torch.cat([F.linear(piece, self.weight) for piece in pieces]).float(), None


@dataclass(frozen=True, slots=True, eq=False)
class CpuInt8Layer:
    """One decoder layer. Norms and biases are float32; q and k rows, biases and norms are in paired order."""

    config: BackboneConfig
    input_norm: Tensor
    qkv: Product
    attention_out: Product
    post_norm: Tensor
    gate_up: Product
    """Gate before up, each padded to a multiple of `LANES` rows."""
    down: Product
    qkv_bias: Tensor | None = None
    attention_out_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None

    def forward(
        self, x: Tensor, batch: Batch, rotation: Rotation, keys: Tensor | None, values: Tensor | None
    ) -> Tensor:
        """[T, H] -> [T, H]. `keys` and `values` [B, chunk_tokens, NKV, D] are this layer's cache, where there is
        one."""
        turns = rotation.turns
        assert turns is not None
        # A batch of static buffers is filled after it was made: its lengths are read when it is computed.
        chunk_rows = batch.chunk_rows or tuple(rows for rows in batch.chunk_bounds.diff().tolist() if rows)
        tiles = tiles_of(chunk_rows)
        if len(tiles) == 1:
            heads = self._heads(x, turns, chunk_rows)
            return self._after(x, self._mix(heads, batch, keys, values), chunk_rows)
        heads = torch.cat([self._heads(x[rows], turns[rows], chunks) for rows, chunks in tiles])
        mixed = self._mix(heads, batch, keys, values)
        return torch.cat([self._after(x[rows], mixed[rows], chunks) for rows, chunks in tiles])

    def _heads(self, x: Tensor, turns: Tensor, chunks: tuple[int, ...]) -> Tensor:
        """x [T, H] -> q, k and v, normed, rotated, bfloat16 [T, NQ + 2 NKV, D]."""
        config = self.config
        inverse = inverse_rms(x, config.norm_eps)
        qkv, scale = self.qkv(torch.mul(x, self.input_norm), chunks)  # [T, (NQ + 2 NKV) * D]
        qkv.mul_(inverse if scale is None else scale.mul_(inverse))
        if self.qkv_bias is not None:
            qkv.add_(self.qkv_bias)
        heads = qkv.view(qkv.shape[0], -1, config.head_size)
        turned = config.query_heads + config.key_heads
        if self.q_norm is not None and self.k_norm is not None:
            _norm_heads_(heads[:, : config.query_heads], self.q_norm, config.norm_eps)
            _norm_heads_(heads[:, config.query_heads : turned], self.k_norm, config.norm_eps)
        turn_(heads[:, :turned], turns)
        return heads.bfloat16()

    def _after(self, x: Tensor, mixed: Tensor, chunks: tuple[int, ...]) -> Tensor:
        """x [T, H] and attended values [T, NQ * D] -> [T, H]: output projection, residual, feed-forward, residual."""
        out, largest = self.attention_out(mixed, chunks)
        if self.attention_out_bias is not None:
            out = (out if largest is None else out.mul_(largest)).add_(self.attention_out_bias)
            largest = None
        x = x + out if largest is None else torch.addcmul(x, out, largest)
        inverse = inverse_rms(x, self.config.norm_eps)
        gate_up, scale = self.gate_up(torch.mul(x, self.post_norm), chunks)
        scale = inverse if scale is None else scale.mul_(inverse)
        out, largest = self.down(gate(gate_up, scale), chunks)
        return torch.addcmul(x, out, scale if largest is None else largest.mul_(scale))

    def _mix(self, heads: Tensor, batch: Batch, keys: Tensor | None, values: Tensor | None) -> Tensor:
        """heads bfloat16 [T, NQ + 2 NKV, D] -> attended values float32 [T, NQ * D]; writes keys and values to the
        cache."""
        config = self.config
        q, k, v = torch.split(heads, [config.query_heads, config.key_heads, config.key_heads], dim=1)
        scale = config.head_size**-0.5
        if keys is None or values is None:
            mixed = attention(
                q, k, v, batch.cu_seqlens, batch.max_seqlen, scale=scale, window=config.window, out_dtype=torch.float32
            )
            return mixed.flatten(1)
        assert batch.slots is not None and batch.context_tokens is not None and batch.block_table is not None
        keys.flatten(0, 1).index_copy_(0, batch.slots, k)
        values.flatten(0, 1).index_copy_(0, batch.slots, v)
        mixed = paged_attention(
            q,
            keys,
            values,
            batch.cu_seqlens,
            batch.context_tokens,
            batch.block_table,
            batch.max_seqlen,
            scale=scale,
            window=config.window,
            out_dtype=torch.float32,
        )
        return mixed.flatten(1)


@functools.lru_cache(maxsize=256)
def tiles_of(chunks: tuple[int, ...]) -> tuple[tuple[slice, tuple[int, ...]], ...]:
    """The rows of a batch in runs of whole chunks, at most `TILE_TOKENS` rows each, with the chunks of each run."""
    tiles: list[tuple[slice, tuple[int, ...]]] = []
    begin, end, run = 0, 0, list[int]()
    for rows in chunks:
        if run and end - begin + rows > TILE_TOKENS:
            tiles.append((slice(begin, end), tuple(run)))
            begin, run = end, []
        run.append(rows)
        end += rows
    return (*tiles, (slice(begin, end), tuple(run)))


def paired_rows(config: BackboneConfig) -> Tensor:
    """The order of qkv's rows in which dimensions i and i + D/2 of every q and k head lie side by side. [(NQ+2NKV)
    D]."""
    size, half = config.head_size, config.head_size // 2
    pairs = torch.arange(size).view(2, half).t().reshape(-1)
    turned = config.query_heads + config.key_heads
    heads = torch.arange(turned)[:, None] * size + pairs[None, :]
    return torch.cat([heads.reshape(-1), torch.arange(turned * size, (turned + config.key_heads) * size)])


def paired_norm(weight: Tensor) -> Tensor:
    """A q or k norm [D] in the order of `paired_rows`."""
    return weight.view(2, -1).t().reshape(-1)


def halved_rows(gate_up: Tensor) -> Tensor:
    """gate_up [2F, ...] interleaved -> gate then up, each padded with zeros to a multiple of `LANES` rows."""
    padding = [0, 0] * (gate_up.dim() - 1) + [0, -(gate_up.shape[0] // 2) % LANES]
    return torch.cat([F.pad(gate_up[0::2], padding), F.pad(gate_up[1::2], padding)])


def padded_columns(down: Tensor) -> Tensor:
    """down [H, F] with zeros up to a multiple of `LANES` columns."""
    return F.pad(down, [0, -down.shape[1] % LANES])


def _norm_heads_(heads: Tensor, weight: Tensor, eps: float) -> None:
    heads.mul_(inverse_rms(heads, eps)).mul_(weight)
