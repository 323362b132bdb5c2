"""Load for the live engine: prompts of known length, open-loop Poisson arrivals, latencies from the scheduled arrival.

Enters: a router and a mix. Leaves: latencies. A latency counts from the moment the prompt was due, not from when the
loop got round to sending it, so that a stall is charged to everybody it delayed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import numpy as np

from onebeat.engine.live import LiveRouter
from onebeat.engine.router import Router

SHORT_TOKENS, LONG_TOKENS, LONG_SHARE = (32, 128), 1500, 0.10
WORDS = tuple(
    """
    time year people way day man thing woman life child world school state family student group country problem hand
    part place case week company system program question work government number night point home water room mother area
    money story fact month lot right study book eye job word business issue side kind head house service friend father
    power hour game line end member law car city community name president team minute idea kid body back
    """.split()  # noqa: SIM905 - a page of quoted words reads worse
)


class Writer:
    """Writes prompts of an exact number of tokens, template included."""

    def __init__(self, router: Router, seed: int) -> None:
        self._router = router
        self._dice = random.Random(seed)
        base = self._count("time")
        self._words = [word for word in WORDS if self._count(f"time {word}") == base + 1]
        self._overhead = base - 1
        assert len(self._words) >= 20, "this tokenizer has too few of the bench's words as single tokens"

    @property
    def shortest_tokens(self) -> int:
        """What the template alone and one word take."""
        return self._overhead + 1

    def prompt(self, tokens: int) -> str:
        """Random words, so that no two prompts begin alike for long."""
        text = " ".join(["time", *self._dice.choices(self._words, k=max(tokens - self._overhead - 1, 0))])
        assert tokens < self.shortest_tokens or self._count(text) == tokens
        return text

    def mix(self, prompts: int) -> list[tuple[str, bool]]:
        """(prompt, is short) with exactly the stated share of long ones, shuffled."""
        long = round(prompts * LONG_SHARE)
        drawn = [(self.prompt(LONG_TOKENS), False) for _ in range(long)]
        shortest = max(SHORT_TOKENS[0], self.shortest_tokens)
        drawn += [(self.prompt(self._dice.randint(shortest, SHORT_TOKENS[1])), True) for _ in range(prompts - long)]
        self._dice.shuffle(drawn)
        return drawn

    def _count(self, text: str) -> int:
        return len(self._router.prepare(text).token_ids)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Latencies of one run."""

    short_ms: list[float]
    long_ms: list[float]
    offered_per_s: float
    lag_ms: list[float]
    """How late a 2 ms ticker on the same loop was."""


async def open_loop(live: LiveRouter, mix: Sequence[tuple[str, bool]], per_s: float, seed: int) -> Outcome:
    """Poisson arrivals at `per_s`, whatever the answers do."""
    dice, due, latencies = random.Random(seed), 0.0, dict[bool, list[float]]({True: [], False: []})
    began = time.perf_counter()

    async def one(prompt: str, is_short: bool, due_s: float) -> None:
        await live.score(prompt)
        latencies[is_short].append((time.perf_counter() - began - due_s) * 1000.0)

    async with lag_of_the_loop() as lag_ms, asyncio.TaskGroup() as group:
        for prompt, is_short in mix:
            due += dice.expovariate(per_s)
            await asyncio.sleep(max(0.0, due - (time.perf_counter() - began)))
            group.create_task(one(prompt, is_short, due))
    return Outcome(latencies[True], latencies[False], len(mix) / due, lag_ms)


@contextlib.asynccontextmanager
async def lag_of_the_loop() -> AsyncIterator[list[float]]:
    """Fills a list with the lateness, in ms, of a ticker that wants to run every 2 ms."""
    lag_ms: list[float] = []

    async def tick() -> None:
        while True:
            due = time.perf_counter() + 0.002
            await asyncio.sleep(0.002)
            lag_ms.append((time.perf_counter() - due) * 1000.0)

    ticker = asyncio.create_task(tick())
    try:
        yield lag_ms
    finally:
        ticker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticker


async def solo_ms(live: LiveRouter, prompts: Sequence[str]) -> float:
    """Median latency, one after the other on an idle engine."""
    times = []
    for prompt in prompts:
        began = time.perf_counter()
        await live.score(prompt)
        times.append((time.perf_counter() - began) * 1000.0)
    return float(np.median(times))


async def all_at_once_s(live: LiveRouter, prompts: Sequence[str]) -> float:
    """Seconds until everybody has an answer."""
    began = time.perf_counter()
    await asyncio.gather(*(live.score(prompt) for prompt in prompts))
    return time.perf_counter() - began
