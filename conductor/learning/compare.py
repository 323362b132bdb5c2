"""One router's figures against the best single model and against another router, with intervals.

Enters: curves and judged prompts. Leaves: plain dictionaries for the judgement. Knows no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onebeat.conductor.learning import baselines, metrics
from onebeat.conductor.learning.curves import Curve, Doubles, Judged, cost_to_reach, quality_at_cost, trace

MOST_CURVES, MOST_PAIRS = 60, 40
"""Resampled curves, and pairs of curves, at most: each traces the whole dial anew."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The cheapest and the dearest single model, (mean cost in dollars, mean quality): what AIQ is taken between."""

    cheapest: tuple[float, float]
    dearest: tuple[float, float]


def cost_bounds(judged: Judged) -> Bounds:
    """Of the single models."""
    held = baselines.singles(judged)
    return Bounds((held[-1].cost_usd, held[-1].quality), (held[0].cost_usd, held[0].quality))


def figures(
    curve: Curve,
    contender: Judged | None,
    judged: Judged,
    single: baselines.Single,
    reference: float,
    bounds: Bounds,
    bootstraps: int,
    seed: int,
) -> dict[str, Any]:
    """Costs as shares of the best single model's, quality against its quality."""
    parity = cost_to_reach(curve, single.quality)
    nearly = cost_to_reach(curve, 0.95 * single.quality)
    half = quality_at_cost(curve, 0.5 * single.cost_usd)
    arena = [metrics.arena_score(float(q), 1e3 * float(c)) for q, c in zip(curve.quality, curve.cost_usd, strict=True)]
    held: dict[str, Any] = {
        "cost_at_best_quality": None if parity is None else parity / single.cost_usd,
        "cost_at_95_percent": None if nearly is None else nearly / single.cost_usd,
        "points_at_half_cost": None if half is None else 100 * (half - single.quality),
        "most_quality": float(curve.quality.max()),
        "aiq": metrics.aiq(curve.cost_usd, curve.quality, bounds.cheapest, bounds.dearest),
        "arena_score": max(arena),
        "arena_tradeoff": float(curve.tradeoff[int(np.argmax(arena))]),
    }
    if contender is not None and bootstraps:
        held["intervals"] = _intervals(contender, single.model, reference, bootstraps, seed)
        if contender is not judged:
            held["ahead_of"] = _ahead(judged, contender, reference, bootstraps, seed)
    return held


def _intervals(
    contender: Judged, best: str, reference: float, bootstraps: int, seed: int
) -> dict[str, list[float] | None]:
    column = contender.models.index(best)
    random = np.random.default_rng(seed)
    held: dict[str, list[float]] = {"cost_at_best_quality": [], "cost_at_95_percent": [], "points_at_half_cost": []}
    for _ in range(min(bootstraps, MOST_CURVES)):
        sample = contender.take(random.integers(0, len(contender.score), len(contender.score)))
        curve = trace(sample, reference)
        quality, cost = sample.score[:, column].mean(), sample.cost_usd[:, column].mean()
        parity, nearly = cost_to_reach(curve, quality), cost_to_reach(curve, 0.95 * quality)
        half = quality_at_cost(curve, 0.5 * cost)
        held["cost_at_best_quality"].append(np.inf if parity is None else parity / cost)
        held["cost_at_95_percent"].append(np.inf if nearly is None else nearly / cost)
        held["points_at_half_cost"].append(-np.inf if half is None else 100 * (half - quality))
    return {name: _ends(values) for name, values in held.items()}


def _ends(values: list[float]) -> list[float] | None:
    """Nearest-rank ends of the central 95 %; None where an end is "never"."""
    low, high = np.quantile(values, [0.025, 0.975], method="nearest")
    return [float(low), float(high)] if np.isfinite([low, high]).all() else None


def _ahead(judged: Judged, other: Judged, reference: float, bootstraps: int, seed: int) -> dict[str, Any]:
    """Our quality less the other's at equal mean cost, over the costs that both can reach, with its interval."""
    random = np.random.default_rng(seed)
    grid = np.geomspace(0.05, 1.0, 12)

    def gaps(ours: Judged, theirs: Judged) -> Doubles:
        first, second = trace(ours, reference), trace(theirs, reference)
        ceiling = max(float(ours.cost_usd.mean(0).max()), 1e-12)
        pairs = [(quality_at_cost(first, ceiling * s), quality_at_cost(second, ceiling * s)) for s in grid]
        return np.array([np.nan if a is None or b is None else 100 * (a - b) for a, b in pairs])

    samples = []
    for _ in range(min(bootstraps, MOST_PAIRS)):
        rows = random.integers(0, len(judged.score), len(judged.score))
        samples.append(gaps(judged.take(rows), other.take(rows)))
    table = np.array(samples)
    usable = np.isfinite(table).mean(0) > 0.9
    low = [float(np.nanquantile(table[:, i], 0.025)) if usable[i] else None for i in range(len(grid))]
    middle = gaps(judged, other)
    return {
        "cost_share_of_dearest": [float(f"{share:.3g}") for share in grid],
        "points": [None if np.isnan(value) else float(value) for value in middle],
        "low": low,
        "ahead_everywhere_beyond_interval": all(value is None or value > 0 for value in low),
    }
