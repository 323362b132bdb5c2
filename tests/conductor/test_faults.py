"""Every fault of every vendor, streamed and not: a whole answer wherever one can be had, never a false success."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conductor.gateway_rig import Result, Rig, rig

VENDORS = {"openai": "gpt-4o", "anthropic": "claude-simulated", "gemini": "gemini-2.5-flash"}
BEFORE = [
    "rate_limit:reset=60",
    "rate_limit_bare",
    "quota",
    "error_500",
    "error_503",
    "error_529",
    "reset",
    "silence",
    "slow_first:delay=3",
    "html",
    "redirect",
    "auth",
    "not_found",
    "empty",
    "blank",
]
MIDWAY = [
    "cut:after=3",
    "end_early:after=3",
    "stall:after=3",
    "stall_pings:after=3",
    "malformed",
    "garbage",
    "error_in_stream",
]


async def asked(bench: Rig, vendor: str, stream: bool) -> Result:
    """`auto`, with the faulty vendor's model made the first choice by price."""
    return await bench.ask("auto", stream=stream, headers={"x-onebeat-tradeoff": "0.5"})


def first_choice(vendor: str) -> tuple[tuple[str, str], ...]:
    name = VENDORS[vendor]
    head = f'[models."{name}"]\n'
    return (
        (
            head,
            head + "tiers = [{above_prompt_tokens = 0, input_usd_per_million = 0.01, output_usd_per_million = 0.01}]\n",
        ),
    )


@pytest.mark.parametrize("vendor", VENDORS)
async def test_whatever_fails_first_another_model_answers_whole(vendor: str, tmp_path: Path) -> None:
    for stream in (False, True):
        for fault in BEFORE + MIDWAY:
            folder = tmp_path / f"{stream}-{fault.partition(':')[0]}"
            folder.mkdir()
            async with rig(folder, change=first_choice(vendor)) as bench:
                good = await bench.ask("auto", stream=stream)
                assert good.is_whole and good.headers["x-onebeat-model"] == VENDORS[vendor]
                bench.sim.bills.clear()
                bench.sim.script(vendor, always=fault)
                result = await asked(bench, vendor, stream)
                where = (vendor, stream, fault, result.status, result.body[-300:])
                calls = sum(total["calls"] for total in bench.sim.bills.totals.values())
                if result.is_whole:
                    assert result.text == good.text, where
                else:
                    # Only a stream that had begun, at a vendor whose like cannot continue it, may end in an error.
                    assert stream and fault in MIDWAY and result.error is not None, where
                    assert good.text.startswith(result.text), where
                assert calls <= 4, where
                rows = await bench.rows()
                assert rows[-1]["outcome"] == ("served" if result.is_whole else "failed"), where
                attempts = [row for row in await bench.rows("attempts") if row["request_id"] == rows[-1]["id"]]
                assert len(attempts) == rows[-1]["attempts"], where
