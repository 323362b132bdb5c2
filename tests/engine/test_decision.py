"""A decision is monotone in its dial, honest about constraints, and independent of the order of columns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebeat.engine.decision import Decision, Offer, choose, weigh
from onebeat.engine.errors import ConstraintError, InputError

FLEET = [Offer("big", 0.9, 300, 0.01), Offer("small", 0.7, 200, 0.0005), Offer("tiny", 0.2, 100, 0.0001)]


def decide(offers: list[Offer], tradeoff: float, **constraints: float) -> Decision:
    weighed = weigh(offers, tradeoff=tradeoff, reference_cost_usd=0.01, **constraints)
    return choose(weighed, tradeoff=tradeoff, **constraints)


def test_dial_runs_from_cheapest_that_is_not_hopeless_to_best() -> None:
    assert decide(FLEET, 0.0).model == "small"
    assert decide(FLEET, 1.0).model == "big"


def test_a_poor_model_is_still_the_cheapest_and_a_hopeless_one_says_beside_what() -> None:
    poor = [Offer("dear", 0.9, 100, 0.01), Offer("poor", 0.3, 100, 0.0001)]
    assert decide(poor, 0.0).model == "poor"
    ruled_out = {candidate.model: candidate.ruled_out for candidate in decide(FLEET, 0.0).scores}
    assert ruled_out["tiny"] == "quality 0.20 is hopeless beside the best, 0.90"


offers = st.lists(st.tuples(st.floats(0, 1), st.floats(1e-6, 1)).map(lambda pair: pair), min_size=1, max_size=8).map(
    lambda pairs: [Offer(f"m{i}", quality, 100, cost) for i, (quality, cost) in enumerate(pairs)]
)


@given(offers, st.floats(0, 1), st.floats(0, 1))
def test_turning_the_dial_up_never_buys_less_quality(fleet: list[Offer], a: float, b: float) -> None:
    low, high = sorted((a, b))
    chosen_low, chosen_high = decide(fleet, low).scores[0], decide(fleet, high).scores[0]
    assert chosen_high.quality >= chosen_low.quality - 1e-9


@given(offers, st.floats(0, 1), st.randoms(use_true_random=False))
def test_order_of_columns_changes_nothing(fleet: list[Offer], tradeoff: float, random: object) -> None:
    shuffled = list(fleet)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert decide(fleet, tradeoff) == decide(shuffled, tradeoff)


def test_constraints_that_nobody_meets_are_named_with_both_values() -> None:
    with pytest.raises(ConstraintError, match=r"min_quality 0.95 failed: the best is big at 0.90"):
        decide(FLEET, 0.5, min_quality=0.95)
    with pytest.raises(ConstraintError, match=r"max_cost_usd 1e-05 failed: the cheapest is tiny at \$0.000100"):
        decide(FLEET, 0.5, max_cost_usd=1e-5)
    with pytest.raises(ConstraintError, match="cannot both hold"):
        decide(FLEET, 0.5, min_quality=0.8, max_cost_usd=0.001)


def test_dial_out_of_range_is_refused() -> None:
    for dial in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="tradeoff"):
            decide(FLEET, dial)


def test_a_cap_on_dollars_never_makes_what_it_leaves_hopeless() -> None:
    fleet = [Offer("dear", 0.9, 100, 0.01), Offer("cheap", 0.4, 100, 0.0001)]
    assert decide(fleet, 0.5, max_cost_usd=0.001).model == "cheap"
