"""The numerical core of fitting: what minimises the loss, for each kind of head.

Enters: standardised features `x [n, F]`, scores `[n, M]` in 0..1 with NaN where unknown, weights `[n, M]`. Leaves:
weight arrays as `engine.head` names them. Deterministic for a seed and a thread count. Knows nothing of prompts or
files.

Loss, per observed cell: cross-entropy with the (possibly fractional) score; plus `pairwise` times the logistic loss of
the difference between two models' logits on one prompt, wherever their scores differ. Routing depends on differences
between models, so that is worth fitting for by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Floats = NDArray[np.float32]
CHUNK_ROWS = 16_384
"""Rows whose gradient is taken at once: bounds memory when the features are a file of a million rows."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to fit a head of one kind; `fit.RECIPES` is what is tried by default."""

    kind: str = "linear"
    l2: float = 0.1
    """Penalty on each model's weights, in units of the mean loss."""
    shared_l2_share: float = 0.25
    """The direction that all models share is penalised this much less: it is estimated from all of them."""
    width: int = 32
    """Hidden units of an mlp, or rank of a low-rank or kernel head."""
    gamma: float = 1.0
    """A kernel's decay over the median distance of two prompts."""
    dimensions: int = 128
    """Principal axes that a kernel sees."""
    pairwise: float = 0.0
    """Weight of the between-models loss."""
    dropout: float = 0.3
    """Of the features, while an mlp or low-rank head learns."""
    learning_rate: float = 2e-3
    epochs: int = 40
    members: int = 4
    """Networks whose logits are averaged; they are stored as one wider network."""

    def name(self) -> str:
        """A short name for tables and provenance."""
        if self.kind == "linear":
            return f"linear l2={self.l2:g} pairwise={self.pairwise:g}"
        if self.kind == "kernel":
            return f"kernel rank={self.width} gamma={self.gamma:g} dimensions={self.dimensions}"
        return f"{self.kind} {self.members}x{self.width} l2={self.l2:g} pairwise={self.pairwise:g}"


def quality_tensors(x: Floats, score: Floats, weight: Floats, recipe: Recipe, seed: int) -> dict[str, Floats]:
    """Fits the quality part of a head: the tensors `quality.*` and, unless linear, `hidden.*`."""
    if recipe.kind == "linear":
        return _linear(x, score, weight, recipe)
    members = [_network(x, score, weight, recipe, seed * 1000 + member) for member in range(recipe.members)]
    joined = {
        "hidden.weight": np.concatenate([member["hidden.weight"] for member in members]),
        "hidden.bias": np.concatenate([member["hidden.bias"] for member in members]),
        "quality.weight": np.concatenate([member["quality.weight"] for member in members], axis=1) / len(members),
        "quality.bias": np.mean([member["quality.bias"] for member in members], axis=0),
    }
    if recipe.kind == "mlp":
        joined["quality.skip"] = np.mean([member["quality.skip"] for member in members], axis=0)
    return {name: np.ascontiguousarray(value, np.float32) for name, value in joined.items()}


def length_tensors(
    x: Floats, output_tokens: Floats, weight: Floats | None = None, l2: float = 0.3
) -> dict[str, Floats]:
    """Ridge regression of log output tokens [n, M] by weight; a model of unknown lengths gets the mean of the others.

    The bias is shifted so that predicted and actual tokens have the same sum: costs add up, logarithms do not.
    """
    models, features = output_tokens.shape[1], x.shape[1]
    slope, bias = np.zeros((models, features), np.float32), np.zeros(models, np.float32)
    known = np.isfinite(output_tokens) & (output_tokens > 0)
    counts = np.where(known, 1.0 if weight is None else weight, 0.0).astype(np.float64)
    anything = counts > 0
    fallback = float(np.log(DEFAULT_OUTPUT_TOKENS))
    if anything.any():
        fallback = float(np.average(np.log(output_tokens[anything]), weights=counts[anything]))
    for rows, columns in _alike(counts):
        if len(rows) < 2:
            bias[columns] = fallback
            continue
        by = counts[rows, columns[0]]
        states, tokens = x[rows].astype(np.float64), output_tokens[np.ix_(rows, columns)].astype(np.float64)
        centre, mean = (np.average(values, axis=0, weights=by) for values in (states, np.log(tokens)))
        root = np.sqrt(by)[:, None]
        solution = _ridge(root * (states - centre), root * (np.log(tokens) - mean), l2 * by.sum())
        offset = mean - centre @ solution
        offset += np.log(by @ tokens / (by @ np.exp(states @ solution + offset)))
        slope[columns], bias[columns] = solution.T, offset
    return {"length.weight": slope, "length.bias": bias}


DEFAULT_OUTPUT_TOKENS = 256.0
"""Assumed where no outcome says how long any answer was."""


