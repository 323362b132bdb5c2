"""Heads that others trained give what transformers gives for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, Qwen2Config

from onebeat import Router
from onebeat.engine.errors import CheckpointError
from tests.engine.tiny_routers import edit_json
from tools.synthetic_checkpoint import CONTROL_TOKENS, write_tokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": 256 + len(CONTROL_TOKENS),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
PAD = CONTROL_TOKENS.index("<|endoftext|>") + 256


def column(name: str) -> dict[str, Any]:
    return {"name": name, "input_usd_per_million": 1, "output_usd_per_million": 2, "mean_output_tokens": 100}


def describe(folder: Path, head: dict[str, Any], columns: list[str], **changes: Any) -> None:
    """A router.json and a tokenizer beside what transformers saved."""
    write_tokenizer(folder)
    found = {
        "format_version": 1,
        "name": "foreign",
        "taps": [{"layer": 2, "pooling": "last"}],
        "template": "{prompt}",
        "max_prompt_tokens": 256,
        "columns": [column(name) for name in columns],
        "head": head,
    }
    (folder / "router.json").write_text(json.dumps(found | changes))


def classifier(folder: Path, *, labels: int = 3, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(**SHAPE | settings, num_labels=labels, pad_token_id=PAD)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(folder)
    return model


def ids_of(text: str, router: Router) -> torch.Tensor:
    return torch.tensor([router.tokenizer.prepare(text).token_ids])


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification"])
def test_a_sequence_classifier_scores_as_in_transformers(tmp_path: Path, kind: str) -> None:
    model = classifier(tmp_path, problem_type=kind)
    describe(tmp_path, {"kind": "sequence_classification"}, ["a", "b", "c"])
    router = Router.from_pretrained(tmp_path, precision="float32")
    texts = ["What is 17 * 23?", "x", "Write a poem about the sea."]
    scores = router.score(texts)
    for row, text in enumerate(texts):
        with torch.no_grad():
            logits = model(ids_of(text, router)).logits[0]
        expected = logits.softmax(-1) if kind.startswith("single") else logits.sigmoid()
        np.testing.assert_allclose(scores.quality[row], expected.numpy(), rtol=2e-5, atol=2e-6)
    assert scores.output_tokens.tolist() == [[100.0] * 3] * 3


def test_the_state_is_that_of_the_rightmost_token_that_is_no_padding(tmp_path: Path) -> None:
    model = classifier(tmp_path)
    describe(
        tmp_path, {"kind": "sequence_classification"}, ["a", "b", "c"], template="{prompt}<|endoftext|><|endoftext|>"
    )
    router = Router.from_pretrained(tmp_path, precision="float32")
    ids = ids_of("hello", router)
    assert ids[0, -2:].tolist() == [PAD, PAD]
    with torch.no_grad():
        expected = model(ids).logits[0].softmax(-1)
    np.testing.assert_allclose(router.score(["hello"]).quality[0], expected.numpy(), rtol=2e-5)
    assert len(router.prepare("hello").token_ids) == 5


def test_a_causal_classifier_wins_by_one_minus_the_two_best_grades(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, tie_word_embeddings=False)).eval()
    model.save_pretrained(tmp_path)
    describe(
        tmp_path, {"kind": "causal_classifier"}, ["strong", "weak"], template="[Question]\n{prompt}\n\nPrediction:\n"
    )
    router = Router.from_pretrained(tmp_path, precision="float32")
    for text in ("What is 17 * 23?", "Hello!"):
        with torch.no_grad():
            logits = model(ids_of(text, router)).logits[0, -1]
        grades = [256 + CONTROL_TOKENS.index(f"[[{grade}]]") for grade in range(1, 6)]
        p = logits[grades].softmax(-1)
        win_rate = 1 - float(p[3] + p[4])
        quality = router.score([text]).quality[0]
        assert quality[0] == 1.0 and 1 - quality[1] == pytest.approx(win_rate, rel=1e-4)


@pytest.mark.parametrize("token", ["last", "penultimate"])
@pytest.mark.parametrize("rows", [3, 6])
@pytest.mark.parametrize("layer", [1, 2])
def test_a_bare_head_reads_the_hidden_state_of_its_token(tmp_path: Path, token: str, rows: int, layer: int) -> None:
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(Qwen2Config(**SHAPE)).eval()
    model.save_pretrained(tmp_path)
    describe(tmp_path, {"kind": "bare", "token": token}, ["a", "b", "c"], taps=[{"layer": layer, "pooling": "last"}])
    head = torch.randn(rows, 64)
    save_file({"head": head}, tmp_path / "router_head.safetensors")
    router = Router.from_pretrained(tmp_path, precision="float32")
    with torch.no_grad():
        states = model(ids_of("Who wins?", router), output_hidden_states=True).hidden_states[layer][0]
    expected = (head[:3] @ states[-1 if token == "last" else -2]).softmax(-1)
    np.testing.assert_allclose(router.score(["Who wins?"]).quality[0], expected.numpy(), rtol=2e-4, atol=1e-6)


BROKEN: list[tuple[dict[str, Any], dict[str, Any], list[str], str]] = [
    (
        {"kind": "sequence_classification"},
        {},
        ["a", "b"],
        r"score\.weight has shape \[3, 64\] and 2 columns .* need \[2, 64\]",
    ),
    (
        {"kind": "sequence_classification"},
        {"taps": [{"layer": 1, "pooling": "last"}]},
        ["a", "b", "c"],
        "taps layer 1; .*tap 2",
    ),
    (
        {"kind": "sequence_classification"},
        {"taps": [{"layer": 2, "pooling": "mean"}]},
        ["a", "b", "c"],
        'pooling "last"',
    ),
    ({"kind": "sequence_classification"}, {"calibration": {}}, ["a", "b", "c"], "has a calibration"),
    ({"kind": "causal_classifier"}, {}, ["a", "b", "c"], "between 2 models, strong then weak; router.json has 3"),
    ({"kind": "causal_classifier", "label_tokens": ["[[9]]"]}, {}, ["a", "b"], r"has no token '\[\[9\]\]'"),
    ({"kind": "bare"}, {}, ["a", "b", "c"], r"has no router_head\.safetensors"),
    ({"kind": "linar"}, {}, ["a"], "the head is of kind \"linar\"; the nearest known one is 'linear'"),
]


@pytest.mark.parametrize(("head", "changes", "columns", "sentence"), BROKEN)
def test_a_head_that_does_not_fit_is_refused(
    tmp_path: Path, head: dict[str, Any], changes: dict[str, Any], columns: list[str], sentence: str
) -> None:
    classifier(tmp_path)
    describe(tmp_path, head, columns, **changes)
    edit_json(tmp_path / "config.json", lambda config: config.update(tie_word_embeddings=True))
    with pytest.raises(CheckpointError, match=sentence):
        Router.from_pretrained(tmp_path)


def test_lengths_and_activations_are_never_guessed(tmp_path: Path) -> None:
    classifier(tmp_path, labels=1, problem_type="regression")
    describe(tmp_path, {"kind": "sequence_classification"}, ["a"])
    with pytest.raises(CheckpointError, match=r'problem_type is "regression".*set head\.activation'):
        Router.from_pretrained(tmp_path)
    edit_json(tmp_path / "router.json", lambda found: found["head"].update(activation="sigmoid"))
    edit_json(tmp_path / "router.json", lambda found: found["columns"][0].pop("mean_output_tokens"))
    with pytest.raises(CheckpointError, match="column 'a' has no mean_output_tokens"):
        Router.from_pretrained(tmp_path)


def test_a_plain_backbone_is_no_sequence_classifier(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(Qwen2Config(**SHAPE)).save_pretrained(tmp_path)
    describe(tmp_path, {"kind": "sequence_classification"}, ["a"])
    with pytest.raises(CheckpointError, match=r"has no tensor 'score\.weight'"):
        Router.from_pretrained(tmp_path)
