"""The live engine: prompts from any thread in, futures of scores out, one thread that owns the model.

Enters: prompts at any moment. Leaves: one `Scores` or one error for each, exactly once. Knows no event loop (`live.py`)
and no tensor: the model is whatever `EngineParts.make_stepper` makes.

    accept -> tokenizer threads -> the worker: take messages, plan, launch, resolve

A crash in the worker fails everybody inside with its cause, leaves the engine unhealthy until the model has been made
and warmed up again, and is forgiven once.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import Future

import numpy as np

from onebeat.engine.arguments import check_deadline, flag, number, whole
from onebeat.engine.deadlines import DeadlineWatch
from onebeat.engine.errors import ConfigError, DeadlineError, InputError, StoppedError
from onebeat.engine.options import LONGEST_GRACE_S, MOST_PROMPTS, MOST_TOKENIZERS
from onebeat.engine.parts import EngineParts, Report
from onebeat.engine.prefix_cache import block_keys
from onebeat.engine.records import Prompt, Scores
from onebeat.engine.snapshot import EngineSnapshot, Meter
from onebeat.engine.tickets import Ending, Ticket, TicketBook, stopped
from onebeat.engine.tray import Tray
from onebeat.engine.worker import Worker

log = logging.getLogger(__name__)

LARGE_CHARACTERS = 100_000
"""A prompt of more goes to the tokenizer thread for large ones."""


class Engine:
    """Start it, `submit` from any thread, `stop` it. All public methods may be called by any thread."""

    def __init__(
        self, parts: EngineParts, *, queue_prompts: int = 512, tokenizer_threads: int = 2, report: Report | None = None
    ) -> None:
        """Raises `ConfigError` for a queue or a pool of no places."""
        self._parts = parts
        self._queue_prompts = whole("queue_prompts", queue_prompts, least=1, largest=MOST_PROMPTS, error=ConfigError)
        whole("tokenizer_threads", tokenizer_threads, least=1, largest=MOST_TOKENIZERS, error=ConfigError)
        self._report = report or (lambda done, total, what: None)
        self._meter = Meter()
        self._book = TicketBook(queue_prompts, self._meter)
        self._to_prepare: Tray[Ticket] = Tray()
        self._large_to_prepare: Tray[Ticket] = Tray()
        self._worker = Worker(parts, self._book, self._meter, now_ms)
        self._deadlines = DeadlineWatch(self._expire, now_ms)
        self._process = os.getpid()
        self._settled = threading.Event()
        """Set once the first warm-up has ended, well or not."""
        self._ready = self._healthy = self._stopping = False
        self._failure: BaseException | None = None
        # Huge prompts take seconds each, and have a thread of their own.
        trays = {f"tokenizer-{index}": self._to_prepare for index in range(tokenizer_threads)}
        trays["tokenizer-large"] = self._large_to_prepare
        self._threads = [
            threading.Thread(target=self._prepare_forever, args=(tray,), name=f"onebeat-{name}", daemon=True)
            for name, tray in trays.items()
        ]
        self._thread = threading.Thread(target=self._work_forever, name="onebeat-model", daemon=True)

    @property
    def ready(self) -> bool:
        """Warmed up and answering; False from the moment it is told to stop, and in a process that forked off."""
        return self._ready and not self._stopping and os.getpid() == self._process

    @property
    def healthy(self) -> bool:
        """False from a crash until the model runs again; for good after the second."""
        return self._healthy

    def start(self) -> None:
        """Starts the threads; prompts may be submitted at once and wait for the warm-up.

        Raises `StoppedError` when it was started before.
        """
        if self._thread.ident is not None or self._stopping:
            raise StoppedError("the engine was started before; make another one.")
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
        `InputError` for one that is no number. The future raises `DeadlineError` no later than the deadline,
        `InputError` and `StoppedError`.
        """
        if os.getpid() != self._process:
            raise StoppedError("the engine's threads stayed behind in a fork; make another engine in this process.")
        allowed_ms, now = check_deadline(deadline_ms), now_ms()
        due_ms = None if allowed_ms is None else now + allowed_ms
        is_large = size_of(prompt) > LARGE_CHARACTERS
        ticket = self._book.accept(prompt, now, due_ms, flag("features", features))
        ticket.future.add_done_callback(lambda future: self._drop_if_cancelled(ticket, future))
        (self._large_to_prepare if is_large else self._to_prepare).put(ticket.prompt_id, ticket)
        if due_ms is not None:
            self._deadlines.add(due_ms)
        return ticket.future

    def stop(self, grace_s: float = 5.0) -> None:
        """Takes no more, lets the accepted finish for `grace_s`, then fails the rest. Nobody is left waiting.

        Raises `ConfigError` for a grace that is not of 0 to 86,400 s; nothing has stopped then.
        """
        meaning = f"it must be a number of 0 to {LONGEST_GRACE_S:g} seconds"
        grace_s = number("grace_s", grace_s, meaning, least=0.0, largest=LONGEST_GRACE_S, error=ConfigError)
        self._stopping = True
        self._book.close(StoppedError("the engine is stopping and takes no more prompts."))
        self._worker.finish()
        self._join(grace_s)
        self._worker.halt()
        self._book.end_all(f"the engine stopped before this prompt was computed, after a grace of {grace_s:g} s.", None)
        self._to_prepare.close()
        self._large_to_prepare.close()
        self._deadlines.close()
        # A step cannot be interrupted; the thread is a daemon and ends with it.
        self._join(1.0)
        self._settled.set()

    def _join(self, timeout_s: float) -> None:
        # A future's callback may stop the engine: it runs in one of the engine's own threads.
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def snapshot(self) -> EngineSnapshot:
        """What the engine has done and is doing."""
        meter, worker = self._meter, self._worker
        return EngineSnapshot(
            ready=self.ready,
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
            evicted_blocks=worker.evicted_blocks,
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
            self._forget(ticket)

    def _expire(self) -> float | None:
        """Tells everybody who is late; returns the next deadline."""
        now = now_ms()
        late, next_ms = self._book.late(now)
        for ticket in late:
            waited_ms = now - ticket.accepted_ms
            error = DeadlineError(
                f"the deadline passed after {waited_ms:.0f} ms; allow more time or send less at once."
            )
            if self._book.end(ticket, Ending.DEADLINE, error):
                self._forget(ticket)
        return next_ms

    def _forget(self, ticket: Ticket) -> None:
        if not self._to_prepare.discard(ticket.prompt_id):
            self._large_to_prepare.discard(ticket.prompt_id)
        self._worker.tell_gone(ticket.prompt_id)

    def _prepare_forever(self, tray: Tray[Ticket]) -> None:
        while (ticket := tray.take()) is not None:
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
                may_restart = not self._meter.restarts and isinstance(cause, Exception) and not self._stopping
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


def size_of(prompt: Prompt) -> int:
    """About how many characters a prompt has; 0 for what is no prompt, which preparing it will say."""
    if isinstance(prompt, str):
        return len(prompt)
    messages = prompt if isinstance(prompt, list) else []
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    texts = contents + [part.get("text") for part in parts if isinstance(part, Mapping)]
    return sum(len(text) for text in texts if isinstance(text, str))


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
