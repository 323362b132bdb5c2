"""What another head would have earned on logged traffic, from decisions that were logged with their propensities.

Enters: logged choices with propensities and rewards, the candidate's choices, a reward model. Leaves: `Estimate`s.
Knows no files.

Inverse propensity (Horvitz and Thompson 1952) weighs each logged reward by whether the candidate would have chosen the
same, over the probability with which it was chosen. Self-normalised, it divides by the sum of weights. Doubly robust
(Dudik, Langford and Li, arXiv 1103.4601) starts from the reward model and corrects it by the weighted residual:
unbiased if either the propensities or the model are right. Weights are clipped; the share that was clipped is stated.
"""

from __future__ import annotations

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


def compare(log: Log, candidate: NDArray[np.int64], modelled: Doubles) -> Comparison:
    """Estimates for a candidate that would choose `candidate` [n]; `modelled` [n, M] are predicted rewards.

    Raises `InputError` where the log cannot say: propensities out of range, or too little in common.
    """
    if not ((log.propensity > 0) & (log.propensity <= 1)).all():
        raise InputError("a logged propensity is not above 0 and at most 1; log decisions with their probabilities.")
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
