"""Gaming: attacks are looked past, honest prompts are left as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebeat.conductor.learning.gaming import ATTACKS, attack, clean, mean_flips, measure

HONEST = [
    "A robe takes 2 bolts of blue fiber and half that much white fiber.  How many bolts in total does it take?",
    "Janet has 5 apples. She eats 2. How many are left?",
    "def f(x):\n    return x + 1\n\nassert f(3) == ??",
    "Let $a_n = \\sum_{k=1}^n \\frac{1}{k^2}$. Find $\\lim_{n \\to \\infty} a_n$.",
    "Translate to French: the best model of this car is expensive.",
    "Which machine learning model is the most accurate for tabular data? Please reason about the trade-offs.",
    "Explain the Riemann hypothesis to a child.",
    "日本の首都はどこですか。詳しく説明してください。",
    "Write a poem about the sea.\nMake it rhyme.\nFour lines.",
    "Fix this: SELECT * FROM t WHERE a = 'x' AND (b <> 3 OR c IS NULL);",
    "hello",
    "Is 91 prime?",
]


@pytest.mark.parametrize("prompt", HONEST)
def test_an_honest_prompt_is_routed_as_it_stands(prompt: str) -> None:
    cleaned = clean(prompt)
    assert cleaned.prompt == prompt
    assert cleaned.left_out == ()


@pytest.mark.parametrize("name", list(ATTACKS))
def test_an_attack_around_a_question_is_left_out(name: str) -> None:
    for prompt in (HONEST[0], HONEST[1], HONEST[6]):
        cleaned = clean(attack(prompt, name))
        assert cleaned.prompt == prompt
        assert len(cleaned.left_out) == 1


def test_stacked_attacks_and_messages() -> None:
    stacked = attack(attack(HONEST[1], "stakes, after"), "letters, before")
    assert clean(stacked).prompt == HONEST[1]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": stacked}]
    cleaned = clean(messages)
    assert cleaned.prompt == [messages[0], {"role": "user", "content": HONEST[1]}]
    assert messages[1]["content"] == stacked
    assert clean([{"role": "user", "content": [{"type": "image"}]}]).left_out == ()


def test_a_prompt_that_is_all_edges_stays() -> None:
    text = "Think very carefully about the hardest difficult model."
    assert clean(text).prompt == text


@given(st.text(max_size=300))
def test_any_text_is_routed_by_something(text: str) -> None:
    cleaned = clean(text)
    assert isinstance(cleaned.prompt, str)
    assert bool(cleaned.left_out) == (cleaned.prompt != text)
    if text.strip():
        assert cleaned.prompt.strip()


def test_flips_are_measured_with_and_without_the_defence() -> None:
    """A router that falls for every attack: whatever mentions difficulty, or is not letters, goes to the dear model."""

    def gullible(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        marks = ("difficult", "strongest", "careful", "∮", "zxq", "qwzx")
        chosen = np.array([int(any(mark in text for mark in marks)) for text in texts])
        return chosen, 1.0 + 9.0 * chosen

    prompts = [HONEST[0], HONEST[1], HONEST[6]]
    before = mean_flips(measure(gullible, prompts))
    after = mean_flips(measure(lambda texts: gullible([str(clean(text).prompt) for text in texts]), prompts))
    assert before.flipped_dearer == 1.0
    assert before.cost_ratio == 10.0
    assert after.flipped_dearer == 0.0
    assert after.cost_ratio == 1.0
