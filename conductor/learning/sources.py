"""Files of outcomes, read as a stream of `(place, record)`: JSON lines, CSV, Parquet, and the gateway's ledger.

Enters: a path. Leaves: raw records for `outcomes.Gatherer`, never more than one batch in memory. A line that cannot be
read comes out as a string that says why, so that it is counted. Knows field names only to point out misspelt ones.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import re
import sqlite3
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from onebeat.conductor.learning.outcomes import FIELDS, Gatherer, Outcomes
from onebeat.conductor.learning.weights import counted
from onebeat.conductor.ledger_rows import connect
from onebeat.engine.errors import InputError
from onebeat.engine.strict_json import shown

Record = tuple[str, Mapping[str, object] | str]
BATCH_ROWS = 4096
_UNDECODED = re.compile("[\udc80-\udcff]")


def read_outcomes(
    paths: Collection[Path], *, models: Collection[str] | None = None, columns: Mapping[str, str] | None = None
) -> Outcomes:
    """All outcomes of these files in one table; those of weight 0 are none. Raises `InputError` for a file of no known
    kind or without outcomes.

    `models` are the only ones taken; `columns` maps a fleet's model names to the columns that score them.
    """
    gatherer = Gatherer(known_models=models, renamed=columns or {})
    for path in paths:
        gatherer.add_all(records(path))
    return counted(gatherer.table())


def records(path: Path) -> Iterator[Record]:
    """The records of one file, chosen by its suffix: .jsonl .ndjson .csv .tsv .parquet .sqlite .db"""
    if not path.is_file():
        there = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        raise InputError(f"{there}; give a file of outcomes (.jsonl, .csv, .parquet or a ledger).")
    suffix = path.suffix.lower()
    readers = {
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".csv": _csv,
        ".tsv": _csv,
        ".parquet": _parquet,
        ".sqlite": _ledger,
        ".sqlite3": _ledger,
        ".db": _ledger,
    }
    if suffix not in readers:
        raise InputError(f"{path} ends in {suffix!r}; outcomes are read from {', '.join(readers)}.")
    return readers[suffix](path)


def _json_lines(path: Path) -> Iterator[Record]:
    """A line without the fields that every outcome has is counted as unreadable, unless no line has them."""
    decoder = msgspec.json.Decoder()
    seen: set[str] = set()
    misnamed: InputError | None = None
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            place = f"{path.name}:{number}"
            try:
                record = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                yield place, str(error)
                continue
            if not isinstance(record, dict):
                yield place, f"a {type(record).__name__} where an object is expected"
                continue
            if not seen.issuperset(record):
                try:
                    _check_names(path, set(record))
                except InputError as error:
                    misnamed = misnamed or error
                    if not seen and number >= BATCH_ROWS:
                        raise misnamed from None
                    yield place, str(error).removeprefix(f"{path} ")
                    continue
                seen.update(record)
            yield place, record
    if misnamed is not None and not seen:
        raise misnamed


def _csv(path: Path) -> Iterator[Record]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    # What is no UTF-8 comes out as lone surrogates, so that the row is known that holds it.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        reader = csv.DictReader(file, delimiter=delimiter)
        if any(map(_UNDECODED.search, reader.fieldnames or ())):
            raise InputError(f"{path} is not UTF-8; save it as UTF-8.")
        names = list(reader.fieldnames or ())
        if len(names) == 1 and (mark := next((mark for mark in ";\t|," if mark in names[0]), None)):
            raise InputError(
                f"{path} is separated by {mark!r} where {delimiter!r} is read; save it with "
                "commas as .csv, or with tabs as .tsv."
            )
        _check_names(path, set(names))
        while True:
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield f"{path.name}:{reader.line_num}", str(error)
                continue
            place = f"{path.name}:{reader.line_num}"
            if None in record:
                yield place, "more cells than the header names"
            elif any(isinstance(cell, str) and _UNDECODED.search(cell) for cell in record.values()):
                yield place, "bytes that are not UTF-8; save the file as UTF-8"
            else:
                yield place, record


def _parquet(path: Path) -> Iterator[Record]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path} is Parquet, which needs pyarrow: pip install 'onebeat[train]'.") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = [name for name in file.schema_arrow.names if name in FIELDS]
        _check_names(path, set(file.schema_arrow.names))
        row = 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=names):
            for record in batch.to_pylist():
                row += 1
                yield f"{path.name} row {row}", record
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"{path} is not a readable Parquet file: {said}.") from None


def _check_names(path: Path, names: set[str]) -> None:
    """Raises `InputError` when a required field is missing, naming the column that was probably meant."""
    wanted = [("prompt", "messages"), ("model",), ("score",)]
    for alternatives in wanted:
        if names.intersection(alternatives):
            continue
        near = [match for name in alternatives for match in difflib.get_close_matches(name, sorted(names), 1, 0.5)]
        found = shown(sorted(names)) if names else "no columns"
        hint = f"is it {near[0]!r}? rename it" if near else f"it has {found}"
        raise InputError(f"{path} has no column {' or '.join(alternatives)}; {hint}.")


LEDGER_QUERY = """
SELECT r.prompt AS messages, r.model AS model, f.score AS score, r.prompt_tokens AS input_tokens,
       r.output_tokens AS output_tokens, CASE WHEN r.attempts = 1 THEN r.cost_usd END AS cost_usd,
       r.total_ms AS latency_ms, r.key_name AS "group", r.at AS time,
       CASE WHEN r.model = r.decided_model THEN r.propensity END AS propensity
