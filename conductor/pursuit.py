"""Which route to try next for one request, after what has failed so far.

Enters: a `Plan`, what each attempt came to, when each route is free. Leaves: a choice, a time to wait until, or nothing
more. Knows no socket and no clock of its own: the dispatcher's heart, as a pure object.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from onebeat.conductor.answers import ProblemKind
from onebeat.conductor.config import PolicySection, ResilienceSection
from onebeat.conductor.errors import AttemptError
from onebeat.conductor.policy import Choice, Plan, takes_over
from onebeat.conductor.resilience import backoff_s

_FINAL = frozenset({ProblemKind.CONTENT_POLICY, ProblemKind.INVALID_REQUEST, ProblemKind.DEADLINE})
"""The request's own fault, or its own deadline: passed on, not shopped around."""
_COOLS = frozenset({ProblemKind.RATE_LIMITED, ProblemKind.OVERLOADED})
_SILENT = frozenset({ProblemKind.STALLED, ProblemKind.TIMEOUT})
SAME_ROUTE_TRIES = 3
"""A model asked for by name is tried this often before its fallbacks are; `auto`'s is tried twice where nothing else
is nearly as good."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be called before `until` (monotonic seconds; infinity: until a call under way ends)."""

    until: float


class Pursuit:
    """One request's choices, and what is left of them."""

    def __init__(
        self, plan: Plan, policy: PolicySection, resilience: ResilienceSection, random: Callable[[], float]
    ) -> None:
        self.plan = plan
        self.is_over = False
        self._policy = policy
        self._resilience = resilience
        self._random = random
        self._is_named = plan.decided_by == "named"
        self._excluded: set[str] = set()
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._window_above = 0

    def next(self, now: float, blocked_until: Callable[[Choice], float | None]) -> Choice | Wait | None:
        """The best that can be called now. A better one that is free shortly is waited for, unless what is free is
        nearly as good: `auto` looks at quality, a concrete model was meant as said."""
        waiting: Choice | None = None
        waiting_until = earliest = math.inf
        left = False
        for choice in self.plan.choices:
            name = choice.route.name
            if self.is_over or name in self._excluded or choice.route.model.context_tokens <= self._window_above:
                continue
            left = True
            until = blocked_until(choice)
            not_before = self._not_before.get(name)
            if not_before is not None and not_before > now and (until is None or until < not_before):
                until = not_before
            if until is None:
                if waiting is not None and (self._is_named or not takes_over(self._policy, waiting, choice)):
                    return Wait(waiting_until)
                return choice
            earliest = min(earliest, until)
            if waiting is None and until - now <= self._resilience.short_reset_ms / 1e3:
                waiting, waiting_until = choice, until
        return Wait(earliest) if left else None

    def failed(self, choice: Choice, error: AttemptError, now: float) -> None:
        """What an attempt came to decides which routes are still worth a call."""
        name, kind = choice.route.name, error.problem.kind
        if kind in _FINAL and error.finding is None and not self._may_try_again(error):
            self.is_over = True
        elif error.finding is not None and self._is_named and name not in self._failures:
            self._transient(name, now)  # A bad answer is seldom given twice, and no other model was asked for.
        elif error.finding is not None or kind in _SILENT or error.problem.should_retry is False:
            self._excluded.add(name)
        elif kind is ProblemKind.CONTEXT_OVERFLOW:
            self._window_above = max(self._window_above, choice.route.model.context_tokens)
        elif kind in _COOLS or kind is ProblemKind.PREFILL_REFUSED:
            pass  # The route's own state says when it is free again.
        elif not error.problem.is_retryable:
            self._excluded.add(name)
        else:
            self._transient(name, now)

    def _transient(self, name: str, now: float) -> None:
        failures = self._failures.get(name, 0) + 1
        self._failures[name] = failures
        if failures >= (SAME_ROUTE_TRIES if self._is_named else 2):
            self._excluded.add(name)
            return
        resilience = self._resilience
        wait_s = backoff_s(
            failures - 1, resilience.backoff_base_ms / 1e3, resilience.backoff_cap_ms / 1e3, self._random
        )
        self._not_before[name] = now + wait_s

    @staticmethod
    def _may_try_again(error: AttemptError) -> bool:
        """The provider's `x-should-retry: true` on a status that is final otherwise (a lock that timed out, say)."""
        return error.problem.should_retry is True and error.problem.kind is ProblemKind.INVALID_REQUEST

    def shortened(self, plan: Plan) -> None:
        """The request has become shorter: windows that it overflowed are tried again."""
        self.plan = plan
        self._window_above = 0

    def is_excluded(self, name: str) -> bool:
        return name in self._excluded

    def exclude(self, name: str) -> None:
        self._excluded.add(name)
