"""The records that travel through the engine: what a column is, what scores are, where the time went.

Enters: nothing. Leaves: frozen records. Knows no tensor library but numpy, and no provider.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Message = dict[str, object]
"""One chat message: `{"role": ..., "content": ...}` as OpenAI's chat completions have it."""

Prompt = str | list[Message]


@dataclass(frozen=True, slots=True)
class Column:
    """One model that the head scores: a row of `quality.weight`, its list price, and how it came to be fitted."""

    name: str
    input_usd_per_million: float
    output_usd_per_million: float
    mean_quality: float | None = None
    """Mean score over the fitting data: the prior that a policy falls back to when there is no score in time."""
    mean_output_tokens: float | None = None
    fitted_on: str | None = None
    fitted_at: str | None = None
    """ISO date."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Where one prompt's time went. All in milliseconds but the two counts."""

    tokenize_ms: float = 0.0
    queued_ms: float = 0.0
    compute_ms: float = 0.0
    total_ms: float = 0.0
    computed_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Scores:
    """What the router predicts for `n` prompts and `M` models."""

    models: tuple[str, ...]
    """[M] column names."""
    quality: NDArray[np.float32]
    """[n, M] predicted score in 0..1."""
    output_tokens: NDArray[np.float32]
    """[n, M] predicted length of the answer."""
    prompt_tokens: NDArray[np.int64]
    """[n] tokens of each prompt before any cut, by the router's tokenizer."""
    cut_tokens: NDArray[np.int64]
    """[n] tokens left out of the middle of each prompt to keep the router's budget; 0 where nothing was cut."""
    timing: tuple[Timing, ...] = ()
    estimated: tuple[bool, ...] = ()
    """[n] whether both counts are estimates, because a prompt was too long to be tokenised whole; () means none is."""
    features: NDArray[np.float32] | None = field(default=None, repr=False)
    """[n, H] pooled and normed states, for drift statistics and for fitting; None unless asked for."""
