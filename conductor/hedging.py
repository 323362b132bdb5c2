"""A second call when the first is slower than its route usually is; the first to answer wins, the other is cancelled.

Enters: an attempt that is about to be asked, and hooks to make, fail and end attempts. Leaves: the winner with its
answer. Off unless the fleet says `hedge = true`; bounded by a budget, a share of live traffic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from onebeat.conductor.attempt import Attempt
from onebeat.conductor.call import Call
from onebeat.conductor.errors import AttemptError

T = TypeVar("T")


def hedge_after_s(call: Call, attempt: Attempt) -> float | None:
    """When a second route is called: the learned percentile of the first; None where unknown, or with hedging off."""
    resilience = call.runtime.fleet.resilience
    if not resilience.hedge or call.sent:
        return None
    state = attempt.line.state
    known_ms = (state.first_token if call.request.stream else state.whole).at(resilience.hedge_percentile)
    return None if known_ms is None else known_ms / 1e3


class Hedge(Generic[T]):
    """One race of at most two attempts. Each is ended by exactly one hook, or handed back as the winner."""

    def __init__(
        self,
        call: Call,
        first: Attempt,
        ask: Callable[[Attempt], Awaitable[T]],
        second: Callable[[Call, Attempt], Attempt | None],
        failed: Callable[[Call, Attempt, AttemptError], None],
        end: Callable[[Call, Attempt, str, AttemptError | None], None],
    ) -> None:
        self._call = call
        self._first = first
        self._ask = ask
        self._second = second
        self._failed = failed
        self._end = end

    async def race(self, after_s: float) -> tuple[Attempt, T]:
        """Raises the last `AttemptError` where all fail."""
        running = {asyncio.create_task(self._run(self._first)): self._first}
        timeout: float | None = after_s
        try:
            while True:
                done, _ = await asyncio.wait(running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    timeout = None
                    other = self._second(self._call, self._first)
                    if other is not None:
                        running[asyncio.create_task(self._run(other))] = other
                    continue
                for task in done:
                    attempt = running.pop(task)
                    error = task.exception()
                    if error is None:
                        attempt.patience.adopt()
                        return attempt, task.result()
                    if not isinstance(error, AttemptError):
                        self._end(self._call, attempt, "cancelled", None)
                        raise error
                    self._failed(self._call, attempt, error)
                    if not running:
                        raise error
        finally:
            for task, attempt in running.items():
                task.cancel()
                await asyncio.wait([task])
                self._end(self._call, attempt, "hedged", None)

    async def _run(self, attempt: Attempt) -> T:
        attempt.patience.adopt()  # Its clocks must wake this task.
        return await self._ask(attempt)
