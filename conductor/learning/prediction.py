"""How well qualities are predicted, on every cell whose score is known, whether or not its prompt was judged whole.

Enters: predicted and actual scores, `[n, M]`, NaN where unknown. Leaves: a dictionary for the judgement. Knows no costs
and no dial.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebeat.conductor.learning import metrics
from onebeat.conductor.learning.resample import Resamples, auc_resampled, calibration_resampled, interval, spread_around


def figures(
    models: Sequence[str],
    quality: NDArray[Any],
    score: NDArray[Any],
    groups: Sequence[str],
    resamples: Resamples,
    weight: NDArray[Any] | None = None,
) -> dict[str, Any]:
    """AUC, calibration and means, with intervals over resampled prompts. There is at least one known score."""
    weight = np.ones(score.shape) if weight is None else weight
    known = np.isfinite(score) & (weight > 0)
    per_model = metrics.auc_per_model(quality, score, weight)
    off = metrics.calibration_error(quality, score, weight=weight)
    return {
        "prompts": int(known.any(1).sum()),
        "cells": int(known.sum()),
        "auc": metrics.auc_overall(quality, score, weight),
        "auc_interval": interval(auc_resampled(quality, score, None, resamples, weight)),
        "auc_within_source": metrics.auc_within(quality, score, groups, weight),
        "auc_within_source_interval": interval(auc_resampled(quality, score, groups, resamples, weight)),
        "auc_pooled": metrics.auc(quality, score, weight),
        "auc_per_model": dict(zip(models, per_model, strict=True)),
        "calibration_error": off,
        "calibration_error_interval": spread_around(
            off, calibration_resampled(quality, score, resamples, weight=weight)
        ),
        "per_model": [
            {
                "name": name,
                "cells": int(known[:, column].sum()),
                "predicted": _mean(quality[known[:, column], column], weight[known[:, column], column]),
                "actual": _mean(score[known[:, column], column], weight[known[:, column], column]),
                "auc": per_model[column],
            }
            for column, name in enumerate(models)
        ],
    }


def _mean(values: NDArray[Any], weight: NDArray[Any]) -> float | None:
    return float(np.average(values.astype(np.float64), weights=weight)) if len(values) else None
