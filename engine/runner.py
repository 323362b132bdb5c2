"""From token ids to pooled features: packs, runs the backbone, pools chunk by chunk.

Enters: prompts as token ids, or a batch of chunks that a scheduler made. Leaves: float32 features, taps side by side.
Knows no text, no head and no schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from onebeat.engine.batch import Batch, pack
from onebeat.engine.errors import ConfigError
from onebeat.engine.model import Backbone
from onebeat.kernels.pool import pool

BATCH_TOKENS = 2048
"""Tokens of an offline batch: int8 products reach their peak rate from 128 rows on, so more would only cost memory."""

TapPooling = Literal["mean", "last"]


class Runner:
    """A backbone with the pooling of each tap. What it returns for a prompt does not depend on the prompt's company."""

    def __init__(self, backbone: Backbone, poolings: Sequence[TapPooling]) -> None:
        """One pooling per tap of `backbone`, in the same order. Raises `ConfigError` where the counts differ."""
        if len(poolings) != len(backbone.taps):
            raise ConfigError(f"{len(poolings)} poolings were given for {len(backbone.taps)} taps; give one per tap.")
        self.backbone = backbone
        self.poolings = tuple(poolings)
        self.device = backbone.device
        self.layers = len(backbone.layers)
        self.chunk_tokens = backbone.chunk_tokens
        self.cache_dtype = backbone.mixing_dtype
        width = backbone.config.hidden_size
        self.mean_mask = torch.tensor([p == "mean" for p in poolings], device=self.device).repeat_interleave(width)
        """[taps*H] bool: where a feature is a mean over the prompt; elsewhere it is the last token's."""

    def step(self, batch: Batch) -> Tensor:
        """What each chunk carries into its prompt's features: float32 [C, taps*H].

        For a mean tap the sum over the chunk's rows, for a last tap its last row. `combine` and `finish` do the rest.
        """
        states = self.backbone.forward(batch)
        carries = [
            pool(state, batch.chunk_bounds, "sum" if pooling == "mean" else "last")
            for state, pooling in zip(states, self.poolings, strict=True)
        ]
        return carries[0] if len(carries) == 1 else torch.cat(carries, dim=1)

    def combine(self, carried: Tensor, chunk: Tensor) -> Tensor:
        """The carry [..., taps*H] of a prompt's earlier chunks and that of its next one -> that of both."""
        return torch.where(self.mean_mask, carried + chunk, chunk)

    def finish(self, carry: Tensor, tokens: Tensor) -> Tensor:
        """carry float32 [n, taps*H] of whole prompts of `tokens` [n] -> features float32 [n, taps*H]."""
        return torch.where(self.mean_mask, carry / tokens[:, None].to(torch.float32), carry)

    @torch.inference_mode()
    def features(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Pooled states of whole prompts, packed `BATCH_TOKENS` at a time: float32 [n, taps*H] on the CPU."""
        pieces, begin = [], 0
        while begin < len(prompts):
            end, tokens = begin + 1, len(prompts[begin])
            while end < len(prompts) and tokens + len(prompts[end]) <= BATCH_TOKENS:
                tokens += len(prompts[end])
                end += 1
            pieces.append(self._packed(prompts[begin:end]).cpu())
            begin = end
        return torch.cat(pieces) if pieces else torch.empty(0, self.mean_mask.shape[0])

    def _packed(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        batch = pack(prompts, self.device, self.chunk_tokens)
        carries = self.step(batch)  # [C, taps*H]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        if carries.shape[0] == len(prompts):
            return self.finish(carries, lengths)
        whole, chunk = [], 0
        for prompt in prompts:
            carry = carries[chunk]
            for later in range(chunk + 1, chunk - (-len(prompt) // self.chunk_tokens)):
                carry = self.combine(carry, carries[later])
            chunk -= -len(prompt) // self.chunk_tokens
            whole.append(carry)
        return self.finish(torch.stack(whole), lengths)
