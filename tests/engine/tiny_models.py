"""Random tiny models of each family, as transformers builds them and as onebeat loads them. Shared by the model's
tests."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from onebeat.engine.config import BackboneConfig
from onebeat.engine.loading import Precision, load_backbone
from onebeat.engine.model import Backbone

VOCABULARY = 307
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def build(family: str, **changes: Any) -> Any:
    """A float32 model of transformers with random weights, biases and norms, in eager attention."""
    shape = SHAPE | changes
    if family == "qwen2":
        shape["head_dim"] = shape["hidden_size"] // shape["num_attention_heads"]
    kind = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig, "mistral": MistralConfig}[family]
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(kind(**shape), attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            spread = parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.2
            parameter.copy_(1 + 0.2 * noise if "norm" in name else spread * noise)
    return model


class StateDict:
    """A transformers state dict as a source of fused tensors by onebeat's names."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = {name.removeprefix("model."): tensor for name, tensor in state.items()}

    @property
    def sha256(self) -> str:
        """Hash of all tensors."""
        total = hashlib.sha256()
        for tensor in self.state.values():
            total.update(tensor.numpy().tobytes())
        return total.hexdigest()

    def tensor(self, name: str) -> Tensor:
        found = self._find(name)
        assert found is not None, name
        return found

    def __contains__(self, name: object) -> bool:
        return self._find(str(name)) is not None

    def _find(self, name: str) -> Tensor | None:
        if name == "embedding":
            return self.state["embed_tokens.weight"]
        if name == "final_norm":
            return self.state["norm.weight"]
        layer, _, part = name.rpartition(".")
        if part in ("qkv", "qkv_bias"):
            kind = "weight" if part == "qkv" else "bias"
            pieces = [self.state.get(f"{layer}.self_attn.{x}_proj.{kind}") for x in "qkv"]
            return None if pieces[0] is None else torch.cat([piece for piece in pieces if piece is not None])
        if part == "gate_up":
            gate, up = (self.state[f"{layer}.mlp.{x}_proj.weight"] for x in ("gate", "up"))
            return torch.stack([gate, up], dim=1).flatten(0, 1)
        theirs = {
            "input_norm": "input_layernorm.weight",
            "post_norm": "post_attention_layernorm.weight",
            "attention_out": "self_attn.o_proj.weight",
            "attention_out_bias": "self_attn.o_proj.bias",
            "down": "mlp.down_proj.weight",
            "q_norm": "self_attn.q_norm.weight",
            "k_norm": "self_attn.k_norm.weight",
        }[part]
        return self.state.get(f"{layer}.{theirs}")


def config_of(model: Any) -> BackboneConfig:
    """The same shape as a `BackboneConfig`, by way of the config.json that transformers would write."""
    return BackboneConfig.from_json(json.loads(model.config.to_json_string(use_diff=False)))


def backbone_of(model: Any, precision: Precision, taps: list[int] | None = None, **options: Any) -> Backbone:
    """The same weights as a `Backbone`, with a tap at every layer unless told."""
    layers = model.config.num_hidden_layers
    return load_backbone(
        config_of(model),
        StateDict(model.state_dict()),
        list(range(layers + 1)) if taps is None else taps,
        precision,
        **options,
    )


def states_of(model: Any, token_ids: list[int]) -> list[Tensor]:
    """Embedding and the output of every layer before the final norm, each [T, H]."""
    states: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda m, i, out: states.append(out)) for layer in model.model.layers]
    with torch.no_grad():
        model.model(torch.tensor([token_ids]))
    for hook in hooks:
        hook.remove()
    outs = [state[0] if isinstance(state, tuple) else state for state in states]
    return [model.model.embed_tokens.weight.detach()[token_ids], *[out.reshape(-1, out.shape[-1]) for out in outs]]


def prompt(tokens: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (tokens,), generator=generator).tolist()
