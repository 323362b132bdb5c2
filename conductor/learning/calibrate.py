"""From logits to probabilities that hold: Platt scaling and isotonic regression, chosen per column by validation.

Enters: out-of-fold logits and scores of one column. Leaves: the mapping that router.json stores. A calibration that
does not beat leaving the logits alone, on folds it has not seen, is not used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
LEAST, MOST = 0.02, 0.98
"""A kernel's raw probability is clipped to this before its log odds are taken."""
SLOPE_PRIOR = 20.0
"""How many outcomes' worth of curvature hold a Platt slope at 1: a column must not be stretched against the others."""
MIN_ROWS = 30
"""Below this many outcomes a column keeps its logits: two parameters would follow the noise."""
FOLDS = 5


def calibrate(
    raw: NDArray[Any],
    score: NDArray[Any],
    names: Sequence[str],
    *,
    probability: bool = False,
    weight: NDArray[Any] | None = None,
) -> dict[str, object] | None:
    """The `calibration` of router.json for [n, M] out-of-fold values and scores (NaN: unknown); None is identity.

    `probability`: the raw values are already probabilities that may leave 0..1 (a kernel head's), not logits. They are
    stored as points of a piecewise linear map, for every column. `weight` [n, M]: how much each score counts, 1 by
    default, 0 not at all.
    """
    columns: dict[str, object] = {}
    logits = log_odds(raw) if probability else raw
    for column, name in enumerate(names):
        known = np.isfinite(score[:, column])
        if weight is not None:
            known &= weight[:, column] > 0
        counts = None if weight is None else weight[known, column].astype(np.float64)
        chosen = choose(logits[known, column].astype(np.float64), score[known, column].astype(np.float64), counts)
        if probability:
            columns[name] = _of_probability(chosen)
        elif chosen is not None:
            columns[name] = chosen
    return {"columns": columns} if columns else None


def log_odds(probability: NDArray[Any]) -> Doubles:
    """log(p / (1 - p)), clipped."""
    clipped = np.clip(np.asarray(probability, np.float64), LEAST, MOST)
    return np.asarray(np.log(clipped / (1.0 - clipped)))


def _of_probability(chosen: dict[str, Any] | None) -> dict[str, object]:
    """A map of logits as one of probabilities; beyond the clip it rises gently, so that ranks are kept."""
    knots = np.linspace(LEAST, MOST, 33)
    logits = log_odds(knots)
    if chosen is None:
        quality = knots
    elif chosen["kind"] == "platt":
        quality = 1 / (1 + np.exp(-(chosen["slope"] * logits + chosen["offset"])))
    else:
        quality = np.interp(logits, chosen["logits"], chosen["quality"])
    low, high = max(quality[0] - 0.01, 0.001), min(quality[-1] + 0.01, 0.999)
    ends = np.r_[-0.5, knots, 1.5], np.r_[min(low, quality[0]), quality, max(high, quality[-1])]
    return {"kind": "isotonic", "logits": _rounded(ends[0]), "quality": _rounded(ends[1])}


def choose(logits: Doubles, score: Doubles, weight: Doubles | None = None) -> dict[str, object] | None:
    """Platt, isotonic or None, whichever has the least cross-validated log loss. All [n]; weights above 0."""
    if len(logits) < MIN_ROWS or score.max() == score.min():
        return None
    weight = np.ones(len(logits)) if weight is None else weight
    fold = np.arange(len(logits)) % FOLDS
    losses = {"none": log_loss(1 / (1 + np.exp(-logits)), score, weight), "platt": 0.0, "isotonic": 0.0}
    for held in range(FOLDS):
        seen, unseen = fold != held, fold == held
        share, left = weight[unseen].sum() / weight.sum(), (score[unseen], weight[unseen])
        slope, offset = platt(logits[seen], score[seen], weight[seen])
        losses["platt"] += log_loss(1 / (1 + np.exp(-(slope * logits[unseen] + offset))), *left) * share
        knots, values = isotonic(logits[seen], score[seen], weight[seen])
        losses["isotonic"] += log_loss(np.interp(logits[unseen], knots, values), *left) * share
    best = min(losses, key=lambda kind: losses[kind])
    if best == "platt":
        slope, offset = platt(logits, score, weight)
        return {"kind": "platt", "slope": round(slope, 6), "offset": round(offset, 6)}
    if best == "isotonic":
        knots, values = isotonic(logits, score, weight)
        return {"kind": "isotonic", "logits": _rounded(knots), "quality": _rounded(values)}
    return None


