"""Whether live prompts are still of the kind the head was fitted on, and if not, what changed.

Enters: at fitting time, pooled features and predictions; live, those of each watched prompt. Leaves: `baseline` for
router.json, and a report. numpy only; an observation costs some microseconds. Knows no prompts and keeps none.

The statistic is a linear-time maximum mean discrepancy (Gretton et al., JMLR 2012) in random Fourier features (Rahimi
and Recht, NIPS 2007) of a fixed random projection: with phi a vector of D cosines, the squared distance between the
means of phi over a window of live prompts and over the fitting prompts. Added to phi are the head's own outputs: mean
quality, spread of quality between models, log answer length.

The threshold comes from the fitting prompts themselves: split in two at random, again and again, a window drawn from
one half is held against the other half; the quantile of that at the stated false-alarm rate per window is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebeat.engine.errors import FormatError

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
PROJECTED, COSINES, WINDOW = 16, 64, 256
FALSE_ALARM_RATE = 0.001
"""Per full window without drift: with windows of 256 watched prompts, one false alarm in 256,000 prompts."""
DRAWS = 4000
LEAST_SCALE = 0.01
"""Of an output that hardly varies (every answer was of one length): a hundredth of quality, one per cent of length."""
MOST_PROMPTS = 8192
"""What is usual is drawn from so many fitting prompts at most: more would change it less than it varies."""
NAMES = ("prompt features", "predicted quality", "difference between models", "answer length")


def baseline(features: Floats, quality: Floats, output_tokens: Floats, *, seed: int = 0) -> dict[str, Any]:
    """What router.json keeps under `drift`. Empty for fewer than 64 prompts: too few to say what is usual."""
    if len(features) < 64:
        return {}
    random = np.random.default_rng(seed)
    if len(features) > MOST_PROMPTS:
        rows = np.sort(random.choice(len(features), MOST_PROMPTS, replace=False))
        features, quality, output_tokens = features[rows], quality[rows], output_tokens[rows]
    window = min(WINDOW, len(features) // 2)
    centre, scale = _location(features)
    projection_seed = int(random.integers(2**31))
    projected = _project(features, centre, scale, projection_seed)
    outputs = _outputs(quality, output_tokens)
    bandwidth = _median_distance(projected, random)
    held = _Embedding(projection_seed, bandwidth, outputs.mean(0), np.maximum(outputs.std(0), LEAST_SCALE))
    embedded = held.embed(projected, outputs)
    half = len(embedded) // 2
    nulls = np.empty((DRAWS, len(NAMES)))
    for draw in range(DRAWS):
        # Split anew each time: what the fitting prompts themselves miss of their kind is part of the usual distance.
        order = random.permutation(len(embedded))
        sample = order[half:][random.integers(0, len(order) - half, window)]
        nulls[draw] = _parts(embedded[sample].mean(0) - embedded[order[:half]].mean(0))
    # A tenth of the variance that a mean over a window has: below that there is rounding, and no usual size.
    spread = np.maximum(np.quantile(nulls, 0.95, axis=0), 0.1 / window)
    # One number over the four parts, each in units of its own usual size, so that none drowns the others.
    largest = (nulls / spread).max(1)
    return {
        "window": window,
        "false_alarm_rate": FALSE_ALARM_RATE,
        "threshold": _round(np.quantile(largest, 1.0 - FALSE_ALARM_RATE)),
        "usual": [_round(value) for value in spread],
        "mean": [_round(value) for value in embedded.mean(0)],
        "centre": [_round(value) for value in centre],
        "scale": _round(scale),
        "projection_seed": projection_seed,
        "bandwidth": _round(bandwidth),
        "outputs_mean": [_round(value) for value in outputs.mean(0)],
        "outputs_scale": [_round(value) for value in held.outputs_scale],
    }


def features_only(drift: Mapping[str, Any]) -> dict[str, Any]:
    """The same baseline for a head whose columns changed: what it says of their quality and length holds no longer."""
    return {**drift, "watched": [NAMES[0]]} if drift else {}


class DriftWatch:
    """Watches a stream of live prompts against a baseline. Not thread-safe: one watch per event loop."""

    def __init__(self, drift: Mapping[str, Any], columns: Sequence[str] = ()) -> None:
        """`drift` is that of router.json; an empty one gives a watch that never reports. Raises `FormatError`."""
        self.columns = tuple(columns)
        self._window = 0
        if not drift:
            return
        try:
            self._window = int(drift["window"])
            self._threshold = float(drift["threshold"])
            self._usual = np.asarray(drift["usual"], np.float64)
            self._mean = np.asarray(drift["mean"], np.float64)
            self._centre = np.asarray(drift["centre"], np.float64)
            self._scale = float(drift["scale"])
            self._seed = int(drift["projection_seed"])
            self._rate = float(drift["false_alarm_rate"])
            self._watched = np.array([name in drift.get("watched", NAMES) for name in NAMES])
            self._embedding = _Embedding(
                self._seed,
                float(drift["bandwidth"]),
                np.asarray(drift["outputs_mean"], np.float64),
                np.asarray(drift["outputs_scale"], np.float64),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"the drift statistics of router.json cannot be read ({error!r}); fit again.") from None
        self._directions = _directions(len(self._centre), self._seed)
        self._ring = np.zeros((self._window, len(self._mean)))
        self._observed = 0

    @property
    def watching(self) -> bool:
        """Whether there is a baseline to hold prompts against."""
        return self._window > 0

    def observe(self, features: Floats, quality: Floats, output_tokens: Floats) -> None:
        """One prompt or several: features [n, F], quality [n, M], output tokens [n, M]."""
        if not self.watching:
            return
        projected = ((np.atleast_2d(features) - self._centre) / self._scale) @ self._directions
        embedded = self._embedding.embed(projected, _outputs(np.atleast_2d(quality), np.atleast_2d(output_tokens)))
        for row in embedded:
            self._ring[self._observed % self._window] = row
            self._observed += 1

    def report(self) -> dict[str, Any]:
        """Whether the last window drifted. `changed` names the parts beyond their usual size, the largest first."""
        if not self.watching or self._observed < self._window:
            needed = self._window if self.watching else None
            observed = self._observed if self.watching else 0
            return {
                "drifted": False,
                "statistic": None,
                "threshold": None,
                "n": observed,
                "needed": needed,
                "changed": [],
            }
        gap = self._ring.mean(0) - self._mean
        parts = np.where(self._watched, _parts(gap) / self._usual, 0.0)
        statistic = float(parts.max())
        changed = [NAMES[part] for part in np.argsort(-parts) if parts[part] > self._threshold]
        outputs = gap[COSINES:] * self._embedding.outputs_scale
        return {
            "drifted": statistic > self._threshold,
            "statistic": statistic,
            "threshold": self._threshold,
            "n": self._observed,
            "needed": self._window,
            "false_alarm_rate": self._rate,
            "changed": changed,
            "quality_shift": float(outputs[0]) if self._watched[1] else None,
            "answer_length_ratio": float(np.exp(outputs[2])) if self._watched[3] else None,
        }


class _Embedding:
    """phi: cosines of the projected features beside the standardised outputs of the head."""

    def __init__(self, seed: int, bandwidth: float, outputs_mean: Doubles, outputs_scale: Doubles) -> None:
        random = np.random.default_rng(seed + 1)
        self.frequencies = random.normal(size=(PROJECTED, COSINES)) / bandwidth
        self.phases = random.uniform(0.0, 2.0 * np.pi, COSINES)
        self.outputs_mean, self.outputs_scale = outputs_mean, outputs_scale

    def embed(self, projected: Doubles, outputs: Doubles) -> Doubles:
        """[n, PROJECTED] and [n, 3] to [n, COSINES + 3]"""
        cosines = np.sqrt(2.0 / COSINES) * np.cos(projected @ self.frequencies + self.phases)
        return np.concatenate([cosines, (outputs - self.outputs_mean) / self.outputs_scale], axis=1)


def _parts(gap: Doubles) -> Doubles:
    """The four statistics of a difference of means, as `NAMES` has them."""
    return np.concatenate([[np.square(gap[:COSINES]).sum()], np.square(gap[COSINES:])])


def _outputs(quality: Floats, output_tokens: Floats) -> Doubles:
    mean, spread = quality.mean(1), quality.std(1)
    return np.stack([mean, spread, np.log(np.maximum(output_tokens, 1.0)).mean(1)], axis=1).astype(np.float64)


def _location(features: Floats) -> tuple[Doubles, float]:
    centre = features.mean(0, dtype=np.float64)
    return centre, float(max(np.sqrt(np.square(features - centre).sum(1).mean() / features.shape[1]), 1e-9))


def _directions(features: int, seed: int) -> Doubles:
    return np.asarray(np.random.default_rng(seed).normal(size=(features, PROJECTED)) / np.sqrt(features))


def _project(features: Floats, centre: Doubles, scale: float, seed: int) -> Doubles:
    return np.asarray(((features - centre) / scale) @ _directions(features.shape[1], seed))


def _median_distance(projected: Doubles, random: np.random.Generator) -> float:
    first, second = random.integers(0, len(projected), (2, 2000))
    distances = np.linalg.norm(projected[first] - projected[second], axis=1)
    return float(max(np.median(distances[distances > 0]) if (distances > 0).any() else 1.0, 1e-9))


def _round(value: float) -> float:
    return float(f"{float(value):.7g}")
