"""`onebeat train` on a million outcomes, within 4 GB: peak memory of the whole way from the file to the router.

    python bench/million.py --output bench/results/million.json

The file is real, the features are made up from the prompts' hashes (the forward passes of so many prompts would take
hours and no memory); reading, splitting, sampling, fitting, calibration, dial, drift and writing are the product's.
Each case runs in a process of its own. Prints the ceiling first; the last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onebeat.conductor.learning import fit, train
from onebeat.conductor.learning.costs import Price
from onebeat.conductor.learning.features import Features, Reading
from onebeat.engine.records import Prompt
from tools.synthetic_checkpoint import TINY, write_checkpoint

LIMIT_GB = 4.0
HIDDEN = 576
TAPS: tuple[tuple[int, str], ...] = ((1, "mean"), (2, "last"), (3, "mean"))
CASES = {"500,000 prompts, 2 models": (500_000, 2), "250,000 prompts, 4 models": (250_000, 4)}
RECIPES = (fit.FIRST, fit.Recipe("linear", l2=1.0))
"""One of each kind that `train` tries: the others of a kind need the same memory."""
WORDS = ("river", "matrix", "prove", "translate", "harbour", "integral", "verb", "stone")


def write_outcomes(path: Path, prompts: int, models: int) -> None:
    """Prompts of about 300 characters from five sources; harder ones are answered by the dearer models only."""
    random = np.random.default_rng(0)
    filler = " ".join(WORDS * 5)
    with path.open("w", encoding="utf-8") as file:
        for prompt in range(prompts):
            text = f"{prompt} {WORDS[prompt % 7]} {filler}"
            hardness = _numbers(text)[0]
            for model in range(models):
                right = random.uniform() < 1 / (1 + np.exp(2 * hardness - model))
                outcome = {"prompt": text, "model": f"model-{model}", "score": int(right), "output_tokens": 100 + model}
                file.write(json.dumps(outcome | {"group": f"source {prompt % 5}"}) + "\n")


def _numbers(text: str) -> np.ndarray[Any, Any]:
    """[16] of a prompt, as if read from it."""
    digest = hashlib.blake2b(text.encode(), digest_size=64).digest()
    return np.asarray((np.frombuffer(digest, np.uint32).astype(np.float32) / 2**31 - 1.0) * 1.7, np.float32)


def made_up(
    folder: Path,
    prompts: Sequence[Prompt],
    reading: Reading,
    *,
    cache_folder: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Features:
    """As `features.extract`: [n, 576] for each tap, spread from 16 numbers, with noise."""
    random = np.random.default_rng(1)
    spread = random.normal(size=(16, HIDDEN)).astype(np.float32)
    states = {tap: np.empty((len(prompts), HIDDEN), np.float32) for tap in reading.taps}
    for start in range(0, len(prompts), 8192):
        part = slice(start, start + 8192)
        seen = np.stack([_numbers(str(prompt)) for prompt in prompts[part]])
        for held in states.values():
            held[part] = seen @ spread + random.normal(size=(len(seen), HIDDEN)).astype(np.float32)
    tokens = np.full(len(prompts), 75, np.int64)
    return Features(states, tokens, cut_tokens=np.zeros_like(tokens), rows=np.arange(len(prompts)), refused={})


def run_case(prompts: int, models: int) -> dict[str, Any]:
    """Fits in this process and says what it took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = replace(TINY, hidden_size=HIDDEN, feed_forward=64)
        write_checkpoint(folder / "backbone", config)
        write_outcomes(folder / "outcomes.jsonl", prompts, models)
        train.extract = made_up  # type: ignore[attr-defined]
        said: list[str] = []
        job = train.Job(
            files=(folder / "outcomes.jsonl",),
            backbone=folder / "backbone",
            output=folder / "router",
            today="2026-11-25",
            prices={f"model-{model}": Price(0.1 * 4**model, 0.4 * 4**model) for model in range(models)},
            tap_sets=(TAPS,),
            recipes=RECIPES,
        )
        before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        started = time.perf_counter()
        result = train.train(job, lambda line: (said.append(line), print(f"  {line}", file=sys.stderr, flush=True))[0])
        return {
            "rows": prompts * models,
            "distinct_prompts": prompts,
            "models": models,
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "rss_before_mb": round(before_mb),
            "seconds": round(time.perf_counter() - started, 1),
            "sample": result.description["fitted"]["sample"],
            "recipe": result.description["fitted"]["recipe"],
            "auc_within_source": result.description["fitted"]["test"]["auc_within_source"],
            "said": said[:3],
        }


def main() -> int:
    """Runs every case in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--case", choices=CASES, help="run one case, in this process")
    args = parser.parse_args()
    if args.case is not None:
        found = run_case(*CASES[args.case])
        if args.output is not None:
            args.output.write_text(json.dumps({"limit_gb": LIMIT_GB, "cases": {args.case: found}}, indent=1) + "\n")
        print(json.dumps(found))
        return 0
    print(f"ceiling: {LIMIT_GB:g} GB of peak resident memory\n")
    found = {}
    for case in CASES:
        done = subprocess.run([sys.executable, __file__, "--case", case], stdout=subprocess.PIPE, check=True)
        found[case] = json.loads(done.stdout.splitlines()[-1])
        held = found[case]
        print(f"{case:28} {held['peak_rss_mb'] / 1024:5.2f} GB {held['seconds']:7.0f} s  {held['said']}")
    result = {"limit_gb": LIMIT_GB, "cases": found}
    if args.output is not None:
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0 if all(case["peak_rss_mb"] / 1024 < LIMIT_GB for case in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
