"""Weights count everywhere alike: an outcome of weight 2 is the outcome twice, where the two are not merged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onebeat.conductor.learning import baselines, dial
from onebeat.conductor.learning.calibrate import choose as calibration
from onebeat.conductor.learning.costs import Costs
from onebeat.conductor.learning.curves import single_means, trace
from onebeat.conductor.learning.judging import ground_of, means_over_all, summary
from onebeat.conductor.learning.kernel import impute
from onebeat.conductor.learning.outcomes import Outcomes
from onebeat.conductor.learning.solve import Recipe, length_tensors, quality_tensors
from onebeat.conductor.learning.sources import read_outcomes
from onebeat.conductor.learning.weights import mean_scores
from tests.conductor.learning.house import write
from tests.conductor.learning.made_up import PRICE_USD, world

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
