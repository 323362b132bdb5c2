"""config.json of every family is read as transformers means it, and what is not computed is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from onebeat.engine.config import BackboneConfig, RopeScaling
from onebeat.engine.errors import FormatError
from tests.engine.tiny_routers import tiny_config
from tools.synthetic_checkpoint import PRESETS, hugging_face_config

SHAPE: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 192,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


def saved(config: PretrainedConfig, folder: Path) -> BackboneConfig:
    config.save_pretrained(folder)
    return BackboneConfig.load(folder)


def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    qwen2 = saved(Qwen2Config(**SHAPE), tmp_path)
    assert (qwen2.family, qwen2.attention_bias, qwen2.output_bias, qwen2.head_size) == ("qwen2", True, False, 64)
    assert qwen2.window is None and not qwen2.qk_norm and not qwen2.tied_embeddings
    qwen3 = saved(Qwen3Config(**SHAPE | {"tie_word_embeddings": True}, head_dim=128), tmp_path)
    assert (qwen3.qk_norm, qwen3.attention_bias, qwen3.head_size, qwen3.tied_embeddings) == (True, False, 128, True)
    mistral = saved(MistralConfig(**SHAPE, sliding_window=77), tmp_path)
    assert (mistral.window, mistral.attention_bias) == (77, False)
    assert saved(MistralConfig(**SHAPE, sliding_window=None), tmp_path).window is None
    llama = saved(LlamaConfig(**SHAPE, attention_bias=True, rope_parameters=LLAMA3), tmp_path)
    assert llama.attention_bias and llama.output_bias
    assert llama.rope_theta == 5e5
    assert llama.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 512)


def test_the_older_way_to_write_rope_means_the_same() -> None:
    old = hugging_face_config(PRESETS["llama-3.1-8b"])
    new = {key: value for key, value in old.items() if key not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = old["rope_scaling"] | {"rope_theta": old["rope_theta"]}
    assert BackboneConfig.from_json(old) == BackboneConfig.from_json(new) == PRESETS["llama-3.1-8b"]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_survive_the_way_to_config_json_and_back(preset: str) -> None:
    assert BackboneConfig.from_json(hugging_face_config(PRESETS[preset])) == PRESETS[preset]


def test_mistral_without_a_word_on_its_window_has_the_one_that_transformers_assumes() -> None:
    found = hugging_face_config(tiny_config("mistral"))
    del found["sliding_window"]
    assert BackboneConfig.from_json(found).window == MistralConfig().sliding_window


REFUSED = [
    ({"model_type": "gpt2"}, 'unknown architecture, model_type "gpt2"; backbones are qwen2, qwen3, llama, mistral'),
    ({"model_type": None}, "unknown architecture, model_type null"),
    ({"model_type": ["llama"]}, "unknown architecture"),
    ({"hidden_act": "gelu"}, 'hidden_act is "gelu"; only silu'),
    ({"mlp_bias": True}, "mlp_bias is true"),
    ({"quantization_config": {"bits": 4}}, "already quantised"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, 'type "yarn" is not computed; default and llama3 are'),
    ({"rope_scaling": {"type": "llama3", "factor": 8}}, "no 'low_freq_factor'"),
    ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor 1 must be above low_freq_factor 1"),
    ({"rope_scaling": "linear"}, 'rope_scaling is "linear"; it must be an object'),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ({"hidden_size": -1}, "hidden_size is -1; it must be a whole number of 1"),
    ({"hidden_size": None}, "has no 'hidden_size'"),
    ({"hidden_size": "32"}, 'hidden_size is "32"'),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; it must be a whole number of 1 to 1000"),
    ({"num_key_value_heads": 3}, "4 query heads cannot share 3 key heads"),
    ({"head_dim": 80}, "head_dim is 80; heads of 64, 96, 128 are computed"),
    ({"rms_norm_eps": 0}, "rms_norm_eps is 0; it must be a number above 0"),
    ({"tie_word_embeddings": "yes"}, 'tie_word_embeddings is "yes"; it must be true or false'),
    ({"attention_bias": True, "model_type": "mistral"}, "Mistral's attention has none"),
    (
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
        "some layers have a sliding window of 64 and others none",
    ),
]


@pytest.mark.parametrize(("change", "sentence"), REFUSED)
def test_what_would_change_the_arithmetic_is_refused_with_both_values(change: dict[str, Any], sentence: str) -> None:
    found = hugging_face_config(tiny_config(query_heads=4, key_heads=2)) | change
    with pytest.raises(FormatError) as refusal:
        BackboneConfig.from_json(found)
    assert sentence in str(refusal.value)


def test_sliding_windows_of_qwen2_count_only_where_layers_use_them() -> None:
    found = hugging_face_config(tiny_config("qwen2")) | {"sliding_window": 64}
    assert BackboneConfig.from_json(found).window is None
    assert BackboneConfig.from_json(found | {"use_sliding_window": True}).window is None
    assert BackboneConfig.from_json(found | {"use_sliding_window": True, "max_window_layers": 0}).window == 64


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"a": NaN}', "[" * 100_000, "\xff", '{"model_type": "llama"}']
)
def test_a_file_that_is_no_config_is_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError, match=r"config\.json") as refusal:
        BackboneConfig.load(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"config\.json does not exist"):
        BackboneConfig.load(tmp_path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = sorted(
    {*hugging_face_config(PRESETS["llama-3.1-8b"]), "rope_parameters", "sliding_window", "layer_types"}
    | {"use_sliding_window", "max_window_layers", "partial_rotary_factor", "attention_bias", "quantization_config"}
)


# A machine under load draws slowly: that says nothing of the config.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.dictionaries(st.sampled_from(KEYS), values, max_size=4), st.sampled_from(["qwen2", "qwen3", "llama", "mistral"])
)
def test_no_value_anywhere_ends_in_anything_but_a_config_or_a_sentence(changes: dict[str, Any], family: str) -> None:
    found = hugging_face_config(PRESETS["llama-3.1-8b"]) | {"model_type": family} | changes
    try:
        BackboneConfig.from_json(json.loads(json.dumps(found)))
    except FormatError as error:
        assert "\n" not in str(error)
