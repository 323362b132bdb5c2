"""How good a router is, in the field's own measures, each exactly as its authors define it.

Enters: predictions, scores and costs, or a `Curve`. Leaves: numbers. Knows no files and no heads.

- AUC overall is the mean over models of each one's own AUC; AUC within source is the mean over models and sources
  of the same inside one source: the honest one, because telling benchmarks apart is easy and earns it nothing.
- PGR, APGR, CPT: RouteLLM (Ong et al., arXiv 2406.18665). Two models; PGR is the share of the gap between their mean
  scores that is recovered, at 11 thresholds, the deciles of the predicted advantage of the strong one; APGR is the area
  of PGR over the share of strong calls, by trapezoids as in their code (the paper writes the mean of ten values);
  CPT(x) the share of strong calls at which PGR reaches x, interpolated linearly.
- AIQ: RouterBench (Hu et al., arXiv 2403.12031). The area under the non-decreasing convex hull of (cost, quality)
  between the costs c_min and c_max, divided by c_max - c_min. As in the paper; their code divides by c_max. Their "zero
  router", the hull of the single models, is `baselines.any_two_mixed`.
- Arena score: RouterArena (Lu et al., arXiv 2510.00202), beta 0.1, costs from 0.0044 to 200 USD per thousand requests.
  As in their code, but for costs outside of that range, which count as its ends.


Where a `weight` is taken, of the scores' shape and 1 by default, an outcome of weight 2 is the same as the outcome
twice, and one of weight 0 is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
LEAST_PAIRS = 1e-12
"""Of all pairs, that hold a success and a failure: below it there is one class, and rounding. A share, for what weights
add up to says nothing."""


def auc(predicted: NDArray[Any], score: NDArray[Any], weight: NDArray[Any] | None = None) -> float | None:
    """The chance that a success is ranked above a failure, ties half; fractional scores count as both. None: one class.

    Any shape; all cells are pooled, and those whose score is NaN left out.
    """
    return _auc(*_known(predicted, score, weight))


def auc_per_model(
    predicted: NDArray[Any], score: NDArray[Any], weight: NDArray[Any] | None = None
) -> list[float | None]:
    """[M] each column's own AUC."""
    counts = np.ones(score.shape) if weight is None else weight
    return [auc(predicted[:, column], score[:, column], counts[:, column]) for column in range(score.shape[1])]


def auc_overall(predicted: NDArray[Any], score: NDArray[Any], weight: NDArray[Any] | None = None) -> float | None:
    """The mean of the models' own AUCs. None: no model has both classes."""
    return _mean(auc_per_model(predicted, score, weight))


def auc_within(
    predicted: NDArray[Any], score: NDArray[Any], groups: Sequence[str], weight: NDArray[Any] | None = None
) -> float | None:
    """The mean over models and sources of the AUC of one model inside one source. None: nowhere both classes."""
    names = np.asarray(groups)
    held: list[float | None] = []
    for name in np.unique(names):
        inside = names == name
        held += auc_per_model(predicted[inside], score[inside], None if weight is None else weight[inside])
    return _mean(held)


def _known(
    predicted: NDArray[Any], score: NDArray[Any], weight: NDArray[Any] | None
) -> tuple[Doubles, Doubles, Doubles]:
    """[k] each: the cells that have a score and a weight."""
    counts = np.ones(score.shape) if weight is None else np.asarray(weight, np.float64)
    known = np.isfinite(score) & (counts > 0)
    return np.asarray(predicted, np.float64)[known], np.asarray(score, np.float64)[known], counts[known]


def _mean(values: Sequence[float | None]) -> float | None:
    held = [value for value in values if value is not None]
    return sum(held) / len(held) if held else None


def _auc(predicted: Doubles, score: Doubles, weight: Doubles) -> float | None:
    right, wrong = weight * score, weight * (1.0 - score)
    # A fractional score s is s of a success and 1 - s of a failure at one rank, which must not be compared to itself;
    # of weight 2 it is two such outcomes, which are compared to one another.
    itself = float((np.minimum(weight, 1.0) * right * (1.0 - score)).sum())
    pairs = right.sum() * wrong.sum() - itself
    if pairs <= LEAST_PAIRS * weight.sum() ** 2:
        return None
    values, inverse = np.unique(predicted, return_inverse=True)
    successes = np.bincount(inverse, right, len(values))
    failures = np.bincount(inverse, wrong, len(values))
    below = np.cumsum(failures) - failures
    return float(((successes * (below + 0.5 * failures)).sum() - 0.5 * itself) / pairs)


def calibration_error(
    predicted: NDArray[Any], score: NDArray[Any], bins: int = 15, weight: NDArray[Any] | None = None
) -> float:
    """Expected calibration error: over bins of equal weight, the mean gap between prediction and outcome.

    Equal predictions share their gap, and what lies across the edge of two bins counts in both by its parts: the order
    of the cells has no say. At least one cell must be known.
    """
    quality, outcome, counts = _known(predicted, score, weight)
    values, inverse = np.unique(quality, return_inverse=True)
    mass = np.r_[0.0, np.cumsum(np.bincount(inverse, counts, len(values)))]
    gap = np.r_[0.0, np.cumsum(np.bincount(inverse, counts * (quality - outcome), len(values)))]
    edges = np.interp(np.linspace(0.0, mass[-1], min(bins, len(values)) + 1), mass, gap)
    return float(np.abs(np.diff(edges)).sum() / mass[-1])


