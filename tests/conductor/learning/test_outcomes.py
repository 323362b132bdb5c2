"""Outcomes in: every format gives one table, and nothing odd goes uncounted."""

from __future__ import annotations

import csv
import json
import resource
import sqlite3
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from onebeat.conductor.learning.outcomes import Gatherer, prompt_key
from onebeat.conductor.learning.sources import read_outcomes
from onebeat.engine.errors import InputError

ROWS: list[dict[str, object]] = [
    {"prompt": "one", "model": "a", "score": 1, "output_tokens": 10, "group": "x", "time": "2026-01-02T00:00:00Z"},
    {"prompt": "one", "model": "b", "score": 0.25, "cost_usd": 0.5},
    {"prompt": "two", "model": "a", "score": 0, "input_tokens": 3, "group": "y", "time": 5.0},
]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, sorted({name for row in rows for name in row}))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        names = sorted({name for row in rows for name in row})
        texts = [{name: None if row.get(name) is None else str(row[name]) for name in names} for row in rows]
        parquet.write_table(arrow.Table.from_pylist(texts), path)
    else:
        with sqlite3.connect(path) as connection:
            connection.execute(
                'CREATE TABLE outcomes (prompt, model, score, output_tokens, cost_usd, input_tokens, "group", time)'
            )
            for row in rows:
                names = ", ".join(f'"{name}"' for name in row)
                marks = ", ".join("?" * len(row))
                connection.execute(f"INSERT INTO outcomes ({names}) VALUES ({marks})", list(row.values()))
        connection.close()
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".sqlite"])
def test_every_format_gives_the_same_table(tmp_path: Path, suffix: str) -> None:
    table = read_outcomes([write(tmp_path / f"outcomes{suffix}", ROWS)])
    assert table.prompts == ("one", "two")
    assert table.groups == ("x", "y")
    assert table.models == ("a", "b")
    np.testing.assert_array_equal(table.score, np.array([[1, 0.25], [0, np.nan]], np.float32))
    assert table.output_tokens[0, 0] == 10
    assert table.cost_usd[0, 1] == 0.5
    assert table.input_tokens[1, 0] == 3
    np.testing.assert_array_equal(table.weight, [[1, 1], [1, 0]])
    assert table.time_s[1] == 5.0
    assert table.time_s[0] == 1767312000.0
    assert table.report.records == table.report.used == 3
    assert not table.report.problems


def test_everything_odd_is_counted_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    lines = [
        *map(json.dumps, ROWS),
        json.dumps(ROWS[0]),
        json.dumps(ROWS[1] | {"score": 0.75}),
        json.dumps({"prompt": "three", "model": "a", "score": "NaN"}),
        json.dumps({"prompt": "three", "model": "a", "score": 7}),
        json.dumps({"prompt": "three", "model": "a", "score": None}),
        json.dumps({"prompt": " ", "model": "a", "score": 1}),
        json.dumps({"prompt": "three", "model": "", "score": 1}),
        json.dumps({"prompt": "three", "model": "b", "score": 1, "output_tokens": -4}),
        json.dumps({"prompt": "one", "model": "stranger", "score": 1}),
        json.dumps(ROWS[1] | {"score": 0.5, "time": "yesterday", "propensity": 2}),
        "{not json",
        "[1, 2]",
    ]
    path.write_text("\n".join(lines) + "\n")
    table = read_outcomes([path], models=["a", "b"])
    assert table.score[0, 1] == 0.5
    assert np.isnan(table.output_tokens[2, 1])
    assert table.report.records == 15
    assert table.report.used == 4
    assert dict(table.report.problems) == {
        "duplicates of a prompt and model (merged)": 3,
        "prompts and models with conflicting scores (averaged)": 1,
        "with a score outside 0..1 (left out)": 2,
        "without a score": 1,
        "without a prompt": 1,
        "without a model": 1,
        "with output_tokens that is not a number from 0 to 1e+12 (ignored)": 1,
        "with a time that is neither ISO 8601 nor seconds (ignored)": 1,
        "with a propensity that is not above 0 and at most 1 (ignored)": 1,
        "of a model that is not asked for (left out)": 1,
        "unreadable": 2,
    }
    report = "\n".join(table.report.lines())
    assert "odd.jsonl:6" in report
    assert "stranger" in report


