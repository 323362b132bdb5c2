"""Heads that others trained, read as they were published: quality per model from one token's final state.

Enters: float32 features `[n, H]`, the state of one token after the tapped layer. Leaves: quality `[n, M]` in 0..1 and
output tokens `[n, M]`; foreign heads predict no lengths, so every column must state its mean. Knows no torch.

    sequence_classification  score.weight [M, H] of a `*ForSequenceClassification`; rightmost token that is no padding
    causal_classifier        RouteLLM's (arXiv:2406.18665): the language model's logits of five appended tokens grade
                             the weak model's answer from 1 to 5; win rate of the strong one = 1 - (p4 + p5)
    bare                     TRINITY's (arXiv:2512.04695): [n, H] over agents, optionally followed by three roles
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onebeat.engine.errors import FormatError, InputError, WeightError
from onebeat.engine.head import Array, logistic
from onebeat.engine.records import Column
from onebeat.engine.router_config import HeadConfig

FOREIGN_KINDS = ("sequence_classification", "causal_classifier", "bare")
GRADES = 5
GOOD_GRADES = 2
"""RouteLLM counts the two best of five grades as an answer that is good enough."""
ROLES = 3
"""TRINITY's thinker, worker and verifier: rows behind those of the agents, which choose no model."""


@dataclass(frozen=True, slots=True, eq=False)
class FinalNorm:
    """The backbone's last RMS norm."""

    weight: Array
    """[H]"""
    eps: float

    def apply(self, state: Array) -> Array:
        """[H] -> [H]"""
        mean_square = np.mean(np.square(state), dtype=np.float32)
        return np.asarray(state / np.sqrt(mean_square + np.float32(self.eps)) * self.weight, dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class ForeignHead:
    """One of `FOREIGN_KINDS`; build it with `foreign_head`, which checks every shape."""

    kind: str
    weight: Array
    """[rows, H]"""
    norm: FinalNorm | None
    """None where the tapped layer is not the last: its state is read as it is."""
    activation: str
    mean_output_tokens: Array
    """[M]"""
    padding_id: int | None = None
    skip_last_token: bool = False

    @property
    def features(self) -> int:
        """H."""
        return int(self.weight.shape[1])

    def trimmed(self, token_ids: list[int]) -> list[int]:
        """The ids up to the token whose state the head reads, so that "last" pooling finds it."""
        if self.skip_last_token and len(token_ids) > 1:
            return token_ids[:-1]
        end = len(token_ids)
        while end > 1 and token_ids[end - 1] == self.padding_id:
            end -= 1
        return token_ids[:end]

    def score(self, features: Array) -> tuple[Array, Array]:
        """Quality [n, M] and output tokens [n, M] of states [n, H], row by row: a row never depends on its company."""
        if features.ndim != 2 or features.shape[1] != self.features:
            raise InputError(f"features have shape {list(features.shape)}; this head takes [n, {self.features}].")
        models = self.mean_output_tokens.shape[0]
        quality = np.empty((features.shape[0], models), np.float32)
        for row, state in enumerate(features):
            logits = self.weight @ (state if self.norm is None else self.norm.apply(state))
            quality[row] = self._quality(logits, models)
        return quality, np.tile(self.mean_output_tokens, (features.shape[0], 1))

    def _quality(self, logits: Array, models: int) -> Array:
        if self.kind == "causal_classifier":
            weak_is_good_enough = np.float32(1.0) - win_rate(logits)
            # The strong model is the yardstick: the classifier grades the weak one's answers alone.
            return np.array([1.0, weak_is_good_enough], np.float32)
        logits = logits[:models]
        return softmax(logits) if self.activation == "softmax" else logistic(logits)


def win_rate(logits: Array) -> np.float32:
    """RouteLLM's win rate of the strong model from the logits [5] of the label tokens, worst grade first."""
    return np.float32(1.0 - softmax(logits)[-GOOD_GRADES:].sum())


def softmax(logits: Array) -> Array:
    """exp(x) / sum exp(x) over the last axis, without overflow."""
    exps = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exps / exps.sum(axis=-1, keepdims=True), dtype=np.float32)


def foreign_head(
    config: HeadConfig,
    columns: Sequence[Column],
    weight: NDArray[np.float32],
    *,
    name: str,
    hidden_size: int,
    norm: FinalNorm | None,
    padding_id: int | None = None,
    activation: str = "softmax",
) -> ForeignHead:
    """Checks `weight` (called `name` in errors) against columns and backbone.

    Raises `WeightError` for a shape that does not fit and `FormatError` for columns without a mean length. `activation`
    is what the checkpoint says where router.json says nothing.
    """
    models = len(columns)
    rows = {"sequence_classification": (models,), "causal_classifier": (GRADES,), "bare": (models, models + ROLES)}
    if weight.ndim != 2 or weight.shape[0] not in rows[config.kind] or weight.shape[1] != hidden_size:
        wanted = " or ".join(f"[{count}, {hidden_size}]" for count in rows[config.kind])
        raise WeightError(
            f"{name} has shape {list(weight.shape)} and {models} columns on this backbone need {wanted}; "
            "name one column per row, or use the backbone that the head was trained on."
        )
    if config.kind == "causal_classifier" and models != 2:
        raise FormatError(f"a causal classifier chooses between 2 models, strong then weak; router.json has {models}.")
    for column in columns:
        if column.mean_output_tokens is None:
            raise FormatError(
                f"column {column.name!r} has no mean_output_tokens, and a {config.kind} head predicts no lengths; "
                "add it to router.json."
            )
    return ForeignHead(
        config.kind,
        weight,
        norm,
        config.activation or activation,
        np.array([column.mean_output_tokens for column in columns], np.float32),
        padding_id if config.kind == "sequence_classification" else None,
        config.kind == "bare" and config.token == "penultimate",
    )
