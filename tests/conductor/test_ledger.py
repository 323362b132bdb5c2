"""Nothing committed is lost, nothing is counted twice, and a disk that refuses stops no traffic."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onebeat.conductor import ledger as ledger_module
from onebeat.conductor.ledger import Ledger
from onebeat.conductor.ledger_rows import AttemptRow, FeedbackRow, RequestRow
from onebeat.conductor.report import as_text, export_parquet, read_report, spent_today
from onebeat.engine.errors import ConfigError, InputError


def request_row(identifier: str, **fields: object) -> RequestRow:
    values: dict[str, object] = {
        "id": identifier,
        "at": 1000.0,
        "key_name": "team",
        "face": "openai",
        "asked_model": "auto",
        "model": "small",
        "response_model": "small-1",
        "outcome": "served",
        "cause": None,
        "decided_model": "small",
        "decided_by": "router",
        "propensity": 1.0,
        "tradeoff": 0.5,
        "stream": False,
        "attempts": 1,
        "prompt_tokens": 10,
        "output_tokens": 20,
        "cost_usd": 0.25,
        "router_ms": 7.0,
        "router_usd": 0.01,
        "best_model": "big",
        "best_usd": 1.0,
        "first_token_ms": 50.0,
        "total_ms": 100.0,
        "dropped_messages": 0,
        "reason": "r",
        "notes": None,
        "scores": None,
    }
    return RequestRow(**{**values, **fields})  # type: ignore[arg-type]


def attempt_row(identifier: str, number: int = 1, **fields: object) -> AttemptRow:
    values: dict[str, object] = {
        "request_id": identifier,
        "number": number,
        "at": 1000.0,
        "model": "small",
        "provider": "p",
        "response_model": "small-1",
        "outcome": "served",
        "problem": None,
        "detail": None,
        "status": 200,
        "input_tokens": 10,
        "cached_tokens": 0,
        "output_tokens": 20,
        "reasoning_tokens": 0,
        "cost_usd": 0.25,
        "estimated": False,
        "first_token_ms": 50.0,
        "total_ms": 100.0,
    }
    return AttemptRow(**{**values, **fields})  # type: ignore[arg-type]


def count(path: Path, table: str = "requests") -> int:
    connection = sqlite3.connect(path)
    (rows,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    connection.close()
    return int(rows)


async def test_rows_are_on_disk_once_committed_says_so(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite")
    for number in range(5_000):
        ledger.append(request_row(f"r{number}"), attempt_row(f"r{number}"))
    assert await ledger.committed()
    assert count(ledger.path) == count(ledger.path, "attempts") == 5_000
    assert ledger.status().written_rows == 10_000 and ledger.status().healthy
    assert await ledger.committed()
    ledger.close()


async def test_many_wait_for_one_commit(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite")

    async def one(number: int) -> bool:
        ledger.append(request_row(f"r{number}"))
        return await ledger.committed()

    assert all(await asyncio.gather(*(one(number) for number in range(300))))
    ledger.close()
    assert count(ledger.path) == 300


def test_close_writes_what_waits_and_a_second_gateway_adds(tmp_path: Path) -> None:
    for start in (0, 10):
        ledger = Ledger(tmp_path / "l.sqlite")
        for number in range(start, start + 10):
            ledger.append(request_row(f"r{number}"))
        ledger.close()
    assert count(tmp_path / "l.sqlite") == 20


def test_the_same_row_is_counted_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite")
    ledger.append(request_row("r"), request_row("r"), attempt_row("r"), attempt_row("r"))
    ledger.close()
    assert count(ledger.path) == count(ledger.path, "attempts") == 1


async def test_a_locked_file_stops_nothing_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "RETRY_S", 0.02)
    ledger = Ledger(tmp_path / "l.sqlite", pause_s=0.001)
    holder = sqlite3.connect(ledger.path)
    holder.execute("BEGIN EXCLUSIVE")
    started = time.perf_counter()
    for number in range(100):
        ledger.append(request_row(f"r{number}"))
    assert time.perf_counter() - started < 0.2
    assert not await ledger.committed(timeout_s=1.3)
    status = ledger.status()
    assert not status.healthy and status.waiting_rows == 100 and "locked" in (status.error or "")
    holder.rollback()
    holder.close()
    assert await ledger.committed(timeout_s=5.0)
    assert ledger.status().healthy and count(ledger.path) == 100
    ledger.close()


async def test_a_full_disk_drops_the_oldest_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "RETRY_S", 0.02)
    ledger = Ledger(tmp_path / "l.sqlite", queue_rows=50, pause_s=0.001)
    original = ledger_module.connect

    def full(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(ledger_module, "connect", full)
    for number in range(80):
        ledger.append(request_row(f"r{number}"))
        if not number % 20:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    status = ledger.status()
    assert not status.healthy and status.error == "database or disk is full"
    assert status.dropped_rows >= 30 and status.waiting_rows <= 50
    monkeypatch.setattr(ledger_module, "connect", original)
    assert await ledger.committed(timeout_s=5.0)
    await asyncio.sleep(0.1)
    assert await ledger.committed(timeout_s=5.0)
    report = read_report(ledger.path)
    assert report.requests == 80 - status.dropped_rows
    assert any(kind == "rows_lost" and str(status.dropped_rows) in detail for _, kind, detail in report.events)
    ledger.close()


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello, this is not a database" * 100)
    with pytest.raises(ConfigError, match="cannot be opened: file is not a database"):
        Ledger(tmp_path / "text")
    with pytest.raises(ConfigError, match="cannot be opened"):
        Ledger(tmp_path / "no" / "folder" / "l.sqlite")
    connection = sqlite3.connect(tmp_path / "new.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigError, match="version 99"):
        Ledger(tmp_path / "new.sqlite")
    with pytest.raises(InputError, match="does not exist"):
        read_report(tmp_path / "none.sqlite")
    with pytest.raises(InputError, match="not a ledger"):
        read_report(tmp_path / "new.sqlite")


KILLED = """
import asyncio, sys
sys.path.insert(0, sys.argv[2])
from test_ledger import request_row
from onebeat.conductor.ledger import Ledger

