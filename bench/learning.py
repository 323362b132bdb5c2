#!/usr/bin/env python3
"""How good the learnt heads are on prompts that they have not seen: the tables of `bench/results/learning.json`.

    python -m bench.learning --data FOLDER --backbone FOLDER [--cache FOLDER] [--output FILE] [--only zeroeval ...]

Enters: the published sets (see tools/import_outcomes.py) and a backbone. Leaves: tables on standard output, the oracle
first, and JSON in the last line. Splits are by prompt hash within source, taps and recipes are chosen by folds inside
the fitting side, and the test side is only looked at to judge. Intervals are 95 % over splits (Student's t).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.learning_data import SEVEN, Source, Table, load
from bench.learning_onboarding import int8, onboarding
from bench.learning_paired import ahead_of_neighbours
from bench.learning_routers import ROUTERS, Predicted, kernel, logistic
from onebeat.conductor.learning.costs import costs
from onebeat.conductor.learning.curves import Judged, cost_to_reach, quality_at_cost, reference_cost, trace
from onebeat.conductor.learning.judging import judged_of
from onebeat.conductor.learning.metrics import auc_overall, auc_within, bootstrap, calibration_error, routellm
from onebeat.conductor.learning.splits import folds, hold_out_groups, split_prompts

STUDENT_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MIXTRAL, GPT_4 = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"
Row = dict[str, float | None]
Report = dict[str, object]


def judge(test: Table, predicted: Predicted) -> Judged:
    """Predictions beside outcomes and dollars."""
    money = costs(test.outcomes, test.prices(), test.prompt_tokens, predicted[1])
    return judged_of(predicted[0], money, test.outcomes)


def measure(judged: Judged, best: int) -> Row:
    """One split's figures against one single model, dollars as a share of that model's."""
    curve = trace(judged, reference_cost(judged.cost_usd))
    accuracy, dollars = judged.score[:, best].mean(), judged.cost_usd[:, best].mean()
    row: Row = {
        "auc": auc_overall(judged.quality, judged.score),
        "auc_within": auc_within(judged.quality, judged.score, judged.groups),
        "calibration_error": calibration_error(judged.quality, judged.score),
    }
    for name, wanted in (("equal_cost", 1.0), ("cost_at_95", 0.95)):
        reached = cost_to_reach(curve, wanted * accuracy)
        row[name] = None if reached is None else reached / dollars
    for share in SHARES:
        quality = quality_at_cost(curve, share * dollars)
        row[f"at_{round(100 * share)}"] = None if quality is None else 100 * (quality - accuracy)
    return row


def summarise(rows: list[Row]) -> dict[str, dict[str, object]]:
    """Mean and half-width over splits of every figure; `missed` counts the splits that never got there."""
    held: dict[str, dict[str, object]] = {}
    for name in rows[0]:
        values = [row[name] for row in rows if row[name] is not None]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        half = STUDENT_T.get(len(values), 2.0) * spread / max(len(values), 1) ** 0.5
        mean = round(float(np.mean(values)), 4) if values else None
        held[name] = {"mean": mean, "half_width": round(half, 4), "missed": len(rows) - len(values)}
    return held


def zeroeval(source: Source, seeds: int) -> Report:
    """Seven models, 70/30 splits; the best single model is chosen on the fitting side, and in hindsight."""
    table = load(source, ("zeroeval",), SEVEN)
    found: dict[str, list[Row]] = {name: [] for name in (*ROUTERS, "oracle")}
    hindsight: dict[str, list[Row]] = {name: [] for name in (*ROUTERS, "oracle")}
    for seed in range(seeds):
        split = split_prompts(table.outcomes.prompts, table.outcomes.groups, seed=seed)
        fitting, test = table.take(split.fit), table.take(split.test)
        best = int(fitting.outcomes.score.mean(0).argmax())
        perfect = (test.outcomes.score, test.outcomes.output_tokens)
        predictions = {name: router(fitting, test, seed) for name, router in ROUTERS.items()} | {"oracle": perfect}
        for name, predicted in predictions.items():
            judged = judge(test, predicted)
            found[name].append(measure(judged, best))
            hindsight[name].append(measure(judged, int(judged.score.mean(0).argmax())))
            print(f"  seed {seed} {name:14} {_brief(found[name][-1])}", file=sys.stderr, flush=True)
    ahead = [
        {key: _minus(ours[key], theirs[key]) for key in ours if key.startswith("at_")}
        for ours, theirs in zip(found["onebeat train"], found["kNN-40"], strict=True)
    ]
    report: Report = {
        "prompts": len(table.outcomes.prompts),
        "splits": seeds,
        "against_best_chosen_on_fitting_side": {name: summarise(rows) for name, rows in found.items()},
        "against_best_in_hindsight": {name: summarise(rows) for name, rows in hindsight.items()},
        "points_ahead_of_knn_at_equal_cost": summarise(ahead),
    }
    for title in ("against_best_chosen_on_fitting_side", "against_best_in_hindsight"):
        _table(f"ZeroEval, 7 models, {title.replace('_', ' ')}", report[title])
    print("\npoints ahead of kNN-40 at the same dollars (share of the best single model's)")
    for key, value in summarise(ahead).items():
        print(f"  {key[3:]:>4} %  {_plus_minus(value)}")
    return report


def mmlu(source: Source, share: float) -> Report:
    """RouteLLM's MMLU: whole subjects held out in five folds; then the same heads, fitted on all of it, on GSM8K."""
    table = load(source, ("routellm-mmlu",), (MIXTRAL, GPT_4), share)
    away = load(source, ("routellm-gsm8k",), (MIXTRAL, GPT_4))
    weak, strong = table.outcomes.score.T.astype(np.float64)
    report: Report = {"mmlu_prompts": len(weak), "gsm8k_prompts": len(away.outcomes.prompts), "folds": 5}
    print(f"\nRouteLLM's pair on {len(weak)} prompts of MMLU, whole subjects held out in five folds")
    routers = {"kernel": kernel, "logistic": logistic}
    advantages = {"oracle": strong - weak, "random": np.random.default_rng(0).random(len(weak))}
    for name, router in routers.items():
        advantage = np.empty(len(weak))
        for held in folds(table.outcomes.prompts, table.outcomes.groups, 5, whole_groups=True):
            seen = np.setdiff1d(np.arange(len(weak)), held)
            quality, _ = router(table.take(seen), table.take(held), 0)
            advantage[held] = quality[:, 1] - quality[:, 0]
        advantages[name] = advantage
    report["mmlu"] = {name: _pair_row(name, values, weak, strong) for name, values in advantages.items()}
    print(f"\nthe same pair on {len(away.outcomes.prompts)} prompts of GSM8K, fitted on MMLU")
    weak, strong = away.outcomes.score.T.astype(np.float64)
    advantages = {"oracle": strong - weak, "random": np.random.default_rng(0).random(len(weak))}
    for name, router in routers.items():
        quality, _ = router(table, away, 0)
        advantages[name] = quality[:, 1] - quality[:, 0]
    report["gsm8k"] = {name: _pair_row(name, values, weak, strong) for name, values in advantages.items()}
    return report


