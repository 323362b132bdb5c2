"""Outcomes that count: a weight of 0 takes an outcome out of everything, not only of the fit.

Enters: an `Outcomes` table. Leaves: the same, its scores of weight 0 unknown. Knows no files and no heads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebeat.conductor.learning.outcomes import Outcomes

Doubles = NDArray[np.float64]


def counted(outcomes: Outcomes) -> Outcomes:
    """The same prompts, where a score of weight 0 is no score: neither fitted, calibrated, judged nor averaged."""
    return replace(outcomes, score=np.where(outcomes.weight > 0, outcomes.score, np.float32(np.nan)))


def known_weight(outcomes: Outcomes) -> Doubles:
    """[n, M] how much each score counts; 0 where there is none."""
    return np.where(np.isfinite(outcomes.score), outcomes.weight, 0.0).astype(np.float64)


def mean_scores(outcomes: Outcomes) -> Doubles:
    """[M] each model's mean score by weight; NaN for a model without any."""
    return weighted_means(outcomes.score, known_weight(outcomes))


def weighted_means(table: NDArray[Any], weight: Doubles) -> Doubles:
    """[M] the mean of each column by weight, both [n, M]; NaN where no weight is above 0."""
    total, summed = (weight * np.nan_to_num(table)).sum(0), weight.sum(0)
    return np.asarray(np.where(summed > 0, total / np.where(summed > 0, summed, 1.0), np.nan))
