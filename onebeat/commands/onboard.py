"""`onebeat onboard`: a new model from 20 to 200 graded prompts, the other columns untouched."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from onebeat.conductor.learning.fleet_columns import add_fleet, columns_of
from onebeat.engine.errors import InputError

if TYPE_CHECKING:
    from onebeat.engine.records import Prompt

EXAMPLE = """in two steps:
  onebeat onboard --router my-router --pool prompts.jsonl --count 50 --chosen to-grade.jsonl
  onebeat onboard --router my-router --model new-model --outcomes graded.jsonl --pool prompts.jsonl \\
      --input-usd 1.5 --output-usd 6 --output my-router-2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `onebeat onboard`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    add = parser.add_argument
    add("--router", required=True, help="default, a folder, or hf:org/name[@revision]")
    add(
        "--pool",
        type=Path,
        help='prompts as JSON lines of {"prompt": ...}: to choose from, and to state uncertainty over',
    )
    add("--count", type=int, default=50, help="how many prompts to choose, 20 to 200 (default %(default)s)")
    add("--chosen", type=Path, help="write the chosen prompts here and stop")
    add("--outcomes", nargs="+", type=Path, help="graded outcomes of the new model")
    add("--model", help="the new model's name")
    add("--successor-of", help="start from this column instead of the average of all")
    add("--input-usd", type=float, help="list price per million input tokens")
    add("--output-usd", type=float, help="list price per million output tokens")
    add("--output", type=Path, help="folder for the router with the new column")
    add("--name", help="the new router's name; default: that of the output folder")
    add(
        "--max-prompts",
        type=int,
        default=50_000,
        help="of a pool of more distinct prompts a seeded sample is read (default %(default)s: half an hour on two "
        "cores)",
    )
    add("--seed", type=int, default=0, help="of ties and the bootstrap (default %(default)s)")
    add("--cache", type=Path, help="folder for features; default: the user's cache")
    add_fleet(parser)


def run(args: argparse.Namespace) -> int:
    """Chooses prompts, or fits the column and writes the router."""
    from onebeat.conductor.learning import onboard
    from onebeat.conductor.learning.artifact import read_head
    from onebeat.engine.hub import router_folder
    from onebeat.engine.whole_folder import whole_folder

    args.router = router_folder(args.router)
    description, tensors = read_head(args.router)
    names = [column["name"] for column in description["columns"]]
    _check(args, names)
    args.columns = columns_of(args.fleet)
    pool = _sampled(_distinct(_pool(args.pool)), args) if args.pool else []
    if args.chosen:
        quality, _, _ = _predict(args, description, tensors, pool)
        rows = onboard.choose_prompts(quality, args.count, seed=args.seed)
        args.chosen.write_bytes(b"".join(msgspec.json.encode(_record(pool[row])) + b"\n" for row in rows))
        print(f"{len(rows)} prompts to grade are in {args.chosen}")
        return 0
    with whole_folder(args.output) as folder:
        return _onboard(args, description, tensors, pool, folder)


