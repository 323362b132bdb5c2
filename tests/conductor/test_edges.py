"""Edges that do not belong to a prompt are found, and honest prompts are left alone."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onebeat.conductor.edges import LEAST_REST, is_odd, views, without_edges

ROBE = "A robe takes 2 bolts of blue fiber and half that much white fiber.  How many bolts in total does it take?"
HONEST = [
    "Natalia sold clips to 48 friends in April, and half as many clips in May. How many clips did Natalia sell?",
    "def twice(x):\n    return x + x\n\nassert twice(3) == ??",
    "Translate to French: the best model of this car is expensive.",
    "Explain the Riemann hypothesis to a child.",
    "Fix this: SELECT * FROM t WHERE a = 'x' AND (b <> 3 OR c IS NULL);",
    "hello",
    "Is 91 prime?",
    "",
]
FOREIGN = [
    "This is an extremely difficult olympiad problem.",
    "My boss needs this to be perfect, so take all the time you need.",
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit.",
    "$\\forall \\varepsilon > 0 \\; \\exists \\delta$",
    "zxq vbnml qwrtp hjklfd xcvz ghqpt wrtzk bvcxm",
    "}{ ∮∂∇ ⟨ψ|Ĥ|φ⟩ ≜ ∑∏ ℵ₀ ⊗ ⊕ ↯↯ ]]>>",
    "Diese Aufgabe ist sehr schwer. Sie verlangt Sorgfalt.",
    "Bolts are what nobody but a tenured professor of topology ever understood.",
]


@pytest.mark.parametrize("prompt", HONEST)
def test_an_honest_prompt_has_no_foreign_edge(prompt: str) -> None:
    assert views(prompt) == ()


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("first", [True, False])
def test_what_is_put_around_a_prompt_is_left_out(foreign: str, first: bool) -> None:
    prompt = f"{foreign}\n{ROBE}" if first else f"{ROBE}\n{foreign}"
    assert ("first" if first else "last", ROBE) in without_edges(prompt)


def test_both_ends_at_once_and_messages() -> None:
    prompt = f"{FOREIGN[0]}\n{ROBE}\n{FOREIGN[1]}"
    assert ("both", ROBE) in without_edges(prompt)
    system = {"role": "system", "content": FOREIGN[2]}
    asked = {"role": "user", "content": prompt}
    found = {view.left_out: view.prompt for view in views([system, asked])}
    assert found["both"] == [system, {"role": "user", "content": ROBE}]
    assert asked["content"] == prompt
    assert views([{"role": "user", "content": [{"type": "image"}]}]) == ()
    assert views([{"role": "assistant", "content": prompt}]) == ()


def test_the_only_request_stays_and_so_does_most_of_the_prompt() -> None:
    assert without_edges("The harbour lies in the fog.\nWrite a poem.") == [("first", "Write a poem.")]
    assert without_edges("Sea, salt, rope, gull, harbour, anchor, net.\nWhich of them swims?") == [
        ("first", "Which of them swims?")
    ]
    assert without_edges("One two three four five six. Seven.") == [("last", "One two three four five six.")]
    assert without_edges("Rain. " + "Snow ice hail fog wind. " * 12 + "Heat. " * 30) == [
        ("first", ("Snow ice hail fog wind. " * 12 + "Heat. " * 30).strip())
    ]


def test_symbols_beside_symbols_belong_together() -> None:
    assert is_odd("}{ ∮∂∇ ⟨ψ|Ĥ|φ⟩ ≜")
    assert not is_odd("a plain sentence")
    assert without_edges("∮∂∇⟨ψ|Ĥ|φ⟩≜∑∏ ⊗\n∇∇∮∮⟨φ|φ⟩⊗⊗⊕⊕∑∏\n") == []


def test_a_blank_line_at_an_end_is_no_edge() -> None:
    assert without_edges("\n0") == []
    attacked = (
        "\n\nMy boss needs this to be perfect!\nName the capital of France and of Spain and say which city is larger."
    )
    assert "boss" not in without_edges(attacked)[0][1]


@given(st.text(max_size=300))
@example("\n0")
def test_any_text_keeps_most_of_itself(text: str) -> None:
    for name, rest in without_edges(text):
        assert name in ("first", "last", "both")
        assert rest in text
        assert len(rest) >= LEAST_REST * len(text.strip()) > 0
        assert rest != text.strip()
