"""What a head's predictions are worth beside the outcomes, and what its dial can be solved on.

Enters: predictions `[n, M]`, dollars and outcomes of the same prompts. Leaves: held-out figures, a `Judged`, and the
`Ground` of a dial. Knows no head and no files.

A choice is judged on prompts that every model answered. Where these are few, a log that chose at random, with known
propensities, stands in: each cell is the prediction for it, plus, where it was chosen, what came out less that over the
propensity (doubly robust: Dudik, Langford and Li, arXiv 1103.4601). The mean over such cells is that of the truth
where the policy could have drawn any model; one that it ruled out (a constraint, a route that was down) leans on its
prediction there, as the ledger does not say which those were. The spread is that of the estimate, so that a bootstrap
over prompts has its noise in it. A prompt that was asked more than once is no part of such a log (see `merge`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebeat.conductor.learning.costs import Costs
from onebeat.conductor.learning.curves import Doubles, Judged
from onebeat.conductor.learning.dial import LEAST_PROMPTS, solve, unsolved
from onebeat.conductor.learning.metrics import auc_overall, auc_per_model, auc_within, calibration_error
from onebeat.conductor.learning.off_policy import (
    LARGEST_WEIGHT,
    LEAST_EFFECTIVE,
    effective_prompts,
    propensities_possible,
)
from onebeat.conductor.learning.outcomes import Outcomes
from onebeat.conductor.learning.weights import known_weight, weighted_means
from onebeat.engine.errors import InputError


@dataclass(frozen=True, slots=True)
class Ground:
    """What the dial stands on."""

    judged: Judged
    how: str
    """What it is made of."""
    why_not: str = ""
    """Why nothing may be promised from it."""

    def dial(self, reference_cost_usd: float, *, seed: int = 0) -> dict[str, object]:
        """`fitted.dial` of router.json: solved, or without points where it would promise too much."""
        solved = unsolved(self.judged) if self.why_not else solve(self.judged, reference_cost_usd, seed=seed)
        return solved | {"how": self.how}


def judged_of(quality: NDArray[Any], money: Costs, outcomes: Outcomes) -> Judged:
    """Predictions and outcomes of the prompts that every model answered. Raises `InputError` where there are none."""
    complete = np.flatnonzero(np.isfinite(outcomes.score).all(1))
    if not len(complete):
        raise InputError("no prompt has a score for every model, so a choice cannot be judged; name fewer --models.")
    return Judged(
        outcomes.models,
        quality[complete].astype(np.float64),
        money.predicted[complete],
        outcomes.score[complete].astype(np.float64),
        money.actual[complete],
        tuple(outcomes.groups[row] for row in complete),
        outcomes.weight[complete].astype(np.float64),
    )


def ground_of(quality: NDArray[Any], money: Costs, outcomes: Outcomes) -> Ground:
    """The best that these prompts offer: complete ones, else a log with propensities, else the predictions alone."""
    complete = int(np.isfinite(outcomes.score).all(1).sum())
    if complete >= LEAST_PROMPTS:
        return Ground(judged_of(quality, money, outcomes), f"{complete} prompts that every model answered")
    found = f"{complete} prompts to fit on have a score for every model, and {LEAST_PROMPTS} are needed"
    if complete == len(outcomes.prompts):
        return Ground(judged_of(quality, money, outcomes), "those prompts", found)
    logged = _logged(quality.astype(np.float64), money, outcomes)
    if isinstance(logged, Judged):
        left = len(outcomes.prompts) - len(logged.score)
        how = f"doubly robust estimates of {len(logged.score)} prompts, without {left} that were not drawn by chance"
        return Ground(logged, how)
    there = np.flatnonzero(np.isfinite(outcomes.score).any(1))
    supposed, paid = quality[there].astype(np.float64), money.predicted[there]
    groups = tuple(outcomes.groups[row] for row in there)
    forecast = Judged(outcomes.models, supposed, paid, supposed, paid, groups, _spread(outcomes)[there])
    return Ground(forecast, "what is predicted of the prompts, out of fold", f"{found}; {logged}")


def _logged(quality: Doubles, money: Costs, outcomes: Outcomes) -> Judged | str:
    """Doubly robust cells of the prompts whose one answer was drawn by chance, or why there is nothing to make of them.

    Where the policy was certain there is nothing to say of other models: those prompts are left out.
    """
    known = np.isfinite(outcomes.score)
    drawn = known & (outcomes.propensity > 0) & (outcomes.propensity < 1)
    rows = np.flatnonzero((drawn.any(1) & (known.sum(1) == 1)) | known.all(1))
    if len(rows) < LEAST_PROMPTS:
        return f"{len(rows)} have that, or one score with the propensity by which it was drawn"
    table, known = outcomes.select(rows), known[rows]
    propensity = np.where(known.all(1, keepdims=True), 1.0, table.propensity)
    inverse = np.where(known, np.minimum(1.0 / np.where(known, propensity, 1.0), LARGEST_WEIGHT), 0.0)
    effective = effective_prompts(inverse * known_weight(table))
    least = int(effective.argmin())
    if effective[least] < LEAST_EFFECTIVE:
        return (
            f"what the log drew by chance speaks for {effective[least]:.0f} prompts of {outcomes.models[least]}, and "
            f"{LEAST_EFFECTIVE:.0f} are needed (more traffic, or more router.exploration_share)"
        )
    single = np.flatnonzero(~known.all(1))
    choice = known[single].argmax(1)
    if not propensities_possible(choice, table.propensity[single, choice].astype(np.float64), len(outcomes.models)):
        return "the log's choices do not come as often as its propensities say"
    score, paid = np.nan_to_num(table.score), money.predicted[rows]
    return Judged(
        outcomes.models,
        quality[rows],
        paid,
        quality[rows] + inverse * (score - quality[rows]),
        paid + inverse * (money.actual[rows] - paid),
        table.groups,
        _spread(table),
    )


def summary(quality: NDArray[Any], outcomes: Outcomes) -> dict[str, Any]:
    """The held-out figures that router.json carries, over every score there is; empty where there is none."""
    known = np.isfinite(outcomes.score)
    if not known.any():
        return {}
    score, weight = outcomes.score, outcomes.weight
    per_model = dict(zip(outcomes.models, auc_per_model(quality, score, weight), strict=True))
    prompts = int(known.any(1).sum())
    return {
        "prompts": prompts,
        "prompts_without_every_score": prompts - int(known.all(1).sum()),
        "auc": rounded(auc_overall(quality, score, weight)),
        "auc_within_source": rounded(auc_within(quality, score, outcomes.groups, weight)),
        "auc_per_model": {name: rounded(value) for name, value in per_model.items()},
        "calibration_error": rounded(calibration_error(quality, score, weight=weight)),
    }


def means_over_all(table: NDArray[Any], predicted: NDArray[Any], outcomes: Outcomes) -> Doubles:
    """[M] the mean of each column of `table` [n, M] over the prompts that any model answered; what a model's own
    answers do not tell is as predicted, so that a model is not flattered by having been asked what is easy."""
    filled = np.where(np.isfinite(table) & np.isfinite(outcomes.score), table, predicted)
    return weighted_means(filled, _spread(outcomes))


def _spread(outcomes: Outcomes) -> Doubles:
    """[n, M] each score's weight, and where there is none the mean weight of the prompt's others."""
    weight = known_weight(outcomes)
    count = np.maximum((weight > 0).sum(1, keepdims=True), 1)
    return np.where(weight > 0, weight, weight.sum(1, keepdims=True) / count)


def rounded(value: float | None) -> float | None:
    """Five digits, as router.json keeps figures."""
    return None if value is None else float(f"{value:.5g}")
