"""Outcomes that count: a weight of 0 takes an outcome out of everything, not only of the fit.

Enters: an `Outcomes` table. Leaves: the same, its scores of weight 0 unknown. Knows no files and no heads.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onebeat.conductor.learning.outcomes import Outcomes

Doubles = NDArray[np.float64]


def counted(outcomes: Outcomes) -> Outcomes:
    """The same prompts, where a score of weight 0 is no score: neither fitted, calibrated, judged nor averaged."""
    return replace(outcomes, score=np.where(outcomes.weight > 0, outcomes.score, np.float32(np.nan)))


def mean_scores(outcomes: Outcomes) -> Doubles:
    """[M] each model's mean score by weight; NaN for a model without any."""
    there = np.isfinite(outcomes.score)
    weight = np.where(there, outcomes.weight, 0.0).astype(np.float64)
    total = (weight * np.where(there, outcomes.score, 0.0)).sum(0)
    summed = weight.sum(0)
    return np.asarray(np.where(summed > 0, total / np.where(summed > 0, summed, 1.0), np.nan))
