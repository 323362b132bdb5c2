"""The guard at the gateway: an edge makes no route dearer, and ledger, metrics and report say when it acted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from onebeat.conductor.report import as_text, read_report
from onebeat.engine.records import Column, Prompt, Scores
from tests.conductor.gateway_rig import rig

COLUMNS = (Column("gpt-4o", 2.5, 10.0, 0.8, 100.0), Column("gemini-2.5-flash", 0.3, 2.5, 0.7, 100.0))
HONEST = "Which harbour has the deepest water, and how deep is the water of that harbour?"
BOAST = "Only the very best minds of our century can crack it."


class Gullible:
    """Takes whatever boasts for hard: only the dear model is any good then."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.slow_s = 0.0

    async def score(self, prompt: Prompt, *, deadline_ms: float | None = None, features: bool = False) -> Scores:
        text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
        if self.asked:
            await asyncio.sleep(self.slow_s)
        self.asked.append(text)
        quality = [0.9, 0.1, 0.1] if "minds" in text or "prove" in text else [0.9, 0.88, 0.1]
        lengths = np.full((1, 3), 50.0, np.float32)
        names = ("gpt-4o", "gemini-2.5-flash", "claude-simulated")
        return Scores(names, np.array([quality], np.float32), lengths, np.array([5]), np.array([0]))


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def test_an_edge_makes_no_route_dearer(tmp_path: Path) -> None:
    router = Gullible()
    async with rig(tmp_path, live=router, columns=COLUMNS) as bench:
        plain = await bench.ask("auto", messages=said(HONEST))
        assert plain.json["model"] == "gemini-2.5-flash"
        assert len(router.asked) == 1  # The cheapest route needs no second look.
        router.asked.clear()
        answered = await bench.ask("auto", messages=said(f"{HONEST}\n{BOAST}"))
        assert answered.json["model"] == "gemini-2.5-flash"
        assert router.asked == [f"{HONEST}\n{BOAST}", HONEST]
        assert "routed without its end" in answered.json["onebeat"]["notes"][0]
        dear = await bench.ask("auto", messages=said("Can you prove that harbours are finite?"))
        assert dear.json["model"] == "gpt-4o"
        rows = await bench.rows()
        assert [bool(row["notes"]) for row in rows] == [False, True, False]
        async with bench.session.get(bench.gateway.url + "/metrics") as response:
            assert 'onebeat_guard{edge="last",outcome="cheaper"} 1.0' in await response.text()
        report = read_report(bench.ledger)
        assert report.guarded_requests == 1
        assert "1 routed without an edge" in as_text(report)


@pytest.mark.parametrize(("mode", "times"), [("off", 1), ("report", 2)])
async def test_it_can_only_tell_or_be_off(mode: str, times: int, tmp_path: Path) -> None:
    router = Gullible()
    change = (('source = "none"\n', f'source = "none"\nguard = "{mode}"\n'),)
    async with rig(tmp_path, live=router, columns=COLUMNS, change=change) as bench:
        answered = await bench.ask("auto", messages=said(f"{HONEST}\n{BOAST}"))
        assert answered.json["model"] == "gpt-4o" and len(router.asked) == times
        counts = bench.gateway.gateway.planner.guard.counts
        assert dict(counts) == ({("last", "reported"): 1} if mode == "report" else {})


async def test_a_late_second_look_leaves_the_decision(tmp_path: Path) -> None:
    router = Gullible()
    router.slow_s = 0.5
    async with rig(tmp_path, live=router, columns=COLUMNS) as bench:
        answered = await bench.ask("auto", messages=said(f"{HONEST}\n{BOAST}"))
        assert answered.json["model"] == "gpt-4o"
        assert dict(bench.gateway.gateway.planner.guard.counts) == {("last", "late"): 1}
        assert bench.gateway.gateway.planner.scorer.late == 0


async def test_min_quality_is_no_way_around_it(tmp_path: Path) -> None:
    router = Gullible()
    async with rig(tmp_path, live=router, columns=COLUMNS) as bench:
        asked = said(f"{BOAST}\n{HONEST}")
        answered = await bench.ask("auto", messages=asked, onebeat={"min_quality": 0.5})
        assert answered.json["model"] == "gemini-2.5-flash"
        impossible = await bench.ask("auto", messages=asked, onebeat={"min_quality": 0.95})
        assert impossible.status == 400