def _onboard(
    args: argparse.Namespace, description: dict[str, Any], tensors: dict[str, Any], pool: list[Prompt], folder: Path
) -> int:
    from onebeat.conductor.learning import onboard
    from onebeat.conductor.learning.artifact import link_backbone, write_head
    from onebeat.conductor.learning.drift import features_only
    from onebeat.conductor.learning.fitted import FIELD, hashes

    names = [column["name"] for column in description["columns"]]
    outcomes = _graded(args)
    quality, raw, tokens = _predict(args, description, tensors, list(outcomes.prompts))
    predecessor = names.index(args.successor_of) if args.successor_of else None
    # A column that is replaced says nothing of the new model, unless it is named as what to start from.
    others = [index for index, name in enumerate(names) if name != args.model or name == args.successor_of]
    reach = _predict(args, description, tensors, pool) if pool else (quality, raw, tokens)
    found = onboard.combine(
        quality[:, others],
        outcomes.score[:, 0],
        weight=outcomes.weight[:, 0],
        pool_quality=reach[0][:, others],
        predecessor=None if predecessor is None else others.index(predecessor),
        seed=args.seed,
    )
    wide = onboard.widen(found, others, len(names))
    wanted = onboard.predict(wide, reach[0])
    like, ratio = _length(outcomes.output_tokens[:, 0], outcomes.weight[:, 0], tokens, predecessor)
    column = _column(args, found, outcomes, tokens[:, like] * ratio)
    table = np.concatenate([reach[1], wanted[:, None]], axis=1)
    updated, added = onboard.add_column(description, tensors, table, wide, column, ratio, like)
    fitted = {key: value for key, value in description["fitted"].items() if key != "dial"}
    fitted["onboarded"] = [*fitted.get("onboarded", []), column["fitted_on"]]
    if FIELD in fitted:
        fitted[FIELD] = hashes(outcomes.prompts, fitted[FIELD])
    updated |= {"fitted": fitted, "name": args.name or args.output.absolute().name}
    updated["drift"] = features_only(description.get("drift") or {})
    write_head(folder, updated, added)
    link_backbone(args.router, folder)
    print("\n".join(onboard.shown(wide, names)))
    if found.worse_than_constant:
        print(
            f"warning: the column predicts prompts it was not fitted on no better than a constant (log loss "
            f"{found.left_out_loss:.3f} against {found.prior_loss:.3f}); grade more prompts before relying on it",
            file=sys.stderr,
        )
    print(f"written: {args.output} (its solved dial is gone: fit it anew when outcomes of every model are at hand)")
    if updated["drift"]:
        print("drift is watched in the prompts alone: what is usual of quality and length was of the columns before")
    return 0


def _check(args: argparse.Namespace, names: list[str]) -> None:
    """What is wrong with an argument is said before a prompt is read."""
    from onebeat.conductor.learning.onboard import MAX_PROMPTS, MIN_PROMPTS
    from onebeat.conductor.learning.preflight import (
        LARGEST_SEED,
        MOST_PROMPTS,
        check_cache,
        check_name,
        check_output_file,
    )
    from onebeat.engine.arguments import number, whole

    whole("--seed", args.seed, least=0, largest=LARGEST_SEED)
    whole("--max-prompts", args.max_prompts, least=MAX_PROMPTS, largest=MOST_PROMPTS)
    check_cache(args.cache)
    if args.chosen is not None:
        whole("--count", args.count, least=MIN_PROMPTS, largest=MAX_PROMPTS)
        check_output_file("--chosen", args.chosen)
        return
    needed = {"--model": args.model, "--outcomes": args.outcomes, "--output": args.output}
    needed |= {"--input-usd": args.input_usd, "--output-usd": args.output_usd}
    missing = [flag for flag, value in needed.items() if value is None]
    if missing:
        raise InputError(f"onboarding needs {', '.join(missing)}; or --pool and --chosen, to choose prompts to grade.")
    for flag in ("--input-usd", "--output-usd"):
        number(flag, needed[flag], "it must be 0 to 1,000,000 dollars per million tokens", least=0.0, largest=1e6)
    if not args.model.strip():
        raise InputError(f"--model is {args.model!r}; give the new model's name.")
    check_name(args.name or args.output.absolute().name)
    if args.successor_of is not None and args.successor_of not in names:
        raise InputError(f"--successor-of is {args.successor_of!r}; the columns are {', '.join(names)}.")


def _graded(args: argparse.Namespace) -> Any:
    from onebeat.conductor.learning.sources import read_outcomes

    outcomes = read_outcomes(args.outcomes, models=[args.model], columns=args.columns)
    for line in outcomes.report.lines():
        print(line, file=sys.stderr)
    outcomes = outcomes.with_models([args.model])
    counting = np.flatnonzero(np.isfinite(outcomes.score[:, 0]))
    if not len(counting):
        raise InputError(
            f"the outcomes of all {len(outcomes.prompts)} prompts of {args.model} have weight 0, so none counts; give "
            "some a weight."
        )
    return outcomes.select(counting)


