"""Targets in words: what they mean, which dial position they get, and what is said where none can be promised."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from onebeat.cli import main
from onebeat.engine.errors import ConstraintError, InputError
from onebeat.engine.router import Router
from onebeat.engine.targets import Target, parse_target, setting
from tests.engine.tiny_routers import edit_json, tiny_router


def point(tradeoff: float, share: float, usd: float) -> dict[str, Any]:
    return {
        "tradeoff": tradeoff,
        "quality": 0.9 * share,
        "share_of_best": share,
        "share_interval": [share - 0.01, share + 0.01],
        "usd_per_thousand": usd,
        "usd_interval": [0.9 * usd, 1.1 * usd],
    }


DIAL: dict[str, Any] = {
    "best_model": "large",
    "best_quality": 0.9,
    "best_usd_per_thousand": 5.0,
    "prompts": 500,
    "points": [point(0, 0.5, 0.1), point(0.2, 0.9, 0.3), point(0.6, 0.96, 1.5), point(1, 1.01, 5)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny_router(tmp_path_factory.mktemp("router"))
    edit_json(made / "router.json", lambda found: found.update(fitted={"dial": DIAL}))
    return made


@pytest.fixture(scope="module")
def router(folder: Path) -> Router:
    return Router.from_pretrained(folder)


MEANING: dict[str, Target] = {
    "95%": Target(share_of_best=0.95),
    "95 % of the best": Target(share_of_best=0.95),
    "95% of the best model's quality": Target(share_of_best=0.95),
    "0.9": Target(share_of_best=0.9),
    "120%": Target(share_of_best=1.2),
    "$0.40": Target(usd_per_thousand=0.4),
    "0.40 usd": Target(usd_per_thousand=0.4),
    "0.40 USD per thousand": Target(usd_per_thousand=0.4),
    ".4 dollars / 1k": Target(usd_per_thousand=0.4),
    "1e-3 usd": Target(usd_per_thousand=0.001),
    "0 usd": Target(usd_per_thousand=0.0),
}


@pytest.mark.parametrize("text", MEANING)
def test_targets_in_words(text: str) -> None:
    assert parse_target(text) == MEANING[text]


NOTHING: list[Any] = ["", "cheap", "500", "-", "-95%", "95% 0.4 usd", "0.4%usd", "nan", "0%", "1e999 usd", "200%", 0.95]


@pytest.mark.parametrize("text", NOTHING)
def test_targets_that_mean_nothing(text: Any) -> None:
    with pytest.raises(InputError, match=r"target is .*; write a share of the best model's quality \(95%\) or dollars"):
        parse_target(text)


def test_a_share_takes_the_cheapest_position_and_dollars_the_best() -> None:
    assert setting(DIAL, Target(share_of_best=0.95)).tradeoff == 0.6
    found = setting(DIAL, Target(usd_per_thousand=1.0))
    assert (found.tradeoff, found.prompts) == (0.2, 500)
    assert found.sentence() == (
        "tradeoff 0.2 is expected to give 90.0 % (89.0 to 91.0) of large's quality for $0.300 (0.270 to 0.330) per "
        "thousand, on prompts like the 500 that it was solved on"
    )


def test_what_cannot_be_promised_is_said() -> None:
    with pytest.raises(ConstraintError, match=r"110 % of large's quality is out of reach: the most is 101.0 %"):
        setting(DIAL, Target(share_of_best=1.1))
    with pytest.raises(ConstraintError, match=r"0.01 USD per thousand is out of reach: the least is 0.1 at tradeoff 0"):
        setting(DIAL, Target(usd_per_thousand=0.01))
    for none in (None, {}, {"points": []}):
        with pytest.raises(InputError, match=r"no solved dial .*; fit it with `onebeat train`.*, or give a tradeoff"):
            setting(none, Target(share_of_best=0.9))
    with pytest.raises(InputError, match=r"fitted.dial of router.json cannot be read .*; fit the router again"):
        setting(DIAL | {"points": [{"tradeoff": "middle"}]}, Target(share_of_best=0.9))


def test_the_router_decides_by_a_target(router: Router) -> None:
    asked = router.route("What is 17 * 23?", target="95%")
    assert asked.tradeoff == router.setting_for("95%").tradeoff == 0.6
    assert asked.scores == router.route("What is 17 * 23?", tradeoff=0.6).scores
    assert router.route("What is 17 * 23?").tradeoff == 0.5

    async def live() -> float:
        async with router.serve() as serving:
            with pytest.raises(InputError, match="give one of them"):
                await serving.route("hello", target="95%", tradeoff=0.5)
            return (await serving.route("hello", target="0.4 usd")).tradeoff

    assert asyncio.run(live()) == 0.2


def test_a_target_stands_alone_and_means_all_columns(router: Router) -> None:
    with pytest.raises(InputError, match=r"both tradeoff 0.5 and target '95%' are given; give one of them"):
        router.route("hello", tradeoff=0.5, target="95%")
    with pytest.raises(InputError, match=r'a choice among models \["small","tiny"\], and the dial was solved for all'):
        router.route("hello", models=["small", "tiny"], target="95%")


def test_the_command_decides_by_a_target_and_says_what_to_expect(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    route = ["route", "--router", str(folder), "--target", "95%"]
    assert main([*route, "hello"]) == 0
    assert "Target 95%: tradeoff 0.6 is expected to give 96.0 % (95.0 to 97.0)" in capsys.readouterr().out
    assert main([*route, "hello", "--max-cost-usd", "1"]) == 0
    assert "; constraints change that." in capsys.readouterr().out
    (tmp_path / "lines").write_text('"hello"\n"there"\n')
    assert main([*route, "--jsonl", "--file", str(tmp_path / "lines"), "--json"]) == 0
    for line in map(json.loads, capsys.readouterr().out.splitlines()):
        assert line["tradeoff"] == 0.6
        assert line["target"]["asked"] == "95%" and line["target"]["share_of_best"] == 0.96


WRONG: list[tuple[list[str], str]] = [
    (["--target", "soon"], "target is 'soon'; write a share"),
    (["--target", "95%", "--tradeoff", "0.5"], "both tradeoff 0.5 and target '95%' are given"),
    (["--target", "95%", "--model", "small"], "the dial was solved for all columns"),
    (["--target", "115%"], "115 % of large's quality is out of reach"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_a_wrong_target_ends_in_one_sentence(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["route", "hello", "--router", str(folder), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err and printed.err.count("\n") == 1
