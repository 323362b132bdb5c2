"""Outcomes as they come: under a fleet's names, in pools too large, too long, of no weight, of nothing to compare."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onebeat.cli import main
from onebeat.conductor.learning.artifact import read_head
from onebeat.conductor.learning.fitted import fitted_among
from tests.conductor.learning.house import outcomes, prompts, write

FLEET = """
[models.{name}]
provider = "one"
context_tokens = 8192
input_usd_per_million = 0.1
output_usd_per_million = 0.4
scored_as = "{column}"
"""


def test_a_fleets_names_lead_to_columns_in_every_command(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = house / "scored.toml"
    text = '[providers.one]\nkind = "openai"\nbase_url = "http://127.0.0.1:1/v1"\n'
    text += "".join(FLEET.format(name=f"our-{column}", column=column) for column in ("cheap", "dear", "other"))
    fleet.write_text(text)
    rows = outcomes(prompts(60, seed=42), ["cheap", "dear", "other"])
    ledger = write(house / "our-names.jsonl", [row | {"model": f"our-{row['model']}"} for row in rows])
    common = ["--router", str(house / "router"), "--cache", str(house / "cache"), "--outcomes", ledger]
    promote = ["promote", str(house / "router"), *common, "--dry-run"]
    onboard = ["onboard", *common, "--model", "other", "--input-usd", "1", "--output-usd", "1", "--output"]
    onboard.append(str(house / "from-our-names"))
    for command, said in ((promote, "the outcomes name 0 of"), (onboard, "none of 180 records is a usable outcome")):
        assert main(command) == 2
        assert said in capsys.readouterr().err
        assert main([*command, "--fleet", str(fleet)]) == 0
        assert ("over 60 prompts" if command is promote else "from 60 graded prompts") in capsys.readouterr().out
    description, _ = read_head(house / "from-our-names")
    assert [column["name"] for column in description["columns"]] == ["cheap", "dear", "other"]
    # The new column's prompts were fitted on, and the router goes by its folder's name.
    texts = [*prompts(160), *prompts(60, seed=42)]
    assert fitted_among(description["fitted"], texts).sum() == 112 + 60
    assert description["name"] == "from-our-names"


def test_of_a_large_pool_a_sample_is_read(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = write(house / "large.jsonl", [{"prompt": text} for text in prompts(260, seed=43)])
    command = ["onboard", "--router", str(house / "router"), "--pool", pool, "--cache", str(house / "cache")]
    command += ["--count", "20", "--chosen", str(house / "of-large.jsonl")]
    assert main([*command, "--max-prompts", "200"]) == 0
    assert "200 of 260 distinct prompts, drawn by seed 0" in capsys.readouterr().err
    assert main([*command, "--max-prompts", "199"]) == 2
    assert "--max-prompts is 199; it must be a whole number of 200 to" in capsys.readouterr().err


def test_prompts_that_lose_their_middle_are_counted(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = outcomes(prompts(60, seed=44), ["cheap", "dear"])
    longer = [row | {"prompt": row["prompt"] + " word" * 20_000} if n < 6 else row for n, row in enumerate(rows)]
    command = ["--backbone", str(house / "backbone"), "--prices", str(house / "prices.json"), "--taps", "2"]
    command += ["--recipe", "kernel", "--cache", str(house / "cache"), "--max-prompt-tokens", "256", "--head-only"]
    assert main(["train", write(house / "longer.jsonl", longer), *command, "--output", str(house / "longer")]) == 0
    said = capsys.readouterr().err
    assert re.search(r"3 prompts of up to \d+,\d+ tokens are longer than the 256 of --max-prompt-tokens", said)


def test_outcomes_that_cannot_tell_models_apart_are_named(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = outcomes(prompts(60, seed=45), ["cheap", "dear"])
    command = ["--backbone", str(house / "backbone"), "--prices", str(house / "prices.json"), "--taps", "2"]
    command += ["--recipe", "kernel", "--cache", str(house / "cache"), "--head-only"]
    void = write(house / "void.jsonl", [row | {"weight": 0} for row in rows])
    assert main(["train", void, *command, "--output", str(house / "void")]) == 2
    assert "the outcomes of all 60 prompts have weight 0, so none counts" in capsys.readouterr().err
    apart = [row | {"group": row["model"]} for n, row in enumerate(rows) if n % 2 == n // 2 % 2]
    assert main(["train", write(house / "apart.jsonl", apart), *command, "--output", str(house / "apart")]) == 0
    assert "no source has outcomes of two models, so a good model cannot be told" in capsys.readouterr().err


def test_where_every_prompt_is_a_source_nothing_is_held_out_and_that_is_said(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row | {"group": row["prompt"]} for row in outcomes(prompts(60, seed=46), ["cheap", "dear"])]
    command = ["--backbone", str(house / "backbone"), "--prices", str(house / "prices.json"), "--taps", "2"]
    command += ["--recipe", "kernel", "--cache", str(house / "cache"), "--head-only"]
    lonely, said = write(house / "lonely.jsonl", rows), "so the head is judged on nothing"
    assert main(["train", lonely, *command, "--output", str(house / "lonely")]) == 0
    assert said in capsys.readouterr().err
    assert main(["train", lonely, *command, "--output", str(house / "wanted"), "--test-share", "0"]) == 0
    assert said not in capsys.readouterr().err


def test_a_new_model_whose_grades_all_have_weight_0(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row | {"weight": 0} for row in outcomes(prompts(30, seed=47), ["other"])]
    command = ["onboard", "--router", str(house / "router"), "--outcomes", write(house / "weightless.jsonl", rows)]
    command += ["--model", "other", "--input-usd", "1", "--output-usd", "1", "--cache", str(house / "cache")]
    assert main([*command, "--output", str(house / "weightless")]) == 2
    assert "the outcomes of all 30 prompts of other have weight 0, so none counts" in capsys.readouterr().err
    assert not (house / "weightless").exists()


def test_few_judged_prompts_are_called_few_in_the_report_itself(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = outcomes(prompts(100, seed=48), ["cheap", "dear"])
    for count, few in ((99, True), (100, False)):
        some = write(house / "few.jsonl", rows[: 2 * count])
        command = ["eval", some, "--router", str(house / "router"), "--cache", str(house / "cache"), "--all", "--json"]
        assert main([*command, "--bootstraps", "0"]) == 0
        assert (f"{count} prompts to judge choices by are too few to rely on" in capsys.readouterr().out) == few
