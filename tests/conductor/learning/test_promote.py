"""Promoting: no worse than the head that serves, on prompts that neither was fitted on, with a way back."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from onebeat.cli import main
from onebeat.conductor.learning.artifact import TENSORS, read_head, write_head
from onebeat.conductor.learning.promote import Verdict, judge, promote
from onebeat.conductor.learning.sources import read_outcomes
from onebeat.engine.errors import InputError
from tests.conductor.learning.house import outcomes, prompts, train, write


def favouring(model: str, source: Path, folder: Path) -> Path:
    """A copy of a router whose head takes one model for everything."""
    shutil.copytree(source, folder)
    description, tensors = read_head(folder)
    for name, curve in description["calibration"]["columns"].items():
        curve["quality"] = [0.99 if name == model else 0.01] * len(curve["logits"])
    write_head(folder, description, tensors)
    return folder


def test_promoting_keeps_the_previous_head_and_refuses_a_worse_one(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = house / "service"
    shutil.copytree(house / "router", service)
    unseen = write(house / "unseen.jsonl", outcomes(prompts(120, seed=8), ["cheap", "dear"], seed=9))
    common = ["--router", str(service), "--outcomes", unseen, "--cache", str(house / "cache")]
    before = (service / TENSORS).read_bytes()

    # Judged where the cheap model is always wrong and no cheaper.
    spoilt = favouring("cheap", house / "router", house / "spoilt")
    rows = outcomes(prompts(60, seed=8), ["cheap", "dear"])
    against = [row | {"score": int(row["model"] == "dear"), "cost_usd": 0.0001} for row in rows]
    common[3] = write(house / "against.jsonl", against)
    assert main(["promote", str(spoilt), *common]) == 3
    assert "the candidate is worse" in capsys.readouterr().out
    assert (service / TENSORS).read_bytes() == before

    common[3] = unseen
    assert train(house, "candidate", "--seed", "1") == 0
    capsys.readouterr()
    after = (house / "candidate" / TENSORS).read_bytes()
    assert main(["promote", str(house / "candidate"), *common]) in (0, 3)
    promoted = "promoted" in capsys.readouterr().out
    assert (service / TENSORS).read_bytes() == (after if promoted else before)
    if promoted:
        assert main(["promote", "--router", str(service), "--roll-back"]) == 0
        assert (service / TENSORS).read_bytes() == before


def test_rolling_back_changes_two_heads_places_and_can_be_undone(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = house / "rolled"
    shutil.copytree(house / "router", service)
    roll = ["promote", "--router", str(service), "--roll-back"]
    assert main(roll) == 2
    assert "there is nothing to go back to" in capsys.readouterr().err
    assert train(house, "other-head", "--seed", "2") == 0
    one, two = (house / "router" / TENSORS).read_bytes(), (house / "other-head" / TENSORS).read_bytes()
    assert one != two
    promote(service, house / "other-head", "first")
    for expected, kept in ((one, two), (two, one)):
        assert main(roll) == 0
        assert (service / TENSORS).read_bytes() == expected
        assert (service / "previous" / "first" / TENSORS).read_bytes() == kept
    assert main([*roll, "first"]) == 0 and (service / TENSORS).read_bytes() == one
    assert main([*roll, "second"]) == 2
    assert "keeps no previous head second; it keeps first" in capsys.readouterr().err


def test_a_head_against_itself_gains_nothing_from_a_log(house: Path) -> None:
    """What was logged stood elsewhere on the dial: that is no gain of the candidate's."""
    random = np.random.default_rng(0)
    rows = outcomes(prompts(200, seed=18), ["cheap", "dear"])
    log = [rows[2 * place + int(random.integers(2))] | {"propensity": 0.5} for place in range(200)]
    table = read_outcomes([Path(write(house / "log.jsonl", log))])
    verdict = judge(house / "router", house / "router", table, cache_folder=house / "cache")
    assert (verdict.gain, verdict.low, verdict.high, verdict.worse) == (0.0, 0.0, 0.0, False)
    assert "differently on 0" in verdict.sentence()
    impossible = [row | {"propensity": 0.05} for row in log]
    table = read_outcomes([Path(write(house / "impossible.jsonl", impossible))])
    with pytest.raises(InputError, match="of 200 logged prompts do not come as often as their propensities say"):
        judge(house / "router", house / "router", table, cache_folder=house / "cache")


