"""The head: from pooled states to predicted quality and answer length, one row of weights per model.

Enters: float32 features `[n, F]` (raw pooled states, all taps side by side). Leaves: quality `[n, M]` in 0..1 and
output tokens `[n, M]`. Knows no prompt, no price and no torch: a head is a few hundred thousand multiplications, and
numpy starts faster than a tensor library would.

    linear     z = W x + b                         x standardised by norm.mean and norm.scale
    low_rank   z = A (B x + c) + b                 the prompt's need (K numbers) times each model's ability
    mlp        z = A gelu(B x + c) + S x + b       S, the skip, is optional
    kernel     z = A k + b                         k_p = exp(-|B x + c - landmark_p| / width): a Laplacian kernel
    quality = calibration(z), by default the logistic function; output_tokens = exp(L x + l), a kernel's exp(L k + l)
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onebeat.engine.errors import FormatError, InputError, WeightError

KINDS = ("linear", "low_rank", "mlp", "kernel")
MAX_OUTPUT_TOKENS = 200_000.0
"""No answer is predicted longer than this: past the largest output window on the market a length is an artefact."""

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Calibration:
    """One column's map from logit to quality: piecewise linear between `logits` when given, else a logistic."""

    slope: float = 1.0
    offset: float = 0.0
    logits: Array | None = None
    quality: Array | None = None

    def apply(self, logits: Array) -> Array:
        """[n] logits to [n] quality."""
        if self.logits is not None and self.quality is not None:
            return np.interp(logits, self.logits, self.quality).astype(np.float32)
        return logistic(self.slope * logits + self.offset)


