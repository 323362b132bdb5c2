"""A backbone's weights under the names and in the layouts that the kernels want, one tensor at a time.

Enters: a Hugging Face folder, its `BackboneConfig`, and how many layers are needed. Leaves: `Weights`, which checks
every name and shape when it opens (reading headers only), and then gives one tensor per call, keeping none. Knows
nothing of precision, devices or heads. safetensors only: a pickle can run code when it is opened, so none ever is.

    weights = Weights(folder, config, layers=20)
    weights.names()           # in load order: "embedding", "layers.0.input_norm", "layers.0.qkv", ...
    weights.tensor("layers.0.qkv")     # a fresh CPU tensor in the file's dtype (bfloat16, float16 or float32), owned

Names and shapes (all matrices [N, K], row-major; in brackets: only where the config has it):
    embedding [V, H]            layers.i.input_norm [H]      layers.i.qkv [(NQ + 2 NKV) D, H]: q, then k, then v
    (layers.i.qkv_bias)         (layers.i.q_norm [D])        (layers.i.k_norm [D])
    layers.i.attention_out [H, NQ D]   (layers.i.attention_out_bias [H])   layers.i.post_norm [H]
    layers.i.gate_up [2F, H]: rows g0, u0, g1, u1, ...        layers.i.down [H, F]
Outside `names()`, for heads that ask: final_norm [H], output [V, H] (the embedding where tied), raw(name) for others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from onebeat.engine.checkpoint_files import content_sha256, open_shards
from onebeat.engine.config import BackboneConfig
from onebeat.engine.errors import CheckpointError, WeightError
from onebeat.engine.safetensors_file import SafetensorsFile, torch_dtype

CLASSIFIER = "score.weight"
"""The head of a `*ForSequenceClassification` checkpoint, which lies among the backbone's tensors."""
LAYER = re.compile(r"layers\.(\d+)\.(.+)")
IGNORED = re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""Buffers that old checkpoints carry; they follow from the config."""


@dataclass(frozen=True, slots=True)
class Part:
    """One Hugging Face tensor: its name without the `model.` prefix, and its shape."""

    name: str
    shape: tuple[int, ...]


class Weights:
    """See the module's docstring. Raises `WeightError` for a missing, extra, misshaped or damaged tensor, naming it."""

    def __init__(self, folder: Path, config: BackboneConfig, layers: int) -> None:
        if not 0 <= layers <= config.layers:
            raise CheckpointError(
                f"layer {layers} is tapped and the backbone in {folder} has {config.layers}; "
                f"choose one of 0 to {config.layers}."
            )
        self.folder = folder
        self.config = config
        self.layers = layers
        self._shards: dict[str, SafetensorsFile] = open_shards(folder)
        self._prefix = "model." if any(name.startswith("model.") for name in self._shards) else ""
        self._fused: dict[str, tuple[Part, ...]] = {"embedding": (_embedding(config),)}
        for layer in range(layers):
            self._fused.update(layer_parts(config, layer))
        self._check()

    def names(self) -> tuple[str, ...]:
        """Everything that the forward pass up to the last tap needs, in load order."""
        return tuple(self._fused)

    def __contains__(self, name: object) -> bool:
        """Whether this backbone has the tensor: a Llama has no `layers.0.q_norm`."""
        return name in self._fused

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of `tensor(name)`, without reading it."""
        parts = self._parts(name)
        return (sum(part.shape[0] for part in parts), *parts[0].shape[1:])

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor `name`, fused, on the CPU, in the file's dtype, owned. Raises `WeightError` for NaN."""
        parts = self._parts(name)
        if len(parts) == 1:
            return self._file(parts[0]).read(self._prefixed(parts[0].name))
        out = torch.empty(self.shape(name), dtype=self._dtype(parts))
        first = 0
        for index, part in enumerate(parts):
            rows = part.shape[0]
            # gate and up alternate row by row, so that one tile of the product holds both halves of a SwiGLU.
            target = out[index::2] if name.endswith(".gate_up") else out[first : first + rows]
            self._file(part).read(self._prefixed(part.name), into=target)
            first += rows
        return out

    def rows(self, name: str, rows: Sequence[int]) -> torch.Tensor:
        """Some rows of an unfused matrix (`output`), without reading the others."""
        (part,) = self._parts(name)
        return self._file(part).read_rows(self._prefixed(part.name), rows)

    def raw(self, name: str) -> torch.Tensor | None:
        """A tensor by the name that it has in the checkpoint (`score.weight`), or None where there is none."""
        return self._shards[name].read(name) if name in self._shards else None

    @property
    def sha256(self) -> str:
        """Hash of the checkpoint's contents (all shards, whole), for caches made from it. Remembered per file."""
        return content_sha256(sorted({shard.path for shard in self._shards.values()}))

    def _parts(self, name: str) -> tuple[Part, ...]:
        if name in self._fused:
            return self._fused[name]
        if name == "final_norm":
            return (self._present(_final_norm(self.config)),)
        if name == "output":
            head = Part("lm_head.weight", (self.config.vocab_size, self.config.hidden_size))
            return (_embedding(self.config),) if self.config.tied_embeddings else (self._present(head),)
        raise KeyError(name)

    def _check(self) -> None:
        """Every tensor that is needed is there with its shape, and nothing is there that no such backbone has."""
        for parts in self._fused.values():
            for part in parts:
                self._present(part)
        known = {part.name for part in (_embedding(self.config), _final_norm(self.config))}
        for name, shard in self._shards.items():
            bare = name.removeprefix(self._prefix)
            if bare in known or name in ("lm_head.weight", CLASSIFIER) or IGNORED.fullmatch(bare):
                continue
            if not self._is_layer_tensor(bare):
                raise WeightError(
                    f"{shard.path} holds {name!r}, which a {self.config.family} backbone of {self.config.layers} "
                    "layers does not have; config.json belongs to another checkpoint, or the tensor must go."
                )

    def _is_layer_tensor(self, bare: str) -> bool:
        found = LAYER.fullmatch(bare)
        if not found or len(found[1]) > 9 or int(found[1]) >= self.config.layers:
            return False
        parts = layer_parts(self.config, int(found[1])).values()
        return any(part.name == bare for group in parts for part in group)

    def _present(self, part: Part) -> Part:
        """`part`, after checking that the checkpoint has it with that shape and a float dtype."""
        name = self._prefixed(part.name)
        if name not in self._shards:
            raise WeightError(
                f"{self.folder} has no tensor {name!r} {list(part.shape)}, which its config.json calls for; "
                "fetch the checkpoint again or correct config.json."
            )
        entry = self._shards[name].entries[name]
        if entry.shape != part.shape:
            raise WeightError(
                f"{self._shards[name].path} holds {name!r} as {list(entry.shape)} and config.json calls for "
                f"{list(part.shape)}; one of them belongs to another checkpoint."
            )
        torch_dtype(entry, name, self._shards[name].path)
        return part

    def _dtype(self, parts: tuple[Part, ...]) -> torch.dtype:
        dtype = None
        for part in parts:
            name = self._prefixed(part.name)
            own = torch_dtype(self._shards[name].entries[name], name, self._shards[name].path)
            dtype = own if dtype is None else torch.promote_types(dtype, own)
        assert dtype is not None
        return dtype

    def _file(self, part: Part) -> SafetensorsFile:
        return self._shards[self._prefixed(part.name)]

    def _prefixed(self, name: str) -> str:
        return name if name == "lm_head.weight" else self._prefix + name


