"""What a step is expected to take: found from steps, unmoved by a stall, and never a reason to refuse for good."""

from __future__ import annotations

import random

import pytest

from onebeat.engine.pace import HALF_LIFE_MS, MOST_OF_EXPECTED, Pace


def fed(pace: Pace, step_ms: float, token_ms: float, costs: list[float]) -> float:
    now = 0.0
    for cost in costs:
        took = step_ms + token_ms * cost
        now += took
        pace.observe(cost, took, now)
    return now


def test_the_fixed_part_and_the_tokens_part_are_told_apart() -> None:
    dice, pace = random.Random(1), Pace(0.0, 1.0)
    fed(pace, 5.0, 0.02, [dice.uniform(1, 300) for _ in range(200)])
    assert pace.step_ms == pytest.approx(5.0, rel=0.05) and pace.ms_per_token == pytest.approx(0.02, rel=0.1)
    assert pace.expected_ms(2, 100.0) == pytest.approx(12.0, rel=0.05)


def test_small_steps_do_not_make_a_long_prompt_impossible() -> None:
    """Of 5 ms a step whatever it holds: 190 tokens in 6 steps take 30 ms, though one token alone took 5."""
    pace = Pace(5.0, 1e-3)
    now = fed(pace, 5.0, 0.0, [1.0] * 300)
    assert pace.least_ms(6, 190.0, now) < 60.0


def test_nothing_known_makes_nothing_impossible() -> None:
    assert Pace().least_ms(1, 1e6, 0.0) == 0.0
    pace = Pace()
    pace.observe(0.0, 50.0, 1.0)
    assert pace.ms_per_token is None
    pace.observe(10.0, 50.0, 1.0)
    assert pace.ms_per_token == pytest.approx(5.0)


@pytest.mark.parametrize("steps_before", [0, 3, 200])
def test_a_stall_counts_as_little_more_than_a_slow_step(steps_before: int) -> None:
    pace = Pace(2.0, 0.2)
    now = fed(pace, 2.0, 0.2, [64.0] * steps_before)
    before = pace.expected_ms(1, 64.0)
    pace.observe(64.0, 6000.0, now + 6000.0)
    assert before < pace.expected_ms(1, 64.0) < (1.0 + 0.2 * (MOST_OF_EXPECTED - 1.0)) * before


def test_a_machine_that_became_slower_is_followed() -> None:
    pace = Pace(2.0, 0.2)
    now = fed(pace, 2.0, 0.2, [64.0, 100.0] * 50)
    for cost in [64.0, 100.0] * 40:
        now += 20.0 + 2.0 * cost
        pace.observe(cost, 20.0 + 2.0 * cost, now)
    assert pace.expected_ms(1, 80.0) == pytest.approx(180.0, rel=0.15)


def test_what_nothing_confirms_fades() -> None:
    pace = Pace(2.0, 0.2)
    now = fed(pace, 200.0, 20.0, [10.0] * 100)
    at_once = pace.least_ms(1, 10.0, now)
    assert at_once > 100.0
    assert pace.least_ms(1, 10.0, now + HALF_LIFE_MS) == pytest.approx(at_once / 2)
    assert pace.least_ms(1, 10.0, now + 20 * HALF_LIFE_MS) < 0.01
