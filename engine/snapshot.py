"""What the live engine says about itself, as plain numbers.

Enters: counts and durations from the engine. Leaves: a frozen `EngineSnapshot`. Knows no metrics system: the conductor
turns it into Prometheus.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from onebeat.engine.records import Timing

MS_BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
TOKEN_BOUNDS = (16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram since start."""

    bounds: tuple[float, ...]
    """Upper bounds, inclusive; one more bucket above the last."""
    counts: tuple[int, ...]
    """[len(bounds) + 1], not cumulative."""
    total: float
    """Sum of all values."""

    @property
    def count(self) -> int:
        """How many values."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """Counts are since start; every accepted prompt ends in one of answered, failed, cancelled, deadline_misses."""

    ready: bool
    healthy: bool
    restarts: int
    waiting_prompts: int
    """Accepted and not yet answered."""
    queue_prompts: int
    """At most this many may wait."""
    waiting_tokens: int
    accepted: int
    answered: int
    failed: int
    """By an error of their own, a crash, or a stop."""
    cancelled: int
    deadline_misses: int
    late: int
    """Of those answered: after their deadline, though it seemed possible to meet it."""
    overloaded: int
    """Refused at the door; not accepted."""
    steps: int
    computed_tokens: int
    cached_tokens: int
    """Tokens that the prefix cache saved."""
    evicted_blocks: int
    cache_blocks_in_use: int
    cache_blocks_kept: int
    ms_per_token: float | None
    step_tokens: Distribution
    tokenize_ms: Distribution
    queued_ms: Distribution
    compute_ms: Distribution
    total_ms: Distribution


class Tally:
    """A histogram being filled, by one thread."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """One value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def read(self) -> Distribution:
        """As it stands."""
        return Distribution(self._bounds, tuple(self._counts), self._total)


class Meter:
    """The engine's running counts. The engine's lock guards the endings; its worker alone writes the rest."""

    def __init__(self) -> None:
        self.accepted = self.answered = self.failed = self.cancelled = 0
        self.deadline_misses = self.late = self.overloaded = self.restarts = 0
        self.steps = self.computed_tokens = self.cached_tokens = 0
        self.step_tokens = Tally(TOKEN_BOUNDS)
        self.tokenize_ms, self.queued_ms, self.compute_ms, self.total_ms = (Tally(MS_BOUNDS) for _ in range(4))

    def step(self, tokens: int) -> None:
        """A step was launched."""
        self.steps += 1
        self.computed_tokens += tokens
        self.step_tokens.add(tokens)

    def answer(self, timing: Timing) -> None:
        """A prompt was answered."""
        self.cached_tokens += timing.cached_tokens
        self.tokenize_ms.add(timing.tokenize_ms)
        self.queued_ms.add(timing.queued_ms)
        self.compute_ms.add(timing.compute_ms)
        self.total_ms.add(timing.total_ms)
