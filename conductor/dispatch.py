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
from dataclasses import replace
from typing import Protocol, TypeVar, cast

import aiohttp
import msgspec

from onebeat.conductor.answers import Answer, Ping, ProblemKind, Report, StreamEvent
from onebeat.conductor.attempt import Attempt
from onebeat.conductor.call import Call
from onebeat.conductor.contingency import ShedError, WaitingRoom
from onebeat.conductor.errors import AttemptError, UnansweredError, unanswered
from onebeat.conductor.faces.base import StreamRenderer
from onebeat.conductor.ledger import Ledger
from onebeat.conductor.metrics import Metrics
from onebeat.conductor.planning import Planner
from onebeat.conductor.policy import Choice, Plan
from onebeat.conductor.pursuit import Pursuit, Wait
from onebeat.conductor.records import RequestError
from onebeat.conductor.resume import ways_to_resume
from onebeat.conductor.stream import Release
from onebeat.conductor.watch import SOFT

T = TypeVar("T")


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
        self.metrics = metrics
        self.room = WaitingRoom(planner.runtime.fleet.contingency.queue_requests)
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
                    answer = await ask(attempt)
                except AttemptError as error:
                    self._failed(call, attempt, error)
                    continue
                except BaseException:
                    self._end(call, attempt, "cancelled", None)
                    raise
                self._end(call, attempt, "served", None)
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
            self._enter(call, outcome, cause)

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
                    self._end(call, attempt, "cancelled", None)
                    raise
                self._end(call, attempt, "served", None)
                call.serve(attempt)
                break
            report = call.report(attempt.choice, final=True)
            self._enter(call, "served", None)
            is_entered = True
            if call.runtime.fleet.ledger.durable:
                await self.ledger.committed()
            await release.close(report)
        except (asyncio.CancelledError, ConnectionError):
            if not is_entered:
                self._enter(call, "cancelled", "client left")
            raise
        except UnansweredError as error:
            self._enter(call, "failed", error.cause)
            if release.renderer is None:
                raise
            await release.fail(error.problem)
        except RequestError as error:
            self._enter(call, "refused", error.code)
            raise
        except BaseException:
            if not is_entered:
                self._enter(call, "failed", "internal")
            raise

    async def _decide(self, call: Call, plan: Plan | None = None) -> None:
        call.runtime.retries.deposit()
        if plan is not None:
            call.plan = plan
        else:
            await self.planner.decide(call)
        assert call.plan is not None
        fleet = call.runtime.fleet
        call.pursuit = Pursuit(call.plan, fleet.policy, fleet.resilience, self._random)

    async def _next_attempt(self, call: Call) -> Attempt:
        """Waits for the best route that may be called and counts the call. Raises `UnansweredError`."""
        choice = await self._next_choice(call)
        line = call.runtime.lines[choice.route.name]
        call.attempts += 1
        if choice.route.model.expensive:
            call.client.called_expensive(call.at)
        return Attempt(
            self.session,
            call.runtime.fleet,
            line,
            choice,
            call.request,
            act_on_soft=call.act_on_soft and call.attempts < call.runtime.fleet.resilience.max_attempts,
            deadline_at=call.deadline_at if call.request.options.deadline_ms else None,
        )

    async def _next_choice(self, call: Call) -> Choice:
        runtime, pursuit = call.runtime, call.pursuit
        assert pursuit is not None
        loop = asyncio.get_running_loop()
        is_paid = call.attempts == 0
        while True:
            now = loop.time()

            def blocked_until(choice: Choice, now: float = now) -> float | None:
                return runtime.lines[choice.route.name].state.blocked_until(now, choice.prompt_tokens)

            if call.attempts >= runtime.fleet.resilience.max_attempts:
                raise self._exhausted(call, f"{call.attempts} attempts came to nothing")
            picked = pursuit.next(now, blocked_until)
            if isinstance(picked, Choice):
                if not is_paid and not runtime.retries.spend():
                    raise self._exhausted(call, "the budget of retries is spent")
                is_paid = True
                if runtime.lines[picked.route.name].state.acquire(now, picked.prompt_tokens):
                    return picked
            elif picked is None:
                last = self._last_resort(call, now)
                if last is None:
                    raise self._exhausted(call, "no route is left to try")
                return last
            else:
                last_choice = await self._wait(call, picked, now)
                if last_choice is not None:
                    return last_choice

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
            await self.room.wait(picked.until, call.priority, names, call.deadline_at)
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
        choice = self.planner.local_choice(call, local)
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

    async def _begin(self, call: Call, release: Release) -> tuple[Attempt, list[StreamEvent]]:
        """An attempt that has begun to answer. Whatever fails before that is unseen, and another is made."""
        while True:
            attempt = await self._next_attempt(call)
            try:
                return attempt, await attempt.begin(release.request_for(attempt.line))
            except AttemptError as error:
                self._failed(call, attempt, error)
                if error.problem.kind is ProblemKind.PREFILL_REFUSED or call.sent:
                    self._plan_resume(call, attempt, error, release)
            except BaseException:
                self._end(call, attempt, "cancelled", None)
                raise

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
        finding = error.finding
        self._end(call, attempt, "replaced" if finding is not None else "failed", error)
        if finding is not None and finding.detector in SOFT:
            if attempt.answer is not None:
                call.second_best = attempt
            else:
                call.soft_choice = attempt.choice
        call.last_problem = error.problem
        call.pursuit.failed(attempt.choice, error, asyncio.get_running_loop().time())

    def _end(self, call: Call, attempt: Attempt, outcome: str, error: AttemptError | None) -> None:
        """Every attempt comes here once: its connection, its route's state, the ledger's row, the metrics."""
        now = asyncio.get_running_loop().time()
        attempt.upstream.close()
        line = attempt.line
        usd = call.ended(attempt, outcome, error, now)
        if outcome == "served" or (error is not None and error.finding is not None):
            line.state.succeeded(attempt.first_token_ms)
            if attempt.usage is not None and not call.request.has_images:
                line.scale.learn(attempt.choice.prompt_tokens, attempt.usage.input_tokens)
        elif error is not None:
            line.state.failed(error.problem, now)
        else:
            line.state.left()
        if len(self.room):
            self.room.freed(line.name)
        self._count(call, attempt, error, usd, now)

    def _count(self, call: Call, attempt: Attempt, error: AttemptError | None, usd: float, now: float) -> None:
        metrics, line = self.metrics, attempt.line
        labels = ("chat", line.provider_name, line.upstream, attempt.response_model or "")
        metrics.duration.observe(now - attempt.started, (*labels, error.cause if error is not None else ""))
        if attempt.usage is not None:
            metrics.tokens.observe(attempt.usage.input_tokens, ("input", *labels))
            metrics.tokens.observe(attempt.usage.output_tokens, ("output", *labels))
        if attempt.first_token_at is not None:
            metrics.first_token.observe(attempt.first_token_at - attempt.started, labels)
        if usd:
            metrics.cost.add(usd, (line.name,))
        if error is not None:
            metrics.reroutes.add(1.0, (line.name, error.cause))
        for finding in attempt.findings:
            metrics.findings.add(1.0, (finding.detector.value, "yes" if finding.act else "no"))

    def _enter(self, call: Call, outcome: str, cause: str | None) -> None:
        """The request's rows go to the ledger, its dollars to the key."""
        now = asyncio.get_running_loop().time()
        row = call.request_row(outcome, cause, now)
        self.ledger.append(*call.rows, row)
        if call.cost_usd:
            call.client.charge(call.cost_usd, call.at)
        metrics = self.metrics
        metrics.requests.add(1.0, (row.face, outcome, row.decided_by))
        metrics.added.observe(now - call.started, (outcome,))
        if call.router_ms:
            metrics.router.observe(call.router_ms / 1e3, (row.decided_by,))

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
        pursuit.plan = replace(call.plan, choices=resume.choices)
