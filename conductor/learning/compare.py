"""Every policy's figures against the best single model, and one router against the others, with intervals.

Enters: traced policies, resampled together. Leaves: plain dictionaries for the judgement. Knows no files.

Each figure is a function of a curve and of the single models' means, so that an interval is the same function of the
resampled ones. In a dictionary None is "never", also as an end of an interval; a share of a cost of nothing is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onebeat.conductor.learning import metrics
from onebeat.conductor.learning.curves import Curve, Doubles, Judged, cost_to_reach, quality_at_cost
from onebeat.conductor.learning.resample import Resamples, Traced, interval, reached_interval

COST_SHARES = np.geomspace(0.05, 1.0, 12)
"""Of the dearest model's cost: where two routers are compared."""
MOSTLY = 0.9
"""A comparison counts where this share of the resamples reaches the cost."""
PAIR_SHARES = (0.2, 0.5, 0.8)
"""Shares of calls to the strong model at which PGR is told in text."""


@dataclass(frozen=True, slots=True)
class Singles:
    """The single models' means, over all prompts or over one resample, and which of them is the best."""

    quality: Doubles
    """[M]"""
    cost_usd: Doubles
    """[M]"""
    best: int


def measures(curve: Curve, singles: Singles) -> dict[str, float]:
    """Costs as shares of the best single model's, quality against its quality. Infinite: never; NaN: undefined."""
    quality, cost = float(singles.quality[singles.best]), float(singles.cost_usd[singles.best])
    half = quality_at_cost(curve, 0.5 * cost)
    cheapest, dearest = int(np.argmin(singles.cost_usd)), int(np.argmax(singles.cost_usd))
    return {
        "cost_at_best_quality": _share(cost_to_reach(curve, quality), cost),
        "cost_at_95_percent": _share(cost_to_reach(curve, 0.95 * quality), cost),
        "points_at_half_cost": -math.inf if half is None else 100 * (half - quality),
        "most_quality": float(curve.quality.max()),
        "aiq": metrics.aiq(
            curve.cost_usd,
            curve.quality,
            (float(singles.cost_usd[cheapest]), float(singles.quality[cheapest])),
            (float(singles.cost_usd[dearest]), float(singles.quality[dearest])),
        ),
        "arena_score": float(_arena(curve).max()),
    }


def _share(reached: float | None, cost: float) -> float:
    if cost <= 0.0:
        return math.nan
    return math.inf if reached is None else reached / cost


def _arena(curve: Curve) -> Doubles:
    """[P]"""
    return np.array(
        [metrics.arena_score(float(q), 1e3 * float(c)) for q, c in zip(curve.quality, curve.cost_usd, strict=True)]
    )


def figures(policy: Traced, singles: Traced, best: int) -> dict[str, Any]:
    """A policy's figures with their intervals; the point on the dial that scores best in RouterArena's sense."""
    held: dict[str, Any] = {
        name: value if math.isfinite(value) else None
        for name, value in measures(policy.curve, Singles(singles.curve.quality, singles.curve.cost_usd, best)).items()
    }
    place = int(np.argmax(_arena(policy.curve)))
    held["arena_tradeoff"] = _number(policy.curve.tradeoff[place])
    held["intervals"] = {}
    again = [
        measures(curve, Singles(quality, cost, best))
        for curve, quality, cost in zip(policy.curves(), singles.quality, singles.cost_usd, strict=True)
    ]
    for name in again[0] if again else ():
        held["intervals"][name] = reached_interval(np.array([one[name] for one in again]))
    return held


def ahead(ours: Traced, theirs: Traced, singles: Traced) -> dict[str, Any]:
    """Our quality less theirs at equal mean cost, over the costs that both can reach, with its interval."""
    table = _at_shares(ours, singles) - _at_shares(theirs, singles)
    dearest = max(float(singles.curve.cost_usd.max()), 1e-12)
    middle = 100 * (_at_costs(ours.curve, dearest) - _at_costs(theirs.curve, dearest))
    low: list[float | None] = []
    high: list[float | None] = []
    for values in 100 * table.T:
        known = values[np.isfinite(values)]
        usable = len(known) > MOSTLY * len(values)
        low.append(float(np.quantile(known, 0.025)) if usable else None)
        high.append(float(np.quantile(known, 0.975)) if usable else None)
    compared = [value for value in low if value is not None]
    return {
        "cost_share_of_dearest": [float(f"{share:.3g}") for share in COST_SHARES],
        "points": [_number(value) for value in middle],
        "low": low,
        "high": high,
        "ahead_everywhere_beyond_interval": min(compared) > 0 if compared else None,
    }


