"""Which route a request calls next, and what it waits for: the pursuit, the budget, the deadline, the last resort.

Enters: a `Call` with its pursuit. Leaves: a choice whose route has counted the call; `UnansweredError` with what the
client is told. Knows no socket.
"""

from __future__ import annotations

import asyncio

import msgspec

from onebeat.conductor.answers import ProblemKind
from onebeat.conductor.call import Call
from onebeat.conductor.contingency import ShedError, WaitingRoom
from onebeat.conductor.errors import UnansweredError, unanswered
from onebeat.conductor.planning import Planner
from onebeat.conductor.policy import Choice
from onebeat.conductor.pursuit import Wait


class Chooser:
    """One per gateway. Time is the event loop's."""

    def __init__(self, planner: Planner, room: WaitingRoom) -> None:
        self._planner = planner
        self.room = room

    async def next(self, call: Call) -> Choice:
        runtime, pursuit = call.runtime, call.pursuit
        assert pursuit is not None
        loop = asyncio.get_running_loop()
        is_paid = call.attempts == 0
        while True:
            now = loop.time()

            def blocked_until(choice: Choice, now: float = now) -> float | None:
                return runtime.lines[choice.route.name].state.blocked_until(now, choice.prompt_tokens)

            if call.attempts >= runtime.fleet.resilience.max_attempts:
                return self._last_or_raise(call, now, f"{call.attempts} attempts came to nothing")
            picked = pursuit.next(now, blocked_until)
            if isinstance(picked, Choice):
                if not is_paid and not runtime.retries.spend():
                    return self._last_or_raise(call, now, "the budget of retries is spent")
                is_paid = True
                if runtime.lines[picked.route.name].state.acquire(now, picked.prompt_tokens):
                    return picked
            elif picked is None:
                overflowed = call.last_problem is not None and call.last_problem.kind is ProblemKind.CONTEXT_OVERFLOW
                if overflowed and self._planner.shorten_refused(call):
                    continue
                return self._last_or_raise(call, now, "no route is left to try")
            else:
                last_choice = await self._wait(call, picked, now)
                if last_choice is not None:
                    return last_choice

    def _last_or_raise(self, call: Call, now: float, why: str) -> Choice:
        last = self._last_resort(call, now)
        if last is None:
            raise self._exhausted(call, why)
        return last

    async def _wait(self, call: Call, picked: Wait, now: float) -> Choice | None:
        """Waits for a reset within the deadline; a choice where the local model takes over instead."""
        pursuit = call.pursuit
        assert pursuit is not None
        retry_after_s = picked.until - now if picked.until < 1e18 else None
        names = [choice.route.name for choice in pursuit.plan.choices]
        if picked.until != float("inf") and picked.until > call.deadline_at:
            last = self._last_resort(call, now)
            if last is None:
                raise self._unavailable(call, retry_after_s, "every route is busy beyond this request's deadline")
            return last
        try:
            if call.arrival is None:
                call.arrival = self.room.arrive()
            await self.room.wait(picked.until, call.priority, names, call.deadline_at, call.arrival)
        except ShedError as error:
            last = self._last_resort(call, now)
            if last is None:
                raise self._unavailable(call, retry_after_s, f"shed: {error}") from None
            return last
        if asyncio.get_running_loop().time() >= call.deadline_at:
            last = self._last_resort(call, now)
            if last is None:
                raise self._unavailable(call, retry_after_s, "no route came free before this request's deadline")
            return last
        return None

    def _last_resort(self, call: Call, now: float) -> Choice | None:
        """The answer that a detector only disliked, asked for again; then the local model."""
        if call.sent:
            return None
        lines, local = call.runtime.lines, call.runtime.fleet.contingency.local_model
        if call.soft_choice is not None:
            choice, call.soft_choice, call.act_on_soft = call.soft_choice, None, False
            if lines[choice.route.name].state.acquire(now, choice.prompt_tokens):
                return choice
        if local is None or any(row.model == local for row in call.rows):
            return None
        if not lines[local].state.acquire(now, 0):
            return None
        choice = self._planner.local_choice(call, local)
        call.notes.append(f"nothing else could answer in time: the local model {local} did")
        return choice

    def _exhausted(self, call: Call, why: str) -> UnansweredError:
        """What the client is told: the last attempt's own problem, or a 503 where every route is only busy."""
        problem = call.last_problem
        if problem is None:
            return self._unavailable(call, None, why)
        if problem.kind in (ProblemKind.RATE_LIMITED, ProblemKind.OVERLOADED, ProblemKind.QUOTA_EXHAUSTED):
            return self._unavailable(call, problem.retry_after_s, why)
        final = (ProblemKind.CONTENT_POLICY, ProblemKind.INVALID_REQUEST, ProblemKind.CONTEXT_OVERFLOW)
        if problem.kind in final:
            return UnansweredError(problem)
        message = f"{problem.message}; {why}."
        return UnansweredError(msgspec.structs.replace(problem, message=message, status=None), call.rows[-1].problem)

    def _unavailable(self, call: Call, retry_after_s: float | None, why: str) -> UnansweredError:
        """Retry-After is the earliest moment at which any of the request's routes is known to be free."""
        now = asyncio.get_running_loop().time()
        assert call.pursuit is not None
        states = [call.runtime.lines[c.route.name].state.blocked_until(now) for c in call.pursuit.plan.choices]
        known = [until - now for until in states if until is not None and until < 1e18]
        if retry_after_s is None and known:
            retry_after_s = min(known)
        if retry_after_s is None:
            retry_after_s = call.runtime.fleet.contingency.retry_after_ms / 1e3
        wait_s = max(1.0, retry_after_s)
        return unanswered(f"No model can answer now ({why}); try again in {wait_s:.0f} s.", retry_after_s)
