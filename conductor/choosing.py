"""Which route a request calls next, and what it waits for: the pursuit, the budget, the deadline, the last resort.

Enters: a `Call` with its pursuit. Leaves: a choice whose route has counted the call; `UnansweredError` with what the
client is told. Knows no socket.
"""

from __future__ import annotations

import asyncio

import msgspec

from onebeat.conductor.answers import ProblemKind, ProviderProblem
from onebeat.conductor.call import Call
from onebeat.conductor.contingency import ShedError, WaitingRoom
from onebeat.conductor.errors import UnansweredError, unanswered
from onebeat.conductor.planning import Planner
from onebeat.conductor.policy import Choice
from onebeat.conductor.pursuit import Wait

EXPENSIVE = "expensive_calls"


class Chooser:
    """One per gateway. Time is the event loop's."""

    def __init__(self, planner: Planner, room: WaitingRoom) -> None:
        self._planner = planner
        self.room = room

    async def next(self, call: Call) -> Choice:
        """The next route, which has counted the call. Raises `UnansweredError`, or `RequestError` over a budget."""
        try:
            return await self._next(call)
        finally:
            # Who was woken for a route and does not call it passes the word on, or those behind would sleep on.
            if call.has_waited and len(self.room):
                call.has_waited = False
                self._pass_on(call)

    def _pass_on(self, call: Call) -> None:
        now = asyncio.get_running_loop().time()
        assert call.pursuit is not None
        for choice in call.pursuit.plan.choices:
            if call.runtime.lines[choice.route.name].state.blocked_until(now) is None:
                self.room.freed(choice.route.name)

    async def _next(self, call: Call) -> Choice:
        runtime, pursuit = call.runtime, call.pursuit
        assert pursuit is not None
        loop = asyncio.get_running_loop()
        is_paid = call.attempts == 0
        while True:
            now = loop.time()

            def blocked_until(choice: Choice, now: float = now) -> float | None:
                return runtime.lines[choice.route.name].state.blocked_until(now, choice.prompt_tokens)

            if call.is_late:
                raise self._late(call)
            if call.calls_left() <= 0:
                return self._last_or_raise(call, now, f"{call.attempts} attempts came to nothing")
            picked = pursuit.next(now, blocked_until)
            if isinstance(picked, Choice):
                if picked.route.model.expensive and not call.client.expensive_allowed(call.at):
                    pursuit.exclude(picked.route.name)  # Others of this key took the last calls since the decision.
                    call.last_problem = call.last_problem or _over_the_limit(call)
                    continue
                if not is_paid and not runtime.retries.spend():
                    return self._last_or_raise(call, now, "the budget of retries is spent")
                is_paid = True
                if call.acquire(picked, now):
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
        wait_until = _wait_until(call, now)
        names = [choice.route.name for choice in pursuit.plan.choices]
        if picked.until != float("inf") and picked.until > wait_until:
            last = self._last_resort(call, now)
            if last is None:
                raise self._unavailable(call, retry_after_s, "every route is busy beyond this request's deadline")
            return last
        call.has_waited = True
        try:
            if call.arrival is None:
                call.arrival = self.room.arrive()
            await self.room.wait(picked.until, call.priority, names, wait_until, call.arrival)
        except ShedError as error:
            last = self._last_resort(call, now)
            if last is None:
                raise self._unavailable(call, retry_after_s, f"shed: {error}") from None
            return last
        if asyncio.get_running_loop().time() >= wait_until:
            last = self._last_resort(call, asyncio.get_running_loop().time())
            if last is None:
                raise self._unavailable(call, retry_after_s, "no route came free before this request's deadline")
            return last
        return None

    def _last_resort(self, call: Call, now: float) -> Choice | None:
        """The answer that a detector only disliked, asked for again; then the local model."""
        if call.sent or call.is_late or call.attempts >= call.runtime.fleet.resilience.max_attempts:
            return None
        local = call.runtime.fleet.contingency.local_model
        if call.soft_choice is not None:
            choice, call.soft_choice, call.act_on_soft = call.soft_choice, None, False
            if call.acquire(choice, now):
                return choice
        if local is None or not call.has_local_model:
            return None
        choice = self._planner.local_choice(call, local)
        if not call.acquire(choice, now):
            return None
        call.notes.append(f"nothing else could answer in time: the local model {local} did")
        return choice

    def _late(self, call: Call) -> UnansweredError:
        asked_ms = call.request.options.deadline_ms
        what = "passed before any model could be asked"
        if call.last_problem is not None:
            late = call.last_problem.kind is ProblemKind.DEADLINE
            what = "passed without an answer" if late else f"leaves no other try ({call.last_problem.message})"
        message = f"The request's own deadline of {asked_ms:g} ms {what}; give it longer."
        return UnansweredError(ProviderProblem(ProblemKind.DEADLINE, message))

    def _exhausted(self, call: Call, why: str) -> UnansweredError:
        """What the client is told: the last attempt's own problem, or a 503 where every route is only busy."""
        problem = call.last_problem
        if problem is None:
            return self._unavailable(call, None, why)
        if problem.code == EXPENSIVE:
            return UnansweredError(problem, EXPENSIVE)
        if problem.kind is ProblemKind.DEADLINE:
            return self._late(call)
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


def _wait_until(call: Call, now: float) -> float:
    """Until when a route is waited for. A local model that stands by gets the second half of the client's own deadline:
    asked for at its end it could not answer in time."""
    if call.asked_deadline_at is None or call.sent or not call.has_local_model:
        return call.deadline_at
    return now + (call.deadline_at - now) / 2


def _over_the_limit(call: Call) -> ProviderProblem:
    key = call.client.key
    most = key.expensive_calls_per_hour if key is not None else 0
    wait_s = call.client.expensive_free_in_s(call.at)
    message = f"This key has used up its {most} expensive calls for the hour; the next is free in {wait_s:.0f} s."
    return ProviderProblem(ProblemKind.RATE_LIMITED, message, code=EXPENSIVE, retry_after_s=wait_s)
