"""What the search for taps and recipes tried, and which taps it takes.

Enters: out-of-fold predictions, judged. Leaves: a `Trial` each, and the choice between tap sets. Fits nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onebeat.conductor.learning.solve import Recipe

Floats = NDArray[np.float32]
TapName = tuple[int, str]
"""(layer, "mean" | "last")"""


@dataclass(frozen=True, slots=True)
class Trial:
    """One combination that was tried, judged on folds it was not fitted on."""

    taps: tuple[TapName, ...]
    recipe: Recipe
    log_loss: float
    between_models: float | None
    """Mean squared error of the predicted difference between a model and the mean of the others, by weight: what
    routing uses. None where hardly a prompt was answered by two models."""
    auc: float | None
    auc_within: float | None
    losses: Floats
    """[n] each prompt's part in the criterion."""

    @property
    def criterion(self) -> float:
        """What decides: the cross-entropy, plus the error between models, which alone moves a decision."""
        return self.log_loss + 2.0 * (self.between_models or 0.0)


def between_models(centred: NDArray[np.float64], weight: NDArray[np.float64]) -> float | None:
    """The mean square of [n, M] errors less their prompt's mean, by weight; None where all are NaN."""
    counts = np.where(np.isfinite(centred), weight, 0.0)
    return float(np.average(np.nan_to_num(np.square(centred)), weights=counts)) if counts.any() else None


def steadiest(trials: Sequence[Trial]) -> int:
    """Which trial's taps to take: of those that are not surely worse than the best and read no deeper, most taps."""
    best = min(trials, key=lambda trial: trial.criterion)
    deepest = max(layer for layer, _ in best.taps)

    def place(number: int) -> tuple[int, float]:
        trial = trials[number]
        behind = trial.losses.astype(np.float64) - best.losses
        error = float(behind.std()) / max(len(behind), 1) ** 0.5
        if float(behind.mean()) > error or max(layer for layer, _ in trial.taps) > deepest:
            return 0, -trial.criterion
        return len(trial.taps), -trial.criterion

    return max(range(len(trials)), key=place)


def losses_of(
    quality: NDArray[np.float64], score: NDArray[np.float64], weight: NDArray[np.float64], centred: NDArray[np.float64]
) -> Floats:
    """[n] the cross-entropy, by weight, and the error between models of each prompt: their mean is the criterion."""
    clipped = np.clip(quality, 1e-6, 1 - 1e-6)
    entropy = weight * np.where(weight > 0, score * np.log(clipped) + (1 - score) * np.log(1 - clipped), 0.0)
    counts = np.where(np.isfinite(centred), weight, 0.0)
    between = (np.nan_to_num(np.square(centred)) * counts).sum(1) / max(float(counts.sum()), 1e-12)
    return np.asarray(len(score) * (2.0 * between - entropy.sum(1) / weight.sum()), np.float32)