@dataclass(frozen=True, slots=True)
class Head:
    """Weights of one head; build it with `from_tensors`, which checks every shape."""

    kind: str
    columns: tuple[str, ...]
    mean: Array
    """[F]"""
    inverse_scale: Array
    """[F]"""
    quality_weight: Array
    """[M, F]; [M, K] behind a hidden layer; [M, P] behind a kernel's landmarks."""
    quality_bias: Array
    """[M]"""
    length_weight: Array
    """[M, F]; [M, P] for a kernel."""
    length_bias: Array
    """[M]"""
    hidden_weight: Array | None
    """[K, F]; None for a linear head."""
    hidden_bias: Array | None
    """[K]"""
    skip: Array | None
    """[M, F]; only an mlp may have one."""
    landmarks: Array | None
    """[P, K] projected states of the prompts that a kernel compares with; None for the other kinds."""
    landmark_squares: Array | None
    """[P] their squared lengths."""
    inverse_width: float
    """1 / the distance over which a kernel falls by a factor of e."""
    calibration: tuple[Calibration, ...]
    """[M]"""

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, NDArray[np.generic]],
        *,
        kind: str,
        columns: Sequence[str],
        features: int,
        calibration: Mapping[str, object] | None = None,
    ) -> Head:
        """Checks and adopts the tensors of `router_head.safetensors`.

        Raises `FormatError` for an unknown kind or calibration and `WeightError` for a missing, extra, misshaped or
        NaN-holding tensor, naming it.
        """
        if kind not in KINDS:
            raise FormatError(f"the head is of kind {kind!r}; this onebeat reads {', '.join(KINDS)}.")
        models = len(columns)
        width = features
        shapes: dict[str, tuple[int, ...]] = {"norm.mean": (features,), "norm.scale": (features,)}
        if kind != "linear":
            width = _rows_of(tensors, "hidden.weight", f"[K, {features}]")
            shapes |= {"hidden.weight": (width, features), "hidden.bias": (width,)}
        points, read = width, features
        if kind == "kernel":
            points = read = _rows_of(tensors, "kernel.landmarks", f"[P, {width}]")
            shapes |= {"kernel.landmarks": (points, width), "kernel.width": (1,)}
        shapes |= {"quality.weight": (models, points), "quality.bias": (models,)}
        shapes |= {"length.weight": (models, read), "length.bias": (models,)}
        if kind == "mlp" and "quality.skip" in tensors:
            shapes["quality.skip"] = (models, features)
        _check(tensors, shapes)
        held = {name: np.ascontiguousarray(tensors[name], dtype=np.float32) for name in shapes}
        for name in {"norm.scale", "kernel.width"} & held.keys():
            if not (held[name] > 0).all():
                raise WeightError(f"{name} of the head holds a value that is not positive; fit the head again.")
        return cls(
            kind,
            tuple(columns),
            held["norm.mean"],
            (1.0 / held["norm.scale"]).astype(np.float32),
            held["quality.weight"],
            held["quality.bias"],
            held["length.weight"],
            held["length.bias"],
            held.get("hidden.weight"),
            held.get("hidden.bias"),
            held.get("quality.skip"),
            held.get("kernel.landmarks"),
            _squares(held["kernel.landmarks"]) if kind == "kernel" else None,
            1.0 / float(held["kernel.width"][0]) if kind == "kernel" else 0.0,
            _calibrations(calibration, columns),
        )

    @property
    def features(self) -> int:
        """How many numbers a prompt's pooled state holds."""
        return int(self.mean.shape[0])

    def score(self, features: Array) -> tuple[Array, Array]:
        """Quality [n, M] and output tokens [n, M] of raw pooled states [n, F].

        Row by row, because a matrix product sums in another order for another n, and a prompt's score must not
        depend on what it was batched with. One row of the default head takes about 10 microseconds.
        """
        self._check_features(features)
        logits = np.empty((features.shape[0], len(self.columns)), np.float32)
        lengths = np.empty_like(logits)
        for row, state in enumerate(features):
            normed = (state - self.mean) * self.inverse_scale
            inner = normed
            if self.hidden_weight is not None and self.hidden_bias is not None:
                inner = self._activated(_single(self.hidden_weight @ normed + self.hidden_bias))
            logit = self.quality_weight @ inner + self.quality_bias
            logits[row] = logit if self.skip is None else logit + self.skip @ normed
            lengths[row] = self.length_weight @ (inner if self.kind == "kernel" else normed) + self.length_bias
        return self._finish(logits, lengths)

    def score_in_bulk(self, features: Array) -> tuple[Array, Array]:
        """As `score` within float32 rounding, by matrix products: for judging thousands of prompts at once."""
        logits, lengths = self.uncalibrated(features)
        return self._finish(logits, lengths)

    def uncalibrated(self, features: Array) -> tuple[Array, Array]:
        """In bulk: what calibration turns into quality [n, M], and log output tokens [n, M]."""
        self._check_features(features)
        logits = np.empty((features.shape[0], len(self.columns)), np.float32)
        lengths = np.empty_like(logits)
        # By parts: a kernel of 3,000 landmarks needs 12 KB a row.
        for start in range(0, len(features), 4096):
            part = slice(start, start + 4096)
            normed = (features[part] - self.mean) * self.inverse_scale
            inner = normed
            if self.hidden_weight is not None and self.hidden_bias is not None:
                inner = self._activated(_single(normed @ self.hidden_weight.T + self.hidden_bias))
            logits[part] = inner @ self.quality_weight.T + self.quality_bias
            if self.skip is not None:
                logits[part] += normed @ self.skip.T
            read = inner if self.kind == "kernel" else normed
            lengths[part] = read @ self.length_weight.T + self.length_bias
        return logits, lengths

    def _activated(self, hidden: Array) -> Array:
        """What the last layer reads of a hidden state [..., K]: itself, its gelu, or its nearness [..., P] to the
        landmarks."""
        if self.kind == "mlp":
            return gelu(hidden)
        if self.landmarks is None or self.landmark_squares is None:
            return hidden
        # |u - l|^2 by one product: subtracting every landmark from every row would need [n, P, K] numbers.
        squares = _squares(hidden)[..., None] + self.landmark_squares
        distances = np.sqrt(np.maximum(squares - 2.0 * _product(hidden, self.landmarks), 0.0))
        return _single(np.exp(-distances * self.inverse_width))

    def _finish(self, logits: Array, lengths: Array) -> tuple[Array, Array]:
        quality = np.empty_like(logits)
        for column, calibration in enumerate(self.calibration):
            quality[:, column] = calibration.apply(logits[:, column])
        return quality, np.exp(np.minimum(lengths, np.log(MAX_OUTPUT_TOKENS))).astype(np.float32)

    def _check_features(self, features: Array) -> None:
        if features.ndim != 2 or features.shape[1] != self.features:
            raise InputError(f"features have shape {list(features.shape)}; this head takes [n, {self.features}].")


