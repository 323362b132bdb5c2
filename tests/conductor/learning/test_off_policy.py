"""Off-policy estimates: right on average where the truth is known, and silent where the log cannot say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from onebeat.conductor.learning.costs import Costs
from onebeat.conductor.learning.logged import values
from onebeat.conductor.learning.off_policy import Rivals, difference, propensities_possible
from onebeat.conductor.learning.outcomes import Gatherer
from onebeat.engine.errors import InputError


@dataclass(frozen=True)
class Log:
    choice: np.ndarray
    propensity: np.ndarray
    reward: np.ndarray


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


def test_a_good_model_narrows_what_the_propensities_leave_open() -> None:
    widths, errors = [], []
    for seed in range(20):
        log, candidate, truth = logged(seed)
        zero, rows = np.zeros(len(candidate), np.int64), np.arange(len(candidate))
        worth = (truth[rows, candidate] - truth[rows, zero]).mean()
        blurred = truth + 0.3 * np.random.default_rng(seed).normal(size=truth.shape)
        for modelled in (blurred, np.zeros_like(truth)):
            found = difference(log.choice, log.propensity, rivals(log, zero, candidate, modelled)).gain
            widths.append(found.high - found.low)
            errors.append(found.value - worth)
    assert np.mean(widths[::2]) < 0.95 * np.mean(widths[1::2])
    assert abs(np.mean(errors[::2])) < 0.03 and abs(np.mean(errors[1::2])) < 0.05


def test_propensities_out_of_range() -> None:
    log, candidate, truth = logged(0)
    with pytest.raises(InputError, match="propensity"):
        difference(log.choice, np.zeros(len(candidate)), rivals(log, candidate, candidate, truth))


def test_honest_propensities_are_possible_in_logs_of_any_size() -> None:
    for seed in range(60):
        for rows in (1, 2, 10, 40, 2000):
            for explore in (0.02, 0.2, 0.9):
                log, _, _ = logged(seed, explore, rows)
                assert propensities_possible(log.choice, log.propensity, 3), (seed, rows, explore)


@pytest.mark.parametrize("factor", [0.5, 0.1, 1e-9])
def test_propensities_that_are_too_small_are_not(factor: float) -> None:
    log, _, _ = logged(0, 0.9, 300)
    assert not propensities_possible(log.choice, factor * log.propensity, 3)


def test_propensities_of_two_names_of_one_model_are_not() -> None:
    """A fleet in which two models are scored as one column: each propensity is half of the column's."""
    random = np.random.default_rng(0)
    names = random.integers(0, 4, 300)
    assert propensities_possible(names, np.full(300, 0.25), 4)
    assert not propensities_possible(np.maximum(names - 1, 0), np.full(300, 0.25), 3)


def test_prompts_that_were_asked_twice_do_not_bend_what_a_log_says() -> None:
    """Kept with either propensity, the seldom drawn model would be worth 0.27 by inverse propensity instead of 0.9."""
    random = np.random.default_rng(0)
    records = []
    for number in range(3000):
        for _ in range(1 + number % 2):
            second = random.uniform() < 0.2
            score = float(random.uniform() < (0.9 if second else 0.5))
            row = {"prompt": f"p{number}", "model": "b" if second else "a", "score": score}
            records.append(row | {"propensity": 0.2 if second else 0.8, "output_tokens": int(random.integers(9, 9999))})
    table = Gatherer().add_all(("here", record) for record in records).table()
    again = "prompts asked again of the same model (their propensities are left out)"
    assert 900 < table.report.problems[again] < 1200
    spent = np.zeros(table.score.shape)
    held = values(table, np.tile([0.5, 0.9], (len(table.prompts), 1)), Costs(spent, spent), 1.0)
    assert held is not None and held["prompts"] == 1500 and held["propensities_fit"]
    low, high = held["tradeoffs"][-1]["inverse_propensity"]["interval"]
    assert low < 0.9 < high and high - low < 0.3
    twice = Gatherer().add_all(("here", record) for record in [*records, *records]).table()
    np.testing.assert_array_equal(twice.propensity, table.propensity)
