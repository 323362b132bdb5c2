"""`--fleet`: a gateway's ledger names the fleet's models, a router its columns; `scored_as` of fleet.toml leads across.

Enters: a command's parser, or a path. Leaves: the argument, or a mapping. Knows no outcomes.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_fleet(parser: argparse.ArgumentParser) -> None:
    """Adds `--fleet`."""
    parser.add_argument("--fleet", type=Path, help="fleet.toml whose `scored_as` names the column of each model")


def columns_of(path: Path | None) -> dict[str, str]:
    """Each model of the fleet and the column that scores it; empty without a fleet. Raises `ConfigError`."""
    if path is None:
        return {}
    from onebeat.conductor.fleet_file import load_fleet

    return {name: model.scored_as or name for name, model in load_fleet(path).models.items()}
