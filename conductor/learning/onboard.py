"""A new model from 20 to 200 graded prompts: which prompts to grade, and a column fitted from them.

Enters: a router with a fitted head, and either a pool of prompts to choose from or graded outcomes of the new model.
Leaves: the prompts worth grading, or the same head with one more column (or one column replaced), the other columns
untouched bit for bit, and how uncertain the new one still is. Knows no provider.

The new column is a combination of what the head already knows. Its prior mean is the average of the columns there are;
a ridge on the columns' log odds, chosen by closed-form leave-one-out, moves it away as evidence comes in. A model's
successor starts from its predecessor's column instead of the average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebeat.conductor.learning.calibrate import log_loss, log_odds, penalised_logistic
from onebeat.engine.errors import InputError

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
MIN_PROMPTS, MAX_PROMPTS = 20, 200
RIDGES = np.geomspace(10.0, 300.0, 9)
"""None weaker: fifty outcomes choose too weak a ridge now and then, which costs 3 % of a refit's gain on average."""
BOOTSTRAPS = 200


@dataclass(frozen=True, slots=True)
class Combination:
    """The new column: log odds = intercept + weights . (log odds of the known columns)."""

    intercept: float
    weights: Doubles
    """[M]"""
    ridge: float
    prompts: int
    mean_quality: float
    mean_interval: tuple[float, float]
    """95 % for the mean quality over all prompts of the router's kind: what the column is still uncertain by."""
    prompt_interval_width: float
    """The mean width of the 95 % interval of a single prompt's quality."""
    left_out_loss: float
    """Log loss of each graded prompt by a column fitted on the others."""
    prior_loss: float
    """The same of a constant."""

    @property
    def worse_than_constant(self) -> bool:
        """Whether the column tells prompts apart no better than not at all."""
        return self.left_out_loss >= self.prior_loss


