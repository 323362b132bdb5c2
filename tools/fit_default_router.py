#!/usr/bin/env python3
"""Fits the head that onebeat ships, on the states that are served, and puts it in `onebeat/default_router`.

    tools/fit_default_router --data FOLDER        # some 875,000 tokens are read once; --cache keeps them

Enters: a folder with `zeroeval-2024` and `korbench-2024`, and the pulled backbone. Leaves: router.json and
router_head.safetensors, judged on 30 % of each source, then fitted on everything. The same as `onebeat train` on those
two sets with these columns; what is added is what the figures alone would not say. Run it again whenever the int8
arithmetic, the taps or the recipe change: dial and drift baseline follow from the states, too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from onebeat.conductor.learning import fit
from onebeat.conductor.learning.artifact import read_head, write_head
from onebeat.conductor.learning.costs import Price
from onebeat.conductor.learning.train import Job, train
from onebeat.engine.default_router import CACHE_FOLDER, default_router_path
from onebeat.engine.errors import OnebeatError
from tools.import_outcomes import LIST_PRICES, SETS

COLUMNS = {
    "gpt-4o-2024-08-06": "gpt-4o-2024-08-06",
    "gpt-4o-mini-2024-07-18": "gpt-4o-mini",
    "o1-mini-2024-09-12": "o1-mini",
    "claude-3-5-sonnet-20241022": "claude-3-5-sonnet-20241022",
    "claude-3-5-haiku-20241022": "claude-3-5-haiku",
    "claude-3-haiku-20240307": "claude-3-haiku",
    "gemini-1.5-pro": "gemini-1.5-pro",
    "gemini-1.5-flash": "gemini-1.5-flash",
}
"""From the sets' names to the columns'."""
TAPS: tuple[fit.TapName, ...] = ((15, "mean"), (17, "last"), (19, "mean"))
DATA = (
    "ZeroEval 2024 (WildEval/ZeroEval) and KOR-Bench 2024, both Apache-2.0; every model of both is a task, of which "
    "the columns are kept"
)
NOTES = (
    "Output tokens are characters of the visible answer / 4. Hidden reasoning tokens of o1-mini are not in the data, "
    "so its cost is understated: set its price or length in the fleet before relying on it.",
    "Of these columns only gpt-4o-2024-08-06 and gemini-1.5-pro answered KOR-Bench; the others are inferred there "
    "from what prompts share.",
    "Mathematics, code execution, word problems and rule puzzles only: for other prompts the prediction falls back "
    "towards each column's mean.",
)


def fit_default(
    data: Path,
    backbone: Path,
    output: Path,
    *,
    cache: Path | None,
    today: str,
    taps: tuple[fit.TapName, ...] = TAPS,
    recipe: fit.Recipe = fit.FIRST,
) -> list[str]:
    """Fits the head and puts it in `output`, whose head it replaces; returns the lines to show. Raises the errors of
    `train`."""
    with tempfile.TemporaryDirectory() as folder:
        fitted = Path(folder) / "fitted"
        files = [Path(folder) / f"{name}.jsonl" for name in ("zeroeval", "korbench")]
        for path in files:
            part, reader = SETS[path.stem]
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(outcome) + "\n" for outcome in reader(data / part))
        job = Job(
            files=tuple(files),
            backbone=backbone,
            output=fitted,
            today=today,
            prices={COLUMNS.get(name, name): Price(*price) for name, price in LIST_PRICES.items()},
            models=tuple(COLUMNS.values()),
            tap_sets=(taps,),
            recipes=(recipe,),
            use_everything=True,
            head_only=True,
            name="onebeat-default",
            cache_folder=cache,
            columns=COLUMNS,
        )
        result = train(job, lambda line: print(line, file=sys.stderr, flush=True))
        description, tensors = read_head(fitted)
    description["fitted"] |= {"data": DATA, "notes": list(NOTES)}
    output.mkdir(parents=True, exist_ok=True)
    write_head(output, description, tensors)
    test = description["fitted"]["test"]
    return [
        *(f"warning: {warning}" for warning in result.warnings),
        f"held out ({test['prompts']} prompts): AUC {test['auc']}, within source {test['auc_within_source']}",
        f"written: {output}",
    ]


def main() -> int:
    """Fits from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published sets")
    parser.add_argument("--backbone", type=Path, default=default_router_path(), help="default: the pulled one")
    parser.add_argument("--cache", type=Path, default=CACHE_FOLDER / "features", help="folder that keeps features")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "onebeat/default_router")
    args = parser.parse_args()
    for name in ("zeroeval", "korbench"):
        if not (args.data / SETS[name][0]).is_dir():
            print(f"{args.data} has no {SETS[name][0]}; give the folder of the published sets.", file=sys.stderr)
            return 2
    try:
        today = datetime.now(UTC).date().isoformat()
        lines = fit_default(args.data, args.backbone, args.output, cache=args.cache, today=today)
    except OnebeatError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