def _predict(
    args: argparse.Namespace, description: dict[str, Any], tensors: dict[str, Any], prompts: list[Prompt]
) -> tuple[Any, Any, Any]:
    """Calibrated quality, raw values and output tokens, each [n, M]."""
    from onebeat.conductor.learning.features import Reading, extract
    from onebeat.conductor.learning.fit import side_by_side
    from onebeat.conductor.learning.progress import Progress
    from onebeat.engine.default_router import CACHE_FOLDER
    from onebeat.engine.head import Head

    if not prompts:
        raise InputError("there are no prompts; give --pool with one prompt per line.")
    taps = tuple((tap["layer"], tap["pooling"]) for tap in description["taps"])
    precision = description["fitted"].get("precision", "int8")
    features = extract(
        args.router,
        prompts,
        Reading(taps, description["template"], description["max_prompt_tokens"], precision),
        cache_folder=args.cache or CACHE_FOLDER / "features",
        progress=Progress("reading prompts"),
    )
    if features.refused:
        row, why = next(iter(features.refused.items()))
        raise InputError(f"{len(features.refused)} prompts cannot be read (the first is number {row + 1}: {why})")
    states = side_by_side(features.states, taps)
    head = Head.from_tensors(
        tensors,
        kind=description["head"]["kind"],
        columns=[column["name"] for column in description["columns"]],
        features=states.shape[1],
        calibration=description["calibration"],
    )
    return *head.score_in_bulk(states)[:1], head.uncalibrated(states)[0], head.score_in_bulk(states)[1]


def _length(actual: Any, weight: Any, predicted: Any, predecessor: int | None) -> tuple[int, float]:
    """The column whose answer lengths the new model's resemble most, and by what factor they differ."""
    known = np.isfinite(actual)
    if known.sum() < 5:
        return (0 if predecessor is None else predecessor), 1.0
    logs, others = np.log(np.maximum(actual[known], 1.0)), np.log(np.maximum(predicted[known], 1.0))
    gaps = (others - logs[:, None]).std(0)
    like = predecessor if predecessor is not None else int(np.argmin(gaps))
    return like, float(weight[known] @ actual[known] / (weight[known] @ predicted[known, like]))


def _column(args: argparse.Namespace, found: Any, outcomes: Any, tokens: Any) -> dict[str, Any]:
    low, high = found.mean_interval
    return {
        "name": args.model,
        "input_usd_per_million": args.input_usd,
        "output_usd_per_million": args.output_usd,
        "mean_quality": round(found.mean_quality, 5),
        "mean_output_tokens": round(float(tokens.mean()), 1),
        "fitted_on": f"{args.model}: {found.prompts} prompts by onboarding; mean quality {low:.3f} to {high:.3f}",
        "fitted_at": datetime.now(UTC).date().isoformat(),
    }


def _pool(path: Path) -> list[Prompt]:
    prompts: list[Prompt] = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{path}:{number} is not JSON: {error}.") from None
        found = record if isinstance(record, dict) else {"prompt": record}
        prompt = found.get("prompt") or found.get("messages")
        if not isinstance(prompt, str | list) or not prompt:
            raise InputError(f'{path}:{number} has neither "prompt" nor "messages".')
        prompts.append(prompt)
    return prompts


def _sampled(pool: list[Prompt], args: argparse.Namespace) -> list[Prompt]:
    """Each prompt costs a forward pass, and more of one kind say little that so many do not."""
    from onebeat.conductor.learning.splits import sample_prompts, sampled

    rows = sample_prompts(pool, [""] * len(pool), args.max_prompts, seed=args.seed)
    if len(rows) < len(pool):
        print(sampled(len(rows), len(pool), args.seed), file=sys.stderr)
    return [pool[row] for row in rows]


def _distinct(prompts: list[Prompt]) -> list[Prompt]:
    """The first of every prompt and its white-space twins: a prompt is graded once."""
    from onebeat.conductor.learning.outcomes import prompt_key

    return list({prompt_key(prompt): prompt for prompt in reversed(prompts)}.values())[::-1]


def _record(prompt: Prompt) -> dict[str, Any]:
    return {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
