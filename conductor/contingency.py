"""The waiting room for requests that no route can take now: bounded, by priority, and honest about when to come back.

Enters: a priority, a time until which to wait, the routes that would do. Leaves: a wake-up, or `ShedError`. Knows no
request and no route's health.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from onebeat.conductor.records import Priority
from onebeat.engine.errors import OnebeatError

_RANK = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}


class ShedError(OnebeatError):
    """The waiting room is full and this request has the least claim to a place."""


class _Waiter:
    __slots__ = ("due_at", "future", "order", "routes", "timer", "until")

    def __init__(
        self, order: tuple[int, int], until: float, routes: frozenset[str], future: asyncio.Future[None]
    ) -> None:
        self.order = order
        self.until = until
        self.routes = routes
        self.future = future
        self.due_at = math.inf
        self.timer: asyncio.TimerHandle | None = None


class WaitingRoom:
    """At most `places` requests at once. Of those that wait for the same route the most urgent goes first."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._waiters: list[_Waiter] = []
        self._arrivals = 0
        self.shed = 0

    def __len__(self) -> int:
        return len(self._waiters)

    def arrive(self) -> int:
        """A place in the order of arrival: who waits again keeps it."""
        self._arrivals += 1
        return self._arrivals

    async def wait(
        self,
        until: float,
        priority: Priority,
        routes: Sequence[str],
        deadline: float = math.inf,
        arrival: int | None = None,
    ) -> None:
        """Returns at `until`, at `deadline`, or as soon as one of `routes` is freed and nobody more urgent wants it.

        Raises `ShedError` where the room is full of requests that are at least as urgent and came earlier.
        """
        loop = asyncio.get_running_loop()
        order = (_RANK[priority], self.arrive() if arrival is None else arrival)
        if len(self._waiters) >= self.places:
            last = max(self._waiters, key=lambda waiter: waiter.order)
            self.shed += 1
            if last.order < order:
                raise ShedError(f"{self.places} requests are waiting already.")
            self._leave(last)
            if not last.future.done():
                last.future.set_exception(ShedError("a more urgent request took the last place."))
        waiter = _Waiter(order, until, frozenset(routes), loop.create_future())
        self._waiters.append(waiter)
        at = min(until, deadline)
        if at < math.inf:
            waiter.due_at = at
            waiter.timer = loop.call_at(at, self._due, at)
        try:
            await waiter.future
        finally:
            self._leave(waiter)

    def freed(self, route: str) -> None:
        """A call to `route` ended: the most urgent of those that would take it may try."""
        wanting = [w for w in self._waiters if route in w.routes and not w.future.done()]
        if wanting:
            min(wanting, key=lambda waiter: waiter.order).future.set_result(None)

    def wake_all(self) -> None:
        """After a reload: what was true of the routes may not be any more."""
        for waiter in sorted(self._waiters, key=lambda waiter: waiter.order):
            if not waiter.future.done():
                waiter.future.set_result(None)

    def _due(self, at: float) -> None:
        """A reset has come: everybody whose time it is wakes, the most urgent first, so that they ask in that order.

        `at` is the time that was set, not the clock's: uvloop's timers fire by the millisecond, a little early too, and
        its handles do not all tell their time.
        """
        due = [waiter for waiter in self._waiters if waiter.due_at <= at + 1e-3 and not waiter.future.done()]
        for waiter in sorted(due, key=lambda waiter: waiter.order):
            waiter.future.set_result(None)

    def _leave(self, waiter: _Waiter) -> None:
        if waiter.timer is not None:
            waiter.timer.cancel()
        if waiter in self._waiters:
            self._waiters.remove(waiter)
