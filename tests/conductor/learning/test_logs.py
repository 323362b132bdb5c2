"""Learning from logs of one answer a prompt: better than the best model, and no promise beyond what it knows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from onebeat import Router
from onebeat.cli import main
from onebeat.conductor.learning.artifact import read_head
from onebeat.conductor.learning.costs import Costs
from onebeat.conductor.learning.curves import choose
from onebeat.conductor.learning.dial import balanced_reference
from onebeat.conductor.learning.fit import fit
from onebeat.conductor.learning.judging import ground_of, means_over_all, summary
from onebeat.conductor.learning.metrics import auc_overall
from onebeat.conductor.learning.outcomes import Outcomes
from onebeat.conductor.ledger import Ledger
from onebeat.conductor.ledger_rows import FeedbackRow, RequestRow
from tests.conductor.learning.house import outcomes, prompts, write
from tests.conductor.learning.made_up import MODELS, PRICE_USD, logged, specialists
from tests.conductor.learning.test_fit import QUICK, TAP


def gain(quality: np.ndarray, chance: np.ndarray) -> float:
    """By how much taking the best by `quality` beats always taking the best by the mean, on the full truth."""
    return float(chance[np.arange(len(chance)), quality.argmax(1)].mean() - chance.mean(0).max())


@pytest.mark.parametrize("kind", list(QUICK))
def test_a_head_from_a_log_chooses_better_than_always_the_best(kind: str) -> None:
    fresh, chance, later = specialists(1500, seed=9)
    most = gain(chance, chance)
    for seed in range(2):
        x, truth, complete = specialists(500, seed=seed)
        log = logged(complete, truth, seed)
        assert (np.isfinite(log.score).sum(1) == 1).all()
        head = fit({TAP: x}, log, tap_sets=[[TAP]], recipes=[QUICK[kind]])
        quality, tokens = head.head().score_in_bulk(fresh)
        assert gain(quality, chance) > 0.5 * most > 0.05
        ranked = auc_overall(quality, later.score)
        assert ranked is not None and ranked > 0.6
        assert tokens.sum(0) == pytest.approx(later.output_tokens.sum(0), rel=0.15)
        assert all(np.isfinite(trial.criterion) and trial.between_models is None for trial in head.trials)
        assert np.isfinite(head.out_of_fold).all() and np.isfinite(head.out_of_fold_tokens).all()


def test_some_complete_prompts_among_many_logged_ones() -> None:
    x, truth, complete = specialists(500, seed=3)
    fresh, chance, _ = specialists(1500, seed=9)
    log = logged(complete, truth, 3)
    mixed = replace(
        log,
        **{
            name: np.where(np.arange(500)[:, None] < 60, getattr(complete, name), getattr(log, name))
            for name in ("score", "weight", "output_tokens", "cost_usd")
        },
    )
    found = fit({TAP: x}, mixed, tap_sets=[[TAP]], recipes=[QUICK["kernel"], QUICK["linear"]])
    assert all(trial.between_models is not None and np.isfinite(trial.criterion) for trial in found.trials)
    assert gain(found.head().score_in_bulk(fresh)[0], chance) > 0.5 * gain(chance, chance)
    ground = ground_of(found.out_of_fold, money_of(mixed, PRICE_USD), mixed)
    assert (ground.how, ground.why_not) == ("60 prompts that every model answered", "")
    held = summary(found.out_of_fold, mixed)
    assert (held["prompts"], held["prompts_without_every_score"]) == (500, 440)
    assert 0.5 < held["auc"] < 1 and held["calibration_error"] < 0.1


def money_of(table: Outcomes, price: np.ndarray) -> Costs:
    predicted = np.tile(1.3 * price, (len(table.prompts), 1))
    return Costs(actual=np.where(np.isfinite(table.cost_usd), table.cost_usd, predicted), predicted=predicted)


def test_a_dial_from_a_log_is_that_of_the_truth_whatever_the_predictions_are() -> None:
    """Predictions that are wrong of every model, and costs that are a third too high: the log sets both right."""
    covered, errors, straight, widths, full = [], [], [], [], []
    for seed in range(12):
        x, truth, complete = specialists(1200, seed=20 + seed)
        wrong = np.clip(0.3 + 0.4 * truth[:, ::-1] + 0.1 * x[:, 3:4], 0.05, 0.95)
        log = logged(complete, truth, seed)
        ground = ground_of(wrong, money_of(log, PRICE_USD), log)
        assert ground.how.startswith("doubly robust estimates of 1200 prompts") and not ground.why_not
        reference = balanced_reference(ground.judged)
        whole = ground_of(wrong, money_of(complete, PRICE_USD), complete).dial(reference)
        points, theirs = ground.dial(reference)["points"], whole["points"]
        assert isinstance(points, list) and isinstance(theirs, list)
        point = points[len(points) // 2]
        chosen = choose(wrong, money_of(log, PRICE_USD).predicted, point["tradeoff"], reference)
        actual = truth[np.arange(1200), chosen].mean() / truth.mean(0).max()
        low, high = point["share_interval"]
        covered.append(low <= actual <= high)
        errors.append(point["share_of_best"] - actual)
        straight.append(wrong[np.arange(1200), chosen].mean() / wrong.mean(0).max() - actual)
        spent = 1e3 * PRICE_USD[chosen].mean()
        assert point["usd_interval"][0] <= spent * 1.02 and spent * 0.98 <= point["usd_interval"][1]
        widths.append(high - low)
        full.append(np.mean([p["share_interval"][1] - p["share_interval"][0] for p in theirs]))
    assert np.mean(covered) >= 0.75
    assert abs(np.mean(errors)) < 0.5 * abs(np.mean(straight)), "the predictions alone would have said something else"
    assert np.mean(widths) > np.mean(full), "an answer that was not asked for is not known as well as one that was"


def test_a_log_that_was_never_drawn_by_chance_promises_nothing() -> None:
    _, truth, complete = specialists(300, seed=5)
    log = logged(complete, truth, 5)
    certain = replace(log, propensity=np.where(np.isfinite(log.score), np.float32(1), np.float32(np.nan)))
    unknown = replace(log, propensity=np.full_like(log.score, np.nan))
    for table in (certain, unknown):
        ground = ground_of(truth, money_of(table, PRICE_USD), table)
        assert (
            "0 prompts to fit on have a score for every model, and 30 are needed; 0 have that, or one" in ground.why_not
        )
        dial = ground.dial(balanced_reference(ground.judged))
        assert dial["points"] == [] and dial["how"] == "what is predicted of the prompts, out of fold"
        assert dial["best_model"] == MODELS[int(truth.mean(0).argmax())]
    seldom = log.score.copy()
    seldom[np.flatnonzero(np.isfinite(seldom[:, 1]))[9:]] = np.nan
    ground = ground_of(truth, money_of(log, PRICE_USD), replace(log, score=seldom))
    assert "prompts of middle, and 30 are needed (more traffic, or more router.exploration_share)" in ground.why_not


@pytest.mark.parametrize("factor", [0.3, 1e-9])
def test_a_log_with_other_propensities_than_its_choices_promises_nothing(factor: float) -> None:
    _, truth, complete = specialists(300, seed=5)
    log = logged(complete, truth, 5)
    wrong = replace(log, propensity=(factor * log.propensity).astype(np.float32))
    assert not ground_of(truth, money_of(log, PRICE_USD), log).why_not
    ground = ground_of(truth, money_of(wrong, PRICE_USD), wrong)
    assert "the log's choices do not come as often as its propensities say" in ground.why_not
    dial = ground.dial(balanced_reference(ground.judged))
    assert dial["points"] == [] and 0 < float(str(dial["best_usd_per_thousand"])) <= 1e3 * 1.3 * PRICE_USD.max()


def test_a_model_that_was_asked_what_is_easy_is_not_flattered() -> None:
    _, truth, complete = specialists(2000, seed=6)
    easy = truth[:, 0] > 0.6
    score = complete.score.copy()
    score[~easy, 0] = np.nan
    table = replace(complete, score=score, weight=np.isfinite(score).astype(np.float32))
    means = means_over_all(table.score, truth, table)
    assert np.nanmean(score[:, 0]) > truth[:, 0].mean() + 0.2
    assert means == pytest.approx(truth.mean(0), abs=0.03)


async def ledger_of(path: Path, rows: list[dict[str, Any]]) -> str:
    """What the gateway would have written of these answers, by its own hand."""
    ledger = Ledger(path)
    for number, row in enumerate(rows):
        held = dict.fromkeys(RequestRow.__struct_fields__) | {
            "id": str(number), "at": 1000.0 + number, "face": "openai", "asked_model": "auto", "model": row["model"],
            "outcome": "served", "decided_model": row["model"], "decided_by": "router", "tradeoff": 0.5,
            "propensity": row["propensity"], "stream": False, "attempts": 1, "prompt_tokens": 20,
            "output_tokens": row["output_tokens"], "cost_usd": 0.0001, "router_ms": 1.0, "router_usd": 0.0,
            "best_usd": 0.0, "total_ms": 5.0, "dropped_messages": 0, "reason": "",
            "prompt": json.dumps([{"role": "user", "content": row["prompt"]}]),
        }  # fmt: skip
        graded = FeedbackRow(str(number), 2000.0 + number, None, float(row["score"]), None)
        ledger.append(msgspec.convert(held, RequestRow), graded)
    assert await ledger.committed()
    ledger.close()
    return str(path)


async def test_from_a_ledger_to_a_router_that_routes(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(8)
    answers = outcomes(prompts(300, seed=51), ["cheap", "dear"])
    rows = [answers[2 * n + int(random.uniform() < 0.5)] | {"propensity": 0.5} for n in range(300)]
    ledger = await ledger_of(house / "one-model.sqlite", rows)
    command = ["train", ledger, "--backbone", str(house / "backbone"), "--prices", str(house / "prices.json")]
    command += ["--taps", "2", "--cache", str(house / "cache"), "--recipe", "kernel", "--recipe", "linear"]
    assert main([*command, "--output", str(house / "from-ledger")]) == 0
    said = capsys.readouterr()
    assert "no held-out prompt has every model's score" in said.err and "between" not in said.err
    assert "doubly robust estimates of 210 prompts, without 0 that were not drawn by chance" in said.out
    assert "nan" not in (house / "from-ledger" / "router.json").read_text().lower()
    description, _ = read_head(house / "from-ledger")
    assert description["fitted"]["test"]["prompts_without_every_score"] == 90
    assert description["drift"]["window"] == 105
    router = Router.from_pretrained(house / "from-ledger")
    assert router.setting_for("90%").prompts == 210
    route = ["route", "--router", str(house / "from-ledger"), "12 prove the quark"]
    assert main([*route, "--target", "90%"]) == 0 and main([*route, "--tradeoff", "1"]) == 0
    assert "is expected to give" in capsys.readouterr().out
    # Of named choices there is no telling what another model would have done.
    named = await ledger_of(house / "named.sqlite", [row | {"propensity": 1.0} for row in rows])
    assert main([command[0], named, *command[2:], "--output", str(house / "from-named")]) == 0
    assert "no dial is kept, so no target can be promised" in capsys.readouterr().err
    assert main(["route", "--router", str(house / "from-named"), "12 prove the quark"]) == 0


@pytest.mark.parametrize("kind", ["kernel", "linear", "low_rank", "mlp"])
def test_shuffled_or_in_two_files_the_head_is_the_same_to_the_bit(house: Path, kind: str) -> None:
    rows = outcomes(prompts(90, seed=61), ["cheap", "dear"])
    rows += [row | {"score": 1 - row["score"], "output_tokens": 70, "weight": 0.3} for row in rows[:31]]
    rows += [row | {"score": 0.1, "output_tokens": 33, "weight": 0.7, "group": "a"} for row in rows[:31]]
    order = np.random.default_rng(1).permutation(len(rows))
    shuffled = [rows[place] for place in order]
    files = {"straight": [rows], "shuffled": [shuffled], "split": [shuffled[:50], shuffled[50:]]}
    command = ["--backbone", str(house / "backbone"), "--prices", str(house / "prices.json"), "--taps", "2"]
    command += ["--cache", str(house / "cache"), "--recipe", kind, "--head-only"]
    heads = []
    for name, parts in files.items():
        paths = [write(house / f"{name}-{number}.jsonl", part) for number, part in enumerate(parts)]
        assert main(["train", *paths, *command, "--output", str(house / f"{name}-{kind}")]) == 0
        heads.append(read_head(house / f"{name}-{kind}"))
    first, tensors = heads[0]
    for description, others in heads[1:]:
        assert {name: held.tobytes() for name, held in others.items()} == {
            name: held.tobytes() for name, held in tensors.items()
        }
        for part in ("calibration", "dial", "drift"):
            assert description[part] == first[part]
        for part in ("dial", "test", "trials", "prompt_hashes"):
            assert description["fitted"][part] == first["fitted"][part]
