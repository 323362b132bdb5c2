"""The tool that fits the shipped head: its columns are those that ship, judged on prompts it had not seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onebeat import Router
from onebeat.conductor.learning.artifact import link_backbone, read_head
from onebeat.conductor.learning.solve import Recipe
from onebeat.engine.default_router import PACKAGED_HEAD
from tools import fit_default_router as tool
from tools.synthetic_checkpoint import TINY, write_checkpoint

BACKBONE = replace(TINY, layers=2)


def published(folder: Path) -> Path:
    """Both sets in their published shape: every column and a stranger on ZeroEval, one column on KOR-Bench."""
    random = np.random.default_rng(0)
    for part, key, tasks, models in (
        ("zeroeval-2024", "id", ("gsm", "crux"), (*tool.COLUMNS, "stranger")),
        ("korbench-2024", "idx", ("logic",), ("gpt-4o-2024-08-06", "another")),
    ):
        (folder / part).mkdir(parents=True)
        prompts, rows = [], [f"task,{key},model,correct" + (",output_chars" if key == "id" else "")]
        for task in tasks:
            for number in range(40):
                prompts.append({"task": task, key: str(number), "prompt": f"{task} {number} of {part}", "answer": ""})
                for model in models:
                    written = f",{random.integers(80, 400)}" if key == "id" else ""
                    rows.append(f"{task},{number},{model},{random.integers(0, 2)}{written}")
        (folder / part / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
        (folder / part / "outcomes.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_the_head_that_it_writes_is_served_with_the_columns_that_ship(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "backbone", BACKBONE)
    output = tmp_path / "head"
    lines = tool.fit_default(
        published(tmp_path / "sets"),
        tmp_path / "backbone",
        output,
        cache=None,
        today="2026-11-25",
        taps=((1, "mean"), (2, "last")),
        recipe=Recipe("kernel", width=2, dimensions=8),
    )
    description, _ = read_head(output)
    fitted = description["fitted"]
    assert fitted["prompts"] == 120
    assert fitted["test"]["prompts"] == 36 and fitted["test"]["prompts_without_every_score"] == 12
    assert len(fitted["prompt_hashes"]) == 4 * 120 * 8 // 3
    assert fitted["split"]["test_side_fitted_on"]
    assert fitted["notes"] == list(tool.NOTES)
    assert any("held out (36 prompts)" in line for line in lines)
    shipped = json.loads(PACKAGED_HEAD.joinpath("router.json").read_text())
    link_backbone(tmp_path / "backbone", output)
    router = Router.from_pretrained(output)
    assert [column.name for column in router.columns] == [column["name"] for column in shipped["columns"]]
    assert router.score(["gsm 3 of zeroeval-2024"]).quality.shape == (1, 8)


def test_without_the_sets_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["fit_default_router", "--data", str(tmp_path)])
    assert tool.main() == 2
    assert f"{tmp_path} has no zeroeval-2024" in capsys.readouterr().err
