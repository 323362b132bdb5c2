"""What one route has shown lately, and whether it may be called now.

Enters: a route's outcomes with the time they came at. Leaves: `blocked_until`, `headroom`. Knows no request and
does no I/O; one instance per model of the fleet, used from the event loop only.
"""

from __future__ import annotations

import math

from onebeat.conductor.answers import ProblemKind, ProviderProblem, RateLimits
from onebeat.conductor.config import ResilienceSection
from onebeat.conductor.resilience import Breaker, Concurrency, Headroom, Percentile

QUOTA_COOLING_S = 900.0
"""A spent quota without a date: asked again every quarter of an hour."""
FIRST_COOLING_S = 1.0
LONGEST_COOLING_S = 60.0

_COOLS = frozenset({ProblemKind.RATE_LIMITED, ProblemKind.OVERLOADED, ProblemKind.QUOTA_EXHAUSTED})
_BREAKS = frozenset(
    {
        ProblemKind.SERVER_ERROR,
        ProblemKind.CONNECTION,
        ProblemKind.TIMEOUT,
        ProblemKind.STALLED,
        ProblemKind.CUT,
        ProblemKind.MALFORMED,
    }
)
_FATAL = frozenset({ProblemKind.AUTH, ProblemKind.NOT_FOUND})


class RouteState:
    """Health of one route. Every `acquire` that is True is ended by exactly one of `succeeded`, `failed`, `left`."""

    __slots__ = ("_coolings", "breaker", "concurrency", "cooling_until", "first_token", "last_problem", "room", "whole")

    def __init__(self, resilience: ResilienceSection) -> None:
        self.breaker = Breaker(resilience.breaker_failures, resilience.breaker_open_ms / 1e3)
        self.concurrency = Concurrency(resilience.max_concurrency)
        self.room = Headroom()
        self.first_token = Percentile()
        self.whole = Percentile()
        self.cooling_until = -math.inf
        self.last_problem: ProviderProblem | None = None
        self._coolings = 0

    def blocked_until(self, now: float, prompt_tokens: int = 0) -> float | None:
        """When the route may be called: None for now; infinity where only a call under way can tell."""
        breaker = self.breaker
        if self.cooling_until <= now and breaker.opened_at is None and not self.room.is_known:
            return math.inf if self.concurrency.is_full else None  # A route that never had trouble.
        until = self.cooling_until if self.cooling_until > now else None
        for other in (breaker.closed_again_at(now), self.room.free_at(now, prompt_tokens)):
            if other is not None:
                until = other if until is None else max(until, other)
        if until is None and self.concurrency.is_full:
            return math.inf
        return until

    def why_blocked(self, now: float) -> str:
        """For explanations: what `blocked_until` is about."""
        if self.cooling_until > now:
            kind = self.last_problem.kind.value if self.last_problem else "cooling"
            return f"{kind}, free in {self.cooling_until - now:.1f} s"
        if self.breaker.closed_again_at(now) is not None:
            kind = self.last_problem.kind.value if self.last_problem else "failures"
            return f"breaker open after {self.breaker.failures} failures ({kind})"
        if self.concurrency.is_full:
            return f"{self.concurrency.in_flight} calls under way are all it bears"
        return "at its rate limit"

    def headroom(self, now: float) -> float:
        return self.room.share(now)

    def acquire(self, now: float, prompt_tokens: int) -> bool:
        """Whether a call may start now; it is counted then."""
        if self.blocked_until(now, prompt_tokens) is not None or not self.breaker.acquire(now):
            return False
        self.concurrency.in_flight += 1
        self.room.sent(prompt_tokens)
        return True

    def learn(self, limits: RateLimits | None, now: float) -> None:
        if limits is not None:
            self.room.learn(limits, now)

    def succeeded(self, first_token_ms: float | None, whole_ms: float | None = None) -> None:
        """`first_token_ms` of a stream, `whole_ms` of an answer that was not streamed."""
        self.concurrency.succeeded()
        self.concurrency.in_flight -= 1
        self.breaker.succeeded()
        self._coolings = 0
        if first_token_ms is not None:
            self.first_token.observe(first_token_ms)
        elif whole_ms is not None:
            self.whole.observe(whole_ms)

    def left(self) -> None:
        """The call was given up by us (the client left, a hedge lost): it says nothing about the route."""
        self.concurrency.in_flight -= 1
        self.breaker.abandoned()

    def failed(self, problem: ProviderProblem, now: float) -> None:
        self.learn(problem.limits, now)
        kind = problem.kind
        if kind in _COOLS:
            self.last_problem = problem
            self.concurrency.refused(now)
            if now >= self.cooling_until:
                # Once for all the calls that were under way together: ten of them are one refusal, not ten in a row.
                self._coolings += 1
            self.cooling_until = max(self.cooling_until, now + self._cooling_s(problem))
            self.breaker.abandoned()
        elif kind in _BREAKS or kind in _FATAL:
            self.last_problem = problem
            self.breaker.failed(now, fatal=kind in _FATAL)
            if problem.retry_after_s is not None:
                self.cooling_until = max(self.cooling_until, now + problem.retry_after_s)
        elif kind is ProblemKind.DEADLINE:
            self.breaker.abandoned()
        else:  # The request was at fault: the route answered it as it should.
            self.breaker.succeeded()
        self.concurrency.in_flight -= 1

    def _cooling_s(self, problem: ProviderProblem) -> float:
        """The provider's own reset; else the resets in its limits; else twice as long as last time, from one second."""
        if problem.retry_after_s is not None:
            return max(0.0, problem.retry_after_s)
        if problem.kind is ProblemKind.QUOTA_EXHAUSTED:
            return QUOTA_COOLING_S
        limits = problem.limits
        if limits is not None:
            spent = [
                counter.reset_after_s
                for counter in (limits.requests, limits.tokens, limits.input_tokens, limits.output_tokens)
                if counter is not None and counter.remaining == 0 and counter.reset_after_s is not None
            ]
            if spent:
                return max(spent)
        return float(min(LONGEST_COOLING_S, FIRST_COOLING_S * 2.0 ** max(0, self._coolings - 1)))
