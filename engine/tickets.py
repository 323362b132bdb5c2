"""One accepted prompt on its way to its answer, and the book in which every ticket ends exactly once.

Enters: what a caller asked. Leaves: a resolved future and a count of how it ended. Knows no model and no order.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum

from onebeat.engine.errors import StoppedError
from onebeat.engine.parts import Prepared
from onebeat.engine.records import Prompt, Scores
from onebeat.engine.scheduler import Door
from onebeat.engine.snapshot import Meter


class Ending(Enum):
    """How a ticket can end; the names are the meter's counters."""

    ANSWERED = "answered"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEADLINE = "deadline_misses"


@dataclass(slots=True, eq=False)
class Ticket:
    """A caller's prompt. Its clock is the engine's, in milliseconds."""

    prompt_id: int
    prompt: Prompt
    deadline_ms: float | None
    """On the engine's clock."""
    wants_features: bool
    accepted_ms: float
    future: Future[Scores] = field(default_factory=Future)
    token_ids: Sequence[int] = ()
    keys: Sequence[bytes] = ()
    prompt_tokens: int = 0
    cut_tokens: int = 0
    estimated: bool = False
    """Whether both counts are estimates."""
    tokenize_ms: float = 0.0
    compute_ms: float = 0.0

    def take(self, prepared: Prepared) -> None:
        """What preparing found out about the prompt."""
        self.token_ids = prepared.token_ids
        self.prompt_tokens, self.cut_tokens = prepared.prompt_tokens, prepared.cut_tokens
        self.estimated = prepared.estimated


class TicketBook:
    """The tickets inside. Any thread may call; whoever ends a ticket first is the only one who does."""

    def __init__(self, places: int, meter: Meter) -> None:
        self._lock = threading.Lock()
        self._door = Door(places)
        self._inside: dict[int, Ticket] = {}
        self._next_id = 0
        self._meter = meter
        self._closed_by: StoppedError | None = None

    def __len__(self) -> int:
        return len(self._inside)

    def __contains__(self, prompt_id: int) -> bool:
        return prompt_id in self._inside

    def accept(self, prompt: Prompt, now_ms: float, deadline_ms: float | None, wants_features: bool) -> Ticket:
        """Raises `OverloadedError` when full and what `close` was given once closed."""
        with self._lock:
            if self._closed_by is not None:
                # A new exception each time: a traceback that many callers share would grow with each of them.
                raise stopped(str(self._closed_by), self._closed_by.__cause__)
            try:
                self._door.enter()
            except Exception:
                self._meter.overloaded += 1
                raise
            ticket = Ticket(self._next_id, prompt, deadline_ms, wants_features, now_ms)
            self._next_id += 1
            self._inside[ticket.prompt_id] = ticket
            self._meter.accepted += 1
        return ticket

    def close(self, reason: StoppedError) -> None:
        """From now on every `accept` raises `reason`."""
        with self._lock:
            self._closed_by = reason

    def end(self, ticket: Ticket, ending: Ending, outcome: Scores | BaseException | None = None) -> bool:
        """Ends the ticket unless it has ended; tells its caller `outcome` (None: the future was cancelled)."""
        with self._lock:
            if self._inside.pop(ticket.prompt_id, None) is None:
                return False
            self._door.leave()
            # Also for a caller that has left: its future tells `concurrent.futures.wait` so only now.
            if not ticket.future.set_running_or_notify_cancel():
                ending, outcome = Ending.CANCELLED, None
            setattr(self._meter, ending.value, getattr(self._meter, ending.value) + 1)
        if isinstance(outcome, BaseException):
            ticket.future.set_exception(outcome)
        elif outcome is not None:
            ticket.future.set_result(outcome)
        return True

    def late(self, now_ms: float) -> tuple[list[Ticket], float | None]:
        """The tickets whose deadline has passed, and the next deadline of the others."""
        late, next_ms = list[Ticket](), None
        for ticket in list(self._inside.values()):
            if ticket.deadline_ms is None:
                continue
            if ticket.deadline_ms <= now_ms:
                late.append(ticket)
            elif next_ms is None or ticket.deadline_ms < next_ms:
                next_ms = ticket.deadline_ms
        return late, next_ms

    def end_all(self, message: str, cause: BaseException | None) -> None:
        """Fails every ticket inside with a `StoppedError` of its own."""
        for ticket in list(self._inside.values()):
            self.end(ticket, Ending.FAILED, stopped(message, cause))


def stopped(message: str, cause: BaseException | None) -> StoppedError:
    """A `StoppedError` with its cause chained."""
    error = StoppedError(message)
    error.__cause__ = cause
    return error
