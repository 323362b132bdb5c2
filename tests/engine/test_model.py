"""The forward pass agrees with transformers at every layer, for every family, and copes with any shape of batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from onebeat.engine.batch import CHUNK_TOKENS, pack
from onebeat.engine.errors import InputError
from tests.engine.tiny_models import LLAMA3_ROPE, backbone_of, build, prompt, states_of

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {"hidden_size": 384}),
    "qwen2 untied": ("qwen2", {"hidden_size": 256, "num_attention_heads": 4, "tie_word_embeddings": False}),
    "qwen3": ("qwen3", {"head_dim": 128}),
    "llama": ("llama", {"head_dim": 96}),
    "llama biased": ("llama", {"attention_bias": True}),
    "llama scaled": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama one key head": ("llama", {"hidden_size": 112, "num_attention_heads": 7, "num_key_value_heads": 1}),
    "llama ungrouped": ("llama", {"num_attention_heads": 3, "num_key_value_heads": 3}),
    "mistral": ("mistral", {"sliding_window": 512}),
    "mistral short window": ("mistral", {"sliding_window": 19}),
    "mistral window over a chunk": ("mistral", {"sliding_window": 131}),
}


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest error as a share of the largest value."""
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_agrees_with_transformers_in_float32(name: str) -> None:
    family, changes = FAMILIES[name]
    model = build(family, **changes)
    lengths = [1, 40, 2 * CHUNK_TOKENS + 17, CHUNK_TOKENS]
    prompts = [prompt(tokens, seed) for seed, tokens in enumerate(lengths)]
    states = backbone_of(model, "float32").forward(pack(prompts))
    begin = 0
    for ids in prompts:
        for ours, theirs in zip(states, states_of(model, ids), strict=True):
            assert relative(ours[begin : begin + len(ids)], theirs) < 1e-5
        begin += len(ids)


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama scaled", "mistral short window"])
@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.03), ("int8", 0.06)])
def test_low_precisions_stay_near_float32(name: str, precision: Any, tolerance: float) -> None:
    family, changes = FAMILIES[name]
    model = build(family, **changes)
    ids = prompt(150)
    [state] = backbone_of(model, precision, taps=[3]).forward(pack([ids]))
    theirs = states_of(model, ids)[-1]
    error = float((state.float() - theirs).norm() / theirs.norm())
    assert 0 < error < tolerance


def test_layers_beyond_the_last_tap_are_not_read() -> None:
    model = build("llama")
    backbone = backbone_of(model, "float32", taps=[0, 2])
    embedded, second = backbone.forward(pack([prompt(9)]))
    theirs = states_of(model, prompt(9))
    assert len(backbone.layers) == 2
    assert torch.equal(embedded, theirs[0])
    assert relative(second, theirs[2]) < 1e-5


def test_a_prompt_beyond_the_prepared_positions_is_refused_with_both_numbers() -> None:
    backbone = backbone_of(build("llama"), "float32", max_positions=32)
    with pytest.raises(InputError, match=r"33 tokens .* prepared for 32"):
        backbone.forward(pack([prompt(33)]))
