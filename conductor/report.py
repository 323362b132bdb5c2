"""What the ledger says: spend, savings net of the router's own cost, calls per model, re-routes, failures by cause.

Enters: a ledger file and a span of time. Leaves: one `LedgerReport`, its text, and Parquet tables. Only reads.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from msgspec import Struct

from onebeat.conductor.edges import NOTED
from onebeat.conductor.ledger_rows import TABLES, connect
from onebeat.engine.errors import ConfigError, InputError


class ModelLine(Struct, frozen=True):
    model: str
    calls: int
    served: int
    failed: int
    cost_usd: float
    input_tokens: int
    output_tokens: int
    mean_first_token_ms: float | None


class LedgerReport(Struct, frozen=True):
    requests: int
    outcomes: dict[str, int]
    decided_by: dict[str, int]
    spend_usd: float
    router_usd: float
    always_best_usd: float
    saved_usd: float
    """What always asking the best model would have cost, less the spend and less the router's own time."""
    attempts: int
    attempt_outcomes: dict[str, int]
    wasted_usd: float
    """Paid for attempts whose answer nobody got."""
    rerouted_requests: int
    """Served after more than one attempt."""
    guarded_requests: int
    """Routed without an edge that did not belong to the prompt and made it dearer."""
    failures: dict[str, int]
    """By cause, over attempts."""
    models: tuple[ModelLine, ...]
    feedback_count: int
    feedback_mean: float | None
    router_ms_p50: float | None
    total_ms_p50: float | None
    total_ms_p99: float | None
    events: tuple[tuple[float, str, str], ...]


def read_report(path: str | Path, *, since: float = 0.0) -> LedgerReport:
    """The report over requests from Unix time `since` on. Raises `InputError` where there is no ledger."""
    connection = _open(path)
    try:
        return _read(connection, since)
    except sqlite3.Error as error:
        raise InputError(f"{path} is not a ledger of onebeat's: {error}.") from error
    finally:
        connection.close()


def _open(path: str | Path) -> sqlite3.Connection:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; `onebeat serve` writes the ledger that fleet.toml names.")
    return connect(path, read_only=True)


def _read(connection: sqlite3.Connection, since: float) -> LedgerReport:
    one = connection.execute(
        "SELECT count(*), total(cost_usd), total(router_usd),"
        " total(CASE WHEN outcome = 'served' THEN best_usd ELSE 0 END),"
        " total(outcome = 'served' AND attempts > 1), total(notes LIKE ?) FROM requests WHERE at >= ?",
        (f"%{NOTED}%", since),
    ).fetchone()
    requests, spend, router_usd, best_usd, rerouted, guarded = one
    attempts, wasted = connection.execute(
        "SELECT count(*), total(CASE WHEN outcome != 'served' THEN cost_usd ELSE 0 END) FROM attempts WHERE at >= ?",
        (since,),
    ).fetchone()
    count, mean = connection.execute("SELECT count(*), avg(score) FROM feedback WHERE at >= ?", (since,)).fetchone()
    lines = connection.execute(
        "SELECT model, count(*), total(outcome = 'served'), total(outcome = 'failed'), total(cost_usd),"
        " total(input_tokens), total(output_tokens), avg(first_token_ms) FROM attempts WHERE at >= ?"
        " GROUP BY model ORDER BY total(cost_usd) DESC, model",
        (since,),
    ).fetchall()
    events = connection.execute(
        "SELECT at, kind, detail FROM events WHERE at >= ? ORDER BY at DESC LIMIT 20", (since,)
    ).fetchall()
    return LedgerReport(
        requests=requests,
        outcomes=_counts(connection, "requests", "outcome", since),
        decided_by=_counts(connection, "requests", "decided_by", since),
        spend_usd=spend,
        router_usd=router_usd,
        always_best_usd=best_usd,
        saved_usd=best_usd - spend - router_usd,
        attempts=attempts,
        attempt_outcomes=_counts(connection, "attempts", "outcome", since),
        wasted_usd=wasted,
        rerouted_requests=int(rerouted),
        guarded_requests=int(guarded),
        failures=_counts(connection, "attempts", "problem", since),
        models=tuple(
            ModelLine(m, calls, int(served), int(failed), usd, int(inp), int(out), first)
            for m, calls, served, failed, usd, inp, out, first in lines
        ),
        feedback_count=count,
        feedback_mean=mean,
        router_ms_p50=_percentile(connection, "router_ms", 0.5, since, "router_ms > 0"),
        total_ms_p50=_percentile(connection, "total_ms", 0.5, since, "outcome = 'served'"),
        total_ms_p99=_percentile(connection, "total_ms", 0.99, since, "outcome = 'served'"),
        events=tuple((at, kind, detail) for at, kind, detail in events),
    )


