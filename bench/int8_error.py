"""What int8 costs a router's predictions: qualities and decisions in int8 beside those in float32.

    python -m bench.int8_error --prompts PROMPTS.jsonl        (one {"prompt": ...} or "text" a line; about 3 minutes)

Takes `--count` prompts spread evenly over the file, so that every source in it is met. Prints a table; the last line is
JSON, which goes to `--out` too. To be reached: qualities change by at most 0.02 on average, and decisions are the same
on 99 % of prompts.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onebeat.engine.records import Scores
from onebeat.engine.router import Router

TRADEOFFS = (0.1, 0.3, 0.5, 0.7, 0.9)
BATCH_PROMPTS = 32
MEAN_CHANGE_TARGET, SAME_DECISIONS_TARGET = 0.02, 0.99
RESULTS = Path(__file__).parent / "results" / "int8_error.json"

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines: texts, or objects with a prompt")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--router", default="default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    prompts = spread(read(args.prompts), args.count)
    exact, ours = (Router.from_pretrained(args.router, precision=name) for name in ("float32", "int8"))
    floats, ints = scored(exact, prompts), scored(ours, prompts)
    result: Row = {
        "bench": "int8_error",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "measured_at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "router": exact.config.name,
        "file": args.prompts.name,
        "prompts": len(prompts),
        "prompt_tokens": {"median": int(np.median(tokens_of(ints))), "most": int(tokens_of(ints).max())},
        "quality": changes(joined(floats), joined(ints), ours),
        "decisions": decisions(exact, ours, floats, ints),
        "targets": {"mean_abs_change": MEAN_CHANGE_TARGET, "same_decisions": SAME_DECISIONS_TARGET},
    }
    show(result)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


def read(path: Path) -> list[str]:
    """The prompts of a file of JSON lines, in its order."""
    values = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [value if isinstance(value, str) else value["prompt"] for value in values]


def spread(prompts: list[str], count: int) -> list[str]:
    """`count` of them at even distances."""
    return [prompts[index * len(prompts) // count] for index in range(count)] if count < len(prompts) else prompts


def scored(router: Router, prompts: list[str]) -> list[Scores]:
    """By batches, as they fit into memory."""
    return [router.score(prompts[first : first + BATCH_PROMPTS]) for first in range(0, len(prompts), BATCH_PROMPTS)]


def joined(batches: list[Scores]) -> np.ndarray[Any, Any]:
    """[n, M] qualities."""
    return np.concatenate([scores.quality for scores in batches]).astype(np.float64)


def tokens_of(batches: list[Scores]) -> np.ndarray[Any, Any]:
    """[n] prompt tokens."""
    return np.concatenate([scores.prompt_tokens for scores in batches])


def changes(exact: np.ndarray[Any, Any], ours: np.ndarray[Any, Any], router: Router) -> Row:
    """How far qualities [n, M] move."""
    change = np.abs(ours - exact)
    return {
        "mean_abs_change": round(float(change.mean()), 5),
        "p95_abs_change": round(float(np.percentile(change, 95)), 5),
        "max_abs_change": round(float(change.max()), 5),
        "mean_change": round(float((ours - exact).mean()), 5),
        "per_model": {
            column.name: round(float(mean), 5) for column, mean in zip(router.columns, change.mean(0), strict=True)
        },
    }


def decisions(exact: Router, ours: Router, floats: list[Scores], ints: list[Scores]) -> list[Row]:
    """Per position of the dial: how often both choose alike, and what float32 thinks the other choices lose."""
    rows = []
    for tradeoff in TRADEOFFS:
        same, lost = 0, list[float]()
        for theirs, mine in zip(floats, ints, strict=True):
            for row in range(len(theirs.quality)):
                a = exact.decide(theirs, row, tradeoff=tradeoff)
                b = ours.decide(mine, row, tradeoff=tradeoff)
                same += a.model == b.model
                worth = {candidate.model: candidate.utility for candidate in a.scores}
                lost.append(worth[a.model] - worth[b.model])
        rows.append(
            {"tradeoff": tradeoff, "same": round(same / len(lost), 4), "mean_utility_lost": round(np.mean(lost), 6)}
        )
    return rows


def show(result: Row) -> None:
    """The table."""
    quality = result["quality"]
    print(
        f"{result['prompts']} prompts of {result['file']}, int8 beside float32: qualities change by "
        f"{quality['mean_abs_change']:.4f} on average (to reach {MEAN_CHANGE_TARGET}), {quality['p95_abs_change']:.4f} "
        f"at the 95th percentile, {quality['max_abs_change']:.4f} at most; {quality['mean_change']:+.4f} with signs"
    )
    print(
        f"{'tradeoff':>8} {'same decision':>14} {'utility lost':>13}   (to reach {SAME_DECISIONS_TARGET:.0%} the same)"
    )
    for row in result["decisions"]:
        print(f"{row['tradeoff']:8.1f} {row['same']:14.1%} {row['mean_utility_lost']:13.6f}")


if __name__ == "__main__":
    sys.exit(main())