def pgr(
    advantage: NDArray[Any], weak: NDArray[Any], strong: NDArray[Any], points: int = 10
) -> tuple[Doubles, Doubles] | None:
    """(share of strong calls, PGR), ascending, of routing to the strong model where `advantage` is high.

    Args:
        advantage: [n] predicted win rate, or any score that grows with the worth of the strong model.
        weak, strong: [n] actual scores.
        points: equally filled bins; their edges are the thresholds.

    None where the strong model is no better than the weak one: there is no gap to recover.
    """
    edges = np.quantile(advantage, np.linspace(0.0, 1.0, points + 1))
    calls, quality = [], []
    for position, edge in enumerate(edges):
        chosen = advantage >= edge if position < points else advantage > edge
        calls.append(chosen.mean())
        quality.append(np.where(chosen, strong, weak).mean())
    order = np.argsort(calls, kind="stable")
    low, high = float(np.mean(weak)), float(np.mean(strong))
    if high <= low:
        return None
    return np.asarray(calls)[order], (np.asarray(quality)[order] - low) / (high - low)


def routellm(
    advantage: NDArray[Any], weak: NDArray[Any], strong: NDArray[Any], points: int = 10
) -> dict[str, float | None]:
    """APGR, CPT(50) and CPT(80) of the curve of `pgr`, all None where that is.

    The last of its points sends every prompt to the strong model, so that every share of a gap is reached.
    """
    return routellm_of(pgr(advantage, weak, strong, points))


def routellm_of(found: tuple[Doubles, Doubles] | None) -> dict[str, float | None]:
    """The same from a curve of `pgr`."""
    if found is None:
        return {"apgr": None, "cpt50": None, "cpt80": None}
    share, gap = found
    return {
        "apgr": float(np.trapezoid(gap, share)),
        "cpt50": _calls_to_reach(gap, share, 0.5),
        "cpt80": _calls_to_reach(gap, share, 0.8),
    }


def _calls_to_reach(gap: Doubles, share: Doubles, wanted: float) -> float | None:
    """As `numpy.interp(wanted, gap, share)` where `gap` ascends; where it wavers, the first crossing."""
    above = np.flatnonzero(gap >= wanted)
    if not len(above):
        return None
    first = int(above[0])
    if first == 0 or gap[first] == gap[first - 1]:
        return float(share[first])
    part = (wanted - gap[first - 1]) / (gap[first] - gap[first - 1])
    return float(share[first - 1] + part * (share[first] - share[first - 1]))


def hull(cost: Doubles, quality: Doubles) -> tuple[Doubles, Doubles]:
    """The non-decreasing upper convex hull of (cost, quality), ascending."""
    order = np.lexsort((-quality, cost))
    points: list[tuple[float, float]] = []
    for x, y in zip(cost[order], quality[order], strict=True):
        if points and (x == points[-1][0] or y <= points[-1][1]):
            continue
        while len(points) > 1 and _turns_up(points[-2], points[-1], (x, y)):
            points.pop()
        points.append((float(x), float(y)))
    held = np.asarray(points)
    return held[:, 0], held[:, 1]


def _turns_up(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[1] - a[1]) * (c[0] - b[0]) <= (c[1] - b[1]) * (b[0] - a[0])


def aiq(cost: Doubles, quality: Doubles, cheapest: tuple[float, float], dearest: tuple[float, float]) -> float:
    """RouterBench's average improvement in quality, between the (cost, quality) of the cheapest and dearest model.

    The hull runs from the cheapest model, which any router may be mixed with, and flat to the dearest one's cost.
    """
    costs, qualities = hull(np.r_[cheapest[0], cost], np.r_[cheapest[1], quality])
    start, end = cheapest[0], max(dearest[0], float(cheapest[0]))
    if end <= start:
        return float(qualities[-1])
    grid = np.unique(np.r_[start, costs[(costs > start) & (costs < end)], end])
    return float(np.trapezoid(np.interp(grid, costs, qualities), grid) / (end - start))


def arena_score(quality: float, cost_usd_per_thousand: float) -> float:
    """RouterArena's score of one operating point, in 0..1. Costs outside their range count as its ends."""
    beta, dearest, cheapest = 0.1, 200.0, 0.0044
    cost = min(max(cost_usd_per_thousand, cheapest), dearest)
    thrift = (math.log2(dearest) - math.log2(cost)) / (math.log2(dearest) - math.log2(cheapest))
    if quality <= 0.0 or thrift <= 0.0:
        return 0.0
    return (1 + beta) * quality * thrift / (beta * quality + thrift)


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float | None], rows: int, *, repeats: int = 200, seed: int = 0
) -> tuple[float, float] | None:
    """The central 95 % of `statistic` over resampled prompts; None when it is undefined on more than half of them."""
    random = np.random.default_rng(seed)
    held = [value for _ in range(repeats) if (value := statistic(random.integers(0, rows, rows))) is not None]
    if len(held) <= repeats // 2:
        return None
    low, high = np.quantile(held, [0.025, 0.975])
    return float(low), float(high)
