"""A dial that means something: what each tradeoff gives, solved on validation prompts and held against others.

Enters: judged validation prompts (out-of-fold predictions). Leaves: the table that router.json keeps under
`fitted.dial`, from which `engine.targets` takes the tradeoff for a target, and how a target fared. Knows no head.

The table is solved on validation prompts only. Its intervals are those of the mean over all prompts of that kind (95 %,
bootstrap); what a particular thousand requests will show varies by their own number as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onebeat.conductor.learning.curves import Choices, Doubles, Judged, choose, dial_positions, single_means
from onebeat.engine.targets import Setting, Target, setting

POSITIONS = 81
REFINED_POSITIONS = 161
"""With those put where the dial jumps: a target between two distant positions would buy far less than it allows."""
SMALLEST_STEP = 0.005
"""Of the whole range of mean cost: steps below it are not divided."""
BOOTSTRAPS = 200
LEAST_PROMPTS = 30
"""With every model's score. Fewer promise nothing: a handful that agree would give an interval of no width."""


def solve(judged: Judged, reference_cost_usd: float, *, seed: int = 0) -> dict[str, object]:
    """The table for `fitted.dial`: what each position gives on these prompts, beside the best single model.

    Of fewer than `LEAST_PROMPTS` prompts it has no points, and so no target can be set by it.
    """
    if len(judged.score) < LEAST_PROMPTS:
        return unsolved(judged)
    means, _ = single_means(judged)
    best = int(np.argmax(means))
    positions = _positions(judged, reference_cost_usd)
    rows = np.arange(len(judged.score))
    scores, dollars = [], []
    for tradeoff in positions:
        chosen = choose(judged.quality, judged.predicted_cost_usd, float(tradeoff), reference_cost_usd)
        scores.append(judged.score[rows, chosen])
        dollars.append(judged.cost_usd[rows, chosen])
    quality, cost = np.stack(scores), np.stack(dollars)  # [P, n]
    counts, best_score = judged.counts, judged.score[:, best]
    samples = [(s, counts[s]) for s in _samples(len(rows), seed)]
    share_ends = _ends(np.stack([_share(quality[:, s], best_score[s], by) for s, by in samples]))
    cost_ends = _ends(np.stack([1e3 * _mean(cost[:, s], by) for s, by in samples]))
    level, spent = _mean(quality, counts), _mean(cost, counts)
    points = [
        {
            "tradeoff": float(tradeoff),
            "quality": _round(level[index]),
            "share_of_best": _round(level[index] / max(means[best], 1e-9)),
            "share_interval": [_round(end) for end in share_ends[:, index]],
            "usd_per_thousand": _round(1e3 * spent[index]),
            "usd_interval": [_round(end) for end in cost_ends[:, index]],
        }
        for index, tradeoff in enumerate(positions)
    ]
    return unsolved(judged) | {"points": points}


def unsolved(judged: Judged) -> dict[str, object]:
    """The same without points: what the best single model gives, and nothing promised."""
    quality, dollars = single_means(judged)
    best = int(np.argmax(quality))
    return {
        "best_model": judged.models[best],
        "best_quality": _round(quality[best]),
        "best_usd_per_thousand": _round(1e3 * dollars[best]),
        "prompts": len(judged.score),
        "points": [],
    }


def _positions(judged: Judged, reference_cost_usd: float) -> list[float]:
    """Dial positions as router.json keeps them, spread evenly, then the largest steps in cost halved."""
    rows = np.arange(len(judged.score))

    def spent(tradeoff: float) -> float:
        chosen = choose(judged.quality, judged.predicted_cost_usd, tradeoff, reference_cost_usd)
        return float(_mean(judged.cost_usd[rows, chosen], judged.counts))

    positions = [float(f"{tradeoff:.6g}") for tradeoff in dial_positions(POSITIONS)]
    costs = [spent(tradeoff) for tradeoff in positions]
    smallest = SMALLEST_STEP * (max(costs) - min(costs))
    settled: set[float] = set()
    while len(positions) < REFINED_POSITIONS:
        steps = {abs(costs[i + 1] - costs[i]): i for i in range(1, len(positions) - 2) if positions[i] not in settled}
        largest = max(steps, default=0.0)
        if largest <= smallest:
            break
        at = steps[largest]
        low, high = positions[at], positions[at + 1]
        # Halved where a dollar's weight, (1 - t) / t, is in the middle of its logarithm.
        weight = ((1.0 - low) / low * (1.0 - high) / high) ** 0.5
        between = float(f"{1.0 / (1.0 + weight):.6g}")
        if not low < between < high:
            settled.add(low)
            continue
        positions.insert(at + 1, between)
        costs.insert(at + 1, spent(between))
    return positions


