"""What another policy would have earned on logged traffic, from decisions logged with their propensities.

Enters: logged choices with propensities and rewards, what one policy or two would choose, a reward model. Leaves: the
value of one, or the difference of two. Knows no files.

Inverse propensity (Horvitz and Thompson 1952) weighs each logged reward by whether a policy would have chosen the same,
over the probability with which it was chosen. Doubly robust (Dudik, Langford and Li, arXiv 1103.4601) starts from the
reward model and corrects it by the weighted residual: unbiased if either the propensities or the model are right.
Weights are clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onebeat.engine.errors import InputError

Doubles = NDArray[np.float64]
LARGEST_WEIGHT = 50.0
DOUBTFUL = 4.0
"""Standard errors from which propensities are said not to be those of the choices: one honest log in 10,000."""
LEAST_EFFECTIVE = 30.0
"""Below this effective number of prompts that a log speaks for, what it says of them is noise."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean reward, with a 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Rivals:
    """Two policies at one position of the dial."""

    first: NDArray[np.int64]
    """[n] what the one would choose."""
    second: NDArray[np.int64]
    """[n] what the other would."""
    reward: Doubles
    """[n] what came of the logged choice, in this position's utility."""
    modelled: Doubles
    """[n, M] predicted rewards: the same for both, so that neither is flattered by its own forecast."""
    span: Doubles
    """[n] the most by which the two choices' rewards can differ."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What the second policy earns more than the first."""

    gain: Estimate
    differing: int
    """Prompts on which the two choose differently somewhere on the dial: all others add exactly 0."""
    effective_prompts: float
    """Of those, how many the log can speak for."""


def difference(
    choice: NDArray[np.int64], propensity: Doubles, dial: Sequence[Rivals], weight: Doubles | None = None
) -> Difference:
    """The paired, doubly robust difference of two policies on one log, averaged over positions of the dial.

    `weight` [n]: how much each prompt counts. Where the two differ and the log chose with certainty, the interval is as
    wide as such prompts allow, whatever the model says; so it is everywhere where the log speaks for fewer than
    `LEAST_EFFECTIVE` of the prompts that differ.
    Raises `InputError` for a log without propensities in range, or one that is blind on more than half of its prompts.
    """
    _check(propensity)
    rows = np.arange(len(choice))
    gains, span, weights = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(len(rows))
    differs = np.zeros(len(rows), bool)
    inverse = np.minimum(1.0 / propensity, LARGEST_WEIGHT)
    for rivals in dial:
        apart = rivals.first != rivals.second
        residual = rivals.reward - rivals.modelled[rows, choice]
        sign = (choice == rivals.second).astype(np.float64) - (choice == rivals.first)
        direct = rivals.modelled[rows, rivals.second] - rivals.modelled[rows, rivals.first]
        gains += np.where(apart, direct + sign * inverse * residual, 0.0) / len(dial)
        span += np.where(apart, rivals.span, 0.0) / len(dial)
        weights += np.where(apart, np.abs(sign) * inverse, 0.0) / len(dial)
        differs |= apart
    blind = differs & (propensity >= 1.0)
    if blind.mean() > 0.5:
        raise InputError(
            f"the log is blind on {100 * blind.mean():.0f} % of {len(rows)} prompts (it chose with certainty, where "
            "the two heads choose differently); set router.exploration_share above 0 and collect more."
        )
    effective = float(effective_prompts(weights))
    unseen = differs if effective < LEAST_EFFECTIVE else blind
    gain, widest = mean_of(gains, weight), mean_of(np.where(unseen, span, 0.0), weight).value
    gain = Estimate(gain.value, gain.low - widest, gain.high + widest)
    return Difference(gain, int(differs.sum()), effective)


def effective_prompts(weights: Doubles) -> Doubles:
    """[n, ...] to [...]: how many prompts of equal weight these are worth (Kish 1965); of none, 0."""
    square = np.square(weights).sum(0)
    return np.asarray(np.square(weights.sum(0)) / np.where(square > 0, square, 1.0))


def mean_of(values: Doubles, weight: Doubles | None = None) -> Estimate:
    """The mean of [n] by weight, with the interval that their spread gives; without end for a single one."""
    counts = np.ones(len(values)) if weight is None else weight
    value = float(np.average(values, weights=counts))
    if len(values) < 2:
        return Estimate(value, float("-inf"), float("inf"))
    error = float(np.square(counts * (values - value)).sum() * len(values) / (len(values) - 1)) ** 0.5
    half = 1.96 * error / float(counts.sum())
    return Estimate(value, value - half, value + half)


