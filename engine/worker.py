"""The worker's loop: take messages, plan, launch, resolve. One thread runs `serve`; the others send it messages.

Enters: prepared tickets, and news of callers that have left. Leaves: ended tickets. Knows what a plan and a step are,
not what computes them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onebeat.engine.errors import CheckpointError, DeadlineError
from onebeat.engine.pace import Pace
from onebeat.engine.parts import Array, EngineParts, Report, Speed, Step, Stepper
from onebeat.engine.plan import Chunk, DropReason, Plan
from onebeat.engine.prefix_cache import PrefixCache
from onebeat.engine.records import Scores, Timing
from onebeat.engine.scheduler import Scheduler
from onebeat.engine.snapshot import Meter
from onebeat.engine.tickets import Ending, Ticket, TicketBook
from onebeat.engine.tray import Tray


@dataclass(slots=True, eq=False)
class _Running:
    """A step that has been launched."""

    plan: Plan
    step: Step
    launched_ms: float
    ended: list[tuple[Ticket, Chunk]]
    """In the order of the step's features."""
    tickets: list[Ticket]
    """Of the chunks it computes."""


class Worker:
    """`serve` runs in the model's thread; `tell_*`, `wake`, `finish` and `halt` may be called by any."""

    def __init__(self, parts: EngineParts, book: TicketBook, meter: Meter, now_ms: Callable[[], float]) -> None:
        self._parts = parts
        self._book = book
        self._meter = meter
        self._now_ms = now_ms
        self._inbox: Tray[Ticket] = Tray()
        self._gone: deque[int] = deque()
        self._held: dict[int, Ticket] = {}
        self._finishing = self._halted = False
        self._evicted_before = 0
        self.cache, self.scheduler = self._fresh(None)

    @property
    def waiting_tokens(self) -> int:
        """Tokens not yet planned."""
        return self.scheduler.waiting_tokens

    @property
    def evicted_blocks(self) -> int:
        """Since the engine's start, restarts included."""
        return self._evicted_before + self.cache.evicted_blocks

    def tell_prepared(self, ticket: Ticket) -> None:
        """The ticket has its token ids."""
        self._inbox.put(ticket.prompt_id, ticket)
        if ticket.prompt_id not in self._book:  # It ended while it was being prepared.
            self._inbox.discard(ticket.prompt_id)
            self._inbox.wake()

    def tell_gone(self, prompt_id: int) -> None:
        """The ticket has ended; whatever is left to compute of it is not wanted."""
        if not self._inbox.discard(prompt_id) and prompt_id in self._held:
            self._gone.append(prompt_id)
        self._inbox.wake()

    def wake(self) -> None:
        """Looks again whether there is anything to do."""
        self._inbox.wake()

    def finish(self) -> None:
        """Serve until nobody is inside, then return."""
        self._finishing = True
        self.wake()

    def halt(self) -> None:
        """Return as soon as the step under way is over."""
        self._halted = True
        self.wake()

    def serve(self, report: Report, ready: Callable[[], None]) -> None:
        """Makes and warms up the model, then computes until told to finish. Whatever goes wrong is raised."""
        self._held.clear()
        self._gone.clear()
        stepper = self._parts.make_stepper()
        speed = stepper.warm_up(report)
        self._evicted_before = self.evicted_blocks
        self.cache, self.scheduler = self._fresh(speed)
        ready()
        running: _Running | None = None
        while True:
            if running is not None:
                self._await(running)
            if not self._take_messages(idle=running is None):
                break
            plan = self.scheduler.plan(self._now_ms())
            self._tell_dropped(plan)
            launched = self._launch(stepper, plan) if plan.chunks or plan.ready else None
            if running is not None:
                self._resolve(running)
            running = launched
            if running is not None and running.step.is_done:
                self._await(running)
                self._resolve(running)
                running = None
        if running is not None:
            self._resolve(running)

    def _fresh(self, speed: Speed | None) -> tuple[PrefixCache, Scheduler]:
        limits, pace = self._parts.limits, Pace()
        if speed is not None:
            limits = replace(limits, context_cost_tokens=speed.context_cost_tokens)
            pace = Pace(speed.step_ms, speed.ms_per_token)
        keep = self._parts.keep_blocks
        # Block 0 is scratch; the one-chunk prompts of a step take a block each in passing.
        blocks = range(1, 1 + limits.working_blocks + limits.step_sequences + keep)
        cache = PrefixCache(blocks, keep)
        return cache, Scheduler(limits, cache, pace)

    def _take_messages(self, idle: bool) -> bool:
        """Blocks only when there is nothing to do. False when it is time to return."""
        wait = idle and not len(self.scheduler) and not self._over()
        for ticket in self._inbox.take_all(wait=wait):
            # Held before the book is asked, so that whoever ends it now finds it here and says so.
            self._held[ticket.prompt_id] = ticket
            if ticket.prompt_id not in self._book:
                del self._held[ticket.prompt_id]
                continue
            self.scheduler.offer(
                ticket.prompt_id, len(ticket.token_ids), ticket.keys, ticket.accepted_ms, ticket.deadline_ms
            )
        while self._gone:
            prompt_id = self._gone.popleft()
            self.scheduler.cancel(prompt_id)
            self._held.pop(prompt_id, None)
        return not self._over()

    def _over(self) -> bool:
        return self._halted or (self._finishing and not len(self._book))

    def _tell_dropped(self, plan: Plan) -> None:
        for prompt_id, reason in plan.dropped:
            ticket = self._held.pop(prompt_id)
            assert ticket.deadline_ms is not None
            allowed_ms, waited_ms = ticket.deadline_ms - ticket.accepted_ms, self._now_ms() - ticket.accepted_ms
            what = "passed" if reason is DropReason.PAST else "can no longer be met"
            message = (
                f"the deadline of {allowed_ms:.0f} ms {what} after {waited_ms:.0f} ms, with {len(ticket.token_ids)} "
                "tokens to compute; allow more time or send less at once."
            )
            self._book.end(ticket, Ending.DEADLINE, DeadlineError(message))

    def _launch(self, stepper: Stepper, plan: Plan) -> _Running:
        launched_ms = self._now_ms()
        tickets = [self._held[chunk.prompt_id] for chunk in plan.chunks]
        last = [chunk for chunk in plan.chunks if chunk.is_last]
        ended = [(self._held.pop(chunk.prompt_id), chunk) for chunk in (*last, *plan.ready)]
        step = stepper.launch(plan, {ticket.prompt_id: ticket.token_ids for ticket in tickets})
        self._meter.step(plan.tokens)
        return _Running(plan, step, launched_ms, ended, tickets)

    def _await(self, running: _Running) -> None:
        running.step.wait()
        now_ms = self._now_ms()
        elapsed_ms = now_ms - running.launched_ms
        self.scheduler.observe(running.plan, elapsed_ms, now_ms)
        for ticket in set(running.tickets):
            ticket.compute_ms += elapsed_ms

    def _resolve(self, running: _Running) -> None:
        """Scores the prompts that ended with the step and tells their callers."""
        if not running.ended:
            return
        features = running.step.features()
        quality, output_tokens = self._parts.score(features)
        sound = np.asarray((np.isfinite(quality) & np.isfinite(output_tokens)).all(axis=1))
        for row, (ticket, chunk) in enumerate(running.ended):
            if not sound[row]:
                self._book.end(ticket, Ending.FAILED, _overflow(ticket, quality[row]))
                continue
            timing = self._timing(ticket, chunk)
            scores = Scores(
                self._parts.models,
                quality[row : row + 1],
                output_tokens[row : row + 1],
                prompt_tokens=_count(ticket.prompt_tokens),
                cut_tokens=_count(ticket.cut_tokens),
                timing=(timing,),
                estimated=(ticket.estimated,),
                features=features[row : row + 1].copy() if ticket.wants_features else None,
            )
            if self._book.end(ticket, Ending.ANSWERED, scores):
                self._meter.answer(timing)
                if ticket.deadline_ms is not None and self._now_ms() > ticket.deadline_ms:
                    self._meter.late += 1

    def _timing(self, ticket: Ticket, chunk: Chunk) -> Timing:
        total_ms = self._now_ms() - ticket.accepted_ms
        return Timing(
            tokenize_ms=ticket.tokenize_ms,
            queued_ms=max(0.0, total_ms - ticket.tokenize_ms - ticket.compute_ms),
            compute_ms=ticket.compute_ms,
            total_ms=total_ms,
            computed_tokens=len(ticket.token_ids) - chunk.cached_tokens,
            cached_tokens=chunk.cached_tokens,
        )


def _overflow(ticket: Ticket, quality: Array) -> CheckpointError:
    return CheckpointError(
        f"the router scored a prompt of {len(ticket.token_ids)} tokens as {quality.tolist()}, which are no qualities: "
        'its weights overflow; load it with precision="float32", or fit it again.'
    )


def _count(value: int) -> NDArray[np.int64]:
    return np.array([value], dtype=np.int64)
