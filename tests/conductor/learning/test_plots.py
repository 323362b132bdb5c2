"""Plots whose points stand where they must, whatever the numbers are; and baselines that know nothing of a model."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from onebeat.conductor.learning import baselines, plots
from tests.conductor.learning.made_up import world

COST = plots.axis("cost", [1.0, 100.0], logarithmic=True)
QUALITY = plots.axis("quality", [0.0, 1.0])


def drawn(*lines: plots.Line) -> str:
    return plots.lines(lines, COST, QUALITY, title="a <title>", description="what & why")


def test_a_mix_is_linear_in_cost_on_a_logarithmic_axis() -> None:
    path = re.search(r'<polyline points="([^"]+)"', drawn(plots.Line("mix", (1.0, 100.0), (0.0, 1.0))))
    assert path is not None
    xs, ys = np.array([[float(one) for one in pair.split(",")] for pair in path[1].split()]).T
    across = (xs - plots.LEFT) / (plots.WIDTH - plots.LEFT - plots.RIGHT)
    cost = COST.low * (COST.high / COST.low) ** across
    up = (plots.HEIGHT - plots.BOTTOM - ys) / (plots.HEIGHT - plots.TOP - plots.BOTTOM)
    quality = QUALITY.low + up * (QUALITY.high - QUALITY.low)
    assert len(xs) > 40
    np.testing.assert_allclose(quality, (cost - 1) / 99, atol=0.01)


def test_a_curve_that_goes_nowhere_is_a_mark_and_names_are_escaped() -> None:
    page = drawn(plots.Line("<b>", (5.0, 5.0), (0.5, 0.5), (0.4, 0.4), (0.6, 0.6)), plots.Line("one", (2.0,), (0.1,)))
    assert "<polyline" not in page and page.count('width="12" height="12"') == 2
    assert "<b>" not in page and "&lt;b&gt;" in page and "<title>a &lt;title&gt;</title>" in page


@pytest.mark.parametrize(
    ("values", "logarithmic"), [([0.0, 0.0], True), ([3.0], True), ([0.7, 0.7], False), ([0.0, 1e-9, 1e9], True)]
)
def test_axes_of_odd_values_hold_them_and_have_ticks(values: list[float], logarithmic: bool) -> None:
    axis = plots.axis("odd", values, logarithmic=logarithmic)
    assert all(0.0 <= axis.at(value) <= 1.0 for value in values)
    assert axis.low < axis.high
    assert all(axis.low <= tick * (1 + 1e-9) and tick <= axis.high * (1 + 1e-9) for tick in axis.ticks())
    assert logarithmic or len(axis.ticks()) >= 3


def test_of_a_model_without_outcomes_the_baselines_know_nothing() -> None:
    states, _, outcomes = world(60)
    score = outcomes.score.copy()
    score[:, 1] = np.nan
    blind = replace(outcomes, score=score)
    means = baselines.per_source_means(blind, ["source 0", "never seen"])
    np.testing.assert_allclose(means[:, 1], baselines.UNKNOWN_QUALITY)
    np.testing.assert_allclose(means[1, [0, 2]], score[:, [0, 2]].mean(0), rtol=1e-6)
    assert (baselines.neighbours(states, blind, states)[:, 1] == baselines.UNKNOWN_QUALITY).all()
