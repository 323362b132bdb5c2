"""From named tensors on disk to a `Backbone` in one precision on one device, one tensor at a time.

Enters: a source of fused tensors by name. Leaves: a `Backbone`. Each float tensor is let go before the next is read, so
that an int8 backbone never needs more memory than its int8 size plus one float tensor. Knows no file format.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from onebeat.engine.batch import CHUNK_TOKENS
from onebeat.engine.config import BackboneConfig
from onebeat.engine.cpu_layer import (
    CpuInt8Layer,
    Int8Product,
    KeptProduct,
    Product,
    halved_rows,
    padded_columns,
    paired_norm,
    paired_rows,
)
from onebeat.engine.default_router import CACHE_FOLDER
from onebeat.engine.layer import Layer, Matrix
from onebeat.engine.model import Backbone, DecoderLayer
from onebeat.engine.native_layer import NATIVE_CHUNK_TOKENS, NativeInt8Layer, fits
from onebeat.kernels.cpu.hadamard import hadamard_block
from onebeat.kernels.cpu.native import native_kernels
from onebeat.kernels.quantize import quantize_weight

Precision = Literal["float32", "bfloat16", "int8"]
MATRICES = ("qkv", "attention_out", "gate_up", "down")
"""The four matrices of a layer that int8 quantises: `layers.{i}.NAME`."""


class WeightSource(Protocol):
    """Fused tensors by onebeat's names: `embedding`, `layers.{i}.qkv` and so on."""

    def tensor(self, name: str) -> Tensor:
        """The tensor in the file's own dtype, on the CPU; nothing of it is kept. Raises `WeightError`."""

    def __contains__(self, name: object) -> bool: ...


class MatrixSource(Protocol):
    """The matrices of an int8 backbone, by the same names."""

    def matrix(self, name: str) -> Matrix:
        """int8 [N, K] with its scale [N], or bfloat16 without where it is kept."""


@dataclass(frozen=True, slots=True)
class Quantizer:
    """Quantises matrices as they are read, keeping those named in bfloat16."""

    weights: WeightSource
    keep_bf16: Collection[str] = ()

    def matrix(self, name: str) -> Matrix:
        """See `MatrixSource`."""
        weight = self.weights.tensor(name)
        if name in self.keep_bf16:
            return Matrix(weight.bfloat16())
        return Matrix(*quantize_weight(weight, hadamard=hadamard_block(weight.shape[1])))


def load_backbone(
    config: BackboneConfig,
    weights: WeightSource,
    taps: Sequence[int],
    precision: Precision,
    *,
    device: torch.device | str = "cpu",
    matrices: MatrixSource | None = None,
    max_positions: int = 4096,
) -> Backbone:
    """Reads layers up to the last tap. In int8, matrices come from `matrices`, or are quantised from `weights`.

    Raises `WeightError`.
    """
    device = torch.device(device)
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    on_cpu = precision == "int8" and device.type == "cpu"
    if precision == "int8" and matrices is None:
        matrices = Quantizer(weights)
    # On the CPU float32 row operations are as fast as bfloat16 ones and spare the conversions.
    loader = _Loader(config, weights, matrices, device, dtype, torch.float32 if on_cpu else dtype)
    layers: list[DecoderLayer] = []
    for index in range(max(taps)):
        layers.append(loader.cpu_int8_layer(index) if on_cpu else loader.layer(index))
    return Backbone(
        config,
        weights.tensor("embedding").to(device, dtype),
        layers,
        sorted(set(taps)),
        state_dtype=loader.state_dtype,
        mixing_dtype=dtype,
        max_positions=max_positions,
        turns=on_cpu,
        chunk_tokens=NATIVE_CHUNK_TOKENS if _all_native(layers) else CHUNK_TOKENS,
    )


def _all_native(layers: Sequence[DecoderLayer]) -> bool:
    return bool(layers) and all(isinstance(layer, NativeInt8Layer) for layer in layers)


def float_layer(config: BackboneConfig, weights: WeightSource, index: int, dtype: torch.dtype) -> Layer:
    """One layer on the CPU in a float type. Raises `WeightError`."""
    return _Loader(config, weights, None, torch.device("cpu"), dtype, dtype).layer(index)


@dataclass(frozen=True, slots=True)
class _Loader:
    config: BackboneConfig
    weights: WeightSource
    matrices: MatrixSource | None
    device: torch.device
    dtype: torch.dtype
    state_dtype: torch.dtype

    def layer(self, index: int) -> Layer:
        at = f"layers.{index}."
        return Layer(
            self.config,
            self.state_dtype,
            self.dtype,
            self._vector(at + "input_norm"),
            self._matrix(at + "qkv"),
            self._matrix(at + "attention_out"),
            self._vector(at + "post_norm"),
            self._matrix(at + "gate_up"),
            self._matrix(at + "down"),
            self._optional(at + "qkv_bias"),
            self._optional(at + "attention_out_bias"),
            self._optional(at + "q_norm"),
            self._optional(at + "k_norm"),
        )

    def cpu_int8_layer(self, index: int) -> DecoderLayer:
        """By the native kernels where this machine can run them for this layer, through torch elsewhere."""
        at = f"layers.{index}."
        order = paired_rows(self.config)
        matrices = {name: self._matrix(at + name) for name in MATRICES}
        matrices["qkv"] = _ordered(matrices["qkv"], order)
        bias = self._optional(at + "qkv_bias")
        biases = {
            "qkv": None if bias is None else bias[order],
            "attention_out": self._optional(at + "attention_out_bias"),
        }
        norms = {name: self._vector(at + name) for name in ("input_norm", "post_norm")}
        for name in ("q_norm", "k_norm"):
            if at + name in self.weights:
                norms[name] = paired_norm(self._vector(at + name))
        library = native_kernels(CACHE_FOLDER / "kernels").library
        if library is not None and fits(self.config, matrices):
            return NativeInt8Layer(library, self.config, matrices, biases, norms)
        gate_up, down = matrices["gate_up"], matrices["down"]
        return CpuInt8Layer(
            self.config,
            norms["input_norm"],
            _product(matrices["qkv"]),
            _product(matrices["attention_out"]),
            norms["post_norm"],
            _product(gate_up, halved_rows),
            _product(Matrix(padded_columns(down.weight), down.scale), block=hadamard_block(down.weight.shape[1])),
            biases["qkv"],
            biases["attention_out"],
            norms.get("q_norm"),
            norms.get("k_norm"),
        )

    def _matrix(self, name: str) -> Matrix:
        if self.matrices is None:
            return Matrix(self.weights.tensor(name).to(self.device, self.dtype))
        found = self.matrices.matrix(name)
        return Matrix(found.weight.to(self.device), None if found.scale is None else found.scale.to(self.device))

    def _vector(self, name: str) -> Tensor:
        return self.weights.tensor(name).to(self.device, self.state_dtype)

    def _optional(self, name: str) -> Tensor | None:
        return self._vector(name) if name in self.weights else None


def _ordered(matrix: Matrix, order: Tensor) -> Matrix:
    return Matrix(matrix.weight[order], None if matrix.scale is None else matrix.scale[order])


def _product(matrix: Matrix, ordered: Callable[[Tensor], Tensor] = lambda rows: rows, block: int = 0) -> Product:
    if matrix.scale is None:
        return KeptProduct(ordered(matrix.weight))
    return Int8Product(ordered(matrix.weight), ordered(matrix.scale), block or hadamard_block(matrix.weight.shape[1]))
