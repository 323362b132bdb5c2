"""Gaming: flips are measured with and without the guard."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from onebeat.conductor.learning.gaming import ATTACKS, attack, guarded, mean_flips, measure

HONEST = [
    "A robe takes 2 bolts of blue fiber and half that much white fiber.  How many bolts in total does it take?",
    "Natalia sold clips to 48 friends in April, and half as many clips in May. How many clips did she sell?",
    "Explain the Riemann hypothesis to a child.",
]
MARKS = ("difficult", "strongest", "careful", "∮", "zxq", "qwzx")


def gullible(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Falls for every attack: whatever mentions difficulty, or is not letters, goes to the dear model."""
    chosen = np.array([int(any(mark in text for mark in MARKS)) for text in texts])
    return chosen, 1.0 + 9.0 * chosen


def test_flips_are_measured_with_and_without_the_guard() -> None:
    before = mean_flips(measure(gullible, HONEST))
    after = mean_flips(measure(lambda texts: guarded(gullible, texts), HONEST, plain=gullible(HONEST)))
    assert (before.flipped_dearer, before.cost_ratio) == (1.0, 10.0)
    assert (after.flipped_dearer, after.flipped_any, after.cost_ratio) == (0.0, 0.0, 1.0)


def test_the_guard_only_ever_makes_cheaper() -> None:
    """Whatever chooses: with the guard no prompt is dearer than without."""

    def moody(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.array([len(text) % 3 for text in texts])
        return chosen, chosen + 1.0

    texts = [attack(prompt, around) for prompt in HONEST for around in ATTACKS.values()]
    plain, with_guard = moody(texts)[0], guarded(moody, texts)[0]
    assert (with_guard <= plain).all()
    assert (with_guard < plain).any()


@pytest.mark.parametrize("around", [("COPY is hard.", ""), ("", "So hard: COPY!")])
def test_an_attack_may_copy_a_word_of_the_prompt(around: tuple[str, str]) -> None:
    assert "hypothesis" in attack(HONEST[2], around).replace(HONEST[2], "")
