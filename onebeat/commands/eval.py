"""`onebeat eval`: judges a router on held-out outcomes, against everything simpler."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from onebeat.conductor.learning.fleet_columns import add_fleet, columns_of

MOST_BOOTSTRAPS = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `onebeat eval`."""
    add = parser.add_argument
    add("outcomes", nargs="+", type=Path, help="files of outcomes: .jsonl, .csv, .parquet, or the gateway's ledger")
    add("--router", default="default", help="default, a folder, or hf:org/name[@revision]")
    add("--all", action="store_true", help="judge on every prompt: right for outcomes that the head has never seen")
    add("--target", action="append", help='a target to check, as "95%%" or "0.40 usd"; may be repeated')
    add(
        "--bootstraps",
        type=int,
        default=200,
        help="resamplings for the intervals, of every figure; 0 for none (default %(default)s)",
    )
    add("--json", action="store_true", help="print JSON")
    add("--html", type=Path, help="write a report with plots to this file")
    add("--seed", type=int, default=0, help="of the resampling (default %(default)s)")
    add(
        "--max-prompts",
        type=int,
        help="judge a seeded sample of more distinct prompts; default: as the head was fitted",
    )
    add("--cache", type=Path, help="folder for features; default: the user's cache")
    add_fleet(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the judgement."""
    from onebeat.conductor.learning import report_html, report_text
    from onebeat.conductor.learning.evaluate import TARGETS, Question, evaluate
    from onebeat.conductor.learning.preflight import LARGEST_SEED, MOST_PROMPTS, check_cache, check_output_file
    from onebeat.engine.arguments import whole
    from onebeat.engine.default_router import CACHE_FOLDER
    from onebeat.engine.hub import router_folder
    from onebeat.engine.targets import parse_target

    # What is wrong with an argument is said before the minutes that reading prompts takes.
    whole("--bootstraps", args.bootstraps, least=0, largest=MOST_BOOTSTRAPS)
    whole("--seed", args.seed, least=0, largest=LARGEST_SEED)
    if args.max_prompts is not None:
        whole("--max-prompts", args.max_prompts, least=1, largest=MOST_PROMPTS)
    for target in args.target or TARGETS:
        parse_target(target)
    check_output_file("--html", args.html)
    cache_folder = args.cache or CACHE_FOLDER / "features"
    check_cache(cache_folder)
    columns = columns_of(args.fleet)
    question = Question(
        files=tuple(args.outcomes),
        router=router_folder(args.router),
        everything=args.all,
        targets=tuple(args.target or TARGETS),
        bootstraps=args.bootstraps,
        seed=args.seed,
        max_prompts=args.max_prompts,
        cache_folder=cache_folder,
        columns=columns,
    )
    result = evaluate(question, lambda line: print(line, file=sys.stderr, flush=True))
    if args.html:
        args.html.write_text(report_html.page(result), encoding="utf-8")
        print(f"written: {args.html}", file=sys.stderr)
    print(msgspec.json.encode(result).decode() if args.json else "\n".join(report_text.lines(result)))
    return 0