def balanced_reference(judged: Judged, share_of_best: float = 0.95) -> float:
    """The reference cost that puts `share_of_best` of the best single model's quality at tradeoff 0.5.

    So the middle of the dial is a balance on the prompts at hand, whatever the models cost. Where no position reaches
    that share, or the cheapest choice already does, it is the mean cost of the dearest model.
    """
    means, dollars = single_means(judged)
    dearest, best = max(float(dollars.max()), 1e-12), means.max()
    rows = np.arange(len(judged.score))
    for place, tradeoff in enumerate(dial_positions(201)[:-1]):
        chosen = choose(judged.quality, judged.predicted_cost_usd, float(tradeoff), dearest)
        if _mean(judged.score[rows, chosen], judged.counts) >= share_of_best * best:
            return dearest * float(tradeoff / (1.0 - tradeoff)) if place else dearest
    return dearest


@dataclass(frozen=True, slots=True)
class Check:
    """A setting, held against other prompts."""

    target: Target
    setting: Setting
    measured_share: float
    measured_share_interval: tuple[float, float]
    measured_usd_per_thousand: float
    measured_usd_interval: tuple[float, float]

    @property
    def holds(self) -> bool:
        """Whether the target was met: quality no lower, or cost no higher, than promised, within both intervals."""
        if self.target.usd_per_thousand is not None:
            excess = self.measured_usd_per_thousand - self.setting.usd_per_thousand
            ends, seen = self.setting.usd_interval, self.measured_usd_interval
        else:
            excess = self.setting.share_of_best - self.measured_share
            ends, seen = self.setting.share_interval, self.measured_share_interval
        return excess <= float(np.hypot(ends[1] - ends[0], seen[1] - seen[0])) / 2 + 1e-9


def check(
    dial: Mapping[str, Any], target: Target, judged: Judged, reference_cost_usd: float, *, seed: int = 0
) -> Check:
    """Measures a target's setting on prompts that the dial was not solved on."""
    found = setting(dial, target)
    chosen = choose(judged.quality, judged.predicted_cost_usd, found.tradeoff, reference_cost_usd)
    rows = np.arange(len(judged.score))
    score, dollars = judged.score[rows, chosen], 1e3 * judged.cost_usd[rows, chosen]
    name = dial["best_model"]
    best = judged.score[:, judged.models.index(name)] if name in judged.models else judged.score.max(1)
    counts = judged.counts
    samples = [(s, counts[s]) for s in _samples(len(rows), seed)]
    shares = np.array([_share(score[s], best[s], by) for s, by in samples])[:, None]
    costs = np.array([_mean(dollars[s], by) for s, by in samples])[:, None]
    return Check(
        target,
        found,
        float(_share(score, best, counts)),
        _pair(_ends(shares)[:, 0]),
        float(_mean(dollars, counts)),
        _pair(_ends(costs)[:, 0]),
    )


def _samples(rows: int, seed: int) -> list[Choices]:
    random = np.random.default_rng(seed)
    return [random.integers(0, rows, rows) for _ in range(BOOTSTRAPS)]


def _mean(values: Doubles, counts: Doubles) -> Doubles:
    """[..., n] to [...], by weight."""
    return np.asarray(np.average(values, axis=-1, weights=counts))


def _share(values: Doubles, best: Doubles, counts: Doubles) -> Doubles:
    """[..., n] of what the best single model has, [n], by weight."""
    return _mean(values, counts) / max(float(_mean(best, counts)), 1e-9)


def _ends(values: Doubles) -> Doubles:
    """[B, P] bootstrap values to [2, P] ends of the central 95 %."""
    return np.asarray(np.quantile(values, [0.025, 0.975], axis=0))


def _pair(values: Doubles) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def _round(value: float | Doubles) -> float:
    return float(f"{float(value):.5g}")
