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
from typing import NamedTuple

import msgspec
from msgspec import Struct

from onebeat.conductor.ledger_rows import EventRow, Row, connect, insert, prepare
from onebeat.engine.errors import ConfigError

BATCH_ROWS = 2_000
PAUSE_S = 0.05
"""How long the writer lets rows gather. One commit for many rows: a commit is 20 to 200 times the price of a row."""
RETRY_S = 0.5
log = logging.getLogger("onebeat.ledger")


class LedgerStatus(Struct, frozen=True):
    healthy: bool
    waiting_rows: int
    dropped_rows: int
    written_rows: int
    error: str | None
    undurable: int = 0
    """Answers given before their rows were on disk, where the fleet asked for durable ones."""


class _Waiter(NamedTuple):
    """`rows`: how many of the last must not have been dropped, and it hears of a failure at once; None waits it out."""

    mark: int
    rows: int | None
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[bool]


class Ledger:
    """Appends from the event loop cost a microsecond; `committed` waits until all of them so far are on disk."""

    def __init__(self, path: str | Path, *, queue_rows: int = 100_000, pause_s: float = PAUSE_S) -> None:
        """Opens and prepares the file. Raises `ConfigError` where it is no ledger or cannot be made."""
        self.path = Path(path)
        self._most = queue_rows
        self._pause_s = pause_s
        self._rows: deque[Row] = deque()
        self._waiters: list[_Waiter] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._stopping = False
        self._appended = 0
        self._settled = 0
        """Rows written or dropped: those before it need no waiting for."""
        self._in_flight = 0
        self._dropped = 0
        self._newest_dropped = 0
        """The number, counted from one, of the newest row that was lost."""
        self._undurable = 0
        self._reported_undurable = 0
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

    def append(self, *rows: Row) -> int:
        """Never blocks and never fails. The number of the last of them, as `durable` wants it."""
        with self._lock:
            self._rows.extend(rows)
            self._appended += len(rows)
            number = self._appended
            while len(self._rows) > max(self._most, self._in_flight):
                self._newest_dropped = self._appended - len(self._rows) + 1 + self._in_flight
                del self._rows[self._in_flight]  # The oldest that is not being written at this moment.
                self._dropped += 1
                self._settled += 1
        if not self._wake.is_set():
            self._wake.set()
        return number

    def event(self, kind: str, detail: str) -> None:
        self.append(EventRow(time.time(), kind, detail))

    async def committed(self, timeout_s: float = 2.0) -> bool:
        """True once every row appended so far is on disk; False where the disk will not take them in time."""
        return await self._wait(timeout_s, self._appended, None)

    async def durable(self, number: int, rows: int, timeout_s: float = 2.0) -> bool:
        """Whether row `number` and the others of the last `rows` are on disk. False at once where the disk takes none
        at the moment (nobody waits for a disk that is known to fail) and where one of them was dropped. What is False
        is counted, and written down as an event once the disk takes rows again."""
        is_durable = self._error is None and await self._wait(timeout_s, number, rows)
        if not is_durable:
            self._undurable += 1
        return is_durable

    async def _wait(self, timeout_s: float, number: int, rows: int | None) -> bool:
        loop = asyncio.get_running_loop()
        with self._lock:
            waiter = _Waiter(number, rows, loop, loop.create_future())
            if self._settled >= number:
                return self._kept(waiter)
            self._waiters.append(waiter)
        self._hurry.set()
        self._wake.set()
        try:
            return await asyncio.wait_for(waiter.future, timeout_s)
        except TimeoutError:
            return False

    def _kept(self, waiter: _Waiter) -> bool:
        return waiter.rows is None or self._newest_dropped <= waiter.mark - waiter.rows

    def status(self) -> LedgerStatus:
        with self._lock:
            written = self._settled - self._dropped
            waiting = len(self._rows)
            return LedgerStatus(self._error is None, waiting, self._dropped, written, self._error, self._undurable)

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
                unfit += insert(connection, kind, values)
        with self._lock:
            for _ in batch:
                self._rows.popleft()
            self._settled += len(batch)
            self._dropped += unfit
            if unfit:
                self._newest_dropped = max(self._newest_dropped, self._settled)
            self._in_flight = 0
            due = [waiter for waiter in self._waiters if waiter.mark <= self._settled]
            self._waiters = [waiter for waiter in self._waiters if waiter.mark > self._settled]
        for waiter in due:
            _tell(waiter, self._kept(waiter))

    def _note_failure(self, error: Exception) -> None:
        with self._lock:
            self._in_flight = 0
            if self._error is None:
                log.error("the ledger %s takes no rows (%s); traffic goes on, rows wait in memory", self.path, error)
            self._error = str(error)
            hasty = [waiter for waiter in self._waiters if waiter.rows is not None]
            self._waiters = [waiter for waiter in self._waiters if waiter.rows is None]
        for waiter in hasty:
            _tell(waiter, False)

    def _note_recovery(self) -> None:
        lost = self._dropped - self._reported_drops
        if self._error is not None:
            log.warning("the ledger %s takes rows again; %d were lost meanwhile", self.path, lost)
            self._error = None
        early = self._undurable - self._reported_undurable
        if early:
            self._reported_undurable += early
            self.event("not_durable", f"{early} answers were given before their rows were on disk")
        if lost:
            self._reported_drops = self._dropped
            self.event("rows_lost", f"{lost} rows were dropped because the ledger took none for too long")


def _tell(waiter: _Waiter, is_kept: bool) -> None:
    with contextlib.suppress(RuntimeError):  # The loop has closed: nobody waits any more.
        waiter.loop.call_soon_threadsafe(_resolve, waiter.future, is_kept)


def _resolve(future: asyncio.Future[bool], is_kept: bool) -> None:
    if not future.done():
        future.set_result(is_kept)