def _counts(connection: sqlite3.Connection, table: str, column: str, since: float) -> dict[str, int]:
    query = (
        f"SELECT {column}, count(*) FROM {table} WHERE at >= ? AND {column} IS NOT NULL"
        f" GROUP BY {column} ORDER BY count(*) DESC, {column}"
    )
    return {str(name): int(count) for name, count in connection.execute(query, (since,))}


def _percentile(connection: sqlite3.Connection, column: str, share: float, since: float, where: str) -> float | None:
    condition = f"FROM requests WHERE at >= ? AND {where}"
    (count,) = connection.execute(f"SELECT count(*) {condition}", (since,)).fetchone()
    if not count:
        return None
    offset = min(count - 1, int(share * count))
    query = f"SELECT {column} {condition} ORDER BY {column} LIMIT 1 OFFSET {offset}"
    return float(connection.execute(query, (since,)).fetchone()[0])


def spent_today(path: str | Path, since: float) -> dict[str, float]:
    """Dollars per client key since Unix time `since`: what a restarted gateway starts its budgets from."""
    connection = _open(path)
    try:
        rows = connection.execute(
            "SELECT key_name, total(cost_usd) FROM requests WHERE at >= ? AND key_name IS NOT NULL GROUP BY key_name",
            (since,),
        ).fetchall()
    finally:
        connection.close()
    return {str(name): float(usd) for name, usd in rows}


def key_of_request(path: str | Path, request_id: str) -> tuple[str | None] | None:
    """The name of the key that sent a request, in a tuple; None where the ledger knows no such request."""
    connection = _open(path)
    try:
        row = connection.execute("SELECT key_name FROM requests WHERE id = ?", (request_id,)).fetchone()
    finally:
        connection.close()
    return None if row is None else (row[0],)


def as_text(report: LedgerReport) -> str:
    """The report for a terminal."""
    share = f" ({report.saved_usd / report.always_best_usd:.0%})" if report.always_best_usd else ""
    lines = [
        f"requests      {report.requests:>10,}   {_listed(report.outcomes)}",
        f"attempts      {report.attempts:>10,}   {_listed(report.attempt_outcomes)}",
        f"decided by                 {_listed(report.decided_by)}",
        f"spend         {report.spend_usd:>10.4f} USD, of which {report.wasted_usd:.4f} for answers that nobody got",
        f"router        {report.router_usd:>10.4f} USD for its own time",
        f"always best   {report.always_best_usd:>10.4f} USD",
        f"saved, net    {report.saved_usd:>10.4f} USD{share}",
        f"re-routed     {report.rerouted_requests:>10,} served after more than one attempt",
    ]
    if report.guarded_requests:
        lines.append(f"guarded       {report.guarded_requests:>10,} routed without an edge that made them dearer")
    if report.total_ms_p50 is not None:
        lines.append(f"latency       {report.total_ms_p50:>10.1f} ms p50, {report.total_ms_p99 or 0:.1f} ms p99")
    if report.feedback_count:
        lines.append(f"feedback      {report.feedback_count:>10,} scores, mean {report.feedback_mean:.3f}")
    if report.models:
        width = max(len("model"), *(len(line.model) for line in report.models))
        lines.append(
            f"\n{'model':<{width}} {'calls':>8} {'served':>8} {'failed':>8} {'USD':>12} {'in':>12} {'out':>12}"
        )
        lines += [
            f"{m.model:<{width}} {m.calls:>8,} {m.served:>8,} {m.failed:>8,} {m.cost_usd:>12.6f}"
            f" {m.input_tokens:>12,} {m.output_tokens:>12,}"
            for m in report.models
        ]
    if report.failures:
        lines += ["\nfailures by cause", *(f"  {cause:<24}{count:>8,}" for cause, count in report.failures.items())]
    if report.events:
        lines += ["\nevents, newest first", *(f"  {kind}: {detail}" for _, kind, detail in report.events)]
    return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def export_parquet(path: str | Path, folder: str | Path, *, since: float = 0.0) -> list[Path]:
    """One Parquet file per table, of the rows from Unix time `since` on. Raises `ConfigError` without pyarrow."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError("the Parquet export needs pyarrow; install onebeat[train].") from None
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    connection = _open(path)
    written = []
    kinds = {"TEXT": pa.string(), "REAL": pa.float64(), "INTEGER": pa.int64()}
    try:
        for table in TABLES.values():
            columns = [(row[1], kinds[row[2]]) for row in connection.execute(f"PRAGMA table_info({table})")]
            schema = pa.schema(columns)
            target = folder / f"{table}.parquet"
            cursor = connection.execute(f"SELECT * FROM {table} WHERE at >= ?", (since,))
            with pq.ParquetWriter(target, schema) as writer:
                while rows := cursor.fetchmany(50_000):
                    arrays = [
                        pa.array(values, kind)
                        for values, (_, kind) in zip(zip(*rows, strict=True), columns, strict=True)
                    ]
                    writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            written.append(target)
    except sqlite3.Error as error:
        raise InputError(f"{path} is not a ledger of onebeat's: {error}.") from error
    finally:
        connection.close()
    return written
