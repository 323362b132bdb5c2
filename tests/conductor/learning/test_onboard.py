"""Onboarding: fifty grades go a long way, the rest of the head keeps its bits, and doubt is stated."""

from __future__ import annotations

import numpy as np
import pytest

from onebeat.conductor.learning import onboard
from onebeat.conductor.learning.fit import fit
from onebeat.conductor.learning.metrics import auc_overall
from onebeat.conductor.learning.solve import Recipe
from onebeat.engine.errors import InputError
from onebeat.engine.head import Head
from tests.conductor.learning.made_up import world

TAP = (1, "mean")
LOGIT = np.random.default_rng(0).normal(0, 1.5, (2000, 4))
KNOWN = (1 / (1 + np.exp(-LOGIT))).astype(np.float32)


def newcomer(weights: list[float], offset: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    chance = 1 / (1 + np.exp(-(LOGIT @ np.array(weights) + offset)))
    return chance, (np.random.default_rng(seed).uniform(size=len(chance)) < chance).astype(np.float32)


def test_a_mixture_of_known_models_is_found() -> None:
    chance, score = newcomer([0.5, 0.5, 0.0, 0.0], 0.4)
    found = onboard.combine(KNOWN[:100], score[:100], pool_quality=KNOWN)
    predicted = onboard.predict(found, KNOWN)
    assert np.corrcoef(predicted, chance)[0, 1] > 0.85
    assert found.mean_interval[0] < chance.mean() < found.mean_interval[1]
    assert found.left_out_loss < found.prior_loss


def test_more_grades_leave_less_doubt() -> None:
    _, score = newcomer([0.5, 0.5, 0.0, 0.0], 0.4)
    few = onboard.combine(KNOWN[:25], score[:25], pool_quality=KNOWN)
    many = onboard.combine(KNOWN[:200], score[:200], pool_quality=KNOWN)
    assert np.diff(many.mean_interval)[0] < 0.7 * np.diff(few.mean_interval)[0]
    assert many.prompt_interval_width < few.prompt_interval_width


def test_a_successor_starts_from_its_predecessor() -> None:
    chance, score = newcomer([0.0, 0.0, 1.0, 0.0], 0.3)
    blank = onboard.combine(KNOWN[:20], score[:20], pool_quality=KNOWN)
    heir = onboard.combine(KNOWN[:20], score[:20], pool_quality=KNOWN, predecessor=2)
    gaps = [np.abs(onboard.predict(found, KNOWN) - chance).mean() for found in (blank, heir)]
    assert gaps[1] < 0.6 * gaps[0]


def test_chosen_prompts_tell_more_than_random_ones() -> None:
    chance, score = newcomer([1.0, -0.5, 0.0, 0.5], 0.0)
    random = np.random.default_rng(3)
    chosen = onboard.choose_prompts(KNOWN, 40)
    assert len(set(chosen.tolist())) == 40
    first = onboard.combine(KNOWN[chosen], score[chosen], pool_quality=KNOWN)
    gaps = []
    for _ in range(8):
        rows = random.choice(len(KNOWN), 40, replace=False)
        other = onboard.combine(KNOWN[rows], score[rows], pool_quality=KNOWN)
        gaps.append(np.abs(onboard.predict(other, KNOWN) - chance).mean())
    assert np.abs(onboard.predict(first, KNOWN) - chance).mean() < np.mean(gaps)


@pytest.mark.parametrize("kind", ["linear", "kernel", "mlp"])
def test_a_column_is_added_and_the_others_keep_their_bits(kind: str) -> None:
    x, _, outcomes = world(400)
    fresh, chance, later = world(1500, seed=9)
    recipes = {
        "linear": Recipe("linear", l2=0.03),
        "kernel": Recipe("kernel", width=3, dimensions=24),
        "mlp": Recipe("mlp", l2=0.1, width=8, epochs=20, members=1, learning_rate=0.02),
    }
    names = ("cheap", "dear")
    known = outcomes.with_models(names)
    head = fit({TAP: x}, known, tap_sets=[[TAP]], recipes=[recipes[kind]])
    held = head.head()
    quality, _ = held.score_in_bulk(x)
    rows = onboard.choose_prompts(quality, 60)
    found = onboard.combine(quality[rows], outcomes.score[rows, 1], pool_quality=quality)
    table = np.concatenate([held.uncalibrated(x)[0], onboard.predict(found, quality)[:, None]], axis=1)
    description = {
        "columns": [{"name": name} for name in names],
        "calibration": head.calibration,
        "head": {"kind": kind},
    }
    updated, tensors = onboard.add_column(description, head.tensors, table, found, {"name": "middle"}, 1.2, 0)
    wider = Head.from_tensors(
        tensors, kind=kind, columns=["cheap", "dear", "middle"], features=24, calibration=updated["calibration"]
    )
    before, tokens_before = held.score(fresh[:50])
    after, tokens_after = wider.score(fresh[:50])
    np.testing.assert_allclose(after[:, :2], before, atol=1e-6)
    for name in ("quality.weight", "quality.bias", "length.weight"):
        assert tensors[name][:2].tobytes() == np.ascontiguousarray(head.tensors[name]).tobytes()
    np.testing.assert_allclose(tokens_after[:, 2], 1.2 * tokens_before[:, 0], rtol=1e-4)
    reached = auc_overall(wider.score_in_bulk(fresh)[0][:, 2:], later.score[:, 1:2])
    best = auc_overall(chance[:, 1:2], later.score[:, 1:2])
    assert reached is not None
    assert best is not None
    assert reached > best - 0.12
    table = np.concatenate([wider.uncalibrated(x)[0], table[:, -1:]], axis=1)
    wide = onboard.widen(found, [0, 1], 3)
    again, more = onboard.add_column(updated, tensors, table, wide, {"name": "middle"}, 1.0, 0)
    assert [column["name"] for column in again["columns"]] == ["cheap", "dear", "middle"]
    assert more["quality.weight"].shape == tensors["quality.weight"].shape


def test_what_cannot_be_onboarded() -> None:
    with pytest.raises(InputError, match="5 graded prompts are too few"):
        onboard.combine(KNOWN[:5], np.ones(5, np.float32))
    with pytest.raises(InputError, match=r"0\.\.1|0 to 1"):
        onboard.combine(KNOWN[:30], np.full(30, np.nan, np.float32))
    with pytest.raises(InputError, match="20 to 200"):
        onboard.choose_prompts(KNOWN, 500)
    with pytest.raises(InputError, match="larger pool"):
        onboard.choose_prompts(KNOWN[:30], 40)


def test_a_model_that_is_always_right_is_onboarded_with_doubt() -> None:
    found = onboard.combine(KNOWN[:40], np.ones(40, np.float32), pool_quality=KNOWN)
    assert 0.8 < found.mean_quality < 1.0


@pytest.mark.parametrize("count", [20, 40, 100])
@pytest.mark.parametrize("right", [0.0, 1.0])
def test_grades_that_all_agree_leave_as_much_doubt_as_their_number_allows(count: int, right: float) -> None:
    """`count` of `count` right: by Clopper and Pearson, the mean may be as low as 0.025 ** (1 / count)."""
    found = onboard.combine(KNOWN[:count], np.full(count, right, np.float32), pool_quality=KNOWN)
    low, high = found.mean_interval
    far = low if right else 1 - high
    assert far < 0.025 ** (1 / count) + 0.02
    assert low < found.mean_quality < high
    assert found.worse_than_constant


def test_a_model_unlike_all_others_is_predicted_worse_than_by_a_constant() -> None:
    contrary = (np.random.default_rng(5).uniform(size=20) > KNOWN[:20].mean(1)).astype(np.float32)
    assert onboard.combine(KNOWN[:20], contrary, pool_quality=KNOWN).worse_than_constant
    _, alike = newcomer([0.5, 0.5, 0.0, 0.0], 0.4)
    assert not onboard.combine(KNOWN[:100], alike[:100], pool_quality=KNOWN).worse_than_constant