def test_a_misnamed_line_among_good_ones_is_counted(tmp_path: Path) -> None:
    odd: dict[str, object] = {"prompt": "p", "model": "a", "Score": 1}
    for rows in ([*ROWS, odd], [odd, *ROWS]):
        table = read_outcomes([write(tmp_path / "o.jsonl", rows)])
        assert table.report.used == 3
        assert table.report.problems == {"unreadable": 1}
        assert "no column score; is it 'Score'" in table.report.examples["unreadable"]


def test_integers_beyond_every_float_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    huge = "9" * 400
    path.write_text(
        f'{json.dumps(ROWS[1])}\n{{"prompt": "p", "model": "a", "score": {huge}}}\n'
        f'{{"prompt": "p", "model": "a", "score": 1, "output_tokens": {huge}, "time": -{huge}}}\n'
    )
    assert dict(read_outcomes([path]).report.problems) == {
        "with a score outside 0..1 (left out)": 1,
        "with output_tokens that is not a number from 0 to 1e+12 (ignored)": 1,
        "with a time that is neither ISO 8601 nor seconds (ignored)": 1,
    }


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_mark_of_the_byte_order_is_no_part_of_a_name(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"o{suffix}", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_outcomes([path]).report.used == 3


def test_cells_that_are_not_utf8_are_counted_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("prompt,model,score\ncafé,a,1\ntea,a,1\n".encode("latin-1"))
    table = read_outcomes([path])
    assert table.prompts == ("tea",)
    assert table.report.problems == {"unreadable": 1}
    assert "latin.csv:2: bytes that are not UTF-8" in table.report.examples["unreadable"]
    path.write_bytes("prompt,model,score,é\ntea,a,1,\n".encode("latin-1"))
    with pytest.raises(InputError, match="is not UTF-8; save it as UTF-8"):
        read_outcomes([path])


def test_parquet_with_decimals_and_parquet_that_is_damaged(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "o.parquet"
    rows = [{"prompt": f"prompt {n} " * 40, "model": "a", "score": Decimal("0.25")} for n in range(2000)]
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    assert read_outcomes([path]).score[0, 0] == 0.25
    whole = path.read_bytes()
    for damaged in (whole[:200] + b"\xff" * 400 + whole[600:], whole[: len(whole) // 2], b"PAR1" + whole[-300:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"^[^\n]* is not a readable Parquet file: [^\n]*\.$"):
            read_outcomes([path])


def test_messages_are_prompts_too(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hello"}]
    lines = write(tmp_path / "m.jsonl", [{"messages": messages, "model": "a", "score": True}])
    cells = write(tmp_path / "m.csv", [{"messages": json.dumps(messages), "model": "b", "score": "false"}])
    table = read_outcomes([lines, cells])
    assert table.prompts == (messages,)
    np.testing.assert_array_equal(table.score, [[1, 0]])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "p", "model": "a", "scores": 1}], "no column score; is it 'scores'"),
        ([{"promt": "p", "model": "a", "score": 1}], "no column prompt or messages; is it 'promt'"),
        ([{"prompt": "p", "model": "a", "score": 3}], "none of 1 records is a usable outcome"),
    ],
)
def test_missing_columns_name_the_likely_one(tmp_path: Path, rows: list[dict[str, object]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_outcomes([write(tmp_path / "bad.jsonl", rows)])


def test_files_that_are_not_outcomes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        read_outcomes([tmp_path / "nowhere.csv"])
    (tmp_path / "a.pickle").write_bytes(b"")
    with pytest.raises(InputError, match=r"'\.pickle'"):
        read_outcomes([tmp_path / "a.pickle"])
    (tmp_path / "a.parquet").write_bytes(b"PAR")
    with pytest.raises(InputError, match="not a readable Parquet"):
        read_outcomes([tmp_path / "a.parquet"])
    (tmp_path / "a.db").write_bytes(b"not a database at all, but long enough to be looked at" * 9)
    with pytest.raises(InputError, match="not a readable ledger"):
        read_outcomes([tmp_path / "a.db"])
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(InputError, match="the file is empty"):
        read_outcomes([tmp_path / "empty.jsonl"])


def test_a_model_without_outcomes_is_named(tmp_path: Path) -> None:
    table = read_outcomes([write(tmp_path / "o.jsonl", ROWS)])
    assert table.with_models(["b"]).score[0, 0] == 0.25
    with pytest.raises(InputError, match=r"'c'.*a, b"):
        table.with_models(["c"])


def test_twins_share_a_key_and_messages_differ_by_content() -> None:
    assert prompt_key("What  is\nthis?") == prompt_key("what is this?")
    assert prompt_key([{"role": "user", "content": "a"}]) != prompt_key([{"role": "user", "content": "b"}])


def test_a_million_records_stay_within_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    records = (
        (f"row {row}", {"prompt": f"prompt {row // 10} " * 5, "model": f"model {row % 10}", "score": row % 2})
        for row in range(1_000_000)
    )
    table = Gatherer().add_all(records).table()
    assert table.score.shape == (100_000, 10)
    assert table.report.used == 1_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000


async def test_the_gateways_own_ledger_is_read(tmp_path: Path) -> None:
    from onebeat.conductor.ledger_rows import FeedbackRow, RequestRow

    path = tmp_path / "ledger.sqlite"
    messages = json.dumps([{"role": "user", "content": "hello"}])
    with sqlite3.connect(path) as connection:
        for table, kind in (("requests", RequestRow), ("feedback", FeedbackRow)):
            connection.execute(f"CREATE TABLE {table} ({', '.join(kind.__struct_fields__)})")
        row = {"outcome": "served", "at": 9.0, "prompt_tokens": 7, "output_tokens": 11, "key_name": "team"}
        rows = [
            row | {"id": "1", "model": "m", "decided_model": "m", "propensity": 0.9, "attempts": 1, "cost_usd": 0.5},
            row | {"id": "2", "model": "n", "decided_model": "m", "propensity": 0.9, "attempts": 2, "cost_usd": 0.8},
            row | {"id": "3", "model": "m", "decided_model": "m", "propensity": 0.9, "attempts": 1, "cost_usd": 0.5},
        ]
        for held in rows:
            held["prompt"] = messages if held["id"] != "3" else None
            names = ", ".join(held)
            marks = ", ".join("?" * len(held))
            connection.execute(f"INSERT INTO requests ({names}) VALUES ({marks})", [*held.values()])
        for request, score in (("1", 0.0), ("1", 1.0), ("2", 0.25), ("3", 1.0)):
            connection.execute("INSERT INTO feedback (request_id, at, score) VALUES (?, 9.0, ?)", [request, score])
    connection.close()
    table = read_outcomes([path], columns={"n": "column-n"})
    assert table.models == ("column-n", "m")
    assert table.groups == ("team",)
    np.testing.assert_array_equal(table.score, [[0.25, 1.0]])
    np.testing.assert_array_equal(table.cost_usd, np.array([[np.nan, 0.5]], np.float32))
    np.testing.assert_array_equal(table.propensity, np.array([[np.nan, 0.9]], np.float32))
    assert table.report.problems == {"without a prompt": 1}
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE requests SET prompt = NULL")
    connection.close()
    with pytest.raises(InputError, match=r"3 requests with feedback .*set store_prompts = true under \[ledger\]"):
        read_outcomes([path])


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", ",")])
def test_another_separator_is_named(tmp_path: Path, name: str, mark: str) -> None:
    path = tmp_path / name
    path.write_text(mark.join(["prompt", "model", "score"]) + "\n" + mark.join(["hello", "m", "1"]) + "\n")
    with pytest.raises(InputError) as caught:
        read_outcomes([path])
    read = "\t" if path.suffix == ".tsv" else ","
    assert f"is separated by {mark!r} where {read!r} is read; save it with commas as .csv" in str(caught.value)
