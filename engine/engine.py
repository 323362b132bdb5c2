"""The live engine: prompts from any thread in, futures of scores out, one thread that owns the model.

Enters: prompts at any moment. Leaves: one `Scores` or one error for each, exactly once. Knows no event loop (`live.py`)
and no tensor: the model is whatever `EngineParts.make_stepper` makes.

    accept -> tokenizer threads -> the worker: take messages, plan, launch, resolve

A crash in the worker fails everybody inside with its cause, leaves the engine unhealthy until the model has been made
and warmed up again, and is forgiven once.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import traceback
from concurrent.futures import Future

import numpy as np

from onebeat.engine.arguments import check_deadline, flag
from onebeat.engine.errors import DeadlineError, InputError, StoppedError
from onebeat.engine.parts import EngineParts, Report
from onebeat.engine.prefix_cache import block_keys
from onebeat.engine.records import Prompt, Scores
from onebeat.engine.snapshot import EngineSnapshot, Meter
from onebeat.engine.tickets import Ending, Ticket, TicketBook, stopped
from onebeat.engine.worker import Worker

log = logging.getLogger(__name__)


class Engine:
    """Start it, `submit` from any thread, `stop` it. All public methods may be called by any thread."""

    def __init__(
        self, parts: EngineParts, *, queue_prompts: int = 512, tokenizer_threads: int = 2, report: Report | None = None
    ) -> None:
        self._parts = parts
        self._queue_prompts = queue_prompts
        self._report = report or (lambda done, total, what: None)
        self._meter = Meter()
        self._book = TicketBook(queue_prompts, self._meter)
        self._to_prepare: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._worker = Worker(parts, self._book, self._meter, now_ms)
        self._settled = threading.Event()
        """Set once the first warm-up has ended, well or not."""
        self._ready = self._healthy = False
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._prepare_forever, name=f"onebeat-tokenizer-{index}", daemon=True)
            for index in range(tokenizer_threads)
        ]
        self._thread = threading.Thread(target=self._work_forever, name="onebeat-model", daemon=True)

    @property
    def ready(self) -> bool:
        """Warmed up and answering."""
        return self._ready

    @property
    def healthy(self) -> bool:
        """False from a crash until the model runs again; for good after the second."""
        return self._healthy

    def start(self) -> None:
        """Starts the threads; prompts may be submitted at once and wait for the warm-up."""
        for thread in (*self._threads, self._thread):
            thread.start()

    def wait_until_ready(self, timeout_s: float | None = None) -> None:
        """Blocks until warmed up. Raises `StoppedError`, its cause chained, if the model could not be made."""
        if not self._settled.wait(timeout_s):
            raise StoppedError(f"the engine did not finish warming up within {timeout_s} s; give it longer.")
        if not self._ready:
            raise stopped("the engine's model could not be warmed up; its error is chained.", self._failure)

    def submit(self, prompt: Prompt, *, deadline_ms: float | None = None, features: bool = False) -> Future[Scores]:
        """A future of the prompt's scores (n = 1). `deadline_ms` counts from now; cancelling it drops the prompt.

        Raises at once: `OverloadedError`, `StoppedError`, `DeadlineError` for a deadline that is not ahead and
        `InputError` for one that is no number. The future raises `DeadlineError`, `InputError` and `StoppedError`.
        """
        return self.accept(prompt, deadline_ms=deadline_ms, features=features).future

    def accept(self, prompt: Prompt, *, deadline_ms: float | None = None, features: bool = False) -> Ticket:
        """As `submit`; the ticket can be expired."""
        allowed_ms, now = check_deadline(deadline_ms), now_ms()
        due_ms = None if allowed_ms is None else now + allowed_ms
        ticket = self._book.accept(prompt, now, due_ms, flag("features", features))
        ticket.future.add_done_callback(lambda future: self._drop_if_cancelled(ticket, future))
        self._to_prepare.put(ticket)
        return ticket

    def expire(self, ticket: Ticket) -> None:
        """Tells the ticket's caller that its deadline has passed, unless it has its answer."""
        waited_ms = now_ms() - ticket.accepted_ms
        error = DeadlineError(f"the deadline passed after {waited_ms:.0f} ms; allow more time or send less at once.")
        if self._book.end(ticket, Ending.DEADLINE, error):
            self._worker.tell_gone(ticket.prompt_id)

    def stop(self, grace_s: float = 5.0) -> None:
        """Takes no more, lets the accepted finish for `grace_s`, then fails the rest. Nobody is left waiting."""
        self._book.close(StoppedError("the engine is stopping and takes no more prompts."))
        self._worker.finish()
        if self._thread.ident is not None:
            self._thread.join(grace_s)
        self._ready = False
        self._worker.halt()
        self._book.end_all(f"the engine stopped before this prompt was computed, after a grace of {grace_s:g} s.", None)
        for _ in self._threads:
            self._to_prepare.put(None)
        if self._thread.ident is not None:
            # A step cannot be interrupted; the thread is a daemon and ends with it.
            self._thread.join(1.0)
        self._settled.set()

    def snapshot(self) -> EngineSnapshot:
        """What the engine has done and is doing."""
        meter, worker = self._meter, self._worker
        return EngineSnapshot(
            ready=self._ready,
            healthy=self._healthy,
            restarts=meter.restarts,
            waiting_prompts=len(self._book),
            queue_prompts=self._queue_prompts,
            waiting_tokens=worker.waiting_tokens,
            accepted=meter.accepted,
            answered=meter.answered,
            failed=meter.failed,
            cancelled=meter.cancelled,
            deadline_misses=meter.deadline_misses,
            late=meter.late,
            overloaded=meter.overloaded,
            steps=meter.steps,
            computed_tokens=meter.computed_tokens,
            cached_tokens=meter.cached_tokens,
            evicted_blocks=worker.cache.evicted_blocks,
            cache_blocks_in_use=worker.cache.pinned_blocks,
            cache_blocks_kept=worker.cache.idle_blocks,
            ms_per_token=worker.scheduler.ms_per_token,
            step_tokens=meter.step_tokens.read(),
            tokenize_ms=meter.tokenize_ms.read(),
            queued_ms=meter.queued_ms.read(),
            compute_ms=meter.compute_ms.read(),
            total_ms=meter.total_ms.read(),
        )

    def _drop_if_cancelled(self, ticket: Ticket, future: Future[Scores]) -> None:
        if future.cancelled() and self._book.end(ticket, Ending.CANCELLED):
            self._worker.tell_gone(ticket.prompt_id)

    def _prepare_forever(self) -> None:
        while (ticket := self._to_prepare.get()) is not None:
            if ticket.prompt_id not in self._book:
                continue
            try:
                self._prepare(ticket)
            except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to this prompt's caller alone
                self._book.end(ticket, Ending.FAILED, _for_the_caller(error))
                self._worker.wake()
            else:
                self._worker.tell_prepared(ticket)

    def _prepare(self, ticket: Ticket) -> None:
        began = now_ms()
        prepared = self._parts.prepare(ticket.prompt)
        tokens, longest = len(prepared.token_ids), self._parts.max_prompt_tokens
        if not 1 <= tokens <= longest:
            raise InputError(f"the prompt has {tokens} tokens to compute; this router takes 1 to {longest}, cut it.")
        chunk_tokens = self._parts.limits.chunk_tokens
        ticket.take(prepared)
        if tokens > chunk_tokens and self._parts.keep_blocks:
            ids = np.asarray(prepared.token_ids, dtype=np.int64)
            ticket.keys = block_keys(ids, chunk_tokens, self._parts.fingerprint)
        ticket.tokenize_ms = now_ms() - began

    def _work_forever(self) -> None:
        while True:
            try:
                self._worker.serve(self._report, self._mark_ready)
                return
            except BaseException as cause:
                log.exception("the live engine's worker crashed")
                self._ready = self._healthy = False
                self._failure = cause
                # Callers keep the cause; its frames must not keep the broken model's memory.
                traceback.clear_frames(cause.__traceback__)
                may_restart = not self._meter.restarts and isinstance(cause, Exception)
                if not may_restart:
                    self._book.close(stopped("the engine crashed and is not restarted; the cause is chained.", cause))
                self._book.end_all(
                    f"the engine's worker crashed ({type(cause).__name__}); the cause is chained.", cause
                )
                if not may_restart:
                    self._settled.set()
                    return
                self._meter.restarts += 1

    def _mark_ready(self) -> None:
        self._ready = self._healthy = True
        self._settled.set()


def _for_the_caller(error: BaseException) -> Exception:
    """`error` as a future can carry it. A panic of the tokenizer's Rust is no `Exception`, and raised as it is it would
    end an event loop; a `StopIteration` is one that no awaitable may raise."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    told = InputError(f"the prompt could not be prepared ({type(error).__name__}: {error}); send another text.")
    told.__cause__ = error
    return told


def now_ms() -> float:
    """The engine's clock."""
    return time.monotonic() * 1000.0
