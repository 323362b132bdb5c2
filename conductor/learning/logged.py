"""What a router would have earned on traffic that was answered by one model a prompt, from the log's own propensities.

Enters: outcomes of which some prompts have one score with its propensity, predictions, costs. Leaves: a dictionary for
the judgement: the value and the cost at the dial's tenths, beside what the log earned. Knows no files and no heads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onebeat.conductor.learning import off_policy
from onebeat.conductor.learning.costs import Costs
from onebeat.conductor.learning.curves import Doubles, choose
from onebeat.conductor.learning.outcomes import Outcomes

TENTHS = np.linspace(0.0, 1.0, 11)


def values(outcomes: Outcomes, quality: Doubles, money: Costs, reference_cost_usd: float) -> dict[str, Any] | None:
    """None where no prompt has one score with its propensity, or there is one model; prompts with several scores are
    not taken for a log."""
    if len(outcomes.models) < 2:
        return None
    known = np.isfinite(outcomes.score)
    with_propensity = known & np.isfinite(outcomes.propensity)
    rows = np.flatnonzero((known.sum(1) == 1) & (with_propensity.sum(1) == 1))
    if not len(rows):
        return None
    choice = with_propensity[rows].argmax(1)
    propensity = outcomes.propensity[rows, choice].astype(np.float64)
    score, counts = (table[rows, choice].astype(np.float64) for table in (outcomes.score, outcomes.weight))
    predicted = money.predicted[rows]
    paid = money.actual[rows, choice]
    place, fit = [], True
    for tradeoff in TENTHS:
        wanted = choose(quality[rows], predicted, float(tradeoff), reference_cost_usd)
        earned = off_policy.value(choice, propensity, score, quality[rows], wanted, (0.0, 1.0), counts)
        fit &= off_policy.propensities_fit(choice, propensity, wanted)
        spent = off_policy.value(choice, propensity, paid, predicted, wanted, counts=counts).doubly_robust
        place.append(
            {
                "tradeoff": round(float(tradeoff), 3),
                "inverse_propensity": _told(earned.inverse_propensity),
                "doubly_robust": _told(earned.doubly_robust),
                "usd_per_thousand": _told(spent, 1e3),
                "agreeing": earned.agreeing,
                "effective_prompts": earned.effective_prompts,
                "blind": earned.blind,
            }
        )
    return {
        "prompts": len(rows),
        "propensities_fit": fit,
        "as_logged": {
            "quality": float(np.average(score, weights=counts)),
            "usd_per_thousand": 1e3 * float(np.average(paid, weights=counts)),
        },
        "tradeoffs": place,
    }


def _told(estimate: off_policy.Estimate, scale: float = 1.0) -> dict[str, Any]:
    """The interval is None where it has no end: a cost of a single prompt."""
    ends = [scale * estimate.low, scale * estimate.high]
    return {"value": scale * estimate.value, "interval": ends if np.isfinite(ends).all() else None}
