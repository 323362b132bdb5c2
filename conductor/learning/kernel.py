"""Kernel ridge regression on what the models have in common: the head that ranks best on public outcomes.

Enters: standardised features `[n, F]`, scores `[n, M]` with NaN. Leaves: the tensors of a `kernel` head, and a
leave-one-out prediction of every prompt, which costs nothing here. Deterministic. Knows no files.

1. Missing scores are filled in: the model's mean in that source, plus the residual that the prompt shows with others.
2. The centred table is decomposed (SVD); the first few directions are latent needs: "hard for all", "hard for some".
3. Features are projected on their first principal axes (not whitened): 128 rank better than 256 or all 1,728.
4. Each latent is regressed on a Laplacian kernel, k(u, v) = exp(-|u - v| / width), with its own ridge, chosen by
   closed-form leave-one-out. A latent that predicts worse than its mean is dropped.
5. A model that did not answer every prompt gets a regression of its own beside that: of what is left over on its own
   prompts, where that predicts at all. So a log of one answer a prompt tells models apart, too.

Up to `MAX_LANDMARKS` prompts are the kernel's centres; more prompts still all count (Nystrom's approximation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onebeat.conductor.learning.solve import DEFAULT_OUTPUT_TOKENS

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
MAX_LANDMARKS = 3500
"""Centres: scoring a prompt reads them all (0.1 ms), and fitting decomposes their square (half a minute)."""
PART_ROWS = 2048
"""Rows worked on at once: with all centres 57 MB a temporary."""
RIDGES = np.geomspace(0.03, 300.0, 14)
LENGTH_RANK = 12
LEAST_OWN = 20
"""Prompts of its own from which a model gets a regression of its own."""
IMPUTED_SHARE = 0.9
"""Of a prompt's mean residual that is carried over to a model that did not answer it."""


@dataclass(frozen=True, slots=True)
class KernelFit:
    """A fitted kernel head and what it predicts for each prompt when that prompt is left out."""

    tensors: dict[str, Floats]
    left_out: Floats
    """[n, M] raw quality, a probability that may leave 0..1."""
    left_out_tokens: Floats
    """[n, M] output tokens."""


@dataclass(frozen=True, slots=True)
class Basis:
    """The kernel's centres and the spectral coordinates of every row in it."""

    axes: Floats
    """[D, F] principal axes."""
    landmarks: Floats
    """[P, D]"""
    width: float
    back: Doubles
    """[P, R] from spectral coordinates to weights on the centres."""
    values: Doubles
    """[R] eigenvalues of the weighted Gram matrix of `coordinates`."""
    coordinates: Doubles
    """[n, R] orthogonal columns: their Gram matrix is diag(values)."""
    root: Doubles
    """[n] square roots of the prompts' weights, with which the coordinates are multiplied."""


def fit_kernel(
    x: Floats,
    score: Floats,
    output_tokens: Floats,
    groups: Sequence[str],
    *,
    rank: int = 8,
    gamma: float = 1.0,
    dimensions: int = 128,
    keep: Sequence[int] | None = None,
    weight: Floats | None = None,
    seed: int = 0,
) -> KernelFit:
    """Fits quality and length. `keep` names the columns that stay in the head; the others are only learnt from.

    `weight` [n, M] counts per prompt in a regression: the mean over its outcomes, relative to that of all prompts.
    """
    columns = list(range(score.shape[1])) if keep is None else list(keep)
    basis = spectral_basis(x, gamma, dimensions, seed, _root_weights(score, weight))
    quality, quality_bias, left_out = _latent_ridge(basis, impute(score, groups, weight), rank)
    for column in columns:
        _add_own(basis, score[:, column], quality[:, column], left_out[:, column])
    counts = np.isfinite(score).astype(np.float64) if weight is None else weight
    known = np.isfinite(output_tokens) & (output_tokens > 0) & (counts > 0)
    logs = np.where(known, np.log(np.where(known, output_tokens, 1.0)), np.nan)
    if not known.any():
        logs = np.full(logs.shape, np.log(DEFAULT_OUTPUT_TOKENS))
    length, length_bias, left_out_logs = _latent_ridge(basis, impute(logs, groups, weight, clip=False), LENGTH_RANK)
    # Costs add up in tokens, not in their logarithms: match the sums.
    predicted = np.where(known, np.exp(left_out_logs) * counts, 0.0).sum(0)
    actual = np.where(known, np.nan_to_num(output_tokens) * counts, 0.0).sum(0)
    shift = np.log(np.where((predicted > 0) & (actual > 0), actual, 1.0) / np.where(predicted > 0, predicted, 1.0))
    shift = np.where((predicted > 0) & (actual > 0), shift, 0.0)
    tensors = {
        "hidden.weight": basis.axes,
        "hidden.bias": np.zeros(len(basis.axes)),
        "kernel.landmarks": basis.landmarks,
        "kernel.width": np.array([basis.width]),
        "quality.weight": quality[:, columns].T,
        "quality.bias": quality_bias[columns],
        "length.weight": length[:, columns].T,
        "length.bias": (length_bias + shift)[columns],
    }
    return KernelFit(
        {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()},
        left_out[:, columns].astype(np.float32),
        np.exp(np.minimum(left_out_logs + shift, 12.0))[:, columns].astype(np.float32),
    )


