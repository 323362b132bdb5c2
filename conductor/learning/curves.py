"""The cost-quality curve of a router on judged prompts: what the dial buys.

Enters: predicted quality and cost, actual score and cost, all `[n, M]`. Leaves: a `Curve`, a point per dial position.
The choice is that of `engine.decision`, vectorised (a test holds them equal). Knows no prompt and no head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onebeat.engine.decision import HOPELESS_SHARE

Doubles = NDArray[np.float64]
Choices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Judged:
    """Prompts with a prediction and an outcome for every model."""

    models: tuple[str, ...]
    quality: Doubles
    """[n, M] predicted."""
    predicted_cost_usd: Doubles
    """[n, M]"""
    score: Doubles
    """[n, M] what came out."""
    cost_usd: Doubles
    """[n, M] what it cost."""
    groups: tuple[str, ...]
    """[n]"""
    weight: Doubles | None = None
    """[n, M] how much each outcome counts, above 0; None: all alike."""

    @property
    def counts(self) -> Doubles:
        """[n] how much each prompt counts where models are chosen: the mean over its outcomes, whichever is chosen."""
        return np.ones(len(self.score)) if self.weight is None else np.asarray(self.weight.mean(1), np.float64)

    def take(self, rows: Choices) -> Judged:
        """These rows, in this order, repeats allowed (for the bootstrap)."""
        return Judged(
            self.models,
            self.quality[rows],
            self.predicted_cost_usd[rows],
            self.score[rows],
            self.cost_usd[rows],
            tuple(self.groups[row] for row in rows),
            None if self.weight is None else self.weight[rows],
        )


@dataclass(frozen=True, slots=True)
class Curve:
    """Operating points, in the order of the dial."""

    tradeoff: Doubles
    """[P]"""
    quality: Doubles
    """[P] mean score of the chosen models."""
    cost_usd: Doubles
    """[P] mean cost of a request."""
    share: Doubles
    """[P, M] of requests that each model gets."""


def dial_positions(count: int = 101) -> Doubles:
    """Tradeoffs from 0 to 1 at which a dollar's weight, (1 - t) / t, is spread evenly in its logarithm."""
    price = np.logspace(3.5, -4, count - 2)
    return np.asarray(np.r_[0.0, 1.0 / (1.0 + price), 1.0])


def choose(quality: Doubles, cost_usd: Doubles, tradeoff: float, reference_cost_usd: float) -> Choices:
    """[n] the model that `engine.decision` would choose at this tradeoff. Ties go to the cheaper, then by position."""
    utility = tradeoff * quality - (1.0 - tradeoff) * cost_usd / reference_cost_usd
    hopeless = quality < HOPELESS_SHARE * quality.max(1, keepdims=True)
    utility = np.where(hopeless, -np.inf, utility)
    best = utility >= utility.max(1, keepdims=True)
    return np.asarray(np.argmin(np.where(best, cost_usd, np.inf), axis=1), np.int64)


def single_means(judged: Judged) -> tuple[Doubles, Doubles]:
    """[M] mean score and [M] mean cost of each model by itself, over the same prompts as any choice among them."""
    counts = judged.counts
    quality, cost = (np.average(table, axis=0, weights=counts) for table in (judged.score, judged.cost_usd))
    return np.asarray(quality), np.asarray(cost)


def reference_cost(cost_usd: Doubles) -> float:
    """The mean cost of the dearest model: the scale that `dial.balanced_reference` starts from."""
    return max(float(np.nanmean(cost_usd, axis=0).max()), 1e-12)


def trace(judged: Judged, reference_cost_usd: float, positions: Doubles | None = None) -> Curve:
    """The curve over all dial positions."""
    tradeoffs = dial_positions() if positions is None else positions
    rows, counts = np.arange(len(judged.score)), judged.counts
    quality, cost, share = [], [], []
    for tradeoff in tradeoffs:
        chosen = choose(judged.quality, judged.predicted_cost_usd, float(tradeoff), reference_cost_usd)
        quality.append(np.average(judged.score[rows, chosen], weights=counts))
        cost.append(np.average(judged.cost_usd[rows, chosen], weights=counts))
        share.append(np.bincount(chosen, counts, len(judged.models)) / counts.sum())
    return Curve(np.asarray(tradeoffs), np.asarray(quality), np.asarray(cost), np.asarray(share))


def cost_to_reach(curve: Curve, quality: float) -> float | None:
    """The least mean cost at which the curve reaches `quality`, mixing two neighbouring dial positions; None: never.

    Mixing is honest: a router that uses one position for a share of requests and the next for the rest gets there.
    """
    order = np.lexsort((curve.quality, curve.cost_usd))
    costs, best = curve.cost_usd[order], np.maximum.accumulate(curve.quality[order])
    if best[-1] < quality - 1e-12:
        return None
    above = int(np.argmax(best >= quality - 1e-12))
    if above == 0 or best[above] == best[above - 1]:
        return float(costs[above])
    share = (quality - best[above - 1]) / (best[above] - best[above - 1])
    return float(costs[above - 1] + max(share, 0.0) * (costs[above] - costs[above - 1]))


def quality_at_cost(curve: Curve, cost_usd: float) -> float | None:
    """The best mean score at a mean cost of at most `cost_usd`, mixing two positions; None when all cost more."""
    order = np.lexsort((curve.quality, curve.cost_usd))
    costs, best = curve.cost_usd[order], np.maximum.accumulate(curve.quality[order])
    if costs[0] > cost_usd:
        return None
    below = int(np.searchsorted(costs, cost_usd, side="right")) - 1
    if below == len(costs) - 1 or costs[below + 1] == costs[below]:
        return float(best[below])
    share = (cost_usd - costs[below]) / (costs[below + 1] - costs[below])
    return float(best[below] + share * (best[below + 1] - best[below]))
