"""What another head would have earned on logged traffic, from decisions that were logged with their propensities.

Enters: logged choices with propensities and rewards, the candidate's choices, a reward model. Leaves: `Estimate`s.
Knows no files.

Inverse propensity (Horvitz and Thompson 1952) weighs each logged reward by whether the candidate would have chosen the
same, over the probability with which it was chosen. Self-normalised, it divides by the sum of weights. Doubly robust
(Dudik, Langford and Li, arXiv 1103.4601) starts from the reward model and corrects it by the weighted residual:
unbiased if either the propensities or the model are right. Weights are clipped; the share that was clipped is stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onebeat.engine.errors import InputError

Doubles = NDArray[np.float64]
LARGEST_WEIGHT = 50.0
LEAST_EFFECTIVE = 30.0
"""Below this effective number of agreeing prompts an estimate is noise, and is refused."""


@dataclass(frozen=True, slots=True)
class Log:
    """Logged decisions."""

    choice: NDArray[np.int64]
    """[n] the model that answered."""
    propensity: Doubles
    """[n] with what probability it was chosen; above 0."""
    reward: Doubles
    """[n] what came of it."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean reward, with a 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate against what was logged."""

    logged: Estimate
    inverse_propensity: Estimate
    self_normalised: Estimate
    doubly_robust: Estimate
    gain: Estimate
    """Doubly robust, less the logged reward, paired."""
    effective_prompts: float
    clipped_share: float


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


def difference(choice: NDArray[np.int64], propensity: Doubles, dial: Sequence[Rivals]) -> Difference:
    """The paired, doubly robust difference of two policies on one log, averaged over positions of the dial.

    Where the two differ and the log chose with certainty, the interval is as wide as such prompts allow, whatever the
    model says; so it is everywhere where the log speaks for fewer than `LEAST_EFFECTIVE` of the prompts that differ.
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
    effective = float(weights.sum() ** 2 / max(np.square(weights).sum(), 1e-12))
    unseen = differs if effective < LEAST_EFFECTIVE else blind
    gain, widest = _mean(gains), float(np.where(unseen, span, 0.0).mean())
    gain = Estimate(gain.value, gain.low - widest, gain.high + widest)
    return Difference(gain, int(differs.sum()), effective)


def _check(propensity: Doubles) -> None:
    if not ((propensity > 0) & (propensity <= 1)).all():
        raise InputError("a logged propensity is not above 0 and at most 1; log decisions with their probabilities.")


def compare(log: Log, candidate: NDArray[np.int64], modelled: Doubles) -> Comparison:
    """Estimates for a candidate that would choose `candidate` [n]; `modelled` [n, M] are predicted rewards.

    Raises `InputError` where the log cannot say: propensities out of range, or too little in common.
    """
    _check(log.propensity)
    agree = log.choice == candidate
    raw = np.where(agree, 1.0 / log.propensity, 0.0)
    weight = np.minimum(raw, LARGEST_WEIGHT)
    effective = float(weight.sum() ** 2 / max(np.square(weight).sum(), 1e-12))
    # A choice that was certain says nothing of the models that could not have been chosen.
    blind = ~agree & (log.propensity >= 1.0)
    if effective < LEAST_EFFECTIVE or blind.mean() > 0.5:
        raise InputError(
            f"the log supports the candidate on {effective:.0f} effective prompts and is blind on "
            f"{100 * blind.mean():.0f} % (chosen with certainty, where the candidate differs); set "
            "router.exploration_share above 0 and collect more."
        )
    rows = np.arange(len(candidate))
    direct = modelled[rows, candidate]
    robust = direct + weight * (log.reward - modelled[rows, log.choice])
    mean_weight = float(weight.mean())
    ratio = float((weight * log.reward).mean() / mean_weight)
    return Comparison(
        _mean(log.reward),
        _mean(weight * log.reward),
        _shifted(ratio, weight * (log.reward - ratio) / mean_weight),
        _mean(robust),
        _mean(robust - log.reward),
        effective,
        float((raw > LARGEST_WEIGHT).mean()),
    )


def _mean(values: Doubles) -> Estimate:
    return _shifted(float(values.mean()), values)


def _shifted(value: float, terms: Doubles) -> Estimate:
    half = 1.96 * float(terms.std(ddof=1)) / max(len(terms), 1) ** 0.5 if len(terms) > 1 else float("inf")
    return Estimate(value, value - half, value + half)