def impute(
    table: NDArray[np.floating], groups: Sequence[str], weight: Floats | None = None, *, clip: bool = True
) -> Doubles:
    """[n, M] without NaN: what is missing is the model's mean in that source plus most of the prompt's residual.

    `weight` [n, M]: how much each value counts, 1 by default.
    """
    values = table.astype(np.float64)
    known = np.isfinite(values)
    if not known.any():
        return np.zeros_like(values)
    counts = np.where(known, 1.0 if weight is None else weight, 0.0)
    names = np.asarray(groups)
    sources, place = np.unique(names, return_inverse=True)
    total, count = np.zeros((len(sources), values.shape[1])), np.zeros((len(sources), values.shape[1]))
    np.add.at(total, place, np.where(known, values, 0.0) * counts)
    np.add.at(count, place, counts)
    # A source with few outcomes of a model leans on what the two are worth apart, as if on ten outcomes.
    expected = ((total + 10.0 * _additive(total, count)) / (count + 10.0))[place]
    summed = counts.sum(1)
    residual = (np.where(known, values - expected, 0.0) * counts).sum(1) / np.where(summed > 0, summed, 1.0)
    guess = expected + IMPUTED_SHARE * residual[:, None]
    filled = np.where(known, values, np.clip(guess, 0.0, 1.0) if clip else guess)
    return np.asarray(filled, np.float64)


def _additive(total: Doubles, count: Doubles) -> Doubles:
    """[S, M] source effect plus model effect: a model that never met a hard source is expected to find it hard too."""
    overall = total.sum() / max(float(count.sum()), 1e-12)
    source, model = np.zeros((len(total), 1)), np.zeros((1, total.shape[1]))
    for _ in range(50):
        source = (total - count * (overall + model)).sum(1, keepdims=True) / (count.sum(1, keepdims=True) + 1.0)
        model = (total - count * (overall + source)).sum(0, keepdims=True) / (count.sum(0, keepdims=True) + 1.0)
    return np.asarray(overall + source + model, np.float64)


def _root_weights(score: Floats, weight: Floats | None) -> Doubles:
    known = np.isfinite(score)
    if weight is None:
        return np.ones(len(score))
    held = np.where(known, weight, 0.0).sum(1) / np.maximum(known.sum(1), 1)
    # A prompt without weight would have no leave-one-out prediction of its own.
    return np.asarray(np.sqrt(np.maximum(held / max(float(held.mean()), 1e-12), 1e-6)), np.float64)


def spectral_basis(x: Floats, gamma: float, dimensions: int, seed: int, root: Doubles) -> Basis:
    """Projects, chooses centres, evaluates the kernel and diagonalises it."""
    rows = len(x)
    random = np.random.default_rng(seed)
    # Rounded as they are stored, so that what is served is what was fitted.
    axes = principal_axes(x, dimensions, random).astype(np.float16).astype(np.float32)
    projected = np.asarray(x @ axes.T, np.float32)
    centres = np.arange(rows)
    if rows > MAX_LANDMARKS:
        centres = np.sort(random.choice(rows, MAX_LANDMARKS, replace=False))
    landmarks = np.ascontiguousarray(projected[centres].astype(np.float16).astype(np.float32))
    squared = _squared_distances(landmarks, landmarks)
    off_diagonal = squared[np.triu_indices(len(squared), 1)]
    typical = float(np.sqrt(np.median(off_diagonal))) if off_diagonal.size else 1.0
    width = float(np.float32(max(typical, 1e-6) / gamma))
    values, vectors = np.linalg.eigh(np.exp(np.sqrt(squared) / -width))
    held = values > 1e-8 * values[-1]
    values, vectors = values[held], vectors[:, held]
    if len(centres) == rows and np.ptp(root) < 1e-9:
        return Basis(axes, landmarks, width, vectors / np.sqrt(values), values, vectors * np.sqrt(values), root)
    whiten = vectors / np.sqrt(values)
    gram = np.zeros((whiten.shape[1], whiten.shape[1]))
    coordinates = np.empty((rows, whiten.shape[1]))
    for part in _slices(rows):
        distances = np.sqrt(_squared_distances(projected[part], landmarks))
        coordinates[part] = (np.exp(distances / -width) @ whiten) * root[part, None]
        gram += coordinates[part].T @ coordinates[part]
    inner_values, rotation = np.linalg.eigh(gram)
    for part in _slices(rows):  # In place: of many prompts the coordinates are most of what is in memory.
        coordinates[part] = coordinates[part] @ rotation
    return Basis(axes, landmarks, width, whiten @ rotation, np.maximum(inner_values, 0.0), coordinates, root)