def logistic(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow; each element depends on itself alone."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)), dtype=np.float32)


def gelu(x: Array) -> Array:
    """The tanh form of the Gaussian error linear unit (Hendrycks and Gimpel, arXiv 1606.08415)."""
    cubic = x + np.float32(0.044715) * x * x * x
    return np.asarray(0.5 * x * (1.0 + np.tanh(np.float32(0.7978845608) * cubic)), dtype=np.float32)


def _single(x: NDArray[np.generic]) -> Array:
    return np.asarray(x, dtype=np.float32)


def _squares(rows: Array) -> Array:
    return _single((rows * rows).sum(-1))


def _product(states: Array, rows: Array) -> Array:
    """states [K] or [n, K] times each of rows [P, K]: [P] or [n, P]."""
    return _single(rows @ states if states.ndim == 1 else states @ rows.T)


def _rows_of(tensors: Mapping[str, NDArray[np.generic]], name: str, shape: str) -> int:
    if name not in tensors or tensors[name].ndim == 0:
        raise WeightError(f"the head lacks {name} {shape}; fit it again.")
    return int(tensors[name].shape[0])


def _check(tensors: Mapping[str, NDArray[np.generic]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name in sorted(set(tensors) - set(shapes)):
        near = difflib.get_close_matches(name, list(shapes), 1)
        hint = f"did you mean {near[0]}" if near else f"expected are {', '.join(shapes)}"
        raise WeightError(f"the head has an unknown tensor {name}; {hint}?")
    for name, shape in shapes.items():
        if name not in tensors:
            raise WeightError(f"the head lacks {name} {list(shape)}; fit it again.")
        if tensors[name].shape != shape:
            raise WeightError(
                f"{name} of the head has shape {list(tensors[name].shape)}, but the columns and the backbone need "
                f"{list(shape)}; was it fitted for another backbone, other taps or other columns?"
            )
        if not np.isfinite(np.asarray(tensors[name], dtype=np.float32)).all():
            raise WeightError(f"{name} of the head holds a value that is not finite; fit it again.")


def _calibrations(calibration: Mapping[str, object] | None, columns: Sequence[str]) -> tuple[Calibration, ...]:
    held = (calibration or {}).get("columns", {})
    if not isinstance(held, Mapping):
        raise FormatError(f"calibration.columns is a {type(held).__name__}; it must map column names to calibrations.")
    for name in held:
        if name not in columns:
            raise FormatError(f"calibration names column {name!r}, but the columns are {', '.join(columns)}.")
    return tuple(_calibration(name, held.get(name)) for name in columns)


def _calibration(name: str, held: object) -> Calibration:
    if held is None:
        return Calibration()
    kind = held.get("kind") if isinstance(held, Mapping) else None
    try:
        if isinstance(held, Mapping) and kind == "platt":
            return Calibration(float(held["slope"]), float(held["offset"]))
        if isinstance(held, Mapping) and kind == "isotonic":
            logits = np.asarray(held["logits"], np.float32)
            quality = np.asarray(held["quality"], np.float32)
            ascending = logits.ndim == 1 and logits.shape == quality.shape and logits.size > 0
            if ascending and (np.diff(logits) > 0).all() and (np.diff(quality) >= 0).all():
                return Calibration(logits=logits, quality=quality)
            raise FormatError(f"the isotonic calibration of column {name!r} is not an ascending list of points.")
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"the calibration of column {name!r} cannot be read ({error!r}); fit it again.") from None
    raise FormatError(f"the calibration of column {name!r} is of kind {kind!r}; this onebeat reads platt, isotonic.")
