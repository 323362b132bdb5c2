"""From a file of outcomes to a router in service, through the commands, on a tiny random backbone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from onebeat import Router
from onebeat.cli import main
from onebeat.conductor.learning.artifact import TENSORS, read_head
from onebeat.conductor.learning.features import Reading, extract
from onebeat.engine.errors import InputError
from tests.conductor.learning.house import outcomes, prompts, train, write


def test_the_router_loads_routes_and_says_where_it_comes_from(house: Path) -> None:
    router = Router.from_pretrained(house / "router")
    assert [column.name for column in router.columns] == ["cheap", "dear"]
    decision = router.route("12 river poem whale", tradeoff=0.5)
    assert decision.model in ("cheap", "dear")
    fitted = router.config.fitted
    assert fitted["split"]["name"] == "prompt hash within source, 30 % held out, seed 0"
    assert fitted["files"] == ["outcomes.jsonl"]
    assert fitted["prompts"] == 112
    assert fitted["test"]["prompts"] == 48
    assert 0 <= fitted["test"]["auc"] <= 1
    assert fitted["dial"]["best_model"] == "dear"
    assert router.config.drift["window"] == 56
    columns = {column.name: column for column in router.columns}
    assert columns["cheap"].output_usd_per_million == 0.4
    assert columns["cheap"].mean_quality is not None
    assert columns["cheap"].mean_quality < columns["dear"].mean_quality


def test_training_again_gives_the_same_head_and_reads_no_prompt_twice(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(house, "again") == 0
    assert "reading prompts" not in capsys.readouterr().err
    assert (house / "again" / TENSORS).read_bytes() == (house / "router" / TENSORS).read_bytes()


def test_of_many_prompts_a_seeded_sample_is_read_and_that_is_said(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(house, "sampled", "--max-prompts", "100") == 0
    said = "100 of 160 distinct prompts, drawn by seed 0 from every source in proportion, are used; --max-prompts takes"
    assert said in capsys.readouterr().err.replace("99 of", "100 of")
    description, _ = read_head(house / "sampled")
    sample = description["fitted"]["sample"]
    assert sample["of"] == 160 and sample["most"] == 100 and 98 <= sample["prompts"] <= 100
    assert description["fitted"]["prompts"] < sample["prompts"]
    # What is judged was not fitted on: the same sample, the same sides.
    judge = ["eval", str(house / "outcomes.jsonl"), "--router", str(house / "sampled"), "--cache", str(house / "cache")]
    assert main([*judge, "--json", "--bootstraps", "0"]) == 0
    printed = capsys.readouterr()
    assert "distinct prompts, drawn by seed 0" in printed.err
    found = json.loads(printed.out)
    judged = found["prompts"] + found["prompts_without_every_score"]
    assert judged + description["fitted"]["prompts"] == sample["prompts"]
    assert found["prediction"]["auc"] == pytest.approx(description["fitted"]["test"]["auc"], abs=1e-3)


def test_eval_in_text_json_and_html(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = house / "report.html"
    common = ["eval", str(house / "outcomes.jsonl"), "--router", str(house / "router"), "--bootstraps", "20"]
    common += ["--cache", str(house / "cache")]
    assert main([*common, "--html", str(page)]) == 0
    text = capsys.readouterr()
    assert "judged on 48 prompts" in text.out
    assert "40 nearest neighbours" in text.out
    assert "not judged, because the router has no column for them: other\n" in text.err
    written = page.read_text()
    assert written.count("<svg") == written.count("<desc>") == 3
    assert "<script" not in written
    assert "http" not in written
    assert main([*common, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["prompts"] == 48
    assert set(result["routers"]) >= {"onebeat", "oracle", "per-source means", "TF-IDF logistic"}
    assert result["routers"]["oracle"]["most_quality"] >= result["routers"]["onebeat"]["most_quality"]
    assert {"apgr", "cpt50", "cpt80", "pgr"} <= set(result["routellm"]["routers"]["onebeat"])
    low, high = result["prediction"]["auc_interval"]
    assert low <= result["prediction"]["auc"] <= high
    assert [row["target"] for row in result["targets"]] == ["90%", "95%", "98%"]


def test_a_weight_of_zero_takes_an_outcome_out_of_everything(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = outcomes(prompts(160, seed=24), ["cheap", "dear"])
    bad = [row | {"prompt": "void " + row["prompt"], "score": 1 - row["score"]} for row in rows[:200]]
    common = ["--backbone", str(house / "backbone"), "--prices", str(house / "prices.json"), "--recipe", "kernel"]
    common += ["--taps", "2", "--cache", str(house / "cache"), "--hold-out", "later"]
    rows = [row | {"group": "later" if number >= 240 else "early"} for number, row in enumerate(rows)]
    void = [row | {"weight": 0, "group": "later" if number % 4 < 2 else "early"} for number, row in enumerate(bad)]
    for name, table in {"clean": rows, "voided": rows + void}.items():
        command = ["train", write(house / f"{name}.jsonl", table), *common, "--output", str(house / name)]
        assert main(command) == 0
        assert main(["eval", command[1], "--router", str(house / name), "--bootstraps", "0", *common[8:10]]) == 0
    clean, voided = (read_head(house / name)[0] for name in ("clean", "voided"))
    assert voided["fitted"]["dial"]["prompts"] == clean["fitted"]["dial"]["prompts"] == 120
    assert voided["fitted"]["test"]["prompts"] == clean["fitted"]["test"]["prompts"] == 40
    assert voided["fitted"]["outcomes"] == clean["fitted"]["outcomes"]
    for ours, theirs in zip(voided["columns"], clean["columns"], strict=True):
        assert ours["mean_quality"] == theirs["mean_quality"]
    assert capsys.readouterr().out.count("judged on 40 prompts") == 2


def test_few_complete_prompts_keep_no_dial_and_say_so(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = prompts(80, seed=25)
    rows = outcomes(texts, ["cheap", "dear"])
    rows += outcomes(prompts(20, seed=26), ["cheap"])
    rows = [row for number, row in enumerate(rows) if number < 40 or row["model"] == "cheap" or number % 5 == 0]
    command = ["train", write(house / "sparse.jsonl", rows), "--backbone", str(house / "backbone"), "--taps", "2"]
    command += ["--prices", str(house / "prices.json"), "--recipe", "kernel", "--cache", str(house / "cache")]
    assert main([*command, "--output", str(house / "sparse")]) == 0
    assert "no dial is kept, so no target can be promised" in capsys.readouterr().err
    assert read_head(house / "sparse")[0]["fitted"]["dial"]["points"] == []
    assert main(["eval", str(house / "outcomes.jsonl"), "--router", str(house / "sparse"), "--bootstraps", "0"]) == 0
    assert "no target is checked" in capsys.readouterr().out


def test_eval_of_everything_says_what_it_cannot_compare_and_what_was_fitted_on(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--router", str(house / "router"), "--bootstraps", "0", "--cache", str(house / "cache"), "--all"]
    assert main(["eval", str(house / "outcomes.jsonl"), *common]) == 0
    text = capsys.readouterr().out
    assert "fitted on 112 of these 160 prompts; leave out --all" in text
    assert "not compared with per-source means, nearest neighbours and TF-IDF" in text
    assert "(chosen on the judged prompts)" in text
    fresh = write(house / "fresh.jsonl", outcomes(prompts(60, seed=21), ["cheap", "dear"]))
    assert main(["eval", fresh, *common]) == 0
    text = capsys.readouterr().out
    assert "WARNING" not in text and "not compared with" in text


def test_a_head_that_held_out_the_newest_is_judged_on_newer_prompts_than_it_saw(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = prompts(160, seed=22)
    place = {text: number for number, text in enumerate(texts)}
    rows = [row | {"time": 1000 + place[row["prompt"]]} for row in outcomes(texts, ["cheap", "dear"])]
    command = ["train", write(house / "timed.jsonl", rows), "--backbone", str(house / "backbone"), "--taps", "2"]
    command += ["--prices", str(house / "prices.json"), "--recipe", "kernel", "--cache", str(house / "cache")]
    assert main([*command, "--hold-out-newest", "0.25", "--output", str(house / "timely")]) == 0
    assert read_head(house / "timely")[0]["fitted"]["split"]["newest_fitted_s"] == 1119.0
    later = [row | {"time": 2000} for row in outcomes(prompts(30, seed=23), ["cheap", "dear"])]
    judge_it = ["--router", str(house / "timely"), "--bootstraps", "0", "--json", "--cache", str(house / "cache")]
    capsys.readouterr()
    for more, held_out in (([], 40), (later, 70)):
        assert main(["eval", write(house / "timed-2.jsonl", rows + more), *judge_it]) == 0
        assert json.loads(capsys.readouterr().out)["prompts"] == held_out
    assert main(["eval", write(house / "old.jsonl", rows[:200]), *judge_it]) == 2
    assert "leaves no prompt to judge on" in capsys.readouterr().err
    (house / "elsewhere").mkdir()
    same_name = write(house / "elsewhere" / "timed.jsonl", rows[:200])
    assert main(["eval", same_name, "--all", *judge_it]) == 0
    assert "fitted on 100 of these 100 prompts" in capsys.readouterr().out
    judge_it = ["--router", str(house / "timely"), "--outcomes", same_name, "--cache", str(house / "cache")]
    assert main(["promote", str(house / "timely"), *judge_it]) == 2
    assert "each of the 100 prompts was fitted on by one of the heads" in capsys.readouterr().err
    few = write(house / "few.jsonl", later[:20])
    assert main(["promote", str(house / "timely"), *judge_it[:2], "--outcomes", few, *judge_it[4:]]) == 2
    assert "10 of 10 unseen prompts have every model's score (30 are needed)" in capsys.readouterr().err


def test_onboarding_through_the_command(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = prompts(80, seed=5)
    pool = write(house / "pool.jsonl", [{"prompt": text} for text in [*texts, *texts, *(f" {t} " for t in texts)]])
    common = ["onboard", "--router", str(house / "router"), "--pool", pool, "--cache", str(house / "cache")]
    assert main([*common, "--count", "30", "--chosen", str(house / "chosen.jsonl")]) == 0
    chosen = [json.loads(line)["prompt"] for line in (house / "chosen.jsonl").read_text().splitlines()]
    assert len({text.strip() for text in chosen}) == 30
    graded = write(house / "graded.jsonl", outcomes(chosen, ["other"]))
    fit = ["--model", "other", "--outcomes", graded, "--input-usd", "1", "--output-usd", "1"]
    assert main([*common, *fit, "--output", str(house / "wider")]) == 0
    printed = capsys.readouterr().out
    assert "95 % interval" in printed and "drift is watched in the prompts alone" in printed
    assert read_head(house / "wider")[0]["drift"]["watched"] == ["prompt features"]
    wider, before = Router.from_pretrained(house / "wider"), Router.from_pretrained(house / "router")
    assert [column.name for column in wider.columns] == ["cheap", "dear", "other"]
    texts = prompts(10, seed=6)
    np.testing.assert_array_equal(wider.score(texts).quality[:, :2], before.score(texts).quality)
    assert main([*common, "--model", "other", "--outcomes", graded, "--output", str(house / "x")]) == 2
    assert "--input-usd" in capsys.readouterr().err


def test_onboarding_takes_the_default_router_by_name(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onebeat.engine.default_router.default_router_folder", lambda: house / "router")
    pool = write(house / "by-name.jsonl", [{"prompt": text} for text in prompts(30, seed=28)])
    command = ["onboard", "--router", "default", "--pool", pool, "--count", "20", "--cache", str(house / "cache")]
    assert main([*command, "--chosen", str(house / "named.jsonl")]) == 0
    assert len((house / "named.jsonl").read_text().splitlines()) == 20


def test_a_column_may_start_anew_from_itself(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graded = write(house / "again.jsonl", outcomes(prompts(40, seed=27), ["dear"]))
    command = ["onboard", "--router", str(house / "router"), "--outcomes", graded, "--cache", str(house / "cache")]
    command += ["--model", "dear", "--successor-of", "dear", "--input-usd", "1", "--output-usd", "1"]
    assert main([*command, "--output", str(house / "renewed")]) == 0
    assert [column["name"] for column in read_head(house / "renewed")[0]["columns"]] == ["cheap", "dear"]
    assert "dear" in capsys.readouterr().out


def test_an_interrupted_extraction_goes_on_where_it_stopped(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onebeat.conductor.learning.features.PART_TOKENS", 200)
    texts, reading, cache = prompts(40, seed=11), Reading(((1, "mean"), (2, "last"))), house / "fresh-cache"
    whole = extract(house / "backbone", texts, reading)

    def stop(done: int, total: int) -> None:
        if done > 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(house / "backbone", texts, reading, cache_folder=cache, progress=stop)
    seen: list[int] = []
    again = extract(
        house / "backbone", texts, reading, cache_folder=cache, progress=lambda done, total: seen.append(done)
    )
    assert seen[0] > 15
    for tap in reading.taps:
        np.testing.assert_array_equal(again.states[tap], whole.states[tap])
    assert not list(cache.rglob(".half-*"))


def test_a_part_of_the_cache_that_is_broken_is_read_again(
    house: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("onebeat.conductor.learning.features.PART_TOKENS", 200)
    texts, reading, cache = prompts(40, seed=12), Reading(((1, "mean"), (2, "last"))), house / "broken-cache"
    whole = extract(house / "backbone", texts, reading, cache_folder=cache)
    parts = sorted(cache.rglob("*.npz"))
    assert len(parts) > 4
    parts[0].write_bytes(parts[0].read_bytes()[:300])
    parts[1].write_bytes(b"")
    parts[2].write_text("no archive")
    np.savez(parts[3].with_suffix(""), keys=np.zeros((1, 16), np.uint8), states=np.zeros((1, 3), np.float32))
    again = extract(house / "backbone", texts, reading, cache_folder=cache)
    for tap in reading.taps:
        np.testing.assert_array_equal(again.states[tap], whole.states[tap])
    assert caplog.text.count("of the feature cache cannot be used") == 4
    caplog.clear()
    extract(house / "backbone", texts, reading, cache_folder=cache)
    assert not caplog.text


def test_heads_are_fitted_on_the_states_that_are_served(house: Path) -> None:
    """int8 is smoothed when it is served: features that were not would belong to another backbone."""
    served = Router.from_pretrained(house / "router")
    texts = prompts(6, seed=12)
    taps = tuple((tap.layer, tap.pooling) for tap in served.config.taps)
    reading = Reading(taps, served.config.template, served.config.max_prompt_tokens)
    found = extract(house / "backbone", texts, reading)
    joined = np.concatenate([found.states[tap] for tap in taps], axis=1)
    np.testing.assert_array_equal(joined, served.score(texts, features=True).features)


def test_very_long_and_unreadable_prompts(house: Path) -> None:
    texts = ["short one", "", "word " * 100_000, "another"]
    found = extract(house / "backbone", texts, Reading(((1, "mean"),), max_prompt_tokens=256))
    assert found.rows.tolist() == [0, 2, 3]
    assert "empty" in found.refused[1]
    assert found.prompt_tokens[1] > 90_000
    assert found.states[1, "mean"].shape == (3, 64)
    with pytest.raises(InputError, match=r"layers \[9\]"):
        extract(house / "backbone", texts, Reading(((9, "mean"),)))


def test_a_file_of_outcomes_that_is_none_is_told_before_any_is_read(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong, message in {"nowhere.jsonl": "there is no file nowhere.jsonl", __file__: "ends in '.py'"}.items():
        assert main(["train", str(house / "outcomes.jsonl"), wrong, "--output", str(house / "mistake")]) == 2
        error = capsys.readouterr().err
        assert message in error or "run `onebeat pull`" in error


def test_a_router_is_never_written_over(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (house / "router" / TENSORS).read_bytes()
    assert train(house, "router", "--seed", "5") == 2
    assert "is there already and not an empty folder; name a new folder" in capsys.readouterr().err
    assert (house / "router" / TENSORS).read_bytes() == before


def test_a_column_without_outcomes_to_fit_on_is_told_before_a_prompt_is_read(
    house: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onebeat.conductor.learning.train.extract", lambda *_, **__: pytest.fail("prompts were read"))
    rows = outcomes(prompts(90, seed=3), ["cheap", "dear"])
    late = [row | {"group": "late"} for row in outcomes(prompts(20, seed=4), ["other"])]
    command = ["train", write(house / "late.jsonl", rows + late), "--backbone", str(house / "backbone"), "--taps", "2"]
    command += ["--prices", str(house / "prices.json"), "--output", str(house / "mistake"), "--hold-out", "late"]
    assert main(command) == 2
    assert 'none of the 90 prompts to fit on has a score for "other"; give more outcomes' in capsys.readouterr().err
    assert not (house / "mistake").exists()


def test_the_chat_template_goes_with_the_router(house: Path) -> None:
    backbone = house / "chatty"
    shutil.copytree(house / "backbone", backbone)
    settings = json.loads((backbone / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (backbone / "tokenizer_config.json").write_text(json.dumps(settings))
    (backbone / "chat_template.jinja").write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    assert train(house, "chatting", "--backbone", str(backbone), "--template", "chat") == 0
    assert Router.from_pretrained(house / "chatting").prepare("hello").prompt_tokens > 0
    assert (house / "chatting" / "chat_template.jinja").is_file()


def test_without_prices_or_bills_the_missing_price_is_named(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (house / "few.json").write_text('{"cheep": {"input_usd_per_million": 1, "output_usd_per_million": 1}}')
    assert train(house, "priceless", "--prices", str(house / "few.json")) == 2
    error = capsys.readouterr().err
    assert "'cheap' has no list price" in error
    assert "cheep" in error


def test_columns_are_held_against_the_fleet(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = house / "fleet.toml"
    fleet.write_text(
        '[providers.one]\nkind = "openai"\nbase_url = "http://127.0.0.1:1/v1"\n\n'
        '[models.cheap]\nprovider = "one"\ncontext_tokens = 8192\n'
        "input_usd_per_million = 0.1\noutput_usd_per_million = 0.4\n\n"
        '[models.new]\nprovider = "one"\ncontext_tokens = 8192\n'
        "input_usd_per_million = 0.1\noutput_usd_per_million = 0.4\n"
    )
    assert train(house, "fleeted", "--fleet", str(fleet)) == 0
    error = capsys.readouterr().err
    assert "column dear is scored by no model of fleet.toml" in error
    assert "new of fleet.toml is scored as new, for which there is no column" in error
