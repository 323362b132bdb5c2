"""The ledger: every request and every attempt, in SQLite, written by a thread of its own.

Enters: `RequestRow`, `AttemptRow`, feedback and events, from the event loop. Leaves: rows on disk, and `LedgerStatus`.
Knows no request and no secret: what is handed in is what is stored. A full disk or a locked file never stops traffic:
rows wait in memory up to a limit, then the oldest are dropped, counted, and the loss is itself written down.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import sqlite3
import threading
import time
from collections import deque
from pathlib import Path

import msgspec
from msgspec import Struct

from onebeat.engine.errors import ConfigError

SCHEMA_VERSION = 1
BATCH_ROWS = 2_000
PAUSE_S = 0.05
"""How long the writer lets rows gather. One commit for many rows: a commit is 20 to 200 times the price of a row."""
RETRY_S = 0.5
log = logging.getLogger("onebeat.ledger")


class RequestRow(Struct, frozen=True, gc=False):
    """One client request, written when its answer has ended."""

    id: str
    at: float
    """Unix seconds."""
    key_name: str | None
    face: str
    asked_model: str
    model: str | None
    """The fleet's name of the model that answered; None where none did."""
    response_model: str | None
    outcome: str
    """served | failed | cancelled | refused (before any attempt)"""
    cause: str | None
    decided_model: str | None
    """First choice of the policy: `propensity` is its own, and `model` differs from it after a re-route."""
    decided_by: str
    """router | prior | named | explored"""
    propensity: float
    tradeoff: float
    stream: bool
    attempts: int
    prompt_tokens: int
    output_tokens: int
    cost_usd: float
    """Of all its attempts."""
    router_ms: float
    router_usd: float
    best_model: str | None
    best_usd: float
    """What the always-best model would have cost for the same prompt and answer length."""
    first_token_ms: float | None
    total_ms: float
    dropped_messages: int
    reason: str
    notes: str | None
    scores: str | None
    """JSON: model -> [quality, output_tokens] as predicted."""
    prompt: str | None = None
    """JSON of the messages; only where the fleet stores prompts."""


class AttemptRow(Struct, frozen=True, gc=False):
    """One upstream call."""

    request_id: str
    number: int
    at: float
    model: str
    provider: str
    response_model: str | None
    outcome: str
    """served | failed | replaced (a bad answer) | hedged | cancelled"""
    problem: str | None
    detail: str | None
    status: int | None
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: float
    estimated: bool
    """Whether the usage is our estimate, because the provider never told."""
    first_token_ms: float | None
    total_ms: float


class FeedbackRow(Struct, frozen=True, gc=False):
    request_id: str
    at: float
    key_name: str | None
    score: float
    comment: str | None


class EventRow(Struct, frozen=True, gc=False):
    """Something the operator should find later: a retirement, a reload, lost rows, drift."""

    at: float
    kind: str
    detail: str


Row = RequestRow | AttemptRow | FeedbackRow | EventRow
TABLES: dict[type[Row], str] = {
    RequestRow: "requests",
    AttemptRow: "attempts",
    FeedbackRow: "feedback",
    EventRow: "events",
}
_INDEXES = (
    "CREATE UNIQUE INDEX IF NOT EXISTS requests_id ON requests(id)",
    "CREATE INDEX IF NOT EXISTS requests_at ON requests(at)",
    "CREATE UNIQUE INDEX IF NOT EXISTS attempts_id ON attempts(request_id, number)",
    "CREATE INDEX IF NOT EXISTS feedback_id ON feedback(request_id)",
)
_INSERTS = {
    kind: f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(kind.__struct_fields__))})"
    for kind, table in TABLES.items()
}


class LedgerStatus(Struct, frozen=True):
    healthy: bool
    waiting_rows: int
    dropped_rows: int
    written_rows: int
    error: str | None


