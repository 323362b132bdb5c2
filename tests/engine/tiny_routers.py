"""Tiny routers with random weights, for tests that go through the public door."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from onebeat.engine.config import BackboneConfig, Family
from tools.synthetic_checkpoint import write_checkpoint, write_router


def tiny_config(family: Family = "llama", **changes: Any) -> BackboneConfig:
    """Two layers of 32 hidden numbers, one key head of 64."""
    settings: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 32,
        "layers": 2,
        "feed_forward": 48,
        "query_heads": 2,
        "key_heads": 1,
        "head_size": 64,
        "max_positions": 512,
        "norm_eps": 1e-5,
        "rope_theta": 1e4,
        "attention_bias": family == "qwen2",
        "qk_norm": family == "qwen3",
        "window": 128 if family == "mistral" else None,
    }
    return BackboneConfig(family, **(settings | changes))


def tiny_router(folder: Path, family: Family = "llama", *, layer: int = 2, **changes: Any) -> Path:
    """A whole router in `folder`; `changes` are those of `tiny_config`."""
    write_checkpoint(folder, tiny_config(family, **changes))
    write_router(folder, layer=layer)
    return folder


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Reads, changes in place, writes."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Reads a safetensors file, changes the tensors in place, writes."""
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
