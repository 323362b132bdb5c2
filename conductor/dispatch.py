"""The dispatcher: from a parsed request to an answer, whatever fails on the way.

Enters: a `ChatRequest` and its client. Leaves: an `Answer` with its `Report`, or a stream written into a `Sink`. Every
attempt is entered into the ledger, whatever became of it. Knows no HTTP of the client's and no vendor's wire.

The order of recovery: before content has gone out, another attempt, unseen. After it: continue by prefill where a model
takes it; start over elsewhere and skip what the client has, while it matches; else an in-band error.
"""

from __future__ import annotations

import asyncio
import random as stdlib_random
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar, cast

import aiohttp
import msgspec

from onebeat.conductor.accounts import Accounts
from onebeat.conductor.answers import Answer, Ping, ProblemKind, Report, StreamEvent
from onebeat.conductor.attempt import Attempt
from onebeat.conductor.call import Call
from onebeat.conductor.choosing import Chooser
from onebeat.conductor.contingency import WaitingRoom
from onebeat.conductor.errors import AttemptError, UnansweredError
from onebeat.conductor.faces.base import StreamRenderer
from onebeat.conductor.hedging import Hedge, hedge_after_s
from onebeat.conductor.ledger import Ledger
from onebeat.conductor.metrics import Metrics
from onebeat.conductor.planning import Planner
from onebeat.conductor.policy import Choice, Plan, takes_over
from onebeat.conductor.pursuit import Pursuit
from onebeat.conductor.records import RequestError
from onebeat.conductor.resume import ways_to_resume
from onebeat.conductor.stream import Release
from onebeat.conductor.watch import SOFT

T = TypeVar("T")
NOT_DURABLE = "the ledger has no disk to write to at the moment: this answer is in memory only"


class Sink(Protocol):
    """Where a streamed answer goes. Writing raises `ConnectionError` once the client has left."""

    async def start(self, call: Call, choice: Choice) -> StreamRenderer:
        """The head goes out, once; what renders this answer from here on."""
        ...

    async def write(self, data: bytes) -> None: ...


