"""A float backbone to int8: calibrated, smoothed, measured, and kept on disk beside the checkpoint's hash.

Enters: float weights and some prompts as token ids. Leaves: an int8 copy on disk, and for every matrix the error it
costs. Runs the prompts through the backbone one layer at a time, so that no more than one float layer is ever in
memory.

Smoothing (SmoothQuant, arXiv:2211.10438): activations have outlier channels, weights hardly any, so each input
channel j of a matrix is divided by s_j = max|x_j|^a / max|w_j|^(1-a), and column j of the matrix multiplied
by it. The division costs nothing: for q/k/v and gate/up it goes into the norm before them, for down into the rows of
up. Outliers that are left, one token's or now the weights', are spread over runs of 64 channels by a Hadamard
transform of rows and weights alike (`kernels/cpu/hadamard.py`). On SmolLM2-135M features err by 11 % of their spread
between prompts with smoothing alone, by 5 % with both. A matrix whose products still err by more than a threshold stays
bfloat16.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from onebeat.engine.batch import pack
from onebeat.engine.config import BackboneConfig
from onebeat.engine.errors import CheckpointError
from onebeat.engine.int8_file import FORMAT, Int8File, Int8Writer, int8_writer
from onebeat.engine.loading import MATRICES, WeightSource, float_layer, load_backbone
from onebeat.engine.model import Backbone
from onebeat.engine.rotary import Rotation, rotary_tables
from onebeat.kernels.cpu.hadamard import hadamard_block
from onebeat.kernels.embedding import embedding
from onebeat.kernels.quantize import quantize_rows, quantize_weight

KEEP_ABOVE = 0.08
"""Relative error of a matrix's products above which it stays bfloat16. SmolLM2's are at most 0.04 after smoothing."""
SMOOTHING = 0.65
"""a: with the transform, features err by 5.0 % of their spread at 0.5 and at 0.65, by 6.4 % at 0.8."""
MEASURED_ROWS = 128
UNUSED_DAYS = 30
SMOOTHED_BY_NORM = {"qkv": "input_norm", "gate_up": "post_norm"}


class HashedWeights(WeightSource, Protocol):
    """A checkpoint that can say what it holds."""

    @property
    def sha256(self) -> str:
        """Hash of its contents."""


@dataclass(frozen=True, slots=True)
class MatrixError:
    """What int8 costs one matrix, on the calibration prompts."""

    name: str
    error: float
    """Norm of the error of its products as a share of their norm."""
    plain_error: float
    """The same without smoothing."""
    kept: bool
    """Whether it stays bfloat16."""


Report = Callable[[MatrixError], None]


def load_int8_backbone(
    weights: HashedWeights,
    config: BackboneConfig,
    taps: Sequence[int],
    prompts: Sequence[Sequence[int]],
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    max_positions: int = 4096,
) -> Backbone:
    """The backbone in int8, from its copy in `folder`; the copy is made first where it is missing or damaged.

    A copy's name is the hash of everything that determines it, so that a stale one is never found. `prompts` are what
    int8 is calibrated on. Where `folder` cannot be written, every start quantises anew.
    """
    facts = [FORMAT, weights.sha256, str(config), max(taps), KEEP_ABOVE, [list(prompt) for prompt in prompts]]
    path = folder / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:40]}.safetensors"

    def load(path: Path) -> Backbone:
        copy = Int8File(path)
        with suppress(OSError):
            os.utime(path)  # when it was last used, for `_forget_unused`
        return load_backbone(config, copy, taps, "int8", device=device, matrices=copy, max_positions=max_positions)

    if path.is_file():
        # A damaged copy is not worth a failed start: it is made again from the checkpoint.
        with suppress(CheckpointError):
            return load(path)
    try:
        _forget_unused(folder)
        write_int8(weights, config, max(taps), prompts, path)
        return load(path)
    except OSError:
        with tempfile.TemporaryDirectory() as elsewhere:
            write_int8(weights, config, max(taps), prompts, Path(elsewhere) / path.name)
            return load(Path(elsewhere) / path.name)


@torch.inference_mode()
def write_int8(
    weights: WeightSource,
    config: BackboneConfig,
    layers: int,
    prompts: Sequence[Sequence[int]],
    path: Path,
    *,
    keep_above: float = KEEP_ABOVE,
    report: Report | None = None,
    others: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Writes the int8 copy of the first `layers` layers to `path`, reporting every matrix on the way.

    `others` are tensors that the copy carries along, such as a classifier's.
    """
    batch = pack([prompt[: config.max_positions] for prompt in prompts])
    rotation = Rotation(*rotary_tables(config, batch.longest, torch.device("cpu")))
    table = weights.tensor("embedding")
    with int8_writer(path, tensors=2 + len(others) + layers * 16) as writer:
        writer.add("embedding", table)
        writer.add("final_norm", weights.tensor("final_norm"))
        for name in others:
            writer.add(name, others[name])
        x = embedding(batch.token_ids, table).bfloat16()
        del table
        for index in range(layers):
            layer = float_layer(config, weights, index, torch.bfloat16)
            seen: dict[str, Tensor] = {}
            watched = {
                name: dataclasses.replace(getattr(layer, name), observer=_keeper(seen, name)) for name in MATRICES
            }
            x = dataclasses.replace(layer, **watched).forward(x, batch, rotation, None, None)
            del layer, watched
            _write_layer(weights, f"layers.{index}.", seen, writer, keep_above, report)


