"""Resampled figures are those of the resampled prompts, drawn and judged the long way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from onebeat.conductor.learning import baselines, choosing, compare, metrics, resample
from onebeat.conductor.learning.curves import Curve, Judged, cost_to_reach, quality_at_cost, single_means, trace
from onebeat.conductor.learning.resample import Resamples, alone, traced
from tests.conductor.learning.made_up import judged

REFERENCE = 0.002
PROMPTS = 150
RESAMPLES = Resamples(PROMPTS, 70, seed=3)


def drawn() -> Iterator[np.ndarray]:
    """The rows of every resample, as `metrics.bootstrap` draws them."""
    random = np.random.default_rng(RESAMPLES.seed)
    for _ in range(RESAMPLES.count):
        yield random.integers(0, PROMPTS, PROMPTS)


@pytest.fixture
def whole() -> Judged:
    found = judged(seed=5, prompts=PROMPTS)
    random = np.random.default_rng(0)
    # Fractional scores and tied predictions, too.
    score = np.where(random.uniform(size=found.score.shape) < 0.2, 0.25, found.score)
    return replace(found, score=score, weight=random.integers(1, 4, score.shape) / 2.0)


def test_counts_are_those_of_the_draws() -> None:
    counts = np.concatenate(list(RESAMPLES.blocks()))
    assert counts.shape == (70, PROMPTS)
    for row, rows in zip(counts, drawn(), strict=True):
        np.testing.assert_array_equal(row, np.bincount(rows, minlength=PROMPTS))


def test_a_resampled_curve_is_the_curve_of_the_resample(whole: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "PROMPTS_AT_ONCE", 40)
    found, singles = traced(whole, REFERENCE, RESAMPLES), alone(whole, RESAMPLES)
    for place, rows in enumerate(drawn()):
        sample = whole.take(rows)
        curve = trace(sample, REFERENCE)
        np.testing.assert_allclose(found.quality[place], curve.quality, rtol=1e-12)
        np.testing.assert_allclose(found.cost_usd[place], curve.cost_usd, rtol=1e-12)
        np.testing.assert_allclose(singles.quality[place], single_means(sample)[0], rtol=1e-12)


def test_the_intervals_of_figures_are_those_of_the_resamples(whole: Judged) -> None:
    best = 2
    found = compare.figures(traced(whole, REFERENCE, RESAMPLES), alone(whole, RESAMPLES), best)["intervals"]
    held: dict[str, list[float]] = {"cost_at_best_quality": [], "points_at_half_cost": [], "aiq": []}
    for rows in drawn():
        sample = whole.take(rows)
        curve = trace(sample, REFERENCE)
        quality, cost = single_means(sample)
        parity, half = cost_to_reach(curve, quality[best]), quality_at_cost(curve, 0.5 * cost[best])
        held["cost_at_best_quality"].append(np.inf if parity is None else parity / cost[best])
        held["points_at_half_cost"].append(-np.inf if half is None else 100 * (half - quality[best]))
        ends = (cost[0], quality[0]), (cost[2], quality[2])
        held["aiq"].append(metrics.aiq(curve.cost_usd, curve.quality, *ends))
    for name, values in held.items():
        low, high = np.quantile(values, [0.025, 0.975], method="nearest")
        assert found[name] == pytest.approx([None if np.isinf(end) else end for end in (low, high)], abs=1e-9)


def test_auc_and_calibration_are_those_of_the_resamples(whole: Judged) -> None:
    quality = np.round(whole.quality, 2)
    score = whole.score.copy()
    score[np.random.default_rng(1).uniform(size=score.shape) < 0.3] = np.nan
    groups = tuple(f"group {row % 40}" for row in range(PROMPTS))
    weight = whole.weight
    assert weight is not None
    overall = resample.auc_resampled(quality, score, None, RESAMPLES, weight)
    within = resample.auc_resampled(quality, score, groups, RESAMPLES, weight)
    off = resample.calibration_resampled(quality, score, RESAMPLES, weight=weight)
    for place, rows in enumerate(drawn()):
        names = [groups[row] for row in rows]
        sample = quality[rows], score[rows]
        assert overall[place] == pytest.approx(metrics.auc_overall(*sample, weight[rows]))
        assert within[place] == pytest.approx(metrics.auc_within(*sample, names, weight[rows]))
        assert off[place] == pytest.approx(metrics.calibration_error(*sample, weight=weight[rows]))


def test_of_one_class_nothing_is_ranked(whole: Judged) -> None:
    ones = np.ones_like(whole.score)
    assert np.isnan(resample.auc_resampled(whole.quality, ones, whole.groups, RESAMPLES)).all()
    assert resample.interval(np.full(9, np.nan)) is None


def test_never_is_an_end_and_undefined_is_none() -> None:
    values = np.r_[np.full(60, 0.5), np.full(30, np.inf)]
    assert resample.reached_interval(values) == [0.5, None]
    assert resample.reached_interval(np.full(9, np.inf)) == [None, None]
    assert resample.reached_interval(np.r_[np.full(5, np.nan), np.ones(4)]) is None
    assert resample.spread_around(0.1, np.linspace(0.2, 0.4, 101)) == pytest.approx([0.005, 0.195])


def test_choices_that_need_no_router_are_rows_like_the_others(whole: Judged) -> None:
    single = next(one for one in baselines.singles(whole) if one.model == "dear")
    found = choosing.judge({"onebeat": whole, "oracle": baselines.oracle(whole)}, single, REFERENCE, RESAMPLES)
    routers = found["routers"]
    assert routers["always the best"]["cost_at_best_quality"] == pytest.approx(1.0)
    assert routers["always the best"]["intervals"]["cost_at_best_quality"] == pytest.approx([1.0, 1.0])
    assert routers["always the cheapest"]["cost_at_best_quality"] is None
    assert routers["always the cheapest"]["intervals"]["cost_at_best_quality"] == [None, None]
    cheap, middle, dear = single_means(whole)[0]
    half = 0.5 * whole.cost_usd[0, 2]
    share = (half - whole.cost_usd[0, 0]) / (whole.cost_usd[0, 2] - whole.cost_usd[0, 0])
    coin = 100 * (cheap + share * (dear - cheap) - dear)
    assert routers["cheapest and best, mixed"]["points_at_half_cost"] == pytest.approx(coin)
    # The middle model lies above the line between the other two, so that some other pair is better there.
    assert middle > cheap + (dear - cheap) * 4 / 19
    assert routers["any two models, mixed"]["points_at_half_cost"] > coin
    assert "ahead_of" not in routers["onebeat"] and "ahead_of" in routers["oracle"]
    for name, row in routers.items():
        assert set(row["intervals"]) == set(compare.measures(trace(whole, REFERENCE), _means(whole))), name
        curve = found["curves"][name]
        lengths = {key: len(values) for key, values in curve.items()}
        assert len(set(lengths.values())) == 1 and "quality_low" in lengths and "usd_per_thousand_high" in lengths
        assert (np.array(curve["quality_low"]) <= np.array(curve["quality"]) + 1e-6).all()


def _means(whole: Judged) -> compare.Singles:
    return compare.Singles(*single_means(whole), 2)


def test_the_best_mix_of_any_two_is_the_hull(whole: Judged) -> None:
    singles = alone(whole, RESAMPLES)
    found = baselines.any_two_mixed(singles)
    costs, qualities = metrics.hull(singles.curve.cost_usd, singles.curve.quality)
    for cost in np.linspace(costs[0], costs[-1], 9):
        assert quality_at_cost(found.curve, cost) == pytest.approx(np.interp(cost, costs, qualities))
    np.testing.assert_allclose(found.curve.share.sum(1), 1.0)
    np.testing.assert_allclose(found.curve.share @ singles.curve.quality, found.curve.quality)


def test_where_the_strong_model_is_no_better_shares_are_never_reached() -> None:
    random = np.random.default_rng(2)
    score = (random.uniform(size=(PROMPTS, 2)) < np.array([0.5, 0.53])).astype(float)
    cost = np.tile([0.001, 0.002], (PROMPTS, 1))
    near = Judged(("weak", "strong"), random.uniform(size=score.shape), cost, score, cost, ("g",) * PROMPTS)
    assert score[:, 1].mean() > score[:, 0].mean()
    found = compare.pair(near, 1, 0, RESAMPLES)
    assert found["intervals"]["cpt80"][1] is None and found["intervals"]["cpt80"][0] > 0
    assert found["resamples_without_a_gap"] > 0.05
    share = np.array(found["pgr"]["share_of_strong_calls"])
    assert share[0] == 0.0 and share[-1] == 1.0 and found["pgr"]["pgr"][0] == 0.0 and found["pgr"]["pgr"][-1] == 1.0
    assert compare.pgr_at(found, 1.0) == 1.0
    back = compare.pair(near, 0, 1, RESAMPLES)
    assert back["pgr"] is None and back["apgr"] is None and compare.pgr_at(back, 0.5) is None


def test_a_lead_is_paired_and_a_cost_that_is_not_reached_is_not_compared(whole: Judged) -> None:
    singles = alone(whole, RESAMPLES)
    ours = traced(whole, REFERENCE, RESAMPLES)
    itself = compare.ahead(ours, ours, singles)
    assert set(itself["low"]) <= {0.0, None} and itself["ahead_everywhere_beyond_interval"] is False
    dearer = replace(
        baselines.always(singles, 2),
        curve=Curve(np.full(1, np.nan), np.ones(1), np.full(1, 1.0), np.eye(3)[[2]]),
        cost_usd=np.full((RESAMPLES.count, 1), 1.0),
    )
    assert compare.ahead(ours, dearer, singles)["ahead_everywhere_beyond_interval"] is None
