"""`onebeat train`: fits a head on graded outcomes."""

from __future__ import annotations

import argparse
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from onebeat.conductor.learning.fleet_columns import add_fleet, columns_of
from onebeat.engine.errors import InputError

if TYPE_CHECKING:
    from onebeat.conductor.learning.fit import TapName
    from onebeat.conductor.learning.train import Result

EXAMPLE = """example:
  onebeat train outcomes.jsonl --prices prices.json --output my-router
  onebeat eval outcomes.jsonl --router my-router --html report.html

Each outcome is {"prompt": ..., "model": ..., "score": 0..1} with, where known, input_tokens, output_tokens,
cost_usd, latency_ms, group, time, weight. prices.json maps each model to its list price:
  {"gpt-4o": {"input_usd_per_million": 2.5, "output_usd_per_million": 10}}

One model's answer a prompt is enough for a head. A dial needs 30 prompts that every model answered, or a log that drew
its models by chance, with their propensities. The head keeps hashes of the prompts it was fitted on: who has a prompt,
or can guess it, can tell.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `onebeat train`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    add = parser.add_argument
    add("outcomes", nargs="+", type=Path, help="files of outcomes: .jsonl, .csv, .parquet, or the gateway's ledger")
    add("--output", type=Path, required=True, help="folder for the router; it must not exist, or be empty")
    add("--backbone", default="default", help="folder of the backbone, or hf:org/name; default: the default router's")
    add("--prices", type=Path, help="JSON object of prices, as below; a model it lacks is priced from cost_usd")
    add("--models", help="comma-separated columns; default: all models. Others are learnt from, then dropped")
    add("--only-these", action="store_true", help="do not learn from models that are not columns")
    add("--taps", action="append", help="layers to tap together, as 20 or 15,17:last,19; repeat to compare several")
    add("--template", default="{prompt}", help='text around the prompt, or "chat" for the chat template')
    add("--max-prompt-tokens", type=int, default=2048, help="longer prompts lose their middle (default %(default)s)")
    add(
        "--max-prompts",
        type=int,
        default=50_000,
        help="of more distinct prompts a seeded sample is read (default %(default)s: half an hour on two cores)",
    )
    add("--precision", choices=["int8", "bfloat16", "float32"], default="int8", help="as it will be served")
    add("--recipe", action="append", help="only this kind of head (kernel, linear, low_rank, mlp); may be repeated")
    add("--test-share", type=float, default=0.3, help="share of each source held out for judging (default %(default)s)")
    add(
        "--hold-out",
        action="append",
        default=[],
        metavar="GROUP",
        help="hold out this whole source instead; repeatable",
    )
    add("--hold-out-newest", type=float, metavar="SHARE", help="hold out the newest share of prompts instead")
    add("--use-everything", action="store_true", help="after judging, fit once more with the held-out prompts")
    add("--seed", type=int, default=0, help="of the split and the fit (default %(default)s)")
    add("--name", help="the router's name; default: that of the output folder")
    add("--head-only", action="store_true", help="write router.json and router_head.safetensors, no backbone")
    add("--cache", type=Path, help="folder for features, so that a second run is quick; default: the user's cache")
    add_fleet(parser)


def run(args: argparse.Namespace) -> int:
    """Fits, writes the router and prints how good it is."""
    from onebeat.conductor.learning import fit
    from onebeat.conductor.learning.costs import read_prices
    from onebeat.conductor.learning.solve import Recipe
    from onebeat.conductor.learning.train import Job, train
    from onebeat.engine.default_router import CACHE_FOLDER
    from onebeat.engine.hub import router_folder

    recipes: tuple[Recipe, ...] = fit.RECIPES
    fleet = columns_of(args.fleet)  # Before anything long starts.
    if args.recipe:
        known = (*fit.RECIPES, *fit.NETWORKS)
        recipes = tuple(recipe for recipe in known if recipe.kind in args.recipe)
        for kind in args.recipe:
            if all(recipe.kind != kind for recipe in known):
                kinds = sorted({recipe.kind for recipe in known})
                raise InputError(f"--recipe is {kind}; it is one of {', '.join(kinds)}.")
    job = Job(
        files=tuple(args.outcomes),
        backbone=router_folder(args.backbone),
        output=args.output,
        today=datetime.now(UTC).date().isoformat(),
        prices=read_prices(args.prices) if args.prices else {},
        models=() if args.models is None else tuple(name.strip() for name in args.models.split(",")),
        tap_sets=tuple(_taps(text) for text in args.taps or ()),
        recipes=recipes,
        template=args.template,
        max_prompt_tokens=args.max_prompt_tokens,
        precision=args.precision,
        test_share=args.test_share,
        held_out_groups=tuple(args.hold_out),
        newest_share=args.hold_out_newest,
        max_prompts=args.max_prompts,
        seed=args.seed,
        use_everything=args.use_everything,
        head_only=args.head_only,
        name=args.name,
        cache_folder=args.cache or CACHE_FOLDER / "features",
        auxiliary=not args.only_these,
        columns=fleet,
    )
    result = train(job, lambda line: print(line, file=sys.stderr, flush=True))
    for warning in [*result.warnings, *_against_fleet(args.fleet, fleet, result)]:
        print(f"warning: {warning}", file=sys.stderr)
    print(text(result))
    print(f"written: {args.output}")
    return 0


def text(result: Result) -> str:
    """The summary that `onebeat train` prints."""
    fitted = result.description["fitted"]
    test, dial = fitted["test"], fitted["dial"]
    lines = [
        f"{fitted['recipe']}, {len(result.description['columns'])} columns, {fitted['prompts']} prompts, "
        f"{fitted['outcomes']} outcomes",
        f"split: {fitted['split']['name']}",
    ]
    if test:
        lines.append(
            f"held out ({test['prompts']} prompts): AUC {_shown(test['auc'])}, within source "
            f"{_shown(test['auc_within_source'])}, calibration error {_shown(test['calibration_error'])}"
        )
        lines += [f"  {_shown(value):>6}  {name}" for name, value in test["auc_per_model"].items()]
    lines.append(
        f"best single model: {dial['best_model']} at {dial['best_quality']:.3f} for "
        f"${dial['best_usd_per_thousand']:.3f} per thousand (by {dial['how']})"
    )
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _taps(text: str) -> tuple[TapName, ...]:
    parts = [part.strip().partition(":") for part in text.split(",")]
    if any(not re.fullmatch("[0-9]{1,4}", layer) or pooling not in ("", "mean", "last") for layer, _, pooling in parts):
        raise InputError(f"--taps is {text!r}; give layers with an optional pooling, such as 20 or 15,17:last,19.")
    return tuple((int(layer), pooling or "mean") for layer, _, pooling in parts)


def _against_fleet(path: Path | None, fleet: dict[str, str], result: Result) -> list[str]:
    """Columns that no model of the fleet uses, and fleet models that have no column."""
    if path is None:
        return []
    columns = [column["name"] for column in result.description["columns"]]
    unused = [name for name in columns if name not in fleet.values()]
    return [f"column {name} is scored by no model of {path.name}" for name in unused] + [
        f"{name} of {path.name} is scored as {column}, for which there is no column"
        for name, column in fleet.items()
        if column not in columns
    ]
