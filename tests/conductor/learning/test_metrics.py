"""The measures against brute force and worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebeat.conductor.learning import metrics
from onebeat.conductor.learning.curves import Curve, choose, cost_to_reach, quality_at_cost, trace
from onebeat.engine import decision
from tests.conductor.learning.made_up import judged

scores = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.25, 1.0])), min_size=2, max_size=25)


@given(scores)
def test_auc_is_the_chance_of_a_right_order(cells: list[tuple[int, float]]) -> None:
    predicted = np.array([float(p) for p, _ in cells])
    score = np.array([s for _, s in cells])
    won = pairs = 0.0
    for i in range(len(cells)):
        for j in range(len(cells)):
            if i != j:
                worth = score[i] * (1 - score[j])
                pairs += worth
                won += worth * (1.0 if predicted[i] > predicted[j] else 0.5 if predicted[i] == predicted[j] else 0.0)
    found = metrics.auc(predicted, score)
    if pairs < 1e-9:
        assert found is None
    else:
        assert found == pytest.approx(won / pairs)


def test_within_source_is_blind_to_telling_sources_apart() -> None:
    groups = ["easy"] * 50 + ["hard"] * 50
    random = np.random.default_rng(0)
    score = np.where(np.array(groups) == "easy", random.uniform(size=100) < 0.9, random.uniform(size=100) < 0.1)
    predicted = np.where(np.array(groups) == "easy", 0.9, 0.1)
    overall = metrics.auc_overall(predicted[:, None], score[:, None].astype(float))
    assert overall is not None
    assert overall > 0.8
    assert metrics.auc_within(predicted[:, None], score[:, None].astype(float), groups) == 0.5
    unknown = np.where(random.uniform(size=100) < 0.3, np.nan, score)[:, None]
    assert metrics.auc_overall(predicted[:, None], unknown) == metrics.auc(
        predicted[np.isfinite(unknown[:, 0])], unknown[np.isfinite(unknown[:, 0]), 0]
    )


def test_calibration_error() -> None:
    predicted = np.repeat([0.2, 0.8], 50)
    score = np.r_[np.ones(10), np.zeros(40), np.ones(40), np.zeros(10)]
    assert metrics.calibration_error(predicted, score, bins=2) == pytest.approx(0.0)
    assert metrics.calibration_error(predicted + 0.1, score, bins=2) == pytest.approx(0.1)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 3)), min_size=2, max_size=25
    ).filter(lambda cells: any(count for *_, count in cells))
)
def test_an_outcome_of_weight_2_is_the_outcome_twice(cells: list[tuple[int, float, int]]) -> None:
    predicted = np.array([[value / 5] for value, _, _ in cells])
    score, weight = (np.array([[cell[at]] for cell in cells], float) for at in (1, 2))
    groups = [f"source {value % 2}" for value, _, _ in cells]
    times = np.repeat(np.arange(len(cells)), weight[:, 0].astype(int))
    again = predicted[times], score[times]
    assert metrics.auc(predicted, score, weight) == pytest.approx(metrics.auc(*again))
    assert metrics.auc_overall(predicted, score, weight) == pytest.approx(metrics.auc_overall(*again))
    within = metrics.auc_within(predicted, score, groups, weight)
    assert within == pytest.approx(metrics.auc_within(*again, [groups[row] for row in times]))
    for bins in (2, 3, 15):
        error = metrics.calibration_error(predicted, score, bins, weight)
        assert error == pytest.approx(metrics.calibration_error(*again, bins))


def test_small_weights_scale_without_effect() -> None:
    random = np.random.default_rng(3)
    predicted, score = random.uniform(size=(2, 60, 1))
    all_alike = np.full(score.shape, 0.01)
    # A cell is never compared to itself, so that a weight below 1 does not make one out of nothing.
    assert metrics.auc(predicted, score, all_alike) == pytest.approx(metrics.auc(predicted, score))
    error = metrics.calibration_error(predicted, score, weight=all_alike)
    assert error == pytest.approx(metrics.calibration_error(predicted, score))
    assert metrics.auc(predicted, score, np.zeros(score.shape)) is None


def test_routellm_of_an_oracle_a_coin_and_a_known_case() -> None:
    random = np.random.default_rng(1)
    weak, strong = (random.uniform(size=(2, 20_000)) < np.array([[0.6], [0.8]])).astype(float)
    coin = metrics.routellm(random.uniform(size=20_000), weak, strong)
    assert coin["apgr"] == pytest.approx(0.5, abs=0.05)
    assert coin["cpt50"] == pytest.approx(0.5, abs=0.06)
    assert coin["cpt80"] == pytest.approx(0.8, abs=0.06)
    oracle = metrics.routellm(strong - weak + 1e-6 * random.uniform(size=20_000), weak, strong)
    assert oracle["apgr"] is not None
    assert oracle["apgr"] > 1.0
    # Ten prompts, of which the strong model mends the last five: the advantage knows it.
    known = metrics.routellm(np.arange(10.0), np.r_[np.ones(5), np.zeros(5)], np.ones(10))
    assert known["cpt50"] == pytest.approx(0.25)
    assert known["cpt80"] == pytest.approx(0.4)
    # PGR rises linearly to 1 at half the calls and stays: 0.25 + 0.5
    assert known["apgr"] == pytest.approx(0.75)
    assert metrics.routellm(np.arange(4.0), np.ones(4), np.zeros(4))["apgr"] is None


def test_aiq_of_worked_curves() -> None:
    cheap, dear = (1.0, 0.4), (3.0, 0.8)
    line = metrics.aiq(np.array([1.0, 3.0]), np.array([0.4, 0.8]), cheap, dear)
    assert line == pytest.approx(0.6)
    # A point below the line is not on the hull; one above it lifts the area by a triangle.
    assert metrics.aiq(np.array([1.0, 2.0, 3.0]), np.array([0.4, 0.5, 0.8]), cheap, dear) == pytest.approx(0.6)
    assert metrics.aiq(np.array([1.0, 2.0, 3.0]), np.array([0.4, 0.8, 0.8]), cheap, dear) == pytest.approx(0.7)
    # A router that never gets cheap is joined to the cheapest model.
    assert metrics.aiq(np.array([2.0]), np.array([0.8]), cheap, dear) == pytest.approx(0.7)


def test_arena_score_of_the_published_formula() -> None:
    quality, cost = 0.7, 1.0
    thrift = (math.log2(200) - math.log2(cost)) / (math.log2(200) - math.log2(0.0044))
    assert metrics.arena_score(quality, cost) == pytest.approx(1.1 * quality * thrift / (0.1 * quality + thrift))
    assert metrics.arena_score(quality, 500.0) == 0.0
    assert metrics.arena_score(1.0, 1e-9) == pytest.approx(1.0)
    assert metrics.arena_score(0.0, 1.0) == 0.0


def test_the_bootstrap_covers_the_mean_and_says_when_undefined() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    ends = metrics.bootstrap(lambda rows: float(values[rows].mean()), 400)
    assert ends is not None
    assert ends[0] < 3.0 < ends[1]
    assert ends[1] - ends[0] == pytest.approx(4 / 20, rel=0.25)
    assert metrics.bootstrap(lambda rows: None, 10) is None


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=8),
    st.lists(st.floats(1e-6, 0.01), min_size=3, max_size=3),
    st.floats(0, 1),
)
def test_the_vectorised_choice_is_that_of_the_engine(
    qualities: list[list[float]], costs: list[float], tradeoff: float
) -> None:
    quality, cost = np.array(qualities), np.tile(costs, (len(qualities), 1))
    chosen = choose(quality, cost, tradeoff, 0.004)
    for row, column in enumerate(chosen):
        offers = [decision.Offer(f"model {i}", quality[row, i], 100.0, costs[i]) for i in range(3)]
        best = decision.weigh(offers, tradeoff=tradeoff, reference_cost_usd=0.004)[0]
        mine = decision.utility(quality[row, column], costs[column], tradeoff, 0.004)
        assert mine == pytest.approx(best.utility, abs=1e-12)
        assert quality[row, column] >= decision.HOPELESS_SHARE * quality[row].max()


def test_reading_a_curve() -> None:
    curve = Curve(np.zeros(4), np.array([0.5, 0.7, 0.6, 0.9]), np.array([1.0, 2.0, 3.0, 4.0]), np.zeros((4, 1)))
    assert cost_to_reach(curve, 0.5) == 1.0
    assert cost_to_reach(curve, 0.6) == pytest.approx(1.5)
    assert cost_to_reach(curve, 0.8) == pytest.approx(3.5)
    assert cost_to_reach(curve, 0.95) is None
    assert quality_at_cost(curve, 0.5) is None
    assert quality_at_cost(curve, 1.5) == pytest.approx(0.6)
    assert quality_at_cost(curve, 2.9) == pytest.approx(0.7)
    assert quality_at_cost(curve, 9.0) == pytest.approx(0.9)


def test_a_better_prediction_traces_a_better_curve() -> None:
    sharp, blunt = trace(judged(noise=0.2), 0.002), trace(judged(noise=3.0), 0.002)
    budget = 0.001
    first, second = quality_at_cost(sharp, budget), quality_at_cost(blunt, budget)
    assert first is not None
    assert second is not None
    assert first > second + 0.02
    np.testing.assert_allclose(sharp.share.sum(1), 1.0)
    assert sharp.cost_usd[0] == sharp.cost_usd.min()
