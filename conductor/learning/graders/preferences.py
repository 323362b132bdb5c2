"""Pairwise preferences to scores, by the model of Bradley and Terry (Biometrika, 1952).

Enters: comparisons of two models' answers to one prompt. Leaves: a score in 0..1 per (prompt, model): the chance that
its answer to that prompt is preferred to that of a model drawn at random from all compared. Knows no text of answers.

Strengths come in two layers: one per model over all prompts, and for each prompt a deviation from it, pulled towards 0
by a prior worth one comparison. So a single vote on a prompt moves its score, but does not settle it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onebeat.engine.errors import InputError

Doubles = NDArray[np.float64]
DEVIATION_PRIOR = 1.0
STRENGTH_PRIOR = 0.1
MIN_COMPARISONS = 5


@dataclass(frozen=True, slots=True)
class Comparison:
    """One judgement of two answers."""

    prompt: str
    first: str
    second: str
    preferred: float
    """1 the first, 0 the second, 0.5 a tie."""


@dataclass(frozen=True, slots=True)
class Preferences:
    """What the comparisons amount to."""

    models: tuple[str, ...]
    strength: Doubles
    """[M] on the logistic scale, mean 0."""
    scores: dict[tuple[str, str], float]
    """Per (prompt, model) that was compared."""


def score_preferences(comparisons: Sequence[Comparison]) -> Preferences:
    """Fits both layers. Raises `InputError` where some models were never compared, even indirectly, with the others."""
    if len(comparisons) < MIN_COMPARISONS:
        raise InputError(f"{len(comparisons)} comparisons are too few to score; give {MIN_COMPARISONS} or more.")
    for comparison in comparisons:
        if not 0.0 <= comparison.preferred <= 1.0 or comparison.first == comparison.second:
            raise InputError(
                f"a comparison of {comparison.first!r} with {comparison.second!r} says {comparison.preferred}; "
                "it must be of two models, with 1 (first), 0 (second) or 0.5 (tie)."
            )
    models = tuple(sorted({name for c in comparisons for name in (c.first, c.second)}))
    _check_connected(comparisons, models)
    place = {name: index for index, name in enumerate(models)}
    first = np.array([place[c.first] for c in comparisons])
    second = np.array([place[c.second] for c in comparisons])
    outcome = np.array([c.preferred for c in comparisons])
    strength = _newton(first, second, outcome, np.zeros(len(models)), STRENGTH_PRIOR)
    strength -= strength.mean()
    by_prompt: dict[str, list[int]] = defaultdict(list)
    for row, comparison in enumerate(comparisons):
        by_prompt[comparison.prompt].append(row)
    scores: dict[tuple[str, str], float] = {}
    for prompt, rows in by_prompt.items():
        here = _newton(first[rows], second[rows], outcome[rows], strength, DEVIATION_PRIOR)
        for index in {*first[rows].tolist(), *second[rows].tolist()}:
            others = np.delete(strength, index)
            scores[prompt, models[index]] = float((1 / (1 + np.exp(others - here[index]))).mean())
    return Preferences(models, strength, scores)


def _newton(
    first: NDArray[np.int64], second: NDArray[np.int64], outcome: Doubles, prior: Doubles, weight: float
) -> Doubles:
    """Strengths [M] that fit the outcomes, pulled towards `prior`. The objective is convex; steps are capped."""
    strength = prior.copy()
    for _ in range(100):
        chance = 1 / (1 + np.exp(strength[second] - strength[first]))
        gradient = weight * (strength - prior)
        np.add.at(gradient, first, chance - outcome)
        np.add.at(gradient, second, outcome - chance)
        information = chance * (1 - chance)
        curvature = weight * np.eye(len(strength))
        np.add.at(curvature, (first, first), information)
        np.add.at(curvature, (second, second), information)
        np.add.at(curvature, (first, second), -information)
        np.add.at(curvature, (second, first), -information)
        step = np.linalg.solve(curvature, gradient)
        strength = strength - step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    return strength


def linked_groups(comparisons: Sequence[Comparison]) -> list[frozenset[str]]:
    """Models that were compared with each other, if only through others; the group with most comparisons first."""
    neighbours: dict[str, set[str]] = defaultdict(set)
    for comparison in comparisons:
        neighbours[comparison.first].add(comparison.second)
        neighbours[comparison.second].add(comparison.first)
    groups: list[frozenset[str]] = []
    left = set(neighbours)
    while left:
        frontier = [min(left)]
        reached = set(frontier)
        while frontier:
            new = neighbours[frontier.pop()] - reached
            reached |= new
            frontier += new
        groups.append(frozenset(reached))
        left -= reached
    return sorted(groups, key=lambda group: -sum(comparison.first in group for comparison in comparisons))


def _check_connected(comparisons: Sequence[Comparison], models: tuple[str, ...]) -> None:
    reached = next(group for group in linked_groups(comparisons) if models[0] in group)
    apart = [name for name in models if name not in reached]
    if apart:
        raise InputError(
            f"{', '.join(apart)} were never compared with {models[0]}, not even through others, so they cannot "
            "be put on one scale; add comparisons that link them."
        )
