"""A short chaos run: random faults, `kill -9` in the middle; nothing acknowledged is lost or answered twice."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from bench.chaos import Outcome, chaos, check


async def test_a_killed_gateway_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    findings = await chaos(160, 16, tmp_path, seed=1)
    assert findings.violations == []
    assert findings.acknowledged > 80
    assert findings.got.get("broken", 0) <= findings.under_way_at_kill


def test_a_loss_would_be_found(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE requests (id, outcome, attempts, prompt)")
    connection.execute("CREATE TABLE attempts (request_id)")
    connection.executemany(
        "INSERT INTO requests VALUES (?, 'served', 1, ?)", [("a", "one"), ("b", "two"), ("c", "two")]
    )
    connection.executemany("INSERT INTO attempts VALUES (?)", [("a",), ("b",), ("c",)])
    connection.commit()
    connection.close()
    good = Outcome("one", "whole", "a", 1)
    assert check([good], path, 0) == ["served 2 times: two"]
    lost = check([good, Outcome("three", "whole", "z", 1), Outcome("four", "FALSE")], path, 0)
    assert len(lost) == 3 and "z was given" in lost[1] and "false answer" in lost[0]
    assert "connections broke" in check([Outcome("five", "broken")], path, 0)[0]
    assert "attempts told" in check([Outcome("one", "whole", "a", 2)], path, 0)[0]