def principal_axes(x: Floats, dimensions: int, random: np.random.Generator) -> Floats:
    """[D, F] the leading principal axes, by subspace iteration: exact enough where axes differ in strength at all."""
    wanted = min(dimensions, x.shape[1], len(x))
    basis = random.normal(size=(x.shape[1], min(wanted + 16, x.shape[1]))).astype(np.float32)
    for _ in range(6):
        basis, _ = np.linalg.qr(x.T @ (x @ basis))
    _, _, right = np.linalg.svd(x @ basis, full_matrices=False)
    return np.ascontiguousarray((right @ basis.T)[:wanted], np.float32)


def _latent_ridge(basis: Basis, table: Doubles, rank: int) -> tuple[Doubles, Doubles, Doubles]:
    """(weights on the centres [P, M], bias [M], leave-one-out prediction [n, M])"""
    mean = np.average(table, axis=0, weights=np.square(basis.root))
    left, strength, right = np.linalg.svd(basis.root[:, None] * (table - mean), full_matrices=False)
    weights = np.zeros((basis.landmarks.shape[0], table.shape[1]))
    left_out = np.tile(mean, (len(table), 1))
    for latent in range(min(rank, len(strength))):
        if strength[latent] <= 1e-9 * max(strength[0], 1e-9):
            break
        target = left[:, latent] * strength[latent]
        ridge, predicted = _best_ridge(basis.coordinates, basis.values, target)
        if ridge is None:
            continue
        coefficients = (basis.coordinates.T @ target) / (basis.values + ridge)
        weights += np.outer(basis.back @ coefficients, right[latent])
        left_out += np.outer(predicted / basis.root, right[latent])
    return weights, mean, left_out


def _add_own(basis: Basis, score: NDArray[np.floating], weights: Doubles, left_out: Doubles) -> None:
    """Adds to one column, [P] weights and [n] leave-one-out prediction, what its own prompts say beyond the latents.

    Nothing where every prompt has a score [n], for then nothing was carried over from other models, nor where few have.
    """
    rows = np.flatnonzero(np.isfinite(score))
    if len(rows) == len(score) or len(rows) < LEAST_OWN:
        return
    own = basis.coordinates[rows]
    target = basis.root[rows] * (score[rows].astype(np.float64) - left_out[rows])
    short = len(rows) <= own.shape[1]
    values, vectors = np.linalg.eigh(own @ own.T if short else own.T @ own)
    held = values > 1e-8 * values[-1]
    values, vectors = values[held], vectors[:, held]
    left = vectors if short else own @ (vectors / np.sqrt(values))
    ridge, predicted = _best_ridge(left * np.sqrt(values), values, target)
    better = np.square(target) - np.square(target - predicted)
    if ridge is None or better.mean() < better.std() / len(rows) ** 0.5:
        return
    solution = own.T @ (left @ ((left.T @ target) / (values + ridge)))
    weights += basis.back @ solution
    elsewhere = np.setdiff1d(np.arange(len(score)), rows)
    left_out[rows] += predicted / basis.root[rows]
    left_out[elsewhere] += (basis.coordinates[elsewhere] @ solution) / basis.root[elsewhere]


def _best_ridge(coordinates: Doubles, values: Doubles, target: Doubles) -> tuple[float | None, Doubles]:
    """The ridge with the least leave-one-out error, or None where none beats predicting the mean, 0.

    `coordinates` [n, R] are orthogonal: their Gram matrix is diag(values).
    """
    projected = coordinates.T @ target
    best, least, prediction = None, float(np.square(target).mean()), np.zeros_like(target)
    inverse = 1.0 / (values[:, None] + RIDGES)
    leverages = np.concatenate([np.square(coordinates[part]) @ inverse for part in _slices(len(target))])
    for number, ridge in enumerate(RIDGES):
        fitted = coordinates @ (projected / (values + ridge))
        leverage = np.minimum(leverages[:, number], 1.0 - 1e-6)
        left_out = target - (target - fitted) / (1.0 - leverage)
        error = float(np.square(target - left_out).mean())
        if error < least:
            best, least, prediction = float(ridge), error, left_out
    return best, prediction


def _slices(rows: int) -> list[slice]:
    return [slice(start, start + PART_ROWS) for start in range(0, rows, PART_ROWS)]


def _squared_distances(a: Floats, b: Floats) -> Doubles:
    first, second = a.astype(np.float64), b.astype(np.float64)
    products = first @ second.T
    squared = np.square(first).sum(1)[:, None] + np.square(second).sum(1)[None, :] - 2.0 * products
    return np.asarray(np.maximum(squared, 0.0), np.float64)
