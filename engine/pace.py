"""How long a step takes: what warming up measured, refined by every step since.

Enters: the cost of steps and the milliseconds they took; the time, given by the caller. Leaves: the least that a
prompt's work can be expected to take. Pure; knows no prompt and no clock.

A step takes a fixed part and so much a cost token, and both are followed by least squares whose weights fade. Three
things keep the estimate from refusing work that could be done. One step, however long the machine stood still in it,
counts as at most a few times what was expected. What cannot be met is found by an optimistic reading. And an estimate
that nothing confirms fades: an engine that refuses everything computes nothing, and would never learn better.
"""

from __future__ import annotations

import math

KEEP = 0.95
"""What is left of a step's weight after the next: a change of load is followed within some tens of steps."""
KNOWN_COST, KNOWN_WEIGHT = 100.0, 5.0
"""What is known at first counts as so many steps of one cost token and as many of this cost."""
MOST_OF_EXPECTED = 3.0
"""A step counts as at most this many times what was expected of it."""
OPTIMISM = 0.7
"""Machines with neighbours change their speed by a quarter within seconds."""
HALF_LIFE_MS = 500.0
"""Without a step an estimate halves in this time."""


class Pace:
    """Milliseconds of steps, by cost. Not thread-safe."""

    def __init__(self, step_ms: float = 0.0, ms_per_token: float | None = None) -> None:
        """What is known so far; None: nothing."""
        self._step_ms, self._ms_per_token = step_ms, ms_per_token
        self._last_ms: float | None = None
        self._weight = self._cost = self._took = self._cost_squared = self._cost_took = 0.0
        if ms_per_token is not None:
            for cost in (1.0, KNOWN_COST):
                self._count(cost, self.expected_ms(1, cost), KNOWN_WEIGHT)

    @property
    def ms_per_token(self) -> float | None:
        """Of a cost token, on top of a step's fixed part; None before anything is known."""
        return self._ms_per_token

    @property
    def step_ms(self) -> float:
        """A step's fixed part."""
        return self._step_ms

    def observe(self, cost: float, elapsed_ms: float, now_ms: float) -> None:
        """A step of `cost` cost tokens took `elapsed_ms`."""
        if cost <= 0.0:
            return
        self._last_ms = now_ms
        if self._ms_per_token is not None:
            elapsed_ms = min(elapsed_ms, MOST_OF_EXPECTED * max(self.expected_ms(1, cost), 1e-3))
        self._count(cost, elapsed_ms, 1.0)
        self._fit()

    def expected_ms(self, steps: int, cost: float) -> float:
        """What so many steps of `cost` cost tokens together should take; 0 before anything is known."""
        return steps * self._step_ms + cost * (self._ms_per_token or 0.0)

    def least_ms(self, steps: int, cost: float, now_ms: float) -> float:
        """The least that it can be expected to take, as far as steps up to now tell."""
        if self._last_ms is None:  # What warming up found fades from the first question on.
            self._last_ms = now_ms
        idle_ms = max(0.0, now_ms - self._last_ms)
        return OPTIMISM * self.expected_ms(steps, cost) * math.exp2(-idle_ms / HALF_LIFE_MS)

    def _count(self, cost: float, took_ms: float, weight: float) -> None:
        self._weight = KEEP * self._weight + weight
        self._cost = KEEP * self._cost + weight * cost
        self._took = KEEP * self._took + weight * took_ms
        self._cost_squared = KEEP * self._cost_squared + weight * cost * cost
        self._cost_took = KEEP * self._cost_took + weight * cost * took_ms

    def _fit(self) -> None:
        """The line through what was seen, no part of it below 0; where all steps were alike, both in proportion."""
        mean_cost, mean_took = self._cost / self._weight, self._took / self._weight
        spread = self._cost_squared / self._weight - mean_cost * mean_cost
        if spread > 1e-3 * mean_cost * mean_cost:
            slope = (self._cost_took / self._weight - mean_cost * mean_took) / spread
            slope = min(max(slope, 0.0), mean_took / mean_cost)
            self._ms_per_token, self._step_ms = slope, mean_took - slope * mean_cost
            return
        expected = self.expected_ms(1, mean_cost)
        if expected > 0.0:
            self._step_ms *= mean_took / expected
            self._ms_per_token = (self._ms_per_token or 0.0) * mean_took / expected
        else:
            self._ms_per_token = mean_took / mean_cost
