"""The dial: what it promises on validation holds on other prompts."""

from __future__ import annotations

import numpy as np
import pytest

from onebeat.conductor.learning import dial
from onebeat.conductor.learning.curves import Judged, choose, reference_cost
from onebeat.engine.errors import InputError
from onebeat.engine.targets import Target, parse_target, setting
from tests.conductor.learning.made_up import judged


@pytest.mark.parametrize("target", ["90%", "0.9 usd", "0.95"])
def test_a_target_holds_on_other_prompts(target: str) -> None:
    held = 0
    for seed in range(6):
        validation, test = judged(seed, 600), judged(seed + 100, 600)
        reference = reference_cost(validation.cost_usd)
        solved = dial.solve(validation, reference, seed=seed)
        check = dial.check(solved, parse_target(target), test, reference, seed=seed)
        held += check.holds
        low, high = check.measured_share_interval
        assert low < check.measured_share < high
    assert held >= 5


def test_a_prediction_that_does_not_carry_over_does_not_hold() -> None:
    validation, test = judged(0, 600), judged(100, 600)
    misled = Judged(test.models, validation.quality, test.predicted_cost_usd, test.score, test.cost_usd, test.groups)
    reference = reference_cost(validation.cost_usd)
    solved = dial.solve(validation, reference)
    target = parse_target("99%")
    assert dial.check(solved, target, test, reference).holds
    assert not dial.check(solved, target, misled, reference).holds


def test_the_setting_is_the_cheapest_that_promises_enough() -> None:
    solved = dial.solve(judged(1), 0.002)
    found = setting(solved, Target(share_of_best=0.9))
    assert found.share_of_best >= 0.9
    points = solved["points"]
    assert isinstance(points, list)
    assert all(p["usd_per_thousand"] >= found.usd_per_thousand for p in points if p["share_of_best"] >= 0.9)
    spent = setting(solved, Target(usd_per_thousand=1.0))
    assert spent.usd_per_thousand <= 1.0
    assert all(
        p["quality"] <= spent.share_of_best * solved["best_quality"] + 1e-3
        for p in points
        if p["usd_per_thousand"] <= 0.5
    )


def test_the_dial_is_divided_where_it_jumps() -> None:
    """Two models far apart: without finer positions there, a budget between two positions buys the cheaper one's."""
    table = judged(3, 2000, noise=0.05)
    solved = dial.solve(table, 0.002)
    points = solved["points"]
    assert isinstance(points, list)
    assert [p["tradeoff"] for p in points] == sorted({p["tradeoff"] for p in points})
    costs = np.array([p["usd_per_thousand"] for p in points])
    plain = np.array(
        [
            1e3 * table.cost_usd[np.arange(2000), choose(table.quality, table.predicted_cost_usd, t, 0.002)].mean()
            for t in dial.dial_positions(dial.POSITIONS)
        ]
    )
    assert np.abs(np.diff(costs)).max() < 0.5 * np.abs(np.diff(plain)).max()
    assert len(points) <= dial.REFINED_POSITIONS


def test_a_few_prompts_promise_nothing() -> None:
    few = judged(0, dial.LEAST_PROMPTS - 1)
    solved = dial.solve(few, 0.002)
    assert solved["points"] == [] and solved["prompts"] == 29 and solved["best_model"] in few.models
    with pytest.raises(InputError, match="30 or more prompts that all answered"):
        setting(solved, Target(share_of_best=0.9))
    assert dial.solve(judged(0, dial.LEAST_PROMPTS), 0.002)["points"]


def test_half_the_dial_is_a_balance() -> None:
    table = judged(2, 1500)
    reference = dial.balanced_reference(table)
    chosen = choose(table.quality, table.predicted_cost_usd, 0.5, reference)
    share = table.score[np.arange(len(chosen)), chosen].mean() / table.score.mean(0).max()
    assert share == pytest.approx(0.95, abs=0.01)


def test_where_the_cheapest_choice_is_good_enough_the_dearest_model_is_the_reference() -> None:
    table = judged(2, 300)
    equal = Judged(table.models, table.quality, table.cost_usd, np.ones_like(table.score), table.cost_usd, table.groups)
    assert dial.balanced_reference(equal) == pytest.approx(0.002)
