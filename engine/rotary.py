"""The cosine and sine tables of rotary positions, with Llama 3's frequency scaling.

Enters: a backbone's config and how many positions are needed. Leaves: float32 tables [P, D/2]. The angles are
computed in float32 as transformers does, so that long positions round the same way. Sources: RoFormer
(arXiv:2104.09864); Llama 3.1's released scaling rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from onebeat.engine.config import BackboneConfig, RopeScaling


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """Tables for every position, and where a layer wants them the turns of one batch's positions."""

    cos: Tensor
    """[P, D/2] float32"""
    sin: Tensor
    """[P, D/2] float32"""
    turns: Tensor | None = None
    """[T, 1, D/2] complex64: cos + i sin of each token's position."""

    def at(self, positions: Tensor) -> Rotation:
        """The same tables with the turns of `positions` [T]."""
        turns = torch.complex(self.cos.index_select(0, positions), self.sin.index_select(0, positions))
        return Rotation(self.cos, self.sin, turns[:, None])


def rotary_tables(config: BackboneConfig, positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of `position * frequency`, float32 [positions, D/2] each."""
    exponents = torch.arange(0, config.head_size, 2, dtype=torch.int64).float() / config.head_size
    frequencies = 1.0 / (config.rope_theta**exponents)
    if config.rope_scaling is not None:
        frequencies = _stretched(frequencies, config.rope_scaling)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies[None, :]
    return angles.cos().to(device), angles.sin().to(device)


def _stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3: long wavelengths are divided by `factor`, short ones kept, those between blended."""
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_positions / wavelengths
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return (1.0 - blend) * frequencies / scaling.factor + blend * frequencies
