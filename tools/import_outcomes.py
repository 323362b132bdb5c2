#!/usr/bin/env python3
"""Turns published routing results into onebeat's outcomes.

    python tools/import_outcomes.py --data FOLDER --output FOLDER

Enters: a folder with any of `zeroeval-2024`, `korbench-2024`, `routellm-evals`; or one file of RouterBench. Leaves, per
set, `SET.jsonl` of outcomes and one `prices.json`. Nothing is dropped silently: counts go to standard error.

Shapes that are read:

- zeroeval-2024: `prompts.jsonl` {task, id, prompt, answer}; `outcomes.csv` task, id, model, correct, output_chars. Four
  characters count as one output token. Sources: gsm, crux, math-l5.
- korbench-2024: `prompts.jsonl` {task, idx, prompt}; `outcomes.csv` task, idx, model, correct; idx is unique within its
  task only. Sources: kor-cipher and so on.
- routellm-evals (also as published by RouteLLM): `mmlu/responses/mmlu_SUBJECT.csv` and `gsm8k/gsm8k_responses.csv` with
  columns prompt, MODEL (True or False), MODEL, and for GSM8K MODEL_response; `mt_bench/question.jsonl` {question_id,
  category, turns} and `judgements.jsonl` {question_id, model, score 1..10, turn}. Prompts listed as `eval_prompt` in
  `contaminated_prompts.jsonl` are left out, as RouteLLM does. MT-Bench: the first turn is the prompt, the score is the
  mean of both turns, (score - 1) / 9.
- RouterBench (`routerbench_0shot.pkl` is a pickle, which is never opened here: load it once with pandas in a place
  where you trust it, and save `frame.to_parquet(...)` or `to_csv(...)`): one row per prompt with sample_id, prompt,
  eval_name and, for every model, `MODEL` (score), `MODEL|model_response`, `MODEL|total_cost` (US dollars).
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Outcome = dict[str, object]

LIST_PRICES = {
    "gpt-4o-2024-08-06": (2.5, 10.0),
    "gpt-4o-mini-2024-07-18": (0.15, 0.6),
    "o1-mini-2024-09-12": (3.0, 12.0),
    "gpt-4-1106-preview": (10.0, 30.0),
    "claude-3-5-sonnet-20241022": (3.0, 15.0),
    "claude-3-5-sonnet-20240620": (3.0, 15.0),
    "claude-3-5-haiku-20241022": (0.8, 4.0),
    "claude-3-haiku-20240307": (0.25, 1.25),
    "claude-3-opus-20240229": (15.0, 75.0),
    "gemini-1.5-pro": (1.25, 5.0),
    "gemini-1.5-flash": (0.075, 0.3),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": (0.6, 0.6),
}
"""US dollars per million input and output tokens when these results were made."""

CHARACTERS_PER_TOKEN = 4.0


def zeroeval(folder: Path) -> Iterator[Outcome]:
    """Outcomes of ZeroEval's GSM8K, CRUXEval and MATH level 5."""
    prompts = {(row["task"], str(row["id"])): row["prompt"] for row in _lines(folder / "prompts.jsonl")}
    for row in _cells(folder / "outcomes.csv"):
        tokens = float(row["output_chars"]) / CHARACTERS_PER_TOKEN if row["output_chars"] else None
        yield {
            "prompt": prompts[row["task"], row["id"]],
            "model": row["model"],
            "score": int(row["correct"]),
            "output_tokens": tokens,
            "group": row["task"],
        }


def korbench(folder: Path) -> Iterator[Outcome]:
    """Outcomes of KOR-Bench; how long the answers were is not known."""
    prompts = {(row["task"], str(row["idx"])): row["prompt"] for row in _lines(folder / "prompts.jsonl")}
    for row in _cells(folder / "outcomes.csv"):
        prompt = prompts[row["task"], row["idx"]]
        yield {"prompt": prompt, "model": row["model"], "score": int(row["correct"]), "group": f"kor-{row['task']}"}


def routellm_mmlu(folder: Path) -> Iterator[Outcome]:
    """RouteLLM's MMLU responses; the source is the subject."""
    contaminated = _contaminated(folder / "mmlu")
    for path in sorted((folder / "mmlu" / "responses").glob("*.csv")):
        yield from _pairs(path, path.stem, contaminated)


def routellm_gsm8k(folder: Path) -> Iterator[Outcome]:
    """RouteLLM's GSM8K responses, with the answers' lengths."""
    yield from _pairs(folder / "gsm8k" / "gsm8k_responses.csv", "gsm8k", _contaminated(folder / "gsm8k"))


