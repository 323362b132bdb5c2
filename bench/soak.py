"""An hour's traffic in minutes: callers that give up, callers in a hurry, and memory that must stay where it is.

Enters: a router and its capacity. Leaves: how everybody ended, and resident memory by tenths of the run. The live
router's pool of blocks is memory that the system hands out when it is first written, so it is written whole before the
count begins: what grows afterwards is a leak. Arrivals are Poisson; once in a while fifty come in one instant, which is
more than the queue holds, so that some are refused.
"""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.load import Writer
from onebeat.engine import stepper
from onebeat.engine.errors import DeadlineError, OnebeatError, OverloadedError
from onebeat.engine.live import LiveRouter
from onebeat.engine.paged_cache import PagedCache
from onebeat.engine.router import Router
from onebeat.engine.runner import Runner

PROMPTS_OF_AN_HOUR = 3600
QUEUE_PROMPTS, BURST_EVERY, BURST_PROMPTS = 40, 200, 50
SHARE_OF_CAPACITY = 0.7
CANCELLED_SHARE, DEADLINE_SHARE = 0.2, 0.33
CANCELLED_WITHIN_S = 0.1
DEADLINES_MS = (30.0, 100.0, 1000.0)
FLAT_SHARE = 0.02
"""Growth of resident memory, after the first tenth, that counts as flat."""


class WrittenCache(PagedCache):
    """Every block is in memory from the start."""

    def __init__(self, runner: Runner, blocks: int) -> None:
        super().__init__(runner, blocks)
        for part in (*self.keys, *self.values):
            part.zero_()


async def soak(router: Router, per_s: float, seed: int, seconds: float) -> dict[str, Any]:
    """Traffic of up to a prompt a second for an hour in `seconds`. A fifth give up within 0.1 s of asking, unless they
    were answered before; a third have a deadline."""
    dice, writer = random.Random(seed), Writer(router, seed)
    # Compressed no further than the machine can follow.
    mix = [prompt for prompt, _ in writer.mix(round(min(PROMPTS_OF_AN_HOUR, SHARE_OF_CAPACITY * per_s * seconds)))]
    stepper.PagedCache = WrittenCache  # type: ignore[misc]
    try:
        async with router.serve(queue_prompts=QUEUE_PROMPTS) as live:
            began = time.perf_counter()
            ends, rss = await _arrivals(live, mix, dice, seconds)
            took_s, after = time.perf_counter() - began, live.snapshot()
    finally:
        stepper.PagedCache = PagedCache  # type: ignore[misc]
    endings = Counter(how for ending in ends for how in ending)
    names = ("answered", "deadline_misses", "cancelled", "failed")
    ended, accepted = sum(getattr(after, name) for name in names), after.accepted
    growth = max(rss[1:]) - rss[1]
    row = {
        "prompts": len(mix),
        "seconds": round(took_s),
        **endings,
        # A task cancelled before its first step never reached the engine; nobody else may be missing.
        "never_sent": sum(not ending for ending in ends),
        "accepted": accepted,
        "ended_by_the_engine": ended,
        "every_caller_answered_once": all(len(ending) <= 1 for ending in ends)
        and ended == accepted == sum(endings.values()) - endings["refused"]
        and endings["refused"] == after.overloaded
        and not endings["failed"],
        "rss_mebibytes_by_tenths": rss,
        "growth_after_first_tenth_mebibytes": growth,
        "memory_flat": growth <= FLAT_SHARE * rss[1],
        "target": f"growth after the first tenth at most {FLAT_SHARE:.0%}; everybody answered exactly once",
    }
    print(f"soak: {took_s:.0f} s, {dict(endings)}, once each: {row['every_caller_answered_once']}")
    print(f"      memory by tenths {rss} MiB, flat: {row['memory_flat']}")
    return row


async def _arrivals(
    live: LiveRouter, mix: Sequence[str], dice: random.Random, seconds: float
) -> tuple[list[list[str]], list[int]]:
    """How each caller ended (once, or not at all where it gave up before it was sent), and memory by tenths."""
    ends: list[list[str]] = [[] for _ in mix]
    rss, began, tasks = [_rss_mebibytes()], time.perf_counter(), set[asyncio.Task[None]]()
    due_s = 0.0
    for index, prompt in enumerate(mix):
        if index % BURST_EVERY >= BURST_PROMPTS:
            due_s += dice.expovariate(len(mix) * (1.0 - BURST_PROMPTS / BURST_EVERY) / seconds)
        await asyncio.sleep(max(0.0, due_s - (time.perf_counter() - began)))
        deadline_ms = dice.choice(DEADLINES_MS) if dice.random() < DEADLINE_SHARE else None
        task = asyncio.create_task(_one(live, prompt, deadline_ms, ends[index]))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if dice.random() < CANCELLED_SHARE:
            asyncio.get_running_loop().call_later(dice.random() * CANCELLED_WITHIN_S, task.cancel)
        if len(rss) <= 10 * (index + 1) // len(mix):
            rss.append(_rss_mebibytes())
    await asyncio.gather(*list(tasks), return_exceptions=True)
    rss.append(_rss_mebibytes())
    return ends, rss


async def _one(live: LiveRouter, prompt: str, deadline_ms: float | None, ending: list[str]) -> None:
    try:
        await live.score(prompt, deadline_ms=deadline_ms)
        ending.append("answered")
    except DeadlineError:
        ending.append("deadline")
    except OverloadedError:
        ending.append("refused")
    except asyncio.CancelledError:
        ending.append("cancelled")
    except OnebeatError as error:
        print(f"a caller was failed: {error}")
        ending.append("failed")


def _rss_mebibytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 2**20)