def _at_shares(policy: Traced, singles: Traced) -> Doubles:
    """[B, 12] quality at the shares of the dearest model's cost, in every resample; NaN where all costs more."""
    dearest = np.maximum(singles.cost_usd.max(1), 1e-12) if len(singles.cost_usd) else np.zeros(0)
    held = [_at_costs(curve, float(most)) for curve, most in zip(policy.curves(), dearest, strict=True)]
    return np.stack(held) if held else np.zeros((0, len(COST_SHARES)))


def _at_costs(curve: Curve, dearest: float) -> Doubles:
    reached = [quality_at_cost(curve, dearest * share) for share in COST_SHARES]
    return np.array([np.nan if quality is None else quality for quality in reached])


def points(policy: Traced) -> dict[str, list[Any]]:
    """The curve for JSON and plots: lists over the dial's positions, in its order, with the intervals of both means."""
    curve = policy.curve
    held: dict[str, list[Any]] = {
        "tradeoff": [_number(value) for value in curve.tradeoff],
        "usd_per_thousand": _rounded(1e3 * curve.cost_usd),
        "quality": _rounded(curve.quality),
    }
    if len(policy.quality):
        for name, values in (("usd_per_thousand", 1e3 * policy.cost_usd), ("quality", policy.quality)):
            low, high = np.quantile(values, [0.025, 0.975], axis=0)
            held |= {f"{name}_low": _rounded(low), f"{name}_high": _rounded(high)}
    return held


def pair(judged: Judged, strong: int, weak: int, resamples: Resamples) -> dict[str, Any]:
    """RouteLLM's measures of choosing between two models by the predicted advantage of the strong one.

    Where the strong model is no better there is no gap to recover: all is None. A resample of that kind counts as one
    that never reaches a share of it, and is left out of PGR's and APGR's intervals. All prompts count alike, as with
    its authors.
    """
    advantage = judged.quality[:, strong] - judged.quality[:, weak]
    low, high = judged.score[:, weak], judged.score[:, strong]
    found = metrics.pgr(advantage, low, high)
    held: dict[str, Any] = {**metrics.routellm_of(found), "pgr": None, "intervals": {}}
    if found is None:
        return held
    held["pgr"] = {"share_of_strong_calls": _rounded(found[0]), "pgr": _rounded(found[1])}
    again: dict[str, list[float]] = {"apgr": [], "cpt50": [], "cpt80": []}
    recovered: list[Doubles] = []
    for counts in resamples.blocks():
        for drawn in counts:
            rows = np.repeat(np.arange(len(drawn)), drawn.astype(np.int64))
            curve = metrics.pgr(advantage[rows], low[rows], high[rows])
            one = metrics.routellm_of(curve)
            again["apgr"].append(np.nan if one["apgr"] is None else one["apgr"])
            for name in ("cpt50", "cpt80"):
                again[name].append(np.inf if (share := one[name]) is None else share)
            recovered.append(np.full(len(found[1]), np.nan) if curve is None else np.interp(found[0], *curve))
    if not recovered:
        return held
    held["intervals"] = {
        "apgr": interval(np.array(again["apgr"])),
        "cpt50": reached_interval(np.array(again["cpt50"])),
        "cpt80": reached_interval(np.array(again["cpt80"])),
    }
    ends = [interval(values) for values in np.stack(recovered, 1)]
    held["pgr"] |= {"low": [end and end[0] for end in ends], "high": [end and end[1] for end in ends]}
    held["resamples_without_a_gap"] = float(np.isnan(again["apgr"]).mean())
    return held


def pgr_at(held: Mapping[str, Any], share: float) -> float | None:
    """PGR of one of `pair`'s dictionaries at a share of strong calls, between its points linearly."""
    if held["pgr"] is None:
        return None
    return float(np.interp(share, held["pgr"]["share_of_strong_calls"], held["pgr"]["pgr"]))


def _number(value: float) -> float | None:
    return float(f"{float(value):.6g}") if np.isfinite(value) else None


def _rounded(values: Doubles) -> list[float]:
    return [float(f"{float(value):.6g}") for value in values]
