"""Answers that are taken back, denied, or longer than anybody reads."""

from __future__ import annotations

import pytest

from onebeat.conductor.learning.graders.numeric import grade_numeric
from onebeat.conductor.learning.graders.plain import plain
from onebeat.conductor.learning.graders.text import grade_choice, grade_exact

TAKEN_BACK = [
    "The answer is {0}, no wait, {1}.",
    "The answer is {0}. Actually, it is {1}.",
    "Answer: {0}\nWait, I made a mistake. It should be {1}.",
    "Answer: {0}\n\nHmm, let me recompute. It is {1}",
    "My answer is {0}. Just kidding, {1}.",
    "The answer is {0}? No. {1}",
    "The answer is {0}; correction: {1}",
    "The answer is {0} - no, {1}",
]


@pytest.mark.parametrize("said", TAKEN_BACK)
def test_what_is_taken_back_cannot_be_graded_as_either(said: str) -> None:
    for reference in ("5", "6"):
        assert grade_numeric(said.format(5, 6), reference).score is None
        assert grade_numeric(said.replace("{0}", r"\boxed{{{0}}}").format(5, 6), reference).score is None
    for reference in ("B", "C"):
        assert grade_choice(said.format("B", "C"), reference).score is None
    for reference in ("Paris", "London"):
        assert grade_exact(said.format("Paris", "London"), reference).score is None


@pytest.mark.parametrize(
    "said",
    [
        "The answer is 5, which is actually very little.",
        "The answer is 5. They wait at home.",
        "The answer is 5. Wait, let me double-check that. Yes, 5.",
        "Answer: 6. No wait, the answer is 5.",
        "3. Wait for them.\nThe answer is 5",
    ],
)
def test_what_stands_is_graded(said: str) -> None:
    assert grade_numeric(said, "5").score == 1.0
    assert grade_choice("The answer is B. Wait for it. B.", "B").score == 1.0
    assert grade_exact("Wait, actually", "wait, actually").score == 1.0


@pytest.mark.parametrize(
    ("said", "reference"),
    [
        ("x = 5 is not a solution", "5"),
        ("The answer 5 is wrong", "5"),
        ("twice 5", "5"),
        ("half of 10", "10"),
        ("5 squared", "5"),
        ("Answer: 12 divided by 5", "12"),
        ("Answer: 5 sqrt 2", "5"),
        ("The answer is 3 more than 5", "3"),
        ("Answer: 3 : 5", "3"),
        ("1. Multiply\n2. Add\n3. Done", "3"),
    ],
)
def test_what_is_denied_or_operated_on_is_no_answer(said: str, reference: str) -> None:
    assert grade_numeric(said, reference).score is None


@pytest.mark.parametrize("run", [" ", "\n", " \n", "\u00a0", "$", "$ "])
def test_an_answer_that_ends_in_a_long_run_is_graded_all_the_same(run: str) -> None:
    tail = run * (60_000 // len(run))
    assert len(plain(tail)) <= (60_000 if run == "$ " else 4), "patterns take the square of such a run's length"
    assert grade_numeric("the answer is 5" + tail, "5").score in (1.0, None)
    assert grade_choice("the answer is B" + tail, "B").score in (1.0, None)
    grade_exact("the answer is" + tail, "Paris")
