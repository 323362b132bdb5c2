"""The bootstrap over prompts, without going through the dial again for every resample.

Enters: judged prompts. Leaves: curves and figures of every resample. Knows no files.

A resample of n prompts is a row of n counts. What a router chose for a prompt, and what that scored and cost, is the
same in every resample, so that all resampled curves are one product of counts and choices. It goes by blocks of prompts
and of resamples: 50,000 prompts take some tens of megabytes. The draws are those of `metrics.bootstrap`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebeat.conductor.learning.curves import Curve, Doubles, Judged, choose, single_means, trace
from onebeat.conductor.learning.metrics import LEAST_PAIRS

PROMPTS_AT_ONCE, SAMPLES_AT_ONCE = 4096, 64


@dataclass(frozen=True, slots=True)
class Resamples:
    """`count` resamples of `prompts` prompts, the same whenever they are gone through."""

    prompts: int
    count: int
    seed: int = 0

    def blocks(self) -> Iterator[Doubles]:
        """[b, n] how often each resample holds each prompt, some resamples at a time."""
        random, left, n = np.random.default_rng(self.seed), self.count, self.prompts
        while left > 0:
            size = min(left, SAMPLES_AT_ONCE)
            counts = [np.bincount(random.integers(0, n, n), minlength=n) for _ in range(size)]
            yield np.stack(counts).astype(np.float64)
            left -= size


@dataclass(frozen=True, slots=True)
class Traced:
    """A policy's curve, and its quality and cost in every resample."""

    curve: Curve
    quality: Doubles
    """[B, P]"""
    cost_usd: Doubles
    """[B, P]"""

    def curves(self) -> Iterator[Curve]:
        """The curve of each resample; its shares are those of all prompts."""
        for quality, cost in zip(self.quality, self.cost_usd, strict=True):
            yield replace(self.curve, quality=quality, cost_usd=cost)


def traced(judged: Judged, reference_cost_usd: float, resamples: Resamples) -> Traced:
    """A router's curve over the whole dial, resampled."""
    curve = trace(judged, reference_cost_usd)
    chosen = np.stack(
        [
            choose(judged.quality, judged.predicted_cost_usd, float(tradeoff), reference_cost_usd).astype(np.int32)
            for tradeoff in curve.tradeoff
        ]
    )
    return Traced(curve, *_means(judged, chosen, resamples))


def alone(judged: Judged, resamples: Resamples) -> Traced:
    """Every model by itself, as the points of one "curve", in the order of the columns."""
    models = len(judged.models)
    chosen = np.repeat(np.arange(models, dtype=np.int32)[:, None], len(judged.score), 1)
    curve = Curve(np.full(models, np.nan), *single_means(judged), np.eye(models))
    return Traced(curve, *_means(judged, chosen, resamples))


def _means(judged: Judged, chosen: NDArray[np.int32], resamples: Resamples) -> tuple[Doubles, Doubles]:
    """[B, P] mean score and mean cost of what is `chosen` [P, n]."""
    quality: list[Doubles] = []
    cost: list[Doubles] = []
    for drawn in resamples.blocks():
        counts = drawn * judged.counts
        totals = np.zeros((2, len(counts), len(chosen)))
        for start in range(0, chosen.shape[1], PROMPTS_AT_ONCE):
            some = slice(start, start + PROMPTS_AT_ONCE)
            columns = chosen[:, some]
            rows = np.arange(start, start + columns.shape[1])
            totals[0] += counts[:, some] @ judged.score[rows, columns].T
            totals[1] += counts[:, some] @ judged.cost_usd[rows, columns].T
        totals /= counts.sum(1)[:, None]
        quality.append(totals[0])
        cost.append(totals[1])
    empty = np.zeros((0, len(chosen)))
    return np.concatenate([empty, *quality]), np.concatenate([empty, *cost])


def auc_resampled(
    predicted: NDArray[Any],
    score: NDArray[Any],
    groups: Sequence[str] | None,
    resamples: Resamples,
    weight: NDArray[Any] | None = None,
) -> Doubles:
    """[B] `metrics.auc_overall`, or with `groups` `metrics.auc_within`, of every resample; NaN where undefined."""
    names = np.zeros(len(score), np.int64) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    weight = np.ones(score.shape) if weight is None else weight
    order = np.argsort(names, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(names[order])) + 1)
    ranked = [
        column
        for rows in members
        for model in range(score.shape[1])
        if (column := _Ranked.of(rows, predicted[rows, model], score[rows, model], weight[rows, model])) is not None
    ]
    held: list[Doubles] = [np.zeros(0)]
    for counts in resamples.blocks():
        total, defined = np.zeros(len(counts)), np.zeros(len(counts))
        for column in ranked:
            value = column.auc(counts)
            total += np.nan_to_num(value)
            defined += np.isfinite(value)
        held.append(np.where(defined > 0, total / np.maximum(defined, 1), np.nan))
    return np.concatenate(held)