def test_a_candidate_that_lost_a_model_is_judged_against_it_or_refused(house: Path) -> None:
    assert train(house, "three", "--models", "cheap,dear,other") == 0
    rows = outcomes(prompts(120, seed=19), ["cheap", "dear", "other"])
    only = [row | {"score": int(row["model"] == "other"), "cost_usd": 0.0001} for row in rows]
    best = favouring("other", house / "three", house / "best-is-other")
    table = read_outcomes([Path(write(house / "only-other.jsonl", only))])
    verdict = judge(best, house / "router", table, cache_folder=house / "cache")
    assert verdict.worse and verdict.gain < -0.3 and "without other" in verdict.how
    with pytest.raises(InputError, match="no column for other, which the serving head has, and no outcome names it"):
        judge(best, house / "router", table.with_models(["cheap", "dear"]), cache_folder=house / "cache")


def test_promoting_leaves_out_what_a_head_was_fitted_on(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--dry-run", "--router", str(house / "router"), "--cache", str(house / "cache")]
    common += ["--outcomes", str(house / "outcomes.jsonl")]
    assert main(["promote", str(house / "router"), *common]) == 0
    said = capsys.readouterr()
    assert "over 48 prompts" in said.out
    assert "the candidate was fitted on 112 of the 160 prompts, left out (by their hashes)" in said.err
    assert train(house, "knows-all", "--use-everything") == 0
    capsys.readouterr()
    assert main(["promote", str(house / "knows-all"), *common]) == 2
    assert "each of the 160 prompts was fitted on by one of the heads" in capsys.readouterr().err


def test_fitted_prompts_are_known_under_any_file_name(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = outcomes(prompts(160), ["cheap", "dear"])
    twins = [row | {"prompt": f"  {row['prompt'].upper()} "} for row in rows]
    renamed = write(house / "another-name.jsonl", twins + outcomes(prompts(60, seed=41), ["cheap", "dear"]))
    common = ["--router", str(house / "router"), "--cache", str(house / "cache")]
    assert main(["promote", str(house / "router"), *common, "--dry-run", "--outcomes", renamed]) == 0
    said = capsys.readouterr()
    assert "over 108 prompts" in said.out
    assert "the serving head was fitted on 112 of the 220 prompts, left out (by their hashes)" in said.err
    assert main(["eval", renamed, *common, "--all", "--bootstraps", "0"]) == 0
    assert "WARNING: the head was fitted on 112 of these 220 prompts; leave out --all" in capsys.readouterr().out
    # The line of the split moved with the new prompts: some that were fitted on came to its other side.
    assert main(["eval", renamed, *common, "--bootstraps", "0"]) == 0
    assert "WARNING: the head was fitted on" in capsys.readouterr().out


def test_of_a_head_without_hashes_the_names_of_files_tell(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, everywhere in (("old", False), ("old-knows-all", True)):
        shutil.copytree(house / "router", house / name)
        description, tensors = read_head(house / name)
        del description["fitted"]["prompt_hashes"]
        description["fitted"]["split"]["test_side_fitted_on"] = everywhere
        write_head(house / name, description, tensors)
    common = ["--outcomes", str(house / "outcomes.jsonl"), "--cache", str(house / "cache"), "--dry-run"]
    assert main(["promote", str(house / "old"), "--router", str(house / "old"), *common]) == 0
    said = capsys.readouterr()
    assert "over 48 prompts" in said.out
    assert "fitted on 112 of the 160 prompts, left out (by the name of outcomes.jsonl and its split)" in said.err
    assert main(["promote", str(house / "old-knows-all"), "--router", str(house / "old"), *common]) == 0
    said = capsys.readouterr().err
    assert "the candidate was fitted on a file named outcomes.jsonl: its figures here may flatter it" in said
    judge_it = ["eval", str(house / "outcomes.jsonl"), *common[2:4], "--bootstraps", "0", "--router"]
    for name, more, note in (
        ("old", ["--all"], "fitted on about 112 of these 160 prompts; leave out --all"),
        ("old-knows-all", ["--all"], "fitted on about 160 of these 160 prompts\n"),
        ("old-knows-all", [], "fitted on 48 of these 48 prompts\n"),
    ):
        assert main([*judge_it, str(house / name), *more]) == 0
        assert note in capsys.readouterr().out
    assert main([*judge_it, str(house / "old")]) == 0
    assert "WARNING" not in capsys.readouterr().out


def test_a_wide_interval_is_not_called_worse() -> None:
    assert "is not shown to be no worse" in Verdict(10, "how", 0.02, -0.1, 0.14).sentence()
    assert "is worse" in Verdict(10, "how", -0.02, -0.1, 0.06).sentence()
    assert "is no worse" in Verdict(900, "how", 0.0, -0.01, 0.01).sentence()
