"""Off-policy estimates: right on average where the truth is known, and silent where the log cannot say."""

from __future__ import annotations

import numpy as np
import pytest

from onebeat.conductor.learning.off_policy import Log, Rivals, compare, difference
from onebeat.engine.errors import InputError


def logged(seed: int, explore: float = 0.2, rows: int = 2000):
    random = np.random.default_rng(seed)
    truth = random.uniform(size=(rows, 3)) * np.array([0.5, 0.8, 1.0])
    favourite = np.zeros(rows, np.int64)
    explored = random.uniform(size=rows) < explore
    choice = np.where(explored, random.integers(0, 3, rows), favourite)
    propensity = np.where(choice == favourite, 1 - explore + explore / 3, explore / 3)
    reward = (random.uniform(size=rows) < truth[np.arange(rows), choice]).astype(float)
    candidate = truth.argmax(1)
    return Log(choice, propensity, reward), candidate, truth


def test_estimates_find_the_candidates_worth() -> None:
    errors, covered = [], 0
    for seed in range(20):
        log, candidate, truth = logged(seed)
        worth = truth[np.arange(len(candidate)), candidate].mean()
        blurred = truth + 0.3 * np.random.default_rng(seed).normal(size=truth.shape)
        found = compare(log, candidate, blurred)
        errors.append([found.inverse_propensity.value - worth, found.doubly_robust.value - worth])
        covered += found.doubly_robust.low <= worth <= found.doubly_robust.high
        assert found.gain.value == pytest.approx(found.doubly_robust.value - found.logged.value)
        assert found.self_normalised.value == pytest.approx(worth, abs=0.2)
        assert 100 < found.effective_prompts < 1000
    ips, robust = np.array(errors).T
    assert abs(robust.mean()) < 0.02
    assert abs(ips.mean()) < 0.04
    assert robust.std() < ips.std()
    assert covered >= 17


def test_a_wrong_model_is_mended_by_the_propensities() -> None:
    gaps = []
    for seed in range(20):
        log, candidate, truth = logged(seed)
        worth = truth[np.arange(len(candidate)), candidate].mean()
        gaps.append(compare(log, candidate, np.full(truth.shape, 0.9)).doubly_robust.value - worth)
    assert abs(np.mean(gaps)) < 0.04


def test_without_exploration_nothing_can_be_said() -> None:
    log, candidate, truth = logged(0, explore=0.0)
    with pytest.raises(InputError, match="exploration_share"):
        compare(log, candidate, truth)


def test_propensities_out_of_range() -> None:
    log, candidate, truth = logged(0)
    with pytest.raises(InputError, match="propensity"):
        compare(Log(log.choice, np.zeros(len(candidate)), log.reward), candidate, truth)


def rivals(log: Log, first: np.ndarray, second: np.ndarray, modelled: np.ndarray) -> list[Rivals]:
    return [Rivals(first, second, log.reward, modelled, np.ones(len(first)))]


def test_a_policy_against_itself_gains_exactly_nothing() -> None:
    log, candidate, truth = logged(0)
    noise = np.random.default_rng(1).normal(size=truth.shape)
    found = difference(log.choice, log.propensity, rivals(log, candidate, candidate, noise))
    assert (found.gain.value, found.gain.low, found.gain.high, found.differing) == (0.0, 0.0, 0.0, 0)


def test_the_difference_of_two_policies_is_found_whatever_the_model_says() -> None:
    gaps, covered = [], 0
    for seed in range(20):
        log, candidate, truth = logged(seed)
        second = np.full(len(candidate), 2)
        rows = np.arange(len(candidate))
        worth = (truth[rows, second] - truth[rows, candidate]).mean()
        found = difference(log.choice, log.propensity, rivals(log, candidate, second, np.full(truth.shape, 0.9)))
        back = difference(log.choice, log.propensity, rivals(log, second, candidate, np.full(truth.shape, 0.9)))
        assert back.gain.value == pytest.approx(-found.gain.value)
        gaps.append(found.gain.value - worth)
        covered += found.gain.low <= worth <= found.gain.high
    assert abs(np.mean(gaps)) < 0.04
    assert covered >= 17


def test_where_the_log_says_little_the_interval_is_as_wide_as_the_prompts_that_differ() -> None:
    log, candidate, truth = logged(0)
    second = candidate.copy()
    second[:40] = (candidate[:40] + 1) % 3
    found = difference(log.choice, log.propensity, rivals(log, candidate, second, truth))
    assert found.effective_prompts < 30 and found.differing == 40
    assert found.gain.high - found.gain.low >= 2 * 40 / len(candidate) - 1e-12


def test_a_log_without_exploration_is_blind() -> None:
    log, candidate, truth = logged(0, explore=0.0)
    with pytest.raises(InputError, match="exploration_share"):
        difference(log.choice, log.propensity, rivals(log, log.choice, candidate, truth))