def choose_prompts(quality: Floats, count: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Which `count` of a pool tell most about a new model, from the known columns' predictions [n, M].

    Greedy D-optimal design for the logistic combination: each next prompt is the one whose outcome would shrink the
    uncertainty of the weights most, given those chosen. Ties are broken by a seeded order.
    """
    if not MIN_PROMPTS <= count <= MAX_PROMPTS:
        raise InputError(f"{count} prompts were asked for; onboarding takes {MIN_PROMPTS} to {MAX_PROMPTS}.")
    if len(quality) < count:
        raise InputError(
            f"the pool holds {len(quality)} distinct prompts and {count} were asked for; give a larger pool."
        )
    design = _design(quality)
    expected = np.clip(quality.mean(1).astype(np.float64), 0.05, 0.95)
    information = expected * (1.0 - expected)
    order = np.random.default_rng(seed).permutation(len(quality))
    covariance = np.eye(design.shape[1])
    free = np.ones(len(quality), bool)
    chosen: list[int] = []
    while len(chosen) < count:
        spread = np.einsum("nk,kl,nl->n", design, covariance, design) * information
        best = int(order[np.argmax(np.where(free, spread, -1.0)[order])])
        chosen.append(best)
        free[best] = False
        gain = covariance @ design[best]
        covariance = covariance - np.outer(gain, gain) * information[best] / (
            1.0 + information[best] * (gain @ design[best])
        )
    return np.asarray(chosen, np.int64)


def combine(
    quality: Floats,
    score: Floats,
    *,
    weight: Floats | None = None,
    pool_quality: Floats | None = None,
    predecessor: int | None = None,
    seed: int = 0,
) -> Combination:
    """Fits the new column from the known columns' predictions [n, M] and the new model's scores [n], by weight [n].

    `pool_quality` [k, M] are predictions for ungraded prompts, over which the mean quality is stated; the graded ones
    by default. Raises `InputError` for too few prompts or scores that are not in 0..1.
    """
    if len(score) < MIN_PROMPTS:
        raise InputError(f"{len(score)} graded prompts are too few to onboard a model; give {MIN_PROMPTS} or more.")
    if not np.isfinite(score).all() or score.min() < 0 or score.max() > 1:
        raise InputError("scores for onboarding must all be numbers from 0 to 1.")
    design, target = _design(quality), score.astype(np.float64)
    prior = _prior(quality.shape[1], predecessor)
    counts = np.ones(len(target)) if weight is None else weight.astype(np.float64)
    losses = [_left_out_loss(design, target, counts, prior, ridge) for ridge in RIDGES]
    ridge = float(RIDGES[int(np.argmin(losses))])
    weights = _fit(design, target, counts, prior, ridge)
    pool = _design(quality if pool_quality is None else pool_quality)
    random = np.random.default_rng(seed)
    draws = np.empty((BOOTSTRAPS, len(pool)))
    for draw in range(BOOTSTRAPS):
        rows = random.integers(0, len(target), len(target))
        draws[draw] = _logistic(pool @ _fit(design[rows], target[rows], counts[rows], prior, ridge))
    supposed = _posterior(design, counts, weights, ridge, random)
    (low, high), ends = _ends(draws, _logistic(pool @ supposed.T).T)
    # A constant that has not seen the prompt it is judged on, with Jeffreys' half an outcome of either kind.
    mean = (counts @ target - counts * target + 0.5) / (counts.sum() - counts + 1.0)
    return Combination(
        float(weights[0]),
        weights[1:],
        ridge,
        len(target),
        float(_logistic(pool @ weights).mean()),
        (float(low), float(high)),
        float((ends[1] - ends[0]).mean()),
        float(min(losses)),
        log_loss(mean, target, counts),
    )


def _posterior(
    design: Doubles, counts: Doubles, weights: Doubles, ridge: float, random: np.random.Generator
) -> Doubles:
    """[BOOTSTRAPS, M + 1] draws of the weights around the fit, by its curvature (Laplace).

    Grades that all agree look the same however they are resampled; the curvature still knows how few they are.
    """
    chance = _logistic(design @ weights)
    information = (design * (counts * chance * (1 - chance))[:, None]).T @ design + np.diag(_penalty(design, ridge))
    return random.multivariate_normal(weights, np.linalg.inv(information), BOOTSTRAPS)


def _ends(resampled: Doubles, supposed: Doubles) -> tuple[tuple[float, float], Doubles]:
    """95 % ends of the mean and [2, k] of every prompt, of [B, k] draws: as wide as either kind of them says."""
    both = np.stack([resampled, supposed])  # [2, B, k]
    means, prompts = (np.quantile(x, [0.025, 0.975], axis=1) for x in (both.mean(2), both))
    return (float(means[0].min()), float(means[1].max())), np.stack([prompts[0].min(0), prompts[1].max(0)])


def widen(combination: Combination, columns: Sequence[int], models: int) -> Combination:
    """The same with a weight of 0 for every column that was not in `columns`."""
    weights = np.zeros(models)
    weights[list(columns)] = combination.weights
    return replace(combination, weights=weights)


def predict(combination: Combination, quality: Floats) -> Doubles:
    """[n] quality of the new model from the known columns' [n, M]."""
    return _logistic(combination.intercept + log_odds(quality) @ combination.weights)


def add_column(
    description: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
    landmarks_quality: Floats,
    combination: Combination,
    column: Mapping[str, Any],
    length_ratio: float,
    length_like: int,
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The description and tensors with the new column; every other column keeps its bits.

    The head is linear in what precedes its last layer, and log odds are nearly so: the new row of `quality.weight` is
    the same combination of the known rows, and its calibration maps the row's raw value to the combined quality, fitted
    on `landmarks_quality` [k, M + 1]: known raw values beside the quality wanted. A column of that name is replaced.
    """
    names = [held["name"] for held in description["columns"]]
    weights = combination.weights
    raw_row = weights @ np.asarray(tensors["quality.weight"], np.float64)
    raw_bias = float(weights @ np.asarray(tensors["quality.bias"], np.float64))
    values, wanted = landmarks_quality[:, :-1].astype(np.float64) @ weights, landmarks_quality[:, -1]
    calibration = _map(values, wanted.astype(np.float64))
    held = dict(tensors)
    additions = {
        "quality.weight": raw_row[None],
        "quality.bias": np.array([raw_bias]),
        "length.weight": np.asarray(tensors["length.weight"])[length_like][None],
        "length.bias": np.asarray(tensors["length.bias"])[length_like : length_like + 1] + np.log(length_ratio),
    }
    if "quality.skip" in tensors:
        additions["quality.skip"] = (weights @ np.asarray(tensors["quality.skip"], np.float64))[None]
    columns = list(description["columns"])
    maps = dict((description.get("calibration") or {}).get("columns", {}))
    place = names.index(column["name"]) if column["name"] in names else len(names)
    for name, row in additions.items():
        before = np.asarray(tensors[name])
        held[name] = np.concatenate([before[:place], row.astype(before.dtype), before[place + 1 :]])
    columns[place : place + 1] = [dict(column)]
    maps[column["name"]] = calibration
    return {**description, "columns": columns, "calibration": {"columns": maps}}, held


def _map(values: Doubles, wanted: Doubles) -> dict[str, object]:
    """A non-decreasing piecewise linear map from raw values to quality, by quantiles of the raw values."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, 33)))
    if len(edges) < 2:
        return {
            "kind": "isotonic",
            "logits": [float(values[0])],
            "quality": [float(np.clip(wanted.mean(), 0.001, 0.999))],
        }
    knots = (edges[:-1] + edges[1:]) / 2
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(knots) - 1)
    count = np.bincount(place, minlength=len(knots))
    means = np.bincount(place, wanted, len(knots)) / np.maximum(count, 1)
    means = np.interp(knots, knots[count > 0], means[count > 0])
    rising = np.clip(np.maximum.accumulate(means), 0.001, 0.999)
    return {
        "kind": "isotonic",
        "logits": [float(np.float32(knot)) for knot in knots],
        "quality": [round(float(value), 6) for value in rising],
    }


def _prior(models: int, predecessor: int | None) -> Doubles:
    prior = np.full(models + 1, 1.0 / models)
    prior[0] = 0.0
    if predecessor is not None:
        prior[1:] = 0.0
        prior[1 + predecessor] = 1.0
    return prior


def _design(quality: Floats) -> Doubles:
    logits = log_odds(quality)
    return np.concatenate([np.ones((len(logits), 1)), logits], axis=1)


def _logistic(x: Doubles) -> Doubles:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -30, 30))))


