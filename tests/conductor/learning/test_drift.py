"""Drift: silent on the kind it was fitted on, at the stated rate; loud, and specific, on another."""

from __future__ import annotations

import numpy as np
import pytest

from onebeat.conductor.learning.drift import FALSE_ALARM_RATE, DriftWatch, baseline, features_only
from onebeat.engine.errors import FormatError

FEATURES = 48


def traffic(count: int, seed: int, *, kind: float = 0.0, length: float = 1.0, quality: float = 0.0):
    """Prompts of a mixture of three topics; `kind` moves the mixture, as another source of prompts would."""
    random = np.random.default_rng(seed)
    topics = np.random.default_rng(7).normal(size=(4, FEATURES))
    weights = np.array([0.5, 0.3, 0.2, 0.0]) * (1 - kind) + np.array([0.0, 0.0, 0.0, 1.0]) * kind
    topic = random.choice(4, count, p=weights)
    states = topics[topic] + 0.7 * random.normal(size=(count, FEATURES))
    base = 0.6 + 0.1 * (topic == 0) + quality
    scores = np.clip(base[:, None] + 0.1 * random.normal(size=(count, 3)) + [0, 0.1, 0.2], 0, 1)
    tokens = length * np.exp(5 + 0.3 * random.normal(size=(count, 3)))
    return states.astype(np.float32), scores.astype(np.float32), tokens.astype(np.float32)


BASELINE = baseline(*traffic(1600, 0))


def watch(seed: int, **shift: float) -> dict[str, object]:
    held = DriftWatch(BASELINE)
    for states, scores, tokens in zip(*traffic(256, seed, **shift), strict=True):
        held.observe(states[None], scores[None], tokens[None])
    return held.report()


def test_no_drift_no_alarm_at_the_stated_rate() -> None:
    alarms = 0
    for seed in range(1, 201):
        held = DriftWatch(BASELINE)
        held.observe(*traffic(256, seed))
        alarms += bool(held.report()["drifted"])
    # 200 windows at a rate of 0.001: three alarms or more would happen once in 900 such tests.
    assert FALSE_ALARM_RATE == 0.001
    assert alarms <= 2


def test_an_output_that_never_varied_alarms_when_it_moves_and_not_by_its_rounding() -> None:
    """Every answer of one length: live scores differ from those in bulk by a float32's rounding."""
    states, scores, _ = traffic(1600, 0)
    held = DriftWatch(baseline(states, scores, np.full_like(scores, 60.0)))
    states, scores, _ = traffic(256, 3)
    held.observe(states, scores, np.full_like(scores, 60.00001))
    assert not held.report()["drifted"]
    held.observe(states, scores, np.full_like(scores, 63.0))
    report = held.report()
    assert report["drifted"] and report["changed"] == ["answer length"]


@pytest.mark.parametrize(
    ("shift", "named"),
    [
        ({"kind": 0.4}, "prompt features"),
        ({"length": 1.3}, "answer length"),
        ({"quality": -0.08}, "predicted quality"),
    ],
)
def test_a_shift_is_found_and_named(shift: dict[str, float], named: str) -> None:
    report = watch(5, **shift)
    assert report["drifted"]
    assert report["changed"][0] == named


def test_with_other_columns_only_the_prompts_are_watched() -> None:
    for shift, drifted in (({"length": 3.0, "quality": -0.3}, False), ({"kind": 0.4}, True)):
        held = DriftWatch(features_only(BASELINE))
        held.observe(*traffic(256, 5, **shift))
        report = held.report()
        assert report["drifted"] is drifted
        assert report["changed"] == (["prompt features"] if drifted else [])
        assert report["quality_shift"] is None and report["answer_length_ratio"] is None
    assert features_only({}) == {}


def test_the_size_of_a_shift_is_reported() -> None:
    report = watch(6, length=1.5)
    assert report["answer_length_ratio"] == pytest.approx(1.5, abs=0.06)
    assert report["quality_shift"] == pytest.approx(0.0, abs=0.02)


def test_a_part_of_the_traffic_is_enough() -> None:
    assert watch(8, kind=0.3)["drifted"]


def test_nothing_is_said_before_a_window_is_full_and_old_prompts_leave_it() -> None:
    held = DriftWatch(BASELINE)
    held.observe(*traffic(255, 1, kind=1.0))
    assert held.report() == {
        "drifted": False,
        "statistic": None,
        "threshold": None,
        "n": 255,
        "needed": 256,
        "changed": [],
    }
    held.observe(*traffic(1, 2))
    assert held.report()["drifted"]
    held.observe(*traffic(256, 3))
    assert not held.report()["drifted"]


def test_without_a_baseline_there_is_no_watch() -> None:
    assert baseline(*traffic(40, 0)) == {}
    held = DriftWatch({})
    held.observe(*traffic(3, 0))
    assert not held.watching
    assert not held.report()["drifted"]


def test_a_broken_baseline_is_named() -> None:
    with pytest.raises(FormatError, match="bandwidth"):
        DriftWatch({name: value for name, value in BASELINE.items() if name != "bandwidth"})
