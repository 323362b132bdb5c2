"""From named tensors on disk to a `Backbone` in one precision on one device, one tensor at a time.

Enters: a source of fused tensors by name. Leaves: a `Backbone`. Each float tensor is let go before the next is read, so
that an int8 backbone never needs more memory than its int8 size plus one float tensor. Knows no file format.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from onebeat.engine.config import BackboneConfig
from onebeat.engine.model import Backbone, Layer, Matrix
from onebeat.kernels.quantize import quantize_weight

Precision = Literal["float32", "bfloat16", "int8"]
MATRICES = ("qkv", "attention_out", "gate_up", "down")
"""The four matrices of a layer that int8 quantises; `layers.{i}.NAME` on disk."""


class WeightSource(Protocol):
    """Fused tensors by onebeat's names: `embedding`, `layers.{i}.qkv` and so on."""

    def tensor(self, name: str) -> Tensor:
        """The tensor in the file's own dtype, on the CPU; nothing of it is kept. Raises `WeightError`."""

    def __contains__(self, name: object) -> bool: ...


class QuantizedSource(Protocol):
    """Matrices by the same names that are int8 already."""

    def matrix(self, name: str) -> tuple[Tensor, Tensor] | None:
        """(int8 [N, K], float32 [N]), or None where this matrix is kept in float."""


def load_backbone(
    config: BackboneConfig,
    weights: WeightSource,
    taps: Sequence[int],
    precision: Precision,
    *,
    device: torch.device | str = "cpu",
    quantized: QuantizedSource | None = None,
    keep_bf16: Collection[str] = (),
    max_positions: int = 4096,
) -> Backbone:
    """Reads layers up to the last tap. In int8, matrices come from `quantized` where given, else are quantised here.

    `keep_bf16` names the matrices (`layers.3.down`) that stay bfloat16 in int8. Raises `WeightError`.
    """
    device = torch.device(device)
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    # On the CPU float32 row operations are as fast as bfloat16 ones and spare the conversions.
    state_dtype = torch.float32 if precision == "int8" and device.type == "cpu" else dtype

    def vector(name: str) -> Tensor | None:
        return weights.tensor(name).to(device, state_dtype) if name in weights else None

    def needed(name: str) -> Tensor:
        return weights.tensor(name).to(device, state_dtype)

    def matrix(name: str) -> Matrix:
        if precision != "int8" or name in keep_bf16:
            return Matrix(weights.tensor(name).to(device, dtype))
        ready = quantized.matrix(name) if quantized is not None else None
        rows, scale = ready if ready is not None else quantize_weight(weights.tensor(name).to(device))
        return Matrix(rows.to(device), scale.to(device))

    layers = []
    for index in range(max(taps)):
        at = f"layers.{index}."
        layers.append(
            Layer(
                input_norm=needed(at + "input_norm"),
                qkv=matrix(at + "qkv"),
                attention_out=matrix(at + "attention_out"),
                post_norm=needed(at + "post_norm"),
                gate_up=matrix(at + "gate_up"),
                down=matrix(at + "down"),
                qkv_bias=vector(at + "qkv_bias"),
                attention_out_bias=vector(at + "attention_out_bias"),
                q_norm=vector(at + "q_norm"),
                k_norm=vector(at + "k_norm"),
            )
        )
    return Backbone(
        config,
        weights.tensor("embedding").to(device, dtype),
        layers,
        sorted(set(taps)),
        state_dtype=state_dtype,
        mixing_dtype=dtype,
        max_positions=max_positions,
    )