def _ridge(states: NDArray[np.float64], targets: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    rows, features = states.shape
    if rows < features:
        dual = states @ states.T + penalty * np.eye(rows)
        return np.asarray(states.T @ np.linalg.solve(dual, targets))
    return np.asarray(np.linalg.solve(states.T @ states + penalty * np.eye(features), states.T @ targets))


def _alike(counts: NDArray[np.float64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The rows that count, and groups of columns in which the same rows count alike: one factorisation serves them."""
    patterns: dict[bytes, list[int]] = {}
    for column in range(counts.shape[1]):
        patterns.setdefault(counts[:, column].tobytes(), []).append(column)
    for columns in patterns.values():
        yield np.flatnonzero(counts[:, columns[0]]), np.asarray(columns, np.int64)


def loss(logits: Tensor, score: Tensor, weight: Tensor, pairwise: float) -> Tensor:
    """Sum over cells, so that chunks add up. `score` has 0 where `weight` is 0."""
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, score, reduction="none")
    total = (cross_entropy * weight).sum()
    if pairwise:
        total = total + pairwise * _between(logits, score, weight)
    return total


def _between(logits: Tensor, score: Tensor, weight: Tensor) -> Tensor:
    """Logistic loss of `z_a - z_b` where the scores differ, weighted by how much, averaged over the other models."""
    models = logits.shape[1]
    gap = score[:, :, None] - score[:, None, :]
    # Of the same dimension as a weight: a prompt whose outcomes weigh 2 counts as two prompts.
    both = (weight[:, :, None] * weight[:, None, :]).sqrt()
    margins = (logits[:, :, None] - logits[:, None, :]) * gap.sign()
    return (functional.softplus(-margins) * gap.abs() * both).sum() / max(models - 1, 1)


def _linear(x: Floats, score: Floats, weight: Floats, recipe: Recipe) -> dict[str, Floats]:
    """L-BFGS on `w_m = shared + own_m`: one shared direction, lightly penalised, and each model's deviation from it."""
    rows, features = x.shape
    models = score.shape[1]
    shared = torch.zeros(features, requires_grad=True)
    own = torch.zeros(models, features, requires_grad=True)
    bias = torch.tensor(_base_logits(score, weight), requires_grad=True)
    parameters = [shared, own, bias]
    total = float(weight.sum())
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=80, tolerance_grad=1e-6, tolerance_change=1e-8, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = torch.zeros(())
        for start in range(0, rows, CHUNK_ROWS):
            states, scores, weights = _chunk(x, score, weight, slice(start, start + CHUNK_ROWS))
            part = loss(states @ (own + shared).T + bias, scores, weights, recipe.pairwise) / total
            part.backward()  # type: ignore[no-untyped-call]
            value = value + part.detach()
        penalty = 0.5 * recipe.l2 * (own.square().sum() / models + recipe.shared_l2_share * shared.square().sum())
        penalty.backward()
        total_value: Tensor = value + penalty.detach()
        return total_value

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    held = (own + shared).detach().numpy()
    return {"quality.weight": np.ascontiguousarray(held, np.float32), "quality.bias": bias.detach().numpy().copy()}


def _network(x: Floats, score: Floats, weight: Floats, recipe: Recipe, seed: int) -> dict[str, Floats]:
    """AdamW on minibatches with a cosine schedule; features are dropped, so that no single one is relied upon."""
    generator = torch.Generator().manual_seed(seed)
    rows, features = x.shape
    models = score.shape[1]
    curved = recipe.kind == "mlp"
    inner = torch.empty(recipe.width, features).normal_(0.0, features**-0.5, generator=generator)
    inner_bias = torch.zeros(recipe.width)
    outer = torch.empty(models, recipe.width).normal_(0.0, 0.1 * recipe.width**-0.5, generator=generator)
    skip = torch.zeros(models, features)
    bias = torch.tensor(_base_logits(score, weight))
    decayed, plain = [inner, outer, skip] if curved else [inner, outer], [inner_bias, bias]
    for parameter in (*decayed, *plain):
        parameter.requires_grad_(True)
    groups = [{"params": decayed, "weight_decay": recipe.l2}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    batch = min(256, rows)
    steps = recipe.epochs * -(-rows // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    mean_weight = max(float(weight.sum()) / rows, 1e-12)
    for _ in range(recipe.epochs):
        order = torch.randperm(rows, generator=generator).numpy()
        for start in range(0, rows, batch):
            states, scores, weights = _chunk(x, score, weight, np.sort(order[start : start + batch]))
            kept = torch.empty_like(states).bernoulli_(1.0 - recipe.dropout, generator=generator)
            states = states * kept / (1.0 - recipe.dropout)
            hidden = states @ inner.T + inner_bias
            logits = (functional.gelu(hidden, approximate="tanh") if curved else hidden) @ outer.T + bias
            if curved:
                logits = logits + states @ skip.T
            optimiser.zero_grad()
            value = loss(logits, scores, weights, recipe.pairwise) / (len(states) * mean_weight)
            value.backward()
            optimiser.step()
            schedule.step()
    held = {"hidden.weight": inner, "hidden.bias": inner_bias, "quality.weight": outer, "quality.bias": bias}
    if curved:
        held["quality.skip"] = skip
    return {name: value.detach().numpy() for name, value in held.items()}


def _chunk(x: Floats, score: Floats, weight: Floats, rows: slice | NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    states = torch.from_numpy(np.ascontiguousarray(x[rows], np.float32))
    return states, torch.from_numpy(np.nan_to_num(score[rows])), torch.from_numpy(np.ascontiguousarray(weight[rows]))


def _base_logits(score: Floats, weight: Floats) -> Floats:
    """Each model's log odds over all its outcomes, pulled a little towards even so that "always right" stays finite."""
    right = (np.nan_to_num(score) * weight).sum(0) + 0.5
    wrong = ((1.0 - np.nan_to_num(score)) * weight).sum(0) + 0.5
    return np.asarray(np.log(right / wrong), np.float32)