@dataclass(frozen=True, slots=True)
class _Ranked:
    """One model's prompts in the order of their predictions."""

    rows: NDArray[np.int64]
    """[k]"""
    score: Doubles
    """[k]"""
    weight: Doubles
    """[k] of one draw."""
    starts: NDArray[np.int64]
    """Where each run of equal predictions starts."""

    @classmethod
    def of(
        cls, rows: NDArray[np.int64], predicted: NDArray[Any], score: NDArray[Any], weight: NDArray[Any]
    ) -> _Ranked | None:
        """None where no resample can hold both classes."""
        known = np.isfinite(score) & (weight > 0)
        kept = score[known].astype(np.float64)
        if not len(kept) or kept.max() <= 0.0 or kept.min() >= 1.0:
            return None
        values = predicted[known].astype(np.float64)
        order = np.argsort(values, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0])
        return cls(rows[known][order], kept[order], weight[known][order].astype(np.float64), starts)

    def auc(self, counts: Doubles) -> Doubles:
        """[b] as `metrics.auc`, a prompt that was drawn twice being two."""
        drawn = counts[:, self.rows]
        weight = drawn * self.weight
        successes = np.add.reduceat(weight * self.score, self.starts, axis=1)
        failures = np.add.reduceat(weight * (1.0 - self.score), self.starts, axis=1)
        itself = drawn @ (self.weight * np.minimum(self.weight, 1.0) * self.score * (1.0 - self.score))
        pairs = successes.sum(1) * failures.sum(1) - itself
        below = np.cumsum(failures, axis=1) - failures
        won = (successes * (below + 0.5 * failures)).sum(1) - 0.5 * itself
        defined = pairs > LEAST_PAIRS * np.square(weight.sum(1))
        return np.where(defined, won / np.where(defined, pairs, 1.0), np.nan)


def calibration_resampled(
    predicted: NDArray[Any],
    score: NDArray[Any],
    resamples: Resamples,
    bins: int = 15,
    weight: NDArray[Any] | None = None,
) -> Doubles:
    """[B] `metrics.calibration_error` of every resample; NaN where it holds no outcome."""
    weight = np.ones(score.shape) if weight is None else weight
    rows, columns = np.nonzero(np.isfinite(score) & (weight > 0))
    order = np.argsort(predicted[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    quality, by = predicted[rows, columns].astype(np.float64), weight[rows, columns].astype(np.float64)
    starts = np.flatnonzero(np.r_[True, np.diff(quality) != 0])
    gaps = quality - score[rows, columns]
    held: list[float] = []
    for counts in resamples.blocks():
        for drawn in counts:
            counted = drawn[rows] * by
            mass = np.add.reduceat(counted, starts)
            if not mass.any():
                held.append(np.nan)
                continue
            below = np.r_[0.0, np.cumsum(mass)], np.r_[0.0, np.cumsum(np.add.reduceat(counted * gaps, starts))]
            edges = np.linspace(0.0, below[0][-1], min(bins, int((mass > 0).sum())) + 1)
            held.append(float(np.abs(np.diff(np.interp(edges, *below))).sum() / below[0][-1]))
    return np.asarray(held)


def interval(values: Doubles) -> list[float] | None:
    """The central 95 % of a figure's values; None where it is undefined in half of the resamples or more."""
    known = values[np.isfinite(values)]
    if len(known) <= len(values) // 2:
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return [float(low), float(high)]


def spread_around(figure: float, values: Doubles) -> list[float] | None:
    """As `interval`, around the figure, and not below 0: for one that resampling itself raises, as a sum of gaps."""
    ends = interval(values)
    if ends is None:
        return None
    excess = float(np.nanmean(values)) - figure
    return [max(0.0, min(ends[0] - excess, figure)), max(ends[1] - excess, figure)]


def reached_interval(values: Doubles) -> list[float | None] | None:
    """The same where a figure may be infinite, "never": an end that is, is None. By nearest rank; NaN is undefined."""
    known = values[~np.isnan(values)]
    if len(known) <= len(values) // 2:
        return None
    ends = np.quantile(known, [0.025, 0.975], method="nearest")
    return [float(end) if np.isfinite(end) else None for end in ends]