def layer_parts(config: BackboneConfig, layer: int) -> dict[str, tuple[Part, ...]]:
    """What one layer is made of: our name -> the Hugging Face tensors that are stacked into it, in order."""
    hidden, query, key = config.hidden_size, config.query_heads * config.head_size, config.key_heads * config.head_size
    feed_forward = config.feed_forward

    def part(name: str, *shape: int) -> Part:
        return Part(f"layers.{layer}.{name}", shape)

    rows = {"q": query, "k": key, "v": key}
    parts: dict[str, tuple[Part, ...]] = {"input_norm": (part("input_layernorm.weight", hidden),)}
    parts["qkv"] = tuple(part(f"self_attn.{which}_proj.weight", count, hidden) for which, count in rows.items())
    if config.attention_bias:
        parts["qkv_bias"] = tuple(part(f"self_attn.{which}_proj.bias", count) for which, count in rows.items())
    if config.qk_norm:
        parts["q_norm"] = (part("self_attn.q_norm.weight", config.head_size),)
        parts["k_norm"] = (part("self_attn.k_norm.weight", config.head_size),)
    parts["attention_out"] = (part("self_attn.o_proj.weight", hidden, query),)
    if config.output_bias:
        parts["attention_out_bias"] = (part("self_attn.o_proj.bias", hidden),)
    parts["post_norm"] = (part("post_attention_layernorm.weight", hidden),)
    parts["gate_up"] = tuple(part(f"mlp.{which}_proj.weight", feed_forward, hidden) for which in ("gate", "up"))
    parts["down"] = (part("mlp.down_proj.weight", hidden, feed_forward),)
    return {f"layers.{layer}.{name}": group for name, group in parts.items()}


def _embedding(config: BackboneConfig) -> Part:
    return Part("embed_tokens.weight", (config.vocab_size, config.hidden_size))


def _final_norm(config: BackboneConfig) -> Part:
    return Part("norm.weight", (config.hidden_size,))
