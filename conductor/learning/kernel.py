"""Kernel ridge regression on what the models have in common: the head that ranks best on public outcomes.

Enters: standardised features `[n, F]`, scores `[n, M]` with NaN. Leaves: the tensors of a `kernel` head, and a
leave-one-out prediction of every prompt, which costs nothing here. Deterministic. Knows no files.

1. Missing scores are filled in: the model's mean in that source, plus the residual that the prompt shows with others.
2. The centred table is decomposed (SVD); the first few directions are latent needs: "hard for all", "hard for some".
3. Each latent is regressed on a Laplacian kernel, k(x, z) = exp(-rate |x - z|), with its own ridge, chosen by
   closed-form leave-one-out. A latent that predicts worse than its mean is dropped.

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
MAX_LANDMARKS = 3000
"""Centres: scoring a prompt reads them all (7 MB at 576 features), and fitting decomposes their square."""
RIDGES = np.logspace(-3, 2.5, 23)
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

    landmarks: Floats
    """[P, F]"""
    rate: float
    back: Doubles
    """[P, R] from spectral coordinates to weights on the centres."""
    values: Doubles
    """[R] eigenvalues of the weighted Gram matrix of `coordinates`."""
    coordinates: Doubles
    """[n, R] orthogonal columns: their Gram matrix is diag(values)."""


def fit_kernel(
    x: Floats,
    score: Floats,
    output_tokens: Floats,
    groups: Sequence[str],
    *,
    rank: int = 8,
    gamma: float = 1.0,
    keep: Sequence[int] | None = None,
    seed: int = 0,
) -> KernelFit:
    """Fits quality and length. `keep` names the columns that stay in the head; the others are only learnt from."""
    columns = list(range(score.shape[1])) if keep is None else list(keep)
    basis = spectral_basis(x, gamma, seed)
    quality, quality_bias, left_out = _latent_ridge(basis, impute(score, groups), rank)
    known = np.isfinite(output_tokens) & (output_tokens > 0)
    logs = np.where(known, np.log(np.where(known, output_tokens, 1.0)), np.nan)
    if not known.any():
        logs = np.full(logs.shape, np.log(DEFAULT_OUTPUT_TOKENS))
    length, length_bias, left_out_logs = _latent_ridge(basis, impute(logs, groups, clip=False), rank)
    # Costs add up in tokens, not in their logarithms: match the sums.
    predicted = np.where(known, np.exp(left_out_logs), 0.0).sum(0)
    actual = np.where(known, np.nan_to_num(output_tokens), 0.0).sum(0)
    shift = np.log(np.where((predicted > 0) & (actual > 0), actual, 1.0) / np.where(predicted > 0, predicted, 1.0))
    shift = np.where((predicted > 0) & (actual > 0), shift, 0.0)
    tensors = {
        "kernel.landmarks": basis.landmarks,
        "kernel.rate": np.array([basis.rate]),
        "kernel.quality": quality[:, columns],
        "quality.bias": quality_bias[columns],
        "kernel.length": length[:, columns],
        "length.bias": (length_bias + shift)[columns],
    }
    return KernelFit(
        {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()},
        left_out[:, columns].astype(np.float32),
        np.exp(np.minimum(left_out_logs + shift, 12.0))[:, columns].astype(np.float32),
    )


def impute(table: NDArray[np.floating], groups: Sequence[str], *, clip: bool = True) -> Doubles:
    """[n, M] without NaN: what is missing is the model's mean in that source plus most of the prompt's residual."""
    values = table.astype(np.float64)
    known = np.isfinite(values)
    if not known.any():
        return np.zeros_like(values)
    overall = float(values[known].mean())
    count = known.sum(0)
    model_mean = (np.where(known, values, 0.0).sum(0) + overall) / (count + 1.0)
    expected = np.empty_like(values)
    names = np.asarray(groups)
    for name in np.unique(names):
        rows = names == name
        inside = known[rows].sum(0)
        # A source with few outcomes of a model leans on that model's overall mean, worth ten outcomes.
        expected[rows] = (np.where(known[rows], values[rows], 0.0).sum(0) + 10.0 * model_mean) / (inside + 10.0)
    residual = np.where(known, values - expected, 0.0).sum(1) / np.maximum(known.sum(1), 1)
    guess = expected + IMPUTED_SHARE * residual[:, None]
    filled = np.where(known, values, np.clip(guess, 0.0, 1.0) if clip else guess)
    return np.asarray(filled, np.float64)


def spectral_basis(x: Floats, gamma: float, seed: int) -> Basis:
    """Chooses centres, evaluates the kernel and diagonalises it."""
    rows = len(x)
    centres = np.arange(rows)
    if rows > MAX_LANDMARKS:
        centres = np.sort(np.random.default_rng(seed).choice(rows, MAX_LANDMARKS, replace=False))
    landmarks = np.ascontiguousarray(x[centres].astype(np.float16).astype(np.float32))
    squared = _squared_distances(landmarks, landmarks)
    off_diagonal = squared[~np.eye(len(squared), dtype=bool)]
    typical = float(np.sqrt(np.median(off_diagonal))) if off_diagonal.size else 1.0
    rate = float(np.float32(gamma / max(typical, 1e-6)))
    values, vectors = np.linalg.eigh(np.exp(-rate * np.sqrt(squared)))
    held = values > 1e-8 * values[-1]
    values, vectors = values[held], vectors[:, held]
    if len(centres) == rows:
        return Basis(landmarks, rate, vectors / np.sqrt(values), values, vectors * np.sqrt(values))
    whiten = vectors / np.sqrt(values)
    gram = np.zeros((whiten.shape[1], whiten.shape[1]))
    parts = []
    for start in range(0, rows, 8192):
        part = np.exp(-rate * np.sqrt(_squared_distances(x[start : start + 8192], landmarks))) @ whiten
        gram += part.T @ part
        parts.append(part)
    inner_values, rotation = np.linalg.eigh(gram)
    coordinates = np.concatenate(parts) @ rotation
    return Basis(landmarks, rate, whiten @ rotation, np.maximum(inner_values, 0.0), coordinates)


def _latent_ridge(basis: Basis, table: Doubles, rank: int) -> tuple[Doubles, Doubles, Doubles]:
    """(weights on the centres [P, M], bias [M], leave-one-out prediction [n, M])"""
    mean = table.mean(0)
    left, strength, right = np.linalg.svd(table - mean, full_matrices=False)
    weights = np.zeros((basis.landmarks.shape[0], table.shape[1]))
    left_out = np.tile(mean, (len(table), 1))
    for latent in range(min(rank, len(strength))):
        if strength[latent] <= 1e-9 * max(strength[0], 1e-9):
            break
        target = left[:, latent] * strength[latent]
        ridge, predicted = _best_ridge(basis, target)
        if ridge is None:
            continue
        coefficients = (basis.coordinates.T @ target) / (basis.values + ridge)
        weights += np.outer(basis.back @ coefficients, right[latent])
        left_out += np.outer(predicted, right[latent])
    return weights, mean, left_out


def _best_ridge(basis: Basis, target: Doubles) -> tuple[float | None, Doubles]:
    """The ridge with the least leave-one-out error, or None where none beats predicting the mean."""
    projected = basis.coordinates.T @ target
    squares = np.square(basis.coordinates)
    best, least, prediction = None, float(np.square(target).mean()), np.zeros_like(target)
    for ridge in RIDGES:
        fitted = basis.coordinates @ (projected / (basis.values + ridge))
        leverage = np.minimum(squares @ (1.0 / (basis.values + ridge)), 1.0 - 1e-6)
        left_out = target - (target - fitted) / (1.0 - leverage)
        error = float(np.square(target - left_out).mean())
        if error < least:
            best, least, prediction = float(ridge), error, left_out
    return best, prediction


def _squared_distances(a: Floats, b: Floats) -> Doubles:
    first, second = a.astype(np.float64), b.astype(np.float64)
    products = first @ second.T
    squared = np.square(first).sum(1)[:, None] + np.square(second).sum(1)[None, :] - 2.0 * products
    return np.asarray(np.maximum(squared, 0.0), np.float64)
