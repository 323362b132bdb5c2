"""`onebeat eval`: judges a router on held-out outcomes, against everything simpler."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `onebeat eval`."""
    add = parser.add_argument
    add("outcomes", nargs="+", type=Path, help="files of outcomes: .jsonl, .csv, .parquet, or the gateway's ledger")
    add("--router", default="default", help="folder of the router (default: the default router)")
    add("--all", action="store_true", help="judge on every prompt: right for outcomes that the head has never seen")
    add("--target", action="append", help='a target to check, as "95%%" or "0.40 usd"; may be repeated')
    add("--bootstraps", type=int, default=200, help="resamplings for the intervals; 0 for none (default %(default)s)")
    add("--json", action="store_true", help="print JSON")
    add("--html", type=Path, help="write a report with plots to this file")
    add("--seed", type=int, default=0, help="of the resampling (default %(default)s)")
    add("--cache", type=Path, help="folder for features; default: the user's cache")


def run(args: argparse.Namespace) -> int:
    """Prints the judgement."""
    from onebeat.conductor.learning import report_html, report_text
    from onebeat.conductor.learning.evaluate import TARGETS, Question, evaluate
    from onebeat.engine.default_router import CACHE_FOLDER, default_router_folder

    question = Question(
        files=tuple(args.outcomes),
        router=default_router_folder() if args.router == "default" else Path(args.router),
        everything=args.all,
        targets=tuple(args.target or TARGETS),
        bootstraps=args.bootstraps,
        seed=args.seed,
        cache_folder=args.cache or CACHE_FOLDER / "features",
    )
    result = evaluate(question, lambda line: print(line, file=sys.stderr, flush=True))
    if args.html:
        args.html.write_text(report_html.page(result), encoding="utf-8")
        print(f"written: {args.html}", file=sys.stderr)
    print(msgspec.json.encode(result).decode() if args.json else "\n".join(report_text.lines(result)))
    return 0