def platt(logits: Doubles, score: Doubles, weight: Doubles | None = None) -> tuple[float, float]:
    """Slope and offset by Newton's method, with Platt's prior counts (Platt 1999), the slope pulled towards 1."""
    weight = np.ones(len(logits)) if weight is None else weight
    right, wrong = (weight * score).sum(), (weight * (1 - score)).sum()
    target = score * ((right + 1) / (right + 2)) + (1 - score) * (1 / (wrong + 2))
    design = np.stack([logits, np.ones_like(logits)], 1)
    beta = penalised_logistic(design, target, np.array([1.0, 0.0]), np.array([SLOPE_PRIOR, 0.05]), weight)
    # A negative slope would turn the ranking round: the logits then carry nothing, and the base rate is the answer.
    return (float(beta[0]), float(beta[1])) if beta[0] > 0 else (0.0, math.log((right + 1) / (wrong + 1)))


def penalised_logistic(
    design: Doubles, target: Doubles, prior: Doubles, penalty: Doubles, weight: Doubles | None = None
) -> Doubles:
    """[k] coefficients that minimise weight . cross-entropy + 0.5 * penalty . (beta - prior)^2, by Newton's method.

    Each step is halved until it helps: far from the optimum a whole one overshoots, and the next diverges.
    """
    beta = prior.copy()
    counts = np.ones(len(target)) if weight is None else weight
    value = _objective(design, target, prior, penalty, beta, counts)
    for _ in range(60):
        predicted = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        gradient = design.T @ (counts * (predicted - target)) + penalty * (beta - prior)
        information = counts * predicted * (1 - predicted) + 1e-9
        step = np.linalg.solve((design * information[:, None]).T @ design + np.diag(penalty), gradient)
        share = 1.0
        while share > 1e-6:
            candidate = beta - share * step
            lower = _objective(design, target, prior, penalty, candidate, counts)
            if lower <= value:
                break
            share /= 2
        else:
            break
        beta, value = candidate, lower
        if np.abs(share * step).max() < 1e-9:
            break
    return np.asarray(beta)


def _objective(
    design: Doubles, target: Doubles, prior: Doubles, penalty: Doubles, beta: Doubles, weight: Doubles
) -> float:
    logits = design @ beta
    cross_entropy = weight * (np.logaddexp(0.0, logits) - target * logits)
    return float(cross_entropy.sum() + 0.5 * (penalty * np.square(beta - prior)).sum())


def isotonic(logits: Doubles, score: Doubles, weight: Doubles | None = None) -> tuple[Doubles, Doubles]:
    """Pool-adjacent-violators: knots (block centres, strictly ascending) and their non-decreasing qualities.

    Each block's mean is smoothed by one pseudo-outcome at the overall mean, so that no quality is exactly 0 or 1.
    """
    weight = np.ones(len(logits)) if weight is None else weight
    order = np.argsort(logits, kind="stable")
    blocks: list[list[float]] = []  # [sum of scores, count, sum of logits], by weight
    for position in order:
        count = float(weight[position])
        blocks.append([count * float(score[position]), count, count * float(logits[position])])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    mean = float(np.average(score, weights=weight))
    knots = np.array([total_logit / count for _, count, total_logit in blocks])
    values = np.maximum.accumulate(np.array([(total + mean) / (count + 1) for total, count, _ in blocks]))
    keep = np.r_[True, np.diff(knots.astype(np.float32)) > 1e-5]
    return knots[keep], values[keep]


def log_loss(quality: Doubles, score: Doubles, weight: Doubles | None = None) -> float:
    """Mean cross-entropy with fractional scores, by weight."""
    clipped = np.clip(quality, 1e-6, 1 - 1e-6)
    return float(-np.average(score * np.log(clipped) + (1 - score) * np.log(1 - clipped), weights=weight))


def _rounded(values: Doubles) -> list[float]:
    return [round(float(value), 6) for value in values]