class Dispatcher:
    """One per gateway. Time is the event loop's; randomness is given."""

    def __init__(
        self,
        planner: Planner,
        session: aiohttp.ClientSession,
        ledger: Ledger,
        metrics: Metrics,
        *,
        random: Callable[[], float] = stdlib_random.random,
    ) -> None:
        self.planner = planner
        self.session = session
        self.ledger = ledger
        self.room = WaitingRoom(planner.runtime.fleet.contingency.queue_requests)
        self._chooser = Chooser(planner, self.room)
        self._accounts = Accounts(ledger, metrics, self.room)
        self._random = random

    async def whole(self, call: Call) -> tuple[Answer, Report]:
        """The answer, not streamed. Raises `RequestError`, or `UnansweredError`; either is in the ledger by then."""
        return await self.run(call, lambda attempt: attempt.whole(call.request))

    async def run(
        self, call: Call, ask: Callable[[Attempt], Awaitable[T]], plan: Plan | None = None
    ) -> tuple[T, Report]:
        """What `ask` gets of the first attempt that succeeds. `plan`: where the planner is not to make one."""
        outcome: str = "failed"
        cause: str | None = "internal"
        try:
            await self._decide(call, plan)
            while True:
                attempt = await self._next_attempt(call)
                try:
                    attempt, answer = await self._ask(call, attempt, ask)
                except AttemptError:
                    continue
                self._accounts.end(call, attempt, "served", None)
                call.serve(attempt)
                outcome, cause = "served", None
                return answer, call.report(attempt.choice, final=True)
        except RequestError as error:
            outcome, cause = "refused", error.code
            raise
        except asyncio.CancelledError:
            outcome, cause = "cancelled", "client left"
            raise
        except UnansweredError as error:
            best = call.second_best
            if best is None or best.answer is None:
                cause = error.cause
                raise
            call.serve(best)
            outcome, cause = "served", None
            return cast(T, best.answer), call.report(best.choice, final=True)
        finally:
            self._accounts.enter(call, outcome, cause)

    async def stream(self, call: Call, sink: Sink) -> None:
        """Writes the answer into `sink`, to its end or to an in-band error. Raises as `whole` while nothing is out."""
        is_entered = False
        release = Release(call, sink)
        try:
            await self._decide(call)
            while True:
                attempt, events = await self._begin(call, release)
                try:
                    await self._pump(call, attempt, events, release)
                except AttemptError as error:
                    self._failed(call, attempt, error)
                    self._plan_resume(call, attempt, error, release)
                    continue
                except BaseException:
                    self._accounts.end(call, attempt, "cancelled", None)
                    raise
                self._accounts.end(call, attempt, "served", None)
                call.serve(attempt)
                break
            report = call.report(attempt.choice, final=True)
            self._accounts.enter(call, "served", None)
            is_entered = True
            await release.close(await self.made_durable(call, report))
        except (asyncio.CancelledError, ConnectionError):
            if not is_entered:
                self._accounts.enter(call, "cancelled", "client left")
            raise
        except UnansweredError as error:
            self._accounts.enter(call, "failed", error.cause)
            if release.renderer is None:
                raise
            await release.fail(error.problem)
        except RequestError as error:
            self._accounts.enter(call, "refused", error.code)
            raise
        except BaseException:
            if not is_entered:
                self._accounts.enter(call, "failed", "internal")
            raise

    async def made_durable(self, call: Call, report: Report) -> Report:
        """Where the fleet wants it, waits until the call's rows are on disk. A disk that fails holds up no answer: the
        report says so, and `/metrics`, `/readyz` and the ledger's events do."""
        if not call.runtime.fleet.ledger.durable:
            return report
        is_durable = await self.ledger.durable(call.ledger_number, len(call.rows) + 1)
        notes = report.notes if is_durable else (*report.notes, NOT_DURABLE)
        return msgspec.structs.replace(report, durable=is_durable, notes=notes)

    async def _decide(self, call: Call, plan: Plan | None = None) -> None:
        call.runtime.retries.deposit()
        call.runtime.hedges.deposit()
        if plan is not None:
            call.plan = plan
        else:
            await self.planner.decide(call)
        assert call.plan is not None
        fleet = call.runtime.fleet
        call.pursuit = Pursuit(call.plan, fleet.policy, fleet.resilience, self._random)

    async def _next_attempt(self, call: Call) -> Attempt:
        """Waits for the best route that may be called and counts the call. Raises `UnansweredError`."""
        return self._attempt(call, await self._chooser.next(call))

    def _attempt(self, call: Call, choice: Choice) -> Attempt:
        line = call.runtime.lines[choice.route.name]
        call.attempts += 1
        return Attempt(
            self.session,
            call.runtime.fleet,
            line,
            choice,
            call.request,
            act_on_soft=call.act_on_soft and call.attempts < call.runtime.fleet.resilience.max_attempts,
            deadline_at=None if call.sent else call.asked_deadline_at,
        )

    async def _begin(self, call: Call, release: Release) -> tuple[Attempt, list[StreamEvent]]:
        """An attempt that has begun to answer. Whatever fails before that is unseen, and another is made."""
        while True:
            attempt = await self._next_attempt(call)
            try:
                return await self._ask(call, attempt, lambda each: each.begin(release.request_for(each.line)))
            except AttemptError as error:
                failed = call.last_attempt or attempt
                if error.problem.kind is ProblemKind.PREFILL_REFUSED or call.sent:
                    self._plan_resume(call, failed, error, release)

    async def _ask(self, call: Call, attempt: Attempt, ask: Callable[[Attempt], Awaitable[T]]) -> tuple[Attempt, T]:
        """What `ask` gets of `attempt`, or of the hedge that overtook it. Raises `AttemptError`, accounted for."""
        after_s = hedge_after_s(call, attempt)
        if after_s is not None:
            return await Hedge(call, attempt, ask, self._second, self._failed, self._accounts.end).race(after_s)
        try:
            return attempt, await ask(attempt)
        except AttemptError as error:
            self._failed(call, attempt, error)
            raise
        except BaseException:
            self._accounts.end(call, attempt, "cancelled", None)
            raise

    def _second(self, call: Call, first: Attempt) -> Attempt | None:
        """A hedge's attempt, where another route is free, nearly as good, and the budget of hedges allows it."""
        runtime, pursuit = call.runtime, call.pursuit
        assert pursuit is not None
        now = asyncio.get_running_loop().time()
        if call.calls_left() <= 0 or call.is_late:
            return None
        for choice in pursuit.plan.choices:
            state = runtime.lines[choice.route.name].state
            if choice.route is first.choice.route or not takes_over(runtime.fleet.policy, first.choice, choice):
                continue
            if state.blocked_until(now, choice.prompt_tokens) is None and runtime.hedges.spend():
                return self._attempt(call, choice) if call.acquire(choice, now) else None
        return None

    async def _pump(self, call: Call, attempt: Attempt, events: list[StreamEvent], release: Release) -> None:
        """Sends on what comes until the stream's end. Raises `AttemptError` for a stream that failed."""
        await release.take_over(attempt)
        while events:
            await release.send(events)
            patience_s = release.holds_for_s()
            if patience_s is None:
                events = await attempt.more()
                continue
            try:
                async with asyncio.timeout(patience_s):
                    events = await attempt.more()
            except TimeoutError:
                await release.let_go()
                events = [Ping()]
        await release.finish()

    def _failed(self, call: Call, attempt: Attempt, error: AttemptError) -> None:
        assert call.pursuit is not None
        # The one place where a vendor's words come in: ledger, client, notes and logs have them from here.
        error.problem = call.runtime.redactor.problem(error.problem)
        finding = error.finding
        self._accounts.end(call, attempt, "replaced" if finding is not None else "failed", error)
        if finding is not None and finding.detector in SOFT:
            if attempt.answer is not None:
                call.second_best = attempt
            else:
                call.soft_choice = attempt.choice
        call.last_problem = error.problem
        call.last_attempt = attempt
        call.pursuit.failed(attempt.choice, error, asyncio.get_running_loop().time())

    def _plan_resume(self, call: Call, attempt: Attempt, error: AttemptError, release: Release) -> None:
        """After content has gone out: how the next attempt joins on to it. Raises `UnansweredError` where none can."""
        if not call.sent:
            release.resume = None
            if error.problem.kind is ProblemKind.PREFILL_REFUSED and call.pursuit is not None:
                call.pursuit.exclude(attempt.line.name)
            return
        assert call.pursuit is not None and call.plan is not None
        pursuit = call.pursuit
        call.output_before += attempt.characters // 4
        call.deadline_at = asyncio.get_running_loop().time() + call.runtime.fleet.resilience.between_tokens_ms / 1e3
        resume = ways_to_resume(call, attempt, error, release.resume)
        if resume is None or pursuit.is_over:
            raise UnansweredError(error.problem, error.cause)
        release.resume = resume
        pursuit.plan = msgspec.structs.replace(call.plan, choices=resume.choices)
