"""Calibration: it mends what is bent, leaves alone what is straight, and never turns a ranking round."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebeat.conductor.learning.calibrate import calibrate, choose, isotonic, log_loss, platt
from onebeat.conductor.learning.fit import apply_calibration


def outcomes(logits: np.ndarray, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).uniform(size=logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)


LOGITS = np.random.default_rng(3).normal(0, 2, 1500)


def test_platt_finds_the_bend() -> None:
    slope, offset = platt(2.0 * LOGITS + 1.0, outcomes(LOGITS))
    assert slope == pytest.approx(0.5, abs=0.08)
    assert offset == pytest.approx(-0.5, abs=0.2)
    assert choose(LOGITS, outcomes(LOGITS)) is None or choose(LOGITS, outcomes(LOGITS))["kind"] == "platt"


def test_a_step_is_isotonic() -> None:
    truth = np.where(LOGITS > 0, 2.0, -1.0)
    chosen = choose(LOGITS, outcomes(truth))
    assert chosen is not None
    assert chosen["kind"] == "isotonic"
    found = np.interp(LOGITS, chosen["logits"], chosen["quality"])
    assert np.abs(found - 1 / (1 + np.exp(-truth))).mean() < 0.05


@settings(max_examples=40)
@given(st.integers(2, 200), st.integers(0, 1000))
def test_isotonic_is_the_best_non_decreasing_fit_up_to_its_smoothing(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = np.round(random.normal(size=count), 1)
    score = outcomes(logits, seed)
    knots, values = isotonic(logits, score)
    assert (np.diff(knots) > 0).all()
    assert (np.diff(values) >= 0).all()
    assert (values >= 0).all()
    assert (values <= 1).all()


def test_logits_that_carry_nothing_give_the_base_rate() -> None:
    slope, offset = platt(-3 * LOGITS, outcomes(LOGITS))
    assert slope == 0.0
    assert 1 / (1 + np.exp(-offset)) == pytest.approx(outcomes(LOGITS).mean(), abs=0.01)


def test_a_weight_counts_as_so_many_outcomes_and_zero_as_none() -> None:
    logits, score = 2.0 * LOGITS[:300] + 1.0, outcomes(LOGITS[:300])
    weight = np.random.default_rng(4).integers(1, 4, 300)
    repeated = np.repeat(np.arange(300), weight)
    counts = weight.astype(float)
    assert platt(logits, score, counts) == pytest.approx(platt(logits[repeated], score[repeated]), abs=1e-6)
    assert log_loss(score / 2, score, counts) == pytest.approx(log_loss(score[repeated] / 2, score[repeated]))
    ours, theirs = isotonic(logits, score, counts), isotonic(logits[repeated], score[repeated])
    grid = np.linspace(-4, 6, 50)
    np.testing.assert_allclose(np.interp(grid, *ours), np.interp(grid, *theirs), atol=1e-6)
    void = np.r_[np.ones(300), np.zeros(300)][:, None]
    doubled, wrong = np.r_[logits, logits][:, None], np.r_[score, 1 - score][:, None]
    held = calibrate(doubled, wrong, ["one"], weight=void)
    assert held == calibrate(logits[:, None], score[:, None], ["one"]) and held is not None


def test_few_rows_or_one_class_are_left_alone() -> None:
    assert choose(LOGITS[:20], outcomes(LOGITS)[:20]) is None
    assert choose(LOGITS, np.ones_like(LOGITS)) is None


def test_a_kernels_probabilities_become_a_rising_map() -> None:
    raw = np.stack([np.linspace(-0.2, 1.2, 900), np.linspace(0.3, 0.9, 900)], axis=1).astype(np.float32)
    chance = np.clip(np.stack([0.8 * raw[:, 0], raw[:, 1]], axis=1), 0.02, 0.98)
    score = (np.random.default_rng(1).uniform(size=chance.shape) < chance).astype(float)
    held = calibrate(raw, score, ["bent", "straight"], probability=True)
    assert held is not None
    quality = apply_calibration(raw, held, ["bent", "straight"])
    assert log_loss(quality[:, 0].astype(float), score[:, 0]) < log_loss(np.clip(raw[:, 0], 0.01, 0.99), score[:, 0])
    assert np.abs(quality[:, 1] - chance[:, 1]).mean() < 0.04
    assert (np.diff(quality[:, 0]) >= 0).all()
    assert quality.min() > 0
    assert quality.max() < 1