def across(source: Source) -> Report:
    """Seven models: fitted on two benchmarks, judged on the third, against always-cheapest and mixing at equal cost."""
    table = load(source, ("zeroeval",), SEVEN)
    report: Report = {}
    print("\nacross benchmarks: fitted on two of ZeroEval's, judged on the third")
    for name in sorted(set(table.outcomes.groups)):
        split = hold_out_groups(table.outcomes.groups, [name])
        test = table.take(split.test)
        judged = judge(test, kernel(table.take(split.fit), test))
        report[name] = row = _against_mixing(judged)
        print(f"  {name:8} AUC {row['auc']:.3f}  points over a mix of cheapest and best at equal cost: "
              f"{row['points_over_mix']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]")  # fmt: skip
    return report


def _against_mixing(judged: Judged) -> dict[str, float | None]:
    """Mean advantage, over the dollars between the cheapest and the best model, over randomly mixing those two."""
    cheapest = int(judged.cost_usd.mean(0).argmin())
    best = int(judged.score.mean(0).argmax())

    def statistic(rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float | None:
        part = judged.take(rows)
        curve = trace(part, reference_cost(part.cost_usd))
        low, high = part.cost_usd[:, cheapest].mean(), part.cost_usd[:, best].mean()
        from_score, to_score = part.score[:, cheapest].mean(), part.score[:, best].mean()
        ahead = []
        for share in (0.1, 0.3, 0.5, 0.7, 0.9):
            reached = quality_at_cost(curve, low + share * (high - low))
            if reached is not None:
                ahead.append(reached - (from_score + share * (to_score - from_score)))
        return 100 * float(np.mean(ahead)) if ahead else None

    interval = bootstrap(statistic, len(judged.score), repeats=100) or (float("nan"), float("nan"))
    return {
        "auc": auc_overall(judged.quality, judged.score),
        "points_over_mix": statistic(np.arange(len(judged.score))),
        "low": interval[0],
        "high": interval[1],
    }


def _pair_row(name: str, advantage: np.ndarray, weak: np.ndarray, strong: np.ndarray) -> dict[str, object]:  # type: ignore[type-arg]
    row: dict[str, object] = dict(routellm(advantage, weak, strong))
    row["apgr_interval"] = bootstrap(
        lambda rows: routellm(advantage[rows], weak[rows], strong[rows])["apgr"], len(weak), repeats=200
    )
    print(f"  {name:9} " + "  ".join(f"{key} {_short(value)}" for key, value in row.items()))
    return row


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{value[0]:.3f}, {value[1]:.3f}]"
    return f"{value:.3f}" if isinstance(value, float) else "never"


