"""Which prompts a head was fitted on: known to the prompt, whatever becomes of router.json on the way."""

from __future__ import annotations

import pytest

from onebeat.conductor.learning.fitted import FIELD, fitted_among, hashes
from onebeat.engine.errors import FormatError


def test_prompts_and_their_twins_are_known_and_strangers_are_not() -> None:
    messages = [{"role": "user", "content": "hello"}]
    fitted = {FIELD: hashes(["One  prompt", messages])}
    found = fitted_among(fitted, ["one prompt", "another", messages, [{"role": "system", "content": "hello"}]])
    assert found is not None and found.tolist() == [True, False, True, False]
    assert fitted_among({FIELD: ""}, ["one prompt"]).tolist() == [False]
    assert fitted_among({}, ["one prompt"]) is None


def test_hashes_are_a_set_whatever_the_order_and_can_be_added_to() -> None:
    texts = [f"prompt {number}" for number in range(50)]
    assert hashes(texts) == hashes([*texts[::-1], texts[3]])
    grown = hashes(texts[30:], hashes(texts[:40]))
    assert grown == hashes(texts) and len(grown) == 4 * -(-50 * 8 // 3)


@pytest.mark.parametrize("text", ["not base64!", "YWJj", 7, None])
def test_what_is_no_list_of_hashes_is_told(text: object) -> None:
    with pytest.raises(FormatError, match=r"prompt_hashes of router.json cannot be read .*; fit the router again"):
        fitted_among({FIELD: text}, ["one"])
