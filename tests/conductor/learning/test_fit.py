"""Fitting: it finds what is there, is the same every time, and refuses what cannot be fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from onebeat.conductor.learning.curves import choose
from onebeat.conductor.learning.fit import RECIPES, fit, one_class, out_of_fold
from onebeat.conductor.learning.kernel import fit_kernel, impute
from onebeat.conductor.learning.metrics import auc_overall, calibration_error
from onebeat.conductor.learning.outcomes import Gatherer, Outcomes
from onebeat.conductor.learning.solve import Recipe, length_tensors, quality_tensors
from onebeat.conductor.learning.trials import Trial, steadiest
from onebeat.engine.errors import InputError
from tests.conductor.learning.made_up import MODELS, PRICE_USD, world

TAP = (1, "mean")
QUICK = {
    "linear": Recipe("linear", l2=0.03),
    "kernel": Recipe("kernel", width=3, dimensions=24),
    "low_rank": Recipe("low_rank", l2=0.1, width=3, epochs=40, members=2, learning_rate=0.03),
    "mlp": Recipe("mlp", l2=0.1, width=8, epochs=20, members=2, learning_rate=0.02),
}


@pytest.mark.parametrize("kind", list(QUICK))
def test_every_kind_ranks_nearly_as_well_as_the_truth(kind: str) -> None:
    x, _, outcomes = world(400)
    fresh, chance, later = world(1500, seed=9)
    head = fit({TAP: x}, outcomes, tap_sets=[[TAP]], recipes=[QUICK[kind]])
    quality, tokens = head.head().score_in_bulk(fresh)
    best = auc_overall(chance, later.score)
    found = auc_overall(quality, later.score)
    assert best is not None
    assert found is not None
    assert found > best - 0.1
    assert calibration_error(quality, later.score) < 0.07
    assert np.corrcoef(np.log(tokens[:, 2]), np.log(later.output_tokens[:, 2]))[0, 1] > 0.8
    assert tokens[:, 1].sum() == pytest.approx(later.output_tokens[:, 1].sum(), rel=0.1)


@pytest.mark.parametrize("kind", ["kernel", "linear", "mlp"])
def test_the_same_data_give_the_same_head(kind: str) -> None:
    x, _, outcomes = world(120)
    first, second = (fit({TAP: x}, outcomes, tap_sets=[[TAP]], recipes=[QUICK[kind]], seed=3) for _ in range(2))
    assert first.calibration == second.calibration
    for name, tensor in first.tensors.items():
        assert tensor.tobytes() == second.tensors[name].tobytes(), name


def test_the_search_prefers_the_informative_tap_and_says_what_it_tried() -> None:
    x, _, outcomes = world(300)
    noise = np.random.default_rng(5).normal(size=x.shape).astype(np.float32)
    said: list[str] = []
    features = {(2, "mean"): noise, (4, "last"): x}
    head = fit(
        features,
        outcomes,
        tap_sets=[[(2, "mean")], [(4, "last")]],
        recipes=[QUICK["kernel"], QUICK["linear"]],
        say=said.append,
    )
    assert head.taps == ((4, "last"),)
    assert len(said) == len(head.trials) == 3
    assert [trial.criterion for trial in head.trials] == sorted(trial.criterion for trial in head.trials)


def trial(taps: list[int], losses: list[float]) -> Trial:
    mean = float(np.mean(losses))
    named = tuple((layer, "mean") for layer in taps)
    return Trial(named, QUICK["kernel"], mean, 0.0, None, None, np.array(losses, np.float32))


def test_a_difference_by_chance_does_not_choose_fewer_taps() -> None:
    dice = np.random.default_rng(1)
    best = dice.normal(0.5, 0.2, 400)
    apart = dice.normal(0.0, 0.1, 400)
    alike, worse = best + apart - apart.mean() + 0.0005, best + apart - apart.mean() + 0.05
    one, three = trial([20], list(best)), trial([15, 17, 19], list(alike))
    assert one.criterion < three.criterion and steadiest([one, three]) == 1 and steadiest([three, one]) == 0
    assert steadiest([one, trial([15, 17, 19], list(worse))]) == 0, "surely worse"
    assert steadiest([one, trial([15, 17, 21], list(alike))]) == 0, "reads deeper"
    assert steadiest([one]) == 0


def test_the_losses_of_prompts_make_up_the_criterion() -> None:
    x, _, outcomes = world(200)
    holes = np.random.default_rng(2).random(outcomes.score.shape) < 0.2
    outcomes = replace(
        outcomes,
        score=np.where(holes, np.nan, outcomes.score).astype(np.float32),
        weight=np.where(holes, 0.0, np.random.default_rng(3).uniform(0.2, 3.0, holes.shape)).astype(np.float32),
    )
    for found in fit({TAP: x}, outcomes, tap_sets=[[TAP]], recipes=[QUICK["kernel"], QUICK["linear"]]).trials:
        assert float(found.losses.mean()) == pytest.approx(found.criterion, rel=1e-4)


def test_choices_do_not_collapse_onto_one_model() -> None:
    x, _, outcomes = world(400)
    fresh, _, later = world(2000, seed=9)
    head = fit({TAP: x}, outcomes, tap_sets=[[TAP]], recipes=[QUICK["kernel"]])
    quality, _ = head.head().score_in_bulk(fresh)
    cost = np.tile(PRICE_USD, (len(fresh), 1))
    gains = []
    # Below 0.8 a dollar weighs so much that even the truth gives the dear model few prompts.
    for tradeoff in (0.8, 0.85, 0.9):
        chosen = choose(quality.astype(np.float64), cost, tradeoff, float(PRICE_USD.max()))
        share = np.bincount(chosen, minlength=3) / len(chosen)
        assert share.max() < 0.9
        gains.append(later.score[np.arange(len(chosen)), chosen].mean() - (later.score.mean(0) * share).sum())
    assert np.mean(gains) > 0.02


def test_out_of_fold_predictions_have_not_seen_their_prompt() -> None:
    x, _, outcomes = world(80, features=40, noise=3.0)
    recipe = Recipe("linear", l2=1e-4)
    seen = quality_tensors(x, outcomes.score, outcomes.weight, recipe, 0)
    memorised = auc_overall(x @ seen["quality.weight"].T + seen["quality.bias"], outcomes.score)
    honest = auc_overall(out_of_fold(x, outcomes, recipe, 0, range(3)).logits, outcomes.score)
    assert memorised is not None
    assert honest is not None
    assert memorised > honest + 0.15


def test_leaving_one_out_in_closed_form_is_leaving_one_out() -> None:
    x, _, outcomes = world(40, features=6)
    together = fit_kernel(x, outcomes.score, outcomes.output_tokens, outcomes.groups, dimensions=6, rank=3)
    # Fitted on all with the ridges that were chosen, the honest error must exceed the error on what was seen.
    tensors = together.tensors
    states = x @ tensors["hidden.weight"].T
    distance = np.linalg.norm(states[:, None] - tensors["kernel.landmarks"][None], axis=2)
    fitted = np.exp(-distance / tensors["kernel.width"]) @ tensors["quality.weight"].T + tensors["quality.bias"]
    seen = np.square(fitted - outcomes.score).mean()
    left_out = np.square(together.left_out - outcomes.score).mean()
    assert seen < left_out <= np.square(outcomes.score - outcomes.score.mean(0)).mean() * 1.05


def test_more_prompts_than_landmarks_still_all_count(monkeypatch: pytest.MonkeyPatch) -> None:
    x, chance, outcomes = world(400)
    monkeypatch.setattr("onebeat.conductor.learning.kernel.MAX_LANDMARKS", 60)
    few = fit_kernel(x, outcomes.score, outcomes.output_tokens, outcomes.groups, dimensions=24)
    assert few.tensors["kernel.landmarks"].shape == (60, 24)
    only = fit_kernel(x[:60], outcomes.score[:60], outcomes.output_tokens[:60], outcomes.groups[:60], dimensions=24)
    assert auc_overall(few.left_out, outcomes.score) > auc_overall(only.left_out, outcomes.score[:60]) - 0.02
    assert np.corrcoef(few.left_out[:, 1], chance[:, 1])[0, 1] > 0.7


def test_more_prompts_than_a_kernel_takes_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    x, chance, outcomes = world(400)
    monkeypatch.setattr("onebeat.conductor.learning.fit.MAX_KERNEL_PROMPTS", 150)
    head = fit({TAP: x}, outcomes, tap_sets=[[TAP]], recipes=[QUICK["kernel"]])
    assert head.tensors["kernel.landmarks"].shape[0] == 150
    assert head.out_of_fold.shape == (400, 3)
    assert np.corrcoef(head.out_of_fold[:, 1], chance[:, 1])[0, 1] > 0.6


@pytest.mark.parametrize("kind", ["kernel", "linear"])
def test_weights_count(kind: str) -> None:
    """Two halves that contradict each other: the one that weighs more is believed."""
    x, _, outcomes = world(300)
    turned = np.where(np.arange(300)[:, None] < 150, outcomes.score, 1.0 - outcomes.score)
    leaning = []
    for heavy in (slice(0, 150), slice(150, 300)):
        weight = np.full_like(outcomes.weight, 0.05)
        weight[heavy] = 1.0
        table = replace(outcomes, score=turned.astype(np.float32), weight=weight)
        head = fit({TAP: x}, table, tap_sets=[[TAP]], recipes=[QUICK[kind]])
        fresh, _, later = world(800, seed=9)
        leaning.append(auc_overall(head.head().score_in_bulk(fresh)[0], later.score))
    assert leaning[0] > 0.65
    assert leaning[1] < 0.35


def test_missing_scores_take_the_prompts_residual() -> None:
    table = np.array([[1, 1, np.nan], [0, 0, np.nan], [1, 1, 1], [0, 0, 0], [1, 0, 1], [1, 1, 0]], np.float64)
    filled = impute(table, ["a"] * 6)
    assert np.isfinite(filled).all()
    assert filled[0, 2] > filled[1, 2] + 0.5
    np.testing.assert_array_equal(filled[2:], table[2:])


def test_other_models_outcomes_help_a_column_with_few() -> None:
    x, _, outcomes = world(400)
    fresh, _, later = world(1000, seed=9)
    few = np.zeros(400, bool)
    few[:40] = True
    score = np.where(few[:, None], outcomes.score[:, 1:2], np.nan)
    alone = fit_kernel(x[:40], score[:40], np.full((40, 1), np.nan), ["a"] * 40, dimensions=24)
    joint_scores = np.concatenate([score, outcomes.score[:, [0, 2]]], axis=1)
    joint = fit_kernel(x, joint_scores, np.full((400, 3), np.nan), ["a"] * 400, dimensions=24, keep=[0])
    assert joint.tensors["quality.weight"].shape == (1, 400)

    def rank(tensors: Mapping[str, np.ndarray]) -> float:
        states = fresh @ tensors["hidden.weight"].T
        distance = np.linalg.norm(states[:, None] - tensors["kernel.landmarks"][None], axis=2)
        kernel = np.exp(-distance / tensors["kernel.width"])
        value = auc_overall(kernel @ tensors["quality.weight"].T, later.score[:, 1:2])
        assert value is not None
        return value

    assert rank(joint.tensors) > rank(alone.tensors) + 0.02


def test_lengths_without_any_record_are_a_stated_default() -> None:
    x, _, outcomes = world(50)
    unknown = np.full_like(outcomes.output_tokens, np.nan)
    assert np.exp(length_tensors(x, unknown)["length.bias"]) == pytest.approx([256.0] * 3)
    kernel = fit_kernel(x, outcomes.score, unknown, outcomes.groups, dimensions=8)
    np.testing.assert_allclose(kernel.left_out_tokens, 256.0, rtol=1e-3)


def table(rows: list[tuple[str, str, float]]) -> Outcomes:
    return (
        Gatherer().add_all((str(i), {"prompt": p, "model": m, "score": s}) for i, (p, m, s) in enumerate(rows)).table()
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "m", 1.0), ("b", "n", 0.0), ("c", "m", 0.5)], "3 prompts are too few"),
        ([(f"p{i}", "m", i % 2) for i in range(30)], "m is the only model"),
        ([(f"p{i}", m, 1.0) for i in range(30) for m in "mn"], "all 60 scores are 1"),
    ],
)
def test_outcomes_that_cannot_be_learnt_from(rows: list[tuple[str, str, float]], message: str) -> None:
    outcomes = table(rows)
    with pytest.raises(InputError, match=message):
        fit({TAP: np.zeros((len(outcomes.prompts), 4), np.float32)}, outcomes, tap_sets=[[TAP]])


def test_a_model_that_is_always_right_is_a_warning_not_an_error() -> None:
    x, _, outcomes = world(60)
    rows = [(f"made-up prompt {i}", "sure", 1.0) for i in range(60)]
    for column, name in enumerate(MODELS):
        rows += [(f"made-up prompt {i}", name, float(outcomes.score[i, column])) for i in range(60)]
    joined = table(rows)
    assert one_class(joined) == ["sure (always 1 on 60 prompts)"]
    for kind in ("kernel", "linear"):
        head = fit({TAP: x}, joined, tap_sets=[[TAP]], recipes=[QUICK[kind]])
        quality, _ = head.head().score_in_bulk(x)
        assert quality[:, joined.models.index("sure")].min() > 0.8


def test_default_recipes_include_the_ranking_aware_one() -> None:
    assert {recipe.kind for recipe in RECIPES} == {"kernel", "linear"}
    assert any(recipe.pairwise > 0 for recipe in RECIPES)
    x, _, outcomes = world(200)
    plain = quality_tensors(x, outcomes.score, outcomes.weight, Recipe(l2=0.3), 0)["quality.weight"]
    paired = quality_tensors(x, outcomes.score, outcomes.weight, Recipe(l2=0.3, pairwise=2.0), 0)["quality.weight"]
    assert np.ptp(x @ paired.T, axis=1).mean() > np.ptp(x @ plain.T, axis=1).mean() * 1.02


def test_a_model_that_never_met_a_hard_source_is_expected_to_find_it_hard() -> None:
    random = np.random.default_rng(3)
    groups = ["easy"] * 200 + ["hard"] * 200
    score = np.where(random.random((400, 3)) < np.r_[np.full(200, 0.9), np.full(200, 0.3)][:, None], 1.0, 0.0)
    score[200:, 2] = np.nan
    filled = impute(score, groups)
    assert abs(filled[200:, 2].mean() - 0.3) < 0.08
    np.testing.assert_array_equal(filled[:, :2], score[:, :2])
