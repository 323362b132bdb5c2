"""The default router's backbone on real text: the tokens and every layer's states are those of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from onebeat.engine.batch import CHUNK_TOKENS, pack
from onebeat.engine.calibration import CALIBRATION_TEXTS
from onebeat.engine.config import BackboneConfig
from onebeat.engine.loading import load_backbone
from onebeat.engine.model import Backbone
from onebeat.engine.tokens import PromptTokenizer
from onebeat.engine.weights import Weights
from tests.engine.tiny_models import states_of

LONG = " ".join(CALIBRATION_TEXTS)
"""Some 500 tokens: four chunks."""
TEXTS = (*CALIBRATION_TEXTS[1::3], LONG)
"""Code, JSON, a question, and everything together."""
TOLERANCE = 1e-5
"""Of each token's state, as a share of its length. Measured: 2.7e-6 for 31 to 109 tokens, 3.1e-6 for 497, 3.9e-6 for
1,431; SmolLM2's first token is a thousand times larger than the others, so a share of the largest state would hide
errors in all but that one."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two float models in turns: on a busy machine, teams of threads that wait for each other take ten times longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def theirs(pulled_router: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(pulled_router, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def ours(pulled_router: Path) -> Backbone:
    config = BackboneConfig.load(pulled_router)
    weights = Weights(pulled_router, config, config.layers)
    return load_backbone(config, weights, list(range(config.layers + 1)), "float32")


@pytest.fixture(scope="module")
def tokenizer(pulled_router: Path) -> PromptTokenizer:
    return PromptTokenizer(pulled_router, template="chat", max_prompt_tokens=4096)


def test_the_tokens_are_those_of_transformers(pulled_router: Path, tokenizer: PromptTokenizer) -> None:
    reference = AutoTokenizer.from_pretrained(pulled_router)
    for text in TEXTS:
        messages = [{"role": "user", "content": text}]
        rendered = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert tokenizer.prepare(text).token_ids == reference(rendered, add_special_tokens=False)["input_ids"]
    assert len(tokenizer.prepare(LONG).token_ids) > 3 * CHUNK_TOKENS


def test_every_layer_agrees_with_transformers_in_float32(
    theirs: Any, ours: Backbone, tokenizer: PromptTokenizer
) -> None:
    prompts = [tokenizer.prepare(text).token_ids for text in TEXTS]
    states = ours.forward(pack(prompts))
    begin = 0
    for ids in prompts:
        expected = states_of(theirs, ids)
        assert len(states) == len(expected) == 31
        for layer, (found, wanted) in enumerate(zip(states, expected, strict=True)):
            error = (found[begin : begin + len(ids)].double() - wanted.double()).norm(dim=1) / wanted.double().norm(
                dim=1
            )
            assert float(error.max()) < TOLERANCE, (layer, len(ids))
        begin += len(ids)
