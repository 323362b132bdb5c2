"""The backbone: a packed batch in, hidden states at the tap layers out, in one pass.

Enters: a `Batch`, and layers that are ready to run. Leaves: one [T, H] tensor per tap. Knows no text, no head, no
schedule and no weights beyond the embedding: a layer may be any object that takes states and gives states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from onebeat.engine.batch import CHUNK_TOKENS, Batch
from onebeat.engine.config import BackboneConfig
from onebeat.engine.errors import InputError
from onebeat.engine.rotary import Rotation, rotary_tables
from onebeat.kernels.embedding import embedding


class DecoderLayer(Protocol):
    """One layer: `layer.Layer` or `cpu_layer.CpuInt8Layer`."""

    def forward(
        self, x: Tensor, batch: Batch, rotation: Rotation, keys: Tensor | None, values: Tensor | None
    ) -> Tensor:
        """[T, H] -> a new [T, H]; `keys` and `values` are this layer's cache, where the batch has one."""


class Backbone:
    """The layers up to the last tap, on one device, in one precision."""

    def __init__(
        self,
        config: BackboneConfig,
        table: Tensor,
        layers: Sequence[DecoderLayer],
        taps: Sequence[int],
        *,
        state_dtype: torch.dtype,
        mixing_dtype: torch.dtype,
        max_positions: int,
        turns: bool = False,
        chunk_tokens: int = CHUNK_TOKENS,
    ) -> None:
        """`table` [V, H] is the embedding. `state_dtype` is the residual stream's, `mixing_dtype` that of q, k and v.

        `taps` ascend; tap k is the output of layer k before any final norm, tap 0 the embedding. Prompts may have up
        to `max_positions` tokens. `turns` says that the layers want each batch's rotations as complex numbers, and
        `chunk_tokens` in what chunks they give a prompt the same bits whatever it is batched with.
        """
        assert list(taps) == sorted(set(taps)) and taps and taps[-1] == len(layers)
        self.config = config
        self.taps = tuple(taps)
        self.layers = tuple(layers)
        self.device = table.device
        self.state_dtype = state_dtype
        self.mixing_dtype = mixing_dtype
        self.max_positions = min(max_positions, config.max_positions)
        self.chunk_tokens = chunk_tokens
        self._table = table
        self._turns = turns
        self._rotation = Rotation(*rotary_tables(config, self.max_positions, table.device))

    @torch.inference_mode()
    def forward(self, batch: Batch) -> tuple[Tensor, ...]:
        """[T, H] states in `state_dtype`, one per tap. Raises `InputError` for a prompt beyond `max_positions`.

        In int8 a row's bits depend on its prompt alone; in the float types a product of another size may round
        otherwise.
        """
        if batch.longest > self.max_positions:
            raise InputError(
                f"a prompt has {batch.longest} tokens and the backbone was prepared for {self.max_positions}; "
                "cut the prompt, or load the router with a larger max_prompt_tokens."
            )
        x = embedding(batch.token_ids, self._table).to(self.state_dtype)
        rotation = self._rotation.at(batch.positions) if self._turns else self._rotation
        states = [x] if self.taps[0] == 0 else []
        for index, layer in enumerate(self.layers):
            keys = values = None
            if batch.cache is not None:
                keys, values = batch.cache.keys[index], batch.cache.values[index]
            x = layer.forward(x, batch, rotation, keys, values)
            if index + 1 in self.taps:
                states.append(x)
        return tuple(states)