async def main():
    ledger = Ledger(sys.argv[1])
    number = 0
    while True:
        for _ in range(50):
            ledger.append(request_row(f"r{number}"))
            number += 1
        assert await ledger.committed()
        print(number, flush=True)

asyncio.run(main())
"""


def test_kill_9_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    command = [sys.executable, "-c", KILLED, str(path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        acknowledged = 0
        for line in child.stdout:
            acknowledged = int(line)
            if acknowledged >= 1_000:
                os.kill(child.pid, signal.SIGKILL)
                break
        rest = child.stdout.read().split()
        acknowledged = int(rest[-1]) if rest else acknowledged
    assert acknowledged <= count(path) <= acknowledged + 50
    ledger = Ledger(path)
    ledger.append(request_row("after"))
    ledger.close()
    assert count(path) > acknowledged


def test_the_report_adds_up(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite")
    ledger.append(
        request_row("a"),
        attempt_row("a"),
        request_row("b", attempts=2, model="big", cost_usd=0.75),
        attempt_row("b", 1, outcome="failed", problem="overloaded", cost_usd=0.0),
        attempt_row("b", 2, model="big", cost_usd=0.75),
        request_row("c", outcome="cancelled", cost_usd=0.1, best_usd=9.0),
        attempt_row("c", outcome="cancelled", cost_usd=0.1),
        request_row("old", at=10.0),
        FeedbackRow("a", 1001.0, "team", 0.5, None),
    )
    ledger.close()
    report = read_report(ledger.path, since=500.0)
    assert report.requests == 3 and report.attempts == 4 and report.rerouted_requests == 1
    assert report.spend_usd == pytest.approx(1.1) and report.wasted_usd == pytest.approx(0.1)
    assert report.saved_usd == pytest.approx(2.0 - 1.1 - 0.03)
    assert report.failures == {"overloaded": 1} and report.feedback_mean == 0.5
    assert [line.model for line in report.models] == ["big", "small"]
    assert report.outcomes == {"served": 2, "cancelled": 1}
    assert "saved, net" in as_text(report) and "overloaded" in as_text(report)
    assert spent_today(ledger.path, 500.0) == {"team": pytest.approx(1.1)}
    assert read_report(ledger.path).requests == 4
    assert as_text(read_report(ledger.path, since=1e12)).startswith("requests               0")


def test_parquet_holds_every_row(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    ledger = Ledger(tmp_path / "l.sqlite")
    ledger.append(request_row("a", scores='{"big":[0.9,10]}'), request_row("b"), attempt_row("a"))
    ledger.close()
    written = export_parquet(ledger.path, tmp_path / "out")
    assert {path.name for path in written} == {f"{t}.parquet" for t in ("requests", "attempts", "feedback", "events")}
    rows = pq.read_table(tmp_path / "out" / "requests.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["a", "b"] and rows[0]["scores"] == '{"big":[0.9,10]}'
    assert rows[0]["propensity"] == 1.0 and rows[1]["scores"] is None


def test_a_count_that_sqlite_cannot_hold_costs_only_its_own_row(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.append(request_row("good"), attempt_row("good", input_tokens=2**63 + 5), attempt_row("good", 2))
    ledger.close()
    assert ledger.status().dropped_rows == 1
    assert count(path) == 1
    assert count(path, "attempts") == 1


async def test_a_dropped_or_refused_row_is_not_called_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "RETRY_S", 0.02)
    ledger = Ledger(tmp_path / "l.sqlite", queue_rows=3, pause_s=0.001)
    assert await ledger.durable(ledger.append(request_row("good"), attempt_row("good")), 2)
    holder = sqlite3.connect(ledger.path)
    holder.execute("BEGIN EXCLUSIVE")
    number = ledger.append(request_row("first"))
    assert not await ledger.durable(number, 1)  # heard of as soon as the file is found locked
    started = time.perf_counter()
    assert (
        not await ledger.durable(number, 1) and time.perf_counter() - started < 0.5
    )  # known: nobody waits for it again
    number = ledger.append(*(request_row(f"more{number}") for number in range(5)))
    holder.rollback()
    holder.close()
    assert await ledger.committed(5.0)
    # Of the five only two or three had a place in the queue: the first of all may have been on its way to the disk.
    assert await ledger.durable(number, 2) and not await ledger.durable(number, 4)
    await asyncio.sleep(0.05)
    assert await ledger.committed(5.0) and ledger.status().undurable == 3
    ledger.close()
    kinds = {kind: detail for _, kind, detail in read_report(ledger.path).events}
    assert kinds["not_durable"].startswith("2 answers") and "rows_lost" in kinds
