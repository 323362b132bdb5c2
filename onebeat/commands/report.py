"""`onebeat report`: what the ledger says, as text, JSON or Parquet."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import msgspec

from onebeat.conductor.fleet_file import load_fleet
from onebeat.conductor.report import as_text, export_parquet, read_report
from onebeat.engine.errors import ConfigError

HELP = "spend, savings and failures from the ledger"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ledger", nargs="?", help="the ledger's file (default: the one that --config names)")
    parser.add_argument("--config", default="fleet.toml", help="the fleet whose ledger to read (default: fleet.toml)")
    parser.add_argument("--hours", type=float, help="only the last so many hours")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--parquet", metavar="FOLDER", help="write every table of the ledger as Parquet into FOLDER")


def run(args: argparse.Namespace) -> int:
    if args.hours is not None and not args.hours > 0:
        raise ConfigError(f"--hours is {args.hours}; give a number above zero.")
    ledger = Path(args.ledger or load_fleet(args.config).ledger.path)
    since = time.time() - 3600 * args.hours if args.hours else 0.0
    if args.parquet:
        for written in export_parquet(ledger, args.parquet, since=since):
            print(written)
        return 0
    report = read_report(ledger, since=since)
    if args.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    else:
        print(as_text(report))
    return 0
