"""A small world for the commands: prompts whose difficulty is in their words, outcomes, and how a router is fitted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from onebeat.cli import main

Refused = Callable[[list[str], str], None]
WORDS = ("sum", "prove", "translate", "river", "matrix", "poem", "tax", "whale", "graph", "verb", "stone", "quark")
MODELS = {"cheap": (0.1, 0.4), "dear": (2.0, 8.0), "other": (1.0, 1.0)}


def prompts(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [f"{i} " + " ".join(random.choice(WORDS, random.integers(3, 12))) for i in range(count)]


def outcomes(texts: list[str], models: list[str], seed: int = 1) -> list[dict[str, Any]]:
    """Prompts with "prove" or "quark" in them are hard, for the cheap model above all."""
    random = np.random.default_rng(seed)
    rows = []
    for text in texts:
        hard = "prove" in text or "quark" in text
        for model in models:
            chance = {"cheap": 0.15 if hard else 0.9, "dear": 0.85 if hard else 0.95, "other": 0.4 if hard else 0.9}[
                model
            ]
            rows.append(
                {
                    "prompt": text,
                    "model": model,
                    "score": int(random.uniform() < chance),
                    "output_tokens": int(random.integers(50, 150)),
                    "group": "short" if len(text) < 45 else "long",
                }
            )
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def training(folder: Path, output: str) -> list[str]:
    """The command that fits two columns on the house's outcomes."""
    command = ["train", str(folder / "outcomes.jsonl"), "--backbone", str(folder / "backbone")]
    command += ["--prices", str(folder / "prices.json"), "--models", "cheap,dear", "--recipe", "kernel", "--taps", "2"]
    return [*command, "--output", str(folder / output), "--cache", str(folder / "cache")]


def train(folder: Path, output: str, *more: str) -> int:
    return main([*training(folder, output), *more])
