"""What choosing pays: a router, the simpler ones and the choices that need none, on prompts that every model answered.

Enters: judged prompts, one record a router, and the best single model. Leaves: dictionaries for the judgement, with
intervals that are resampled together. Knows no files and no heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onebeat.conductor.learning import baselines, compare
from onebeat.conductor.learning.curves import Judged, trace
from onebeat.conductor.learning.resample import Resamples, Traced, alone, traced

ROUTER, ORACLE = "onebeat", "oracle"


def judge(
    contenders: Mapping[str, Judged], single: baselines.Single, reference_cost_usd: float, resamples: Resamples
) -> dict[str, Any]:
    """Every policy's curve and figures. `contenders` holds `ROUTER` and others, all on the same prompts."""
    judged = contenders[ROUTER]
    singles = alone(judged, resamples)
    best, cheapest = judged.models.index(single.model), int(np.argmin(singles.curve.cost_usd))
    policies = {name: traced(contender, reference_cost_usd, resamples) for name, contender in contenders.items()}
    policies |= {
        "always the best": baselines.always(singles, best),
        "always the cheapest": baselines.always(singles, cheapest),
        "cheapest and best, mixed": baselines.mixed(singles, cheapest, best),
        "any two models, mixed": baselines.any_two_mixed(singles),
    }
    held: dict[str, Any] = {
        "models": [
            {"name": s.model, "quality": s.quality, "usd_per_thousand": 1e3 * s.cost_usd}
            for s in baselines.singles(judged)
        ],
        "best_single": single.model,
        "always": {"best": _single(singles, judged, best), "cheapest": _single(singles, judged, cheapest)},
        "routers": {name: compare.figures(policy, singles, best) for name, policy in policies.items()},
        "curves": {name: compare.points(policy) for name, policy in policies.items()},
        "tradeoffs": _tradeoffs(judged, reference_cost_usd),
    }
    if resamples.count:
        for name, policy in policies.items():
            if name != ROUTER:
                held["routers"][name]["ahead_of"] = compare.ahead(policies[ROUTER], policy, singles)
    return held | {"routellm": _between_two(contenders, singles, best, resamples)}


def _single(singles: Traced, judged: Judged, column: int) -> dict[str, Any]:
    return {
        "model": judged.models[column],
        "quality": float(singles.curve.quality[column]),
        "usd_per_thousand": 1e3 * float(singles.curve.cost_usd[column]),
    }


def _tradeoffs(judged: Judged, reference_cost_usd: float) -> list[dict[str, Any]]:
    """What the dial gives at its tenths, and whom it chooses."""
    positions = np.linspace(0, 1, 11)
    curve = trace(judged, reference_cost_usd, positions)
    return [
        {
            "tradeoff": round(float(positions[i]), 3),
            "quality": float(curve.quality[i]),
            "usd_per_thousand": 1e3 * float(curve.cost_usd[i]),
            "share": {name: round(float(curve.share[i, j]), 4) for j, name in enumerate(judged.models)},
        }
        for i in range(len(positions))
    ]


def _between_two(
    contenders: Mapping[str, Judged], singles: Traced, strong: int, resamples: Resamples
) -> dict[str, Any]:
    """RouteLLM's measures, which are defined for two models: the best single one, and the cheapest of the others."""
    weak = int(np.argmin(np.where(np.arange(len(singles.curve.cost_usd)) == strong, np.inf, singles.curve.cost_usd)))
    judged = contenders[ROUTER]
    return {
        "strong": judged.models[strong],
        "weak": judged.models[weak],
        "routers": {name: compare.pair(contender, strong, weak, resamples) for name, contender in contenders.items()},
    }
