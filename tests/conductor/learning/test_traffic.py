"""Learning from traffic, all the way: a gateway that explores and watches for drift, its ledger, a candidate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onebeat import Router
from onebeat.cli import main
from onebeat.conductor.learning.drift import DriftWatch
from onebeat.conductor.learning.sources import read_outcomes
from tests.conductor.gateway_rig import MODELS, rig
from tests.conductor.learning.house import prompts, write
from tests.engine.tiny_routers import tiny_router

NAMES = ("gpt-4o", "gemini-2.5-flash")


def is_right(model: str, prompt: str) -> bool:
    return model == "gpt-4o" or not ("prove" in prompt or "quark" in prompt)


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A router fitted on outcomes of two of the fleet's models, one of which fails hard prompts."""
    folder = tmp_path_factory.mktemp("traffic")
    tiny_router(folder / "backbone", max_positions=4096)
    for name in ("router.json", "router_head.safetensors"):
        (folder / "backbone" / name).unlink()
    rows = [
        {"prompt": text, "model": name, "score": int(is_right(name, text)), "output_tokens": 60}
        for text in prompts(160)
        for name in NAMES
    ]
    listed = {
        name: {"input_usd_per_million": MODELS[name][2], "output_usd_per_million": MODELS[name][3]} for name in NAMES
    }
    (folder / "prices.json").write_text(json.dumps(listed))
    assert fit(folder, write(folder / "outcomes.jsonl", rows), "router") == 0
    return folder


def fit(folder: Path, outcomes: str, name: str, *more: str) -> int:
    command = ["train", outcomes, "--backbone", str(folder / "backbone"), "--prices", str(folder / "prices.json")]
    command += ["--taps", "2", "--recipe", "kernel", "--cache", str(folder / "cache"), "--output", str(folder / name)]
    return main([*command, *more])


async def test_traffic_is_watched_logged_and_judged_by(
    traffic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    router = Router.from_pretrained(traffic / "router")
    watch = DriftWatch(router.config.drift, [column.name for column in router.columns])
    window = int(router.config.drift["window"])
    asked = prompts(2 * window, seed=31)
    foreign = [f"{n}{n}{n}{n} = {'9' * 40} {'#' * (n % 9 + 30)}" for n in range(2 * window)]
    explores = '[router]\ndeadline_ms = 60000\nguard = "off"\nexploration_share = 0.6\ndrift_share = 1.0\n'
    change = (("[router]\n", explores), ("[ledger]\n", "[ledger]\nstore_prompts = true\n"))
    others = '[models."claude-simulated"]\n'
    change += ((others, others + "auto = false\n"),)
    async with (
        router.serve() as live,
        rig(tmp_path, live=live, router=router.config, drift=watch, change=change) as bench,
    ):
        for text in asked:
            answer = await bench.ask("auto", messages=[{"role": "user", "content": text}])
            assert answer.status == 200
            score = int(is_right(answer.json["model"], text))
            body = {"request_id": answer.headers["x-onebeat-request-id"], "score": score}
            async with bench.session.post(bench.gateway.url + "/v1/feedback", json=body) as response:
                assert response.status == 200
        assert watch.report()["drifted"] is False
        for text in foreign:
            await bench.ask("auto", path="/v1/route", messages=[{"role": "user", "content": text}])
        async with bench.session.get(bench.gateway.url + "/metrics") as response:
            assert "onebeat_drift 1.0" in await response.text()
        await bench.rows()
    capsys.readouterr()
    ledger = str(bench.ledger)
    assert main(["report", ledger]) == 0
    assert "drift" in capsys.readouterr().out
    table = read_outcomes([bench.ledger])
    assert len(table.prompts) == len(asked) and set(table.models) == set(NAMES)
    assert np.isfinite(table.propensity).sum() == len(asked) and (table.propensity < 1).any()
    # One answer a prompt is enough for a head, too few drawn by chance for a dial, and enough to judge a candidate by.
    assert fit(traffic, ledger, "from-traffic") == 0
    said = capsys.readouterr().err
    assert "no held-out prompt has every model's score" in said
    assert "0 prompts to fit on have a score for every model, and 30 are needed; what the log drew by chance" in said
    assert main(["route", "--router", str(traffic / "from-traffic"), "--tradeoff", "1", "prove the river"]) == 0
    assert capsys.readouterr().out.startswith("gpt-4o")
    assert fit(traffic, str(traffic / "outcomes.jsonl"), "candidate", "--seed", "1") == 0
    capsys.readouterr()
    common = ["--router", str(traffic / "router"), "--outcomes", ledger, "--cache", str(traffic / "cache"), "--dry-run"]
    assert main(["promote", str(traffic / "candidate"), *common]) in (0, 3)
    assert "doubly robust from the log" in capsys.readouterr().out