@dataclass(frozen=True, slots=True)
class Value:
    """What a policy would have earned a prompt."""

    inverse_propensity: Estimate
    doubly_robust: Estimate
    agreeing: int
    """Prompts on which the log chose as the policy would."""
    effective_prompts: float
    """How many prompts those are worth, by their weights."""
    blind: float
    """The share of prompts of which the log can say nothing: it chose otherwise, and with certainty."""


def value(
    choice: NDArray[np.int64],
    propensity: Doubles,
    reward: Doubles,
    modelled: Doubles,
    wanted: NDArray[np.int64],
    span: tuple[float, float] | None = None,
    counts: Doubles | None = None,
) -> Value:
    """The mean reward of a policy that would have chosen `wanted` [n], from one log, by both estimators.

    `modelled` is [n, M] predicted rewards, `counts` [n] how much each prompt counts. Within `span`, the least and the
    most that a reward can be, an interval is widened by what the blind prompts leave open; by all that the log did not
    choose, where it speaks for fewer than `LEAST_EFFECTIVE` prompts. Raises `InputError` for a log without propensities
    in range.
    """
    _check(propensity)
    rows = np.arange(len(choice))
    agrees = choice == wanted
    weight = np.where(agrees, np.minimum(1.0 / propensity, LARGEST_WEIGHT), 0.0)
    forecast = modelled[rows, wanted]
    counts = np.ones(len(rows)) if counts is None else counts
    effective = float(effective_prompts(counts * weight))
    blind = ~agrees & (propensity >= 1.0)
    inverse = mean_of(weight * reward, counts)
    robust = mean_of(forecast + weight * (reward - modelled[rows, choice]), counts)
    if span is not None:
        unseen = ~agrees if effective < LEAST_EFFECTIVE else blind
        # Where nothing was seen, the one estimator has counted 0 and the other the forecast.
        inverse = _widened(inverse, np.where(unseen, 0.0, np.nan), span, counts)
        robust = _widened(robust, np.where(unseen, forecast, np.nan), span, counts)
    return Value(inverse, robust, int(agrees.sum()), effective, float(np.average(blind, weights=counts)))


def propensities_fit(choice: NDArray[np.int64], propensity: Doubles, wanted: NDArray[np.int64]) -> bool:
    """Whether the log's choices come as often as its propensities say, within `DOUBTFUL` standard errors.

    Weights are 1 on average, but for the blind prompts, where they are 0 and could be nothing else.
    """
    agrees = choice == wanted
    weight = np.where(agrees, 1.0 / propensity, (propensity >= 1.0).astype(np.float64))
    spread = float(weight.std()) / len(weight) ** 0.5
    return bool(abs(float(weight.mean()) - 1.0) <= DOUBTFUL * max(spread, 1.0 / len(weight)))


def propensities_possible(choice: NDArray[np.int64], propensity: Doubles, models: int) -> bool:
    """Whether choices [n], of propensities below 1, can have been drawn with these, within `DOUBTFUL` standard errors.

    The prompts that a model got, each over its propensity, are no more than all prompts on average: fewer where it
    could not be drawn everywhere. More means propensities too small, or of something else than the choices. How far
    chance leads is by the propensities themselves: of draws that are nearly certain the weights hardly vary.
    """
    drawn = choice[:, None] == np.arange(models)
    shares = np.where(drawn, 1.0 / propensity[:, None], 0.0).mean(0)
    errors = np.sqrt(np.where(drawn, ((1.0 - propensity) / propensity**2)[:, None], 0.0).mean(0) / len(choice))
    return bool((shares <= 1.0 + DOUBTFUL * errors).all())


def _widened(estimate: Estimate, counted: Doubles, span: tuple[float, float], counts: Doubles) -> Estimate:
    """With the prompts that `counted` names, NaN elsewhere, anywhere in the span instead; no wider than the span."""
    down, up = (float(np.average(np.nan_to_num(gap), weights=counts)) for gap in (counted - span[0], span[1] - counted))
    low, high = estimate.low - max(down, 0.0), estimate.high + max(up, 0.0)
    return Estimate(estimate.value, min(max(low, span[0]), estimate.value), max(min(high, span[1]), estimate.value))


def _check(propensity: Doubles) -> None:
    if not ((propensity > 0) & (propensity <= 1)).all():
        raise InputError("a logged propensity is not above 0 and at most 1; log decisions with their probabilities.")