def routellm_mt_bench(folder: Path) -> Iterator[Outcome]:
    """RouteLLM's MT-Bench judgements; the source is the question's category."""
    contaminated = _contaminated(folder / "mt_bench")
    grades: dict[tuple[int, str], list[float]] = defaultdict(list)
    for row in _lines(folder / "mt_bench" / "judgements.jsonl"):
        grades[row["question_id"], row["model"]].append(float(row["score"]))
    for question in _lines(folder / "mt_bench" / "question.jsonl"):
        if contaminated.intersection(question["turns"]):
            continue
        for (number, model), scores in grades.items():
            if number == question["question_id"]:
                score = (sum(scores) / len(scores) - 1) / 9
                group = f"mt-bench-{question['category']}"
                yield {"prompt": question["turns"][0], "model": model, "score": score, "group": group}


def routerbench(path: Path) -> Iterator[Outcome]:
    """A wide table of RouterBench, as CSV or Parquet."""
    if path.suffix == ".pkl":
        raise SystemExit(f"{path} is a pickle, which can run any code; save it as Parquet or CSV where you trust it.")
    if path.suffix == ".parquet":
        import pyarrow.parquet

        rows: Iterator[dict[str, Any]] = (
            row for batch in pyarrow.parquet.ParquetFile(path).iter_batches(512) for row in batch.to_pylist()
        )
    else:
        rows = (dict(row) for row in _cells(path))
    for row in rows:
        models = [name.removesuffix("|total_cost") for name in row if name.endswith("|total_cost")]
        for model in models:
            yield {
                "prompt": row["prompt"],
                "model": model,
                "score": row[model],
                "cost_usd": row[f"{model}|total_cost"],
                "group": row["eval_name"],
            }


SETS = {
    "zeroeval": ("zeroeval-2024", zeroeval),
    "korbench": ("korbench-2024", korbench),
    "routellm-mmlu": ("routellm-evals", routellm_mmlu),
    "routellm-gsm8k": ("routellm-evals", routellm_gsm8k),
    "routellm-mt-bench": ("routellm-evals", routellm_mt_bench),
}


def main() -> int:
    """Converts every set that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds the published sets")
    parser.add_argument("--routerbench", type=Path, help="RouterBench's table as .csv or .parquet")
    parser.add_argument("--output", type=Path, required=True, help="folder for the outcomes")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    jobs: list[tuple[str, Callable[[Path], Iterator[Outcome]], Path]] = []
    if args.data:
        jobs += [
            (name, reader, args.data / part) for name, (part, reader) in SETS.items() if (args.data / part).is_dir()
        ]
    if args.routerbench:
        jobs.append(("routerbench", routerbench, args.routerbench))
    if not jobs:
        print(
            f"nothing to import: {args.data} has none of {sorted({part for part, _ in SETS.values()})}", file=sys.stderr
        )
        return 2
    for name, reader, source in jobs:
        counts: Counter[str] = Counter()
        prompts = set()
        with (args.output / f"{name}.jsonl").open("w") as file:
            for outcome in reader(source):
                file.write(json.dumps({key: value for key, value in outcome.items() if value is not None}) + "\n")
                counts[str(outcome["model"])] += 1
                prompts.add(outcome["prompt"])
        print(
            f"{name}: {sum(counts.values()):,} outcomes, {len(prompts):,} prompts, {len(counts)} models",
            file=sys.stderr,
        )
    prices = {
        model: {"input_usd_per_million": entered, "output_usd_per_million": written}
        for model, (entered, written) in LIST_PRICES.items()
    }
    (args.output / "prices.json").write_text(json.dumps(prices, indent=2) + "\n")
    return 0


def _pairs(path: Path, group: str, contaminated: set[str]) -> Iterator[Outcome]:
    for row in _cells(path):
        if row["prompt"] in contaminated:
            continue
        models = [name for name in row if name != "prompt" and not name.endswith("_response")]
        for model in models:
            answer = row.get(f"{model}_response")
            tokens = len(answer) / CHARACTERS_PER_TOKEN if answer else None
            score = int(row[model].strip().lower() == "true")
            yield {"prompt": row["prompt"], "model": model, "score": score, "output_tokens": tokens, "group": group}


def _contaminated(folder: Path) -> set[str]:
    path = folder / "contaminated_prompts.jsonl"
    return {row["eval_prompt"] for row in _lines(path)} if path.is_file() else set()


def _lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def _cells(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    sys.exit(main())
