"""Databases of outcomes that are damaged, old, or oddly named: one sentence, or a counted row."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from onebeat.conductor.learning.sources import read_outcomes
from onebeat.engine.errors import InputError


def database(path: Path, prompts: int = 40) -> Path:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE outcomes (prompt, model, score)")
        rows = [(f"prompt {number} " + "x" * 200, "m", number % 2) for number in range(prompts)]
        connection.executemany("INSERT INTO outcomes VALUES (?, ?, ?)", rows)
    connection.close()
    return path


@pytest.mark.parametrize("name", ["a#b.sqlite", "what?.sqlite", "100%25.sqlite", "a b.db"])
def test_a_databases_name_is_no_address(tmp_path: Path, name: str) -> None:
    assert read_outcomes([database(tmp_path / name)]).report.used == 40
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_text_that_is_no_utf_8_is_counted_and_the_others_are_read(tmp_path: Path) -> None:
    path = database(tmp_path / "ledger.sqlite")
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO outcomes VALUES (CAST(x'ff6162' AS text), 'm', 1)")
    connection.close()
    report = read_outcomes([path]).report
    assert (report.used, report.problems) == (40, {"unreadable": 1})
    assert report.examples["unreadable"] == "first at ledger.sqlite row 41: bytes that are not UTF-8"


def test_a_damaged_page_ends_in_one_sentence(tmp_path: Path) -> None:
    path = database(tmp_path / "ledger.sqlite", 400)
    raw = bytearray(path.read_bytes())
    raw[3 * 4096 : 5 * 4096] = bytes([0xA5]) * (2 * 4096)
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"ledger\.sqlite is not a readable ledger: .*malformed"):
        read_outcomes([path])


def test_tables_of_another_programme_end_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE requests (id, prompt, model)")
        connection.execute("CREATE TABLE feedback (request_id, score)")
    connection.close()
    with pytest.raises(InputError, match=r"other\.sqlite is not a readable ledger: no such column"):
        read_outcomes([path])
