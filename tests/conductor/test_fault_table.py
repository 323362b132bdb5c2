"""The table of `bench/faults.py`, a third of it: every fault in every scene, streamed and not, the vendors in turn."""

from __future__ import annotations

import asyncio

from bench.faults import FAULTS, SCENES, VENDORS, Cell, cell, violations
from tools.simulated_providers.script import Fault


async def turns(shift: int) -> list[Cell]:
    gate = asyncio.Semaphore(8)
    vendors = list(VENDORS)

    async def one(scene: str, fault: Fault, vendor: str, stream: bool) -> Cell:
        async with gate:
            return await cell(scene, fault, vendor, stream)

    cells = [
        one(scene, fault, vendors[(number + SCENES.index(scene) + shift) % 3], stream)
        for scene in SCENES
        for number, fault in enumerate(FAULTS)
        for stream in (False, True)
    ]
    return list(await asyncio.gather(*cells))


async def test_every_fault_is_survived_or_ends_in_a_clean_error_and_the_ledger_agrees() -> None:
    cells = await turns(0)
    assert len(cells) == 2 * len(SCENES) * len(FAULTS)
    assert violations(cells) == []


def test_the_goal_can_be_missed() -> None:
    good = Cell("others", "cut", "openai", True, "whole", 200, "", 2, 10.0, True, "")
    assert violations([good]) == []
    for change in (
        {"got": "FALSE SUCCESS"},
        {"got": "error in band"},
        {"calls": 5},
        {"ms": 60_000.0},
        {"ledger_agrees": False},
    ):
        fields = {name: getattr(good, name) for name in Cell.__dataclass_fields__} | change
        assert violations([Cell(**fields)]), change
