"""`onebeat eval` on what people have: whole tables, the gateway's own logs, mixtures, and files with nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onebeat.cli import main
from tests.conductor.learning.house import outcomes, prompts, write

Rows = list[dict[str, Any]]
Judge = Callable[..., tuple[dict[str, Any], str, str]]


@pytest.fixture
def judge(house: Path, capsys: pytest.CaptureFixture[str]) -> Judge:
    """(JSON, text, HTML) of a judgement of these rows; nothing of it may be no number."""

    def run(rows: Rows, *more: str) -> tuple[dict[str, Any], str, str]:
        page = house / "judged.html"
        command = ["eval", write(house / "judged.jsonl", rows), "--router", str(house / "router")]
        command += ["--cache", str(house / "cache"), "--bootstraps", "30", *more]
        assert main([*command, "--html", str(page)]) == 0
        text = capsys.readouterr().out
        assert main([*command, "--json"]) == 0
        printed, written = capsys.readouterr().out, page.read_text()
        assert not re.search(r"\b(?:nan|inf)\b", text + written, re.IGNORECASE)
        for element in ("svg", "text", "table", "figure", "pre"):
            assert len(re.findall(rf"<{element}\b", written)) == written.count(f"</{element}>")
        return json.loads(printed), text, written

    return run


def table(count: int = 160, seed: int = 0) -> Rows:
    return outcomes(prompts(count, seed=seed), ["cheap", "dear"])


def logged(rows: Rows, propensity: float | None = 0.5, seed: int = 0) -> Rows:
    """One of every two rows of a prompt, with what it was chosen with."""
    random = np.random.default_rng(seed)
    chosen = [rows[index + int(random.integers(2))] for index in range(0, len(rows), 2)]
    return [row if propensity is None else row | {"propensity": propensity} for row in chosen]


def test_a_log_of_one_model_a_prompt_is_judged_as_far_as_it_goes(judge: Judge) -> None:
    rows = table()
    found, text, page = judge(logged(rows), "--all")
    assert found["prompts"] == 0 and found["prediction"]["cells"] == 160 and "curves" not in found
    why = "none of 160 prompts has a score for all 2 models, so that what another choice would have scored is not known"
    assert why in text and why in page
    means = {row["name"]: row for row in found["prediction"]["per_model"]}
    assert means["cheap"]["cells"] + means["dear"]["cells"] == 160
    for name in ("cheap", "dear"):
        assert abs(means[name]["predicted"] - means[name]["actual"]) < 0.15
    assert found["logged"]["prompts"] == 160 and found["logged"]["propensities_fit"]
    truth = {name: np.mean([row["score"] for row in rows if row["model"] == name]) for name in ("cheap", "dear")}
    # The house's head sends everything to the cheap one at 0 and to the dear one at 1.
    for place, name in ((0, "cheap"), (-1, "dear")):
        row = found["logged"]["tradeoffs"][place]
        for how in ("doubly_robust", "inverse_propensity"):
            low, high = row[how]["interval"]
            assert low <= truth[name] <= high
        assert row["agreeing"] == means[name]["cells"]
    first, last = (found["logged"]["tradeoffs"][i]["usd_per_thousand"]["value"] for i in (0, -1))
    assert first < found["logged"]["as_logged"]["usd_per_thousand"] < last
    assert "from the log of 160 prompts" in text and page.count("<svg") == 1


def test_a_log_without_propensities_is_judged_by_its_predictions_alone(judge: Judge) -> None:
    found, text, page = judge(logged(table(), None), "--all")
    assert found["logged"] is None and "from the log" not in text and page.count("<svg") == 0
    assert found["prediction"]["calibration_error_interval"][0] <= found["prediction"]["calibration_error"]


def test_a_log_that_chose_with_certainty_leaves_wide_intervals(judge: Judge) -> None:
    rows = table()
    narrow, _, _ = judge(logged(rows), "--all")
    wide, text, _ = judge(logged(rows, 1.0), "--all")

    def width(found: dict[str, Any]) -> float:
        low, high = found["logged"]["tradeoffs"][0]["doubly_robust"]["interval"]
        return float(high - low)

    assert width(wide) > 0.5 > 0.3 > width(narrow)
    assert wide["logged"]["tradeoffs"][0]["blind"] > 0.4 and "WARNING: the log's choices" not in text


def test_propensities_of_other_choices_are_called_out(judge: Judge) -> None:
    found, text, _ = judge(logged(table(), 0.01), "--all")
    assert not found["logged"]["propensities_fit"]
    assert "the log's choices do not come as often as its propensities say" in text


def test_of_a_mixture_choices_are_judged_where_all_is_known_and_predictions_everywhere(judge: Judge) -> None:
    rows = table()
    found, text, page = judge(rows[:200] + logged(rows[200:]), "--all")
    assert found["prompts"] == 100 and found["prompts_without_every_score"] == 60
    assert found["prediction"]["prompts"] == 160 and found["prediction"]["cells"] == 260
    assert found["logged"]["prompts"] == 60
    said = "choices are judged on the 100 prompts with a score for all 2 models, predictions on all 160 (260 outcomes)"
    assert said in text and said in page
    whole, _, _ = judge(rows[:200], "--all")
    assert whole["routers"] == found["routers"] and whole["curves"] == found["curves"]


def test_a_column_without_outcomes_is_named(judge: Judge) -> None:
    found, text, _ = judge([row for row in table() if row["model"] == "cheap"])
    assert "no outcome names dear" in text
    assert "no choice is judged: only cheap of the router's columns has outcomes, and a choice needs two" in text
    assert found["logged"] is None and found["prediction"]["per_model"][0]["name"] == "cheap"


ODD: dict[str, Callable[[Rows], Rows]] = {
    "one prompt": lambda rows: rows[:2],
    "one outcome": lambda rows: rows[:1],
    "every outcome twice": lambda rows: rows + rows,
    "all right": lambda rows: [row | {"score": 1} for row in rows],
    "all wrong": lambda rows: [row | {"score": 0} for row in rows],
    "all half right": lambda rows: [row | {"score": 0.5} for row in rows],
    "a source a prompt": lambda rows: [row | {"group": f"source {index // 2}"} for index, row in enumerate(rows)],
    "a source that is markup": lambda rows: [row | {"group": '<b title="x">&'} for row in rows],
    "huge costs": lambda rows: [row | {"cost_usd": 1e30} for row in rows],
    "one model free": lambda rows: [row | {"cost_usd": 0 if row["model"] == "dear" else 1} for row in rows],
    "impossible propensities": lambda rows: [row | {"propensity": 1e-9} for row in logged(rows)],
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_outcomes_make_a_sane_report(judge: Judge, odd: str) -> None:
    found, text, _ = judge(ODD[odd](table(60, seed=4)), "--all")
    assert found["prediction"]["cells"] > 0 and text.startswith("router router")


def test_where_nothing_costs_anything_no_share_of_a_cost_is_told(judge: Judge) -> None:
    found, text, page = judge([row | {"cost_usd": 0} for row in table()])
    assert found["routers"]["onebeat"]["cost_at_best_quality"] is None
    assert "so that no cost is a share of its cost" in text and "undefined" in page


def test_without_resamples_there_are_no_intervals(judge: Judge) -> None:
    found, text, page = judge(table(), "--bootstraps", "0")
    assert found["prediction"]["auc_interval"] is None and found["routers"]["onebeat"]["intervals"] == {}
    assert "quality_low" not in found["curves"]["onebeat"] and "<polygon" not in page
    assert "[" not in text[: text.index("target")]


def test_prompts_without_a_word_are_not_compared_with_word_counts(judge: Judge) -> None:
    rows = [row | {"prompt": f"{index // 2} ? !"[1:] + " ?" * (index // 2)} for index, row in enumerate(table(90))]
    found, text, _ = judge(rows)
    assert "TF-IDF logistic" not in found["routers"] and "not compared with TF-IDF logistic" in text


NOTHING: dict[str, tuple[Callable[[Rows], Rows], str]] = {
    "weights of zero": (lambda rows: [row | {"weight": 0} for row in rows], "or none counts"),
    "strangers": (
        lambda rows: [row | {"model": "stranger"} for row in rows],
        "no outcome names one of the router's columns, cheap, dear; nothing can be judged",
    ),
    "one prompt, fitted on": (lambda rows: rows[:2], "leaves no prompt to judge on; use --all"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_where_nothing_can_be_judged_one_sentence_says_so(
    house: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, message = NOTHING[name]
    command = ["eval", write(house / "judged.jsonl", change(table(40))), "--router", str(house / "router")]
    assert main([*command, "--cache", str(house / "cache")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("onebeat: ") == 1


def test_a_fleets_names_lead_to_the_columns_that_score_them(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = house / "judged.toml"
    model = 'provider = "one"\ncontext_tokens = 8192\ninput_usd_per_million = 0.1\noutput_usd_per_million = 0.4\n'
    fleet.write_text(
        '[providers.one]\nkind = "openai"\nbase_url = "http://127.0.0.1:1/v1"\n'
        f'\n[models.new-cheap]\n{model}scored_as = "cheap"\n\n[models.dear]\n{model}'
    )
    rows = table()
    renamed = [row | {"model": "new-cheap" if row["model"] == "cheap" else "dear"} for row in rows]
    command = ["eval", write(house / "renamed.jsonl", renamed), "--router", str(house / "router"), "--json"]
    command += ["--cache", str(house / "cache"), "--bootstraps", "0"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["prompts"] == 0 and "found by --fleet" in said.err
    assert main([*command, "--fleet", str(fleet)]) == 0
    with_fleet = json.loads(capsys.readouterr().out)
    assert main(["eval", write(house / "renamed.jsonl", rows), *command[2:]]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert with_fleet == plain and plain["prompts"] == 48
    assert main([*command, "--fleet", "/nowhere.toml"]) == 2
    assert "/nowhere.toml does not exist" in capsys.readouterr().err