def _fit(design: Doubles, target: Doubles, counts: Doubles, prior: Doubles, ridge: float) -> Doubles:
    """The intercept is hardly penalised."""
    return penalised_logistic(design, target, prior, _penalty(design, ridge), counts)


def _penalty(design: Doubles, ridge: float) -> Doubles:
    penalty = np.full(design.shape[1], ridge)
    penalty[0] = 0.3
    return penalty


def _left_out_loss(design: Doubles, target: Doubles, counts: Doubles, prior: Doubles, ridge: float) -> float:
    """Log loss over leave-one-out predictions, to first order (one Newton step back from the fit on all)."""
    beta = _fit(design, target, counts, prior, ridge)
    predicted = _logistic(design @ beta)
    information = counts * predicted * (1 - predicted) + 1e-6
    inverse = np.linalg.inv((design * information[:, None]).T @ design + np.diag(_penalty(design, ridge)))
    leverage = np.einsum("nk,kl,nl->n", design, inverse, design)
    shift = leverage * counts * (predicted - target) / np.maximum(1.0 - information * leverage, 1e-3)
    left_out = np.clip(_logistic(design @ beta + shift), 1e-4, 1 - 1e-4)
    return log_loss(left_out, target, counts)


def shown(combination: Combination, names: Sequence[str]) -> list[str]:
    """What the fit amounts to, in lines."""
    heaviest = np.argsort(-np.abs(combination.weights))[:3]
    mixture = ", ".join(f"{combination.weights[i]:+.2f} {names[i]}" for i in heaviest)
    low, high = combination.mean_interval
    return [
        f"fitted from {combination.prompts} graded prompts as {mixture}, ...",
        f"mean quality {combination.mean_quality:.3f}, 95 % interval {low:.3f} to {high:.3f}; a single prompt's "
        f"quality is uncertain by {combination.prompt_interval_width:.2f} on average",
        f"log loss on prompts it was not fitted on: {combination.left_out_loss:.3f} "
        f"(a constant would have {combination.prior_loss:.3f})",
    ]