FROM requests AS r
JOIN feedback AS f ON f.request_id = r.id AND f.rowid = (SELECT max(rowid) FROM feedback WHERE request_id = r.id)
WHERE r.outcome = 'served' ORDER BY r.at
"""
"""The last feedback on a request counts. What several attempts cost together says nothing of one model's price, and a
propensity belongs to the model that the policy chose, not to the one that stepped in."""


def _ledger(path: Path) -> Iterator[Record]:
    """Graded requests: of the gateway's ledger (those with feedback), or of a table or view called `outcomes`."""
    with _opened(path) as connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        columns = {row[1] for row in connection.execute("SELECT * FROM pragma_table_info('outcomes')")}
        if columns:
            _check_names(path, columns)
            query = "SELECT {} FROM outcomes".format(", ".join(f'"{name}"' for name in FIELDS if name in columns))
        elif {"requests", "feedback"} <= tables:
            query = LEDGER_QUERY
            _check_prompts(path, connection)
        else:
            raise InputError(f"{path} has no table `outcomes`, and is not a ledger that `onebeat serve` wrote.")
        for number, row in enumerate(connection.execute(query), 1):
            place = f"{path.name} row {number}"
            if any(isinstance(cell, str) and _UNDECODED.search(cell) for cell in row):
                yield place, "bytes that are not UTF-8"
            else:
                yield place, dict(row)


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A database to read from, as `_csv` reads text: what is no UTF-8 comes out as lone surrogates.

    Raises `InputError` for one that is damaged, locked, or lacks a column that is asked for, whenever that shows.
    """
    connection = None
    try:
        connection = connect(path, read_only=True)
        connection.row_factory = sqlite3.Row
        connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")
        yield connection
    except sqlite3.Error as error:
        raise InputError(f"{path} is not a readable ledger: {error}.") from None
    finally:
        if connection is not None:
            connection.close()


def _check_prompts(path: Path, connection: sqlite3.Connection) -> None:
    """Raises `InputError` where a ledger has graded requests and the prompt of none."""
    count = "SELECT count(*), count(messages) FROM ({})".format(LEDGER_QUERY.replace(" ORDER BY r.at", ""))
    graded, stored = connection.execute(count).fetchone()
    if graded and not stored:
        raise InputError(
            f"{path} holds {graded:,} requests with feedback and the prompt of none of them; set store_prompts = true "
            "under [ledger] in fleet.toml, and serve on."
        )