def _write_layer(
    weights: WeightSource,
    at: str,
    seen: dict[str, Tensor],
    writer: Int8Writer,
    keep_above: float,
    report: Report | None,
) -> None:
    factors: dict[str, Tensor] = {}
    for name in ("down", "gate_up", "qkv", "attention_out"):
        weight = weights.tensor(at + name).float()
        rows = seen[name][:: -(-seen[name].shape[0] // MEASURED_ROWS)].float()
        plain = product_error(rows, weight, weight) if report is not None else 0.0
        if name == "gate_up":
            weight[1::2] /= factors["down"][:, None]
        smooth = weight
        if name != "attention_out":
            factors[name] = smoothing(seen[name], weight)
            smooth = weight * factors[name]
        error = product_error(rows, weight, smooth, factors.get(name))
        kept = not error <= keep_above  # also where it is not a number
        _write_matrix(at + name, smooth, kept, writer)
        if report is not None:
            report(MatrixError(at + name, error, plain, kept))
    for name, norm in SMOOTHED_BY_NORM.items():
        writer.add(at + norm, weights.tensor(at + norm).float() / factors[name])
    for vector in ("qkv_bias", "attention_out_bias", "q_norm", "k_norm"):
        if at + vector in weights:
            writer.add(at + vector, weights.tensor(at + vector))


def _write_matrix(name: str, weight: Tensor, kept: bool, writer: Int8Writer) -> None:
    if kept:
        writer.add(name, weight.bfloat16())
        return
    rows, scale = quantize_weight(weight, hadamard=hadamard_block(weight.shape[1]))
    writer.add(name, rows)
    writer.add(name + ".scale", scale)


def _forget_unused(folder: Path) -> None:
    """Removes copies that no start has read for `UNUSED_DAYS`; a checkpoint that comes back is quantised again."""
    oldest = time.time() - UNUSED_DAYS * 86400
    for path in folder.glob("*.safetensors"):
        with suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()


def smoothing(rows: Tensor, weight: Tensor) -> Tensor:
    """How much each input channel of weight [N, K] is divided by, judged by rows [T, K]; geometric mean 1. [K]"""
    activations = rows.float().abs().amax(0).clamp_min_(1e-5)
    columns = weight.abs().amax(0).clamp_min_(1e-5)
    factor = activations.pow(SMOOTHING).div_(columns.pow(1.0 - SMOOTHING))
    return factor / factor.log().mean().exp()


def product_error(rows: Tensor, weight: Tensor, smooth: Tensor, factor: Tensor | None = None) -> float:
    """The error of int8 products of rows [T, K] / factor with `smooth` [N, K], relative to those with `weight`."""
    block = hadamard_block(rows.shape[1])
    quantized, scale = quantize_rows(rows if factor is None else rows / factor, hadamard=block)
    weight_rows, weight_scale = quantize_weight(smooth, hadamard=block)
    exact = rows @ weight.t()
    got = (quantized.float() * scale[:, None]) @ (weight_rows.float() * weight_scale[:, None]).t()
    return float((got - exact).norm() / exact.norm().clamp_min(1e-30))


def _keeper(seen: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    def keep(rows: Tensor) -> None:
        seen[name] = rows

    return keep
