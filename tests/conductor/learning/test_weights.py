"""Weights count everywhere alike: an outcome of weight 2 is the outcome twice, where the two are not merged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onebeat.conductor.learning import baselines, dial, logged
from onebeat.conductor.learning.calibrate import choose as calibration
from onebeat.conductor.learning.costs import Costs
from onebeat.conductor.learning.curves import single_means, trace
from onebeat.conductor.learning.judging import ground_of, means_over_all, summary
from onebeat.conductor.learning.kernel import impute
from onebeat.conductor.learning.off_policy import mean_of
from onebeat.conductor.learning.onboard import combine
from onebeat.conductor.learning.outcomes import Outcomes
from onebeat.conductor.learning.resample import Resamples, auc_resampled
from onebeat.conductor.learning.solve import Recipe, length_tensors, quality_tensors
from onebeat.conductor.learning.sources import read_outcomes
from onebeat.conductor.learning.weights import mean_scores
from tests.conductor.learning.house import write
from tests.conductor.learning.made_up import PRICE_USD, specialists, world
from tests.conductor.learning.made_up import logged as logged_by_chance

ROWS = 120
TIMES = np.random.default_rng(4).integers(1, 4, ROWS)
TWICE = np.repeat(np.arange(ROWS), TIMES)


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, Outcomes, np.ndarray, Outcomes]:
    """Features and outcomes, weighed; and the same repeated as often as they weigh."""
    x, _, plain = world(ROWS)
    holes = np.random.default_rng(5).random(plain.score.shape) < 0.25
    holes[:80] = False
    score = np.where(holes, np.nan, plain.score).astype(np.float32)
    known = np.isfinite(score)
    plain = replace(plain, score=score, weight=known.astype(np.float32))
    return x, replace(plain, weight=(known * TIMES[:, None]).astype(np.float32)), x[TWICE], plain.select(TWICE)


def predicted(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(x[:, 1:2] + np.array([0.5, 0.0, -0.5]))).astype(np.float32)


def money(table: Outcomes) -> Costs:
    spent = np.tile(PRICE_USD, (len(table.prompts), 1))
    return Costs(actual=spent, predicted=1.1 * spent)


def test_in_what_the_dial_is_solved_on(pair: tuple[np.ndarray, Outcomes, np.ndarray, Outcomes]) -> None:
    x, weighed, again, repeated = pair
    ours, theirs = (
        ground_of(predicted(states), money(table), table).judged for states, table in ((x, weighed), (again, repeated))
    )
    assert len(ours.score) < len(theirs.score)
    for one, other in zip(single_means(ours), single_means(theirs), strict=True):
        assert one == pytest.approx(other)
    first, second = trace(ours, 0.002), trace(theirs, 0.002)
    for name in ("quality", "cost_usd", "share"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name))
    plain = trace(replace(ours, weight=None), 0.002)
    assert np.abs(plain.quality - first.quality).max() > 1e-3
    reference = dial.balanced_reference(ours)
    assert reference == pytest.approx(dial.balanced_reference(theirs))
    solved, as_often = dial.solve(ours, reference), dial.solve(theirs, reference)
    assert solved["best_quality"] == as_often["best_quality"]
    points, others = solved["points"], as_often["points"]
    assert isinstance(points, list) and isinstance(others, list)
    for name in ("tradeoff", "quality", "share_of_best", "usd_per_thousand"):
        assert [point[name] for point in points] == pytest.approx([point[name] for point in others], rel=1e-4)
    sample = np.array([3, 3, 7])
    assert ours.take(sample).counts.tolist() == ours.counts[sample].tolist()


def test_in_held_out_figures_and_means(pair: tuple[np.ndarray, Outcomes, np.ndarray, Outcomes]) -> None:
    x, weighed, again, repeated = pair
    ours, theirs = summary(predicted(x), weighed), summary(predicted(again), repeated)
    for name in ("auc", "auc_within_source", "calibration_error"):
        assert ours[name] == pytest.approx(theirs[name])
    assert ours["auc_per_model"] == theirs["auc_per_model"]
    assert summary(predicted(x), replace(weighed, weight=np.minimum(weighed.weight, 1)))["auc"] != ours["auc"]
    assert mean_scores(weighed) == pytest.approx(mean_scores(repeated))
    means = [means_over_all(table.score, predicted(states), table) for states, table in (pair[:2], pair[2:])]
    assert means[0] == pytest.approx(means[1])
    names = ["source 0", "source 2", "never met"]
    for baseline in (baselines.per_source_means, baselines.per_source_tokens):
        np.testing.assert_allclose(baseline(weighed, names), baseline(repeated, names), rtol=1e-6)
    everybody = baselines.neighbours(x, weighed, x[:5], count=ROWS)
    np.testing.assert_allclose(everybody, np.tile(mean_scores(weighed), (5, 1)))


def test_in_what_is_fitted(pair: tuple[np.ndarray, Outcomes, np.ndarray, Outcomes]) -> None:
    x, weighed, again, repeated = pair
    recipe = Recipe("linear", l2=0.3, pairwise=0.5)
    ours = quality_tensors(x, weighed.score, weighed.weight, recipe, 0)
    theirs = quality_tensors(again, repeated.score, repeated.weight, recipe, 0)
    unweighed = quality_tensors(x, weighed.score, np.minimum(weighed.weight, 1), recipe, 0)
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], atol=3e-3)
        assert np.abs(tensor - unweighed[name]).max() > 0.02
    ours = length_tensors(x, weighed.output_tokens, weighed.weight)
    theirs = length_tensors(again, repeated.output_tokens, repeated.weight)
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], atol=2e-5)
    filled = impute(weighed.score, weighed.groups, weighed.weight)
    np.testing.assert_allclose(filled[TWICE], impute(repeated.score, repeated.groups, repeated.weight))
    assert np.abs(filled - impute(weighed.score, weighed.groups)).max() > 1e-3


def test_repeated_grades_are_repeated_measurements(tmp_path: Path) -> None:
    """Merged by weight, and of the mean weight: graded twice, a prompt counts no more than one graded once."""
    row = {"prompt": "one", "model": "a", "output_tokens": 10}
    rows = [row | {"score": 1, "weight": 3}, row | {"score": 0, "weight": 1, "output_tokens": 50}]
    void = [row | {"score": 0, "weight": 0, "output_tokens": 9000}]
    for order in (rows + void, void + rows[::-1]):
        table = read_outcomes([Path(write(tmp_path / "o.jsonl", order))])
        assert (table.score[0, 0], table.weight[0, 0], table.output_tokens[0, 0]) == (0.75, 2.0, 20.0)
    table = read_outcomes([Path(write(tmp_path / "o.jsonl", [*void, row | {"prompt": "two", "score": 1}]))])
    assert np.isfinite(table.score).tolist() == [[prompt == "two"] for prompt in table.prompts]


def test_a_group_is_kept_whichever_record_names_it(tmp_path: Path) -> None:
    row = {"prompt": "one", "model": "a", "score": 1}
    rows = [row, row | {"group": "y", "model": "b"}, row | {"group": "x", "model": "c"}]
    for order in (rows, rows[::-1]):
        table = read_outcomes([Path(write(tmp_path / "o.jsonl", order))])
        assert table.groups == ("x",)
        assert table.report.problems == {"with another group than before (the first by name is kept)": 1}


def test_in_calibration() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=200)
    score = (random.uniform(size=200) < 1 / (1 + np.exp(-3 * logits + 1))).astype(float)
    weight = np.where(score > 0, 3.0, 1.0)
    heavy, plain = calibration(logits, score, weight), calibration(logits, score)
    assert heavy is not None and plain is not None and heavy != plain


def test_in_a_new_models_column() -> None:
    random = np.random.default_rng(1)
    quality = random.uniform(0.1, 0.9, size=(120, 3)).astype(np.float32)
    # Half of the grades say that the new model is like the first column, half that it is the opposite.
    like = random.uniform(size=120) < quality[:, 0]
    score = np.where(np.arange(120) < 60, like, ~like).astype(np.float32)
    slopes = []
    for heavy in (slice(0, 60), slice(60, 120)):
        weight = np.full(120, 0.05, np.float32)
        weight[heavy] = 3.0
        slopes.append(float(combine(quality, score, weight=weight).weights[0]))
    assert slopes[0] > 0.3 > slopes[1]
    assert combine(quality, score, weight=np.ones(120, np.float32)).weights == pytest.approx(
        combine(quality, score).weights
    )


def test_in_what_a_candidate_gains() -> None:
    gains, times = np.array([0.0, 1.0, -0.5, 2.0]), np.array([1.0, 2.0, 3.0, 1.0])
    weighed, repeated = mean_of(gains, times), mean_of(np.repeat(gains, times.astype(int)))
    assert weighed.value == pytest.approx(repeated.value)
    # What is heavy is not seen more often for that: the interval is no narrower than that of the prompts there are.
    assert weighed.high - weighed.low > repeated.high - repeated.low
    plain = mean_of(gains, np.full(4, 7.0))
    assert plain.high - plain.value == pytest.approx(1.96 * gains.std(ddof=1) / 2)
    assert (plain.value, plain.low) == pytest.approx((mean_of(gains).value, mean_of(gains).low))
    assert mean_of(gains[:1]).high == float("inf")


def test_in_what_a_router_would_have_earned_by_a_log(
    pair: tuple[np.ndarray, Outcomes, np.ndarray, Outcomes],
) -> None:
    x, weighed, again, repeated = pair
    random = np.random.default_rng(6)
    choice = random.integers(0, 3, ROWS)
    choice = np.where(np.isfinite(weighed.score[np.arange(ROWS), choice]), choice, weighed.weight.argmax(1))
    found = []
    for states, table, chosen in ((x, weighed, choice), (again, repeated, choice[TWICE])):
        only = chosen[:, None] == np.arange(3)
        log = replace(
            table,
            score=np.where(only, table.score, np.float32(np.nan)),
            propensity=np.where(only, np.float32(0.4), np.float32(np.nan)),
        )
        held = logged.values(log, predicted(states).astype(np.float64), money(log), 0.002)
        assert held is not None
        found.append(held)
    ours, theirs = found
    assert ours["as_logged"] == pytest.approx(theirs["as_logged"])
    for one, other in zip(ours["tradeoffs"], theirs["tradeoffs"], strict=True):
        for name in ("inverse_propensity", "doubly_robust", "usd_per_thousand"):
            assert one[name]["value"] == pytest.approx(other[name]["value"])
        assert one["effective_prompts"] <= other["effective_prompts"]


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_what_weights_add_up_to_says_nothing(
    pair: tuple[np.ndarray, Outcomes, np.ndarray, Outcomes], scale: float
) -> None:
    x, weighed, _, _ = pair
    scaled = replace(weighed, weight=(scale * weighed.weight).astype(np.float32))
    ours, theirs = summary(predicted(x), weighed), summary(predicted(x), scaled)
    for name in ("auc", "auc_within_source", "calibration_error"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4) and ours[name] > 0
    drawn = [
        auc_resampled(predicted(x), table.score, None, Resamples(ROWS, 20), table.weight) for table in (weighed, scaled)
    ]
    np.testing.assert_allclose(drawn[0], drawn[1], rtol=1e-6)


def test_a_log_in_which_few_prompts_weigh_all_promises_nothing() -> None:
    _, truth, complete = specialists(300, seed=5)
    log = logged_by_chance(complete, truth, 5)
    heavy = replace(log, weight=np.where(np.arange(300)[:, None] < 20, 1e6 * log.weight, log.weight))
    assert not ground_of(truth, money(log), log).why_not
    assert "and 30 are needed (more traffic" in ground_of(truth, money(heavy), heavy).why_not