class Ledger:
    """Appends from the event loop cost a microsecond; `committed` waits until all of them so far are on disk."""

    def __init__(self, path: str | Path, *, queue_rows: int = 100_000, pause_s: float = PAUSE_S) -> None:
        """Opens and prepares the file. Raises `ConfigError` where it is no ledger or cannot be made."""
        self.path = Path(path)
        self._most = queue_rows
        self._pause_s = pause_s
        self._rows: deque[Row] = deque()
        self._waiters: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[bool]]] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._stopping = False
        self._appended = 0
        self._settled = 0
        """Rows written or dropped: those before it need no waiting for."""
        self._in_flight = 0
        self._dropped = 0
        self._reported_drops = 0
        self._error: str | None = None
        try:
            connection = connect(self.path)
            prepare(connection)
            connection.close()
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(
                f"the ledger {self.path} cannot be opened: {error}; give ledger.path a file that can be written."
            ) from error
        self._thread = threading.Thread(target=self._write_forever, name="onebeat-ledger", daemon=True)
        self._thread.start()

    def append(self, *rows: Row) -> None:
        """Never blocks and never fails."""
        with self._lock:
            self._rows.extend(rows)
            self._appended += len(rows)
            while len(self._rows) > max(self._most, self._in_flight):
                del self._rows[self._in_flight]  # The oldest that is not being written at this moment.
                self._dropped += 1
                self._settled += 1
        if not self._wake.is_set():
            self._wake.set()

    def event(self, kind: str, detail: str) -> None:
        self.append(EventRow(time.time(), kind, detail))

    async def committed(self, timeout_s: float = 2.0) -> bool:
        """True once every row appended so far is on disk; False where the disk will not take them in time."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._settled >= self._appended:
                return True
            waiter: asyncio.Future[bool] = loop.create_future()
            self._waiters.append((self._appended, loop, waiter))
        self._hurry.set()
        self._wake.set()
        try:
            return await asyncio.wait_for(waiter, timeout_s)
        except TimeoutError:
            return False

    def status(self) -> LedgerStatus:
        with self._lock:
            written = self._settled - self._dropped
            return LedgerStatus(self._error is None, len(self._rows), self._dropped, written, self._error)

    def close(self, timeout_s: float = 5.0) -> None:
        """Writes what waits, then stops. Rows that the disk does not take in time are lost, and said so in the log."""
        self._stopping = True
        self._hurry.set()
        self._wake.set()
        self._thread.join(timeout_s)
        if self._rows:
            log.error("%d ledger rows were not written before the stop: %s", len(self._rows), self._error)

    def _write_forever(self) -> None:
        connection: sqlite3.Connection | None = None
        while True:
            self._wake.wait()
            if not self._stopping:
                self._hurry.wait(self._pause_s)
            self._hurry.clear()
            self._wake.clear()
            try:
                connection = connection or connect(self.path)
                while self._rows:
                    self._write_batch(connection)
                self._note_recovery()
            except (sqlite3.Error, OSError) as error:
                self._note_failure(error)
                with contextlib.suppress(sqlite3.Error):
                    if connection is not None:
                        connection.close()
                connection = None
                if self._stopping:
                    return
                time.sleep(RETRY_S)
                self._wake.set()
            if self._stopping and not self._rows:
                if connection is not None:
                    connection.close()
                return

    def _write_batch(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            batch = list(itertools.islice(self._rows, BATCH_ROWS))
            self._in_flight = len(batch)
        by_kind: dict[type[Row], list[tuple[object, ...]]] = {}
        for row in batch:
            by_kind.setdefault(type(row), []).append(msgspec.structs.astuple(row))
        unfit = 0
        with connection:
            for kind, values in by_kind.items():
                unfit += _insert(connection, kind, values)
        with self._lock:
            for _ in batch:
                self._rows.popleft()
            self._settled += len(batch)
            self._dropped += unfit
            self._in_flight = 0
            due = [waiter for waiter in self._waiters if waiter[0] <= self._settled]
            self._waiters = [waiter for waiter in self._waiters if waiter[0] > self._settled]
        for _, loop, future in due:
            with contextlib.suppress(RuntimeError):  # The loop has closed: nobody waits any more.
                loop.call_soon_threadsafe(_resolve, future)

    def _note_failure(self, error: Exception) -> None:
        with self._lock:
            self._in_flight = 0
        if self._error is None:
            log.error("the ledger %s takes no rows (%s); traffic goes on, rows wait in memory", self.path, error)
        self._error = str(error)

    def _note_recovery(self) -> None:
        lost = self._dropped - self._reported_drops
        if self._error is not None:
            log.warning("the ledger %s takes rows again; %d were lost meanwhile", self.path, lost)
            self._error = None
        if lost:
            self._reported_drops = self._dropped
            self.event("rows_lost", f"{lost} rows were dropped because the ledger took none for too long")


def _resolve(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(True)


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection with the ledger's settings. WAL survives `kill -9`; a power cut may cost the last batch."""
    if read_only:
        return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5.0)
    connection = sqlite3.connect(path, timeout=1.0, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def prepare(connection: sqlite3.Connection) -> None:
    """Makes the tables, or checks that they are of this version."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in (0, SCHEMA_VERSION):
        raise sqlite3.DatabaseError(
            f"its schema is version {version} and this onebeat writes {SCHEMA_VERSION}; move the file aside"
        )
    with connection:
        for kind, table in TABLES.items():
            columns = ", ".join(_columns(kind))
            connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
        for index in _INDEXES:
            connection.execute(index)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _columns(kind: type[Row]) -> list[str]:
    names = {str: "TEXT", float: "REAL", int: "INTEGER", bool: "INTEGER"}
    columns = []
    for field in msgspec.structs.fields(kind):
        options = getattr(field.type, "__args__", (field.type,))
        plain = next(option for option in options if option is not type(None))
        null = "" if type(None) in options else " NOT NULL"
        columns.append(f"{field.name} {names[plain]}{null}")
    return columns


def _insert(connection: sqlite3.Connection, kind: type[Row], values: list[tuple[object, ...]]) -> int:
    """Writes the rows; how many hold a value that SQLite cannot (a provider's count beyond 64 bits): these are logged
    and left out, so that one of them never costs the others."""
    try:
        connection.executemany(_INSERTS[kind], values)
        return 0
    except OverflowError:
        unfit = 0
    for row in values:
        try:
            connection.execute(_INSERTS[kind], row)
        except OverflowError as error:
            unfit += 1
            log.error("a %s of the ledger was left out: %s", kind.__name__, error)
    return unfit
