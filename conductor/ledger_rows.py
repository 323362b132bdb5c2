"""What the ledger stores and how it lies in SQLite: the rows, their tables, the file's settings.

Enters: rows. Leaves: tables, and rows in them. Knows no thread and no queue: `conductor.ledger` writes.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import msgspec
from msgspec import Struct

SCHEMA_VERSION = 1
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


def insert(connection: sqlite3.Connection, kind: type[Row], values: list[tuple[object, ...]]) -> int:
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