def _brief(row: Row) -> str:
    return "  ".join(
        f"{name} {_short(row[name])}" for name in ("auc", "auc_within", "equal_cost", "cost_at_95", "at_50")
    )


def _plus_minus(value: dict[str, object]) -> str:
    missed = f" ({value['missed']} never)" if value["missed"] else ""
    return f"{value['mean']} ± {value['half_width']}{missed}" if value["mean"] is not None else "never"


def _table(title: str, report: object) -> None:
    assert isinstance(report, dict)
    names = ("auc", "auc_within", "equal_cost", "cost_at_95", "at_50", "calibration_error")
    print(f"\n{title}\n  {'':14}" + "".join(f"{name:>26}" for name in names))
    for name in ("oracle", *ROUTERS):
        print(f"  {name:14}" + "".join(f"{_plus_minus(report[name][key]):>26}" for key in names))


def main() -> int:
    """Runs the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published sets")
    parser.add_argument("--backbone", type=Path, required=True, help="folder of the backbone")
    parser.add_argument("--cache", type=Path, help="folder that keeps features between runs")
    parser.add_argument("--precision", default="int8", choices=("int8", "bfloat16", "float32"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--mmlu-share", type=float, default=1.0, help="quarters of MMLU's prompts, by their hash")
    parser.add_argument(
        "--only",
        nargs="*",
        choices=("zeroeval", "ahead", "mmlu", "across", "onboarding", "int8"),
        help="all by default",
    )
    parser.add_argument("--output", type=Path, help="where to keep the JSON; parts that did not run stay as they were")
    args = parser.parse_args()
    source = Source(args.data, args.backbone, args.cache, args.precision)
    parts: dict[str, Callable[[], Report]] = {
        "zeroeval": lambda: zeroeval(source, args.seeds),
        "ahead": lambda: {"ahead_of_knn": ahead_of_neighbours(source, SHARES)},
        "mmlu": lambda: mmlu(source, args.mmlu_share),
        "across": lambda: across(source),
        "onboarding": lambda: onboarding(source),
        "int8": lambda: int8(source),
    }
    report: Report = json.loads(args.output.read_text()) if args.output and args.output.is_file() else {}
    for name in args.only or parts:
        report[name] = {"precision_of_features": args.precision} | parts[name]()
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
