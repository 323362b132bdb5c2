"""`onebeat promote`: puts a candidate head in service when it is no worse, keeping the previous one."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from onebeat.conductor.learning.fleet_columns import add_fleet, columns_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `onebeat promote`."""
    add = parser.add_argument
    add("candidate", nargs="?", type=Path, help="folder with the candidate's router.json and router_head.safetensors")
    add("--router", type=Path, required=True, help="folder of the router in service")
    add("--outcomes", nargs="+", type=Path, help="outcomes that neither head was fitted on, or the gateway's ledger")
    add("--dry-run", action="store_true", help="judge only")
    add(
        "--roll-back",
        nargs="?",
        const="",
        metavar="STAMP",
        help="put the previous head back instead, or the one kept as previous/STAMP; the head that served takes its "
        "place there, so that rolling back again undoes it",
    )
    add("--cache", type=Path, help="folder for features; default: the user's cache")
    add_fleet(parser)


def run(args: argparse.Namespace) -> int:
    """Judges, then promotes. Returns 3 when the candidate is refused."""
    from onebeat.conductor.learning.artifact import read_head
    from onebeat.conductor.learning.preflight import check_cache
    from onebeat.conductor.learning.promote import judge, promote, roll_back
    from onebeat.conductor.learning.sources import read_outcomes
    from onebeat.engine.default_router import CACHE_FOLDER
    from onebeat.engine.errors import InputError

    if args.roll_back is not None:
        place = roll_back(args.router, args.roll_back or None)
        print(f"back in service: the head that was kept in {place}, which now keeps the one that served")
        return 0
    if args.candidate is None or not args.outcomes:
        raise InputError("promote needs a candidate's folder and --outcomes to judge it on, or --roll-back.")
    fleet = columns_of(args.fleet)
    # Both heads are looked at before what may be a million outcomes.
    for folder in (args.router, args.candidate):
        read_head(folder)
    cache_folder = args.cache or CACHE_FOLDER / "features"
    check_cache(cache_folder)
    outcomes = read_outcomes(args.outcomes, columns=fleet)
    for line in outcomes.report.lines():
        print(line, file=sys.stderr)
    files = [path.name for path in args.outcomes]
    verdict = judge(args.router, args.candidate, outcomes, files=files, cache_folder=cache_folder)
    for warning in verdict.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(verdict.sentence())
    if verdict.worse:
        print(f"refused: {args.router} is unchanged", file=sys.stderr)
        return 3
    if not args.dry_run:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        print(f"promoted; the previous head is kept in {promote(args.router, args.candidate, stamp)}")
    return 0
