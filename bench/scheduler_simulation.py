"""A day's arrivals through the scheduler in virtual time: how long they wait, against first come, first served.

    python bench/scheduler_simulation.py [--hours 24] [--peak-load 0.8] [--seed 0]

No model runs: a step costs what `--step-ms` and `--token-us` say (defaults: as bench/engine.py measured for the
default router on two cores of a Zen 4). Arrivals are Poisson with a rate that follows the hour, and every few minutes a
burst of ten in one instant. The scheduler simulated is the very object that the engine uses.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from onebeat.engine.native_layer import NATIVE_CHUNK_TOKENS as CHUNK_TOKENS
from onebeat.engine.options import EngineOptions
from onebeat.engine.plan import Order
from onebeat.engine.prefix_cache import PrefixCache
from onebeat.engine.scheduler import Scheduler

LONG_SHARE, LONG_TOKENS = 0.10, 1500
SHORT_TOKENS = (32, 128)
BURST_EVERY_S, BURST_PROMPTS = 300.0, 10


@dataclass(frozen=True, slots=True)
class Speed:
    """What a step costs."""

    step_ms: float
    token_ms: float
    context_cost_tokens: float

    def of(self, spans: list[tuple[int, int]]) -> float:
        """Milliseconds of a step that computes these spans of prompts."""
        cost = sum((stop - start) * (1 + (start + stop) / 2 / self.context_cost_tokens) for start, stop in spans)
        return self.step_ms + self.token_ms * cost

    def prompts_per_ms(self) -> float:
        """Capacity in prompts of the mix, computed chunk by chunk."""
        short = sum(SHORT_TOKENS) / 2 * self.token_ms
        chunks = [(start, min(start + CHUNK_TOKENS, LONG_TOKENS)) for start in range(0, LONG_TOKENS, CHUNK_TOKENS)]
        long = self.of(chunks) - self.step_ms
        # A light step holds about one chunk.
        per_prompt = (1 - LONG_SHARE) * short + LONG_SHARE * long
        tokens = (1 - LONG_SHARE) * sum(SHORT_TOKENS) / 2 + LONG_SHARE * LONG_TOKENS
        return 1.0 / (per_prompt + self.step_ms * tokens / CHUNK_TOKENS)


def arrivals(hours: float, peak_per_ms: float, dice: random.Random) -> Iterator[tuple[float, int]]:
    """(ms, tokens): quiet at night, busiest in the afternoon."""
    now_ms, next_burst_ms = 0.0, BURST_EVERY_S * 1000.0
    while now_ms < hours * 3.6e6:
        now_ms += dice.expovariate(peak_per_ms)
        hour = now_ms / 3.6e6 % 24
        if dice.random() < 0.55 - 0.45 * math.cos((hour - 3.0) / 24 * 2 * math.pi):
            yield now_ms, _tokens(dice)
        if now_ms > next_burst_ms:
            next_burst_ms += BURST_EVERY_S * 1000.0
            for _ in range(BURST_PROMPTS):
                yield now_ms, _tokens(dice)


def _tokens(dice: random.Random) -> int:
    return LONG_TOKENS if dice.random() < LONG_SHARE else dice.randint(*SHORT_TOKENS)


def simulate(day: list[tuple[float, int]], order: Order, speed: Speed) -> tuple[list[float], list[float], float]:
    """What short and long prompts waited, in ms beyond their own chunks alone; and the share of time at work."""
    limits = EngineOptions(order=order).limits(CHUNK_TOKENS, LONG_TOKENS, on_gpu=False)
    limits = replace(limits, context_cost_tokens=speed.context_cost_tokens)
    blocks = range(1, 1 + limits.working_blocks + limits.step_sequences)
    scheduler = Scheduler(limits, PrefixCache(blocks, keep_blocks=0))
    waits: dict[bool, list[float]] = {False: [], True: []}
    now_ms, busy_ms, offered = 0.0, 0.0, 0
    while offered < len(day) or len(scheduler):
        if not len(scheduler):
            now_ms = max(now_ms, day[offered][0])
        while offered < len(day) and day[offered][0] <= now_ms:
            scheduler.offer(offered, day[offered][1], (), day[offered][0])
            offered += 1
        plan = scheduler.plan(now_ms)
        elapsed_ms = speed.of([(chunk.start, chunk.stop) for chunk in plan.chunks])
        now_ms += elapsed_ms
        scheduler.observe(plan, elapsed_ms, now_ms)
        busy_ms += elapsed_ms
        for chunk in plan.chunks:
            if chunk.is_last:
                arrival_ms, tokens = day[chunk.prompt_id]
                waits[tokens == LONG_TOKENS].append(max(0.0, now_ms - arrival_ms - alone_ms(tokens, speed)))
    return waits[False], waits[True], busy_ms / now_ms


def alone_ms(tokens: int, speed: Speed) -> float:
    """A prompt on an idle machine, a chunk a step."""
    return sum(speed.of([(start, min(start + CHUNK_TOKENS, tokens))]) for start in range(0, tokens, CHUNK_TOKENS))


def percentile(values: list[float], share: float) -> float:
    """Nearest rank."""
    count = max(1, round(len(values) * (1 - share)))
    return heapq.nlargest(count, values)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--peak-load", type=float, default=0.8, help="share of capacity at the busiest hour")
    parser.add_argument("--step-ms", type=float, default=2.0)
    parser.add_argument("--token-us", type=float, default=220.0)
    parser.add_argument("--context-cost-tokens", type=float, default=1250.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    speed = Speed(options.step_ms, options.token_us / 1000.0, options.context_cost_tokens)
    capacity = speed.prompts_per_ms()
    day = list(arrivals(options.hours, capacity * options.peak_load, random.Random(options.seed)))
    solo_ms = alone_ms(sum(SHORT_TOKENS) // 2, speed)
    print(f"ceiling: {capacity * 1000:.1f} prompts/s of this mix; a short prompt alone takes {solo_ms:.1f} ms")
    print(f"{len(day)} arrivals in {options.hours:g} h, busiest hour at {options.peak_load:.0%} of the ceiling")
    print("milliseconds waited, on top of one's own work")
    print(f"{'order':>10} {'load':>6} {'short p50':>10} {'p99':>9} {'p99.9':>9} {'long p50':>10} {'p99':>9}")
    results = {}
    for order in Order:
        short, long, load = simulate(day, order, speed)
        row = [percentile(short, share) for share in (0.5, 0.99, 0.999)]
        row += [percentile(long, share) for share in (0.5, 0.99)]
        cells = "".join(f"{value:>{width}.1f}" for value, width in zip(row, (11, 10, 10, 11, 10), strict=True))
        print(f"{order.value:>10} {load:>6.0%}{cells}")
        names = ("short_p50_ms", "short_p99_ms", "short_p999_ms", "long_p50_ms", "long_p99_ms")
        results[order.value] = {"load": round(load, 3), **{n: round(v, 1) for n, v in zip(names, row, strict=True)}}
    results["short_p99_ratio"] = round(results["arrival"]["short_p99_ms"] / results["shortest"]["short_p99_ms"], 2)
    print(json.dumps({"bench": "scheduler_simulation", "solo_short_ms": round(solo_ms, 1), **results}))


if __name__ == "__main__":
    main()
