"""The live engine under load: latency against offered load, capacity, prefix cache, overhead, soak.

    python -m bench.engine                    (under 5 minutes)
    python -m bench.engine --rows soak        (under 5 minutes)

Arrivals are open-loop Poisson: 90 % prompts of 32 to 128 tokens, 10 % of 1,500. The capacity, of which loads are
shares, is measured in the same run. The ceiling is printed first, the last line is JSON, and the rows measured are
merged into `--out`. Everything runs in one process, as in a service that embeds the router: the load's event loop
competes with the model for the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.load import Outcome, Writer, all_at_once_s, open_loop, solo_ms
from bench.soak import soak
from bench.stub import stubbed_overhead_us
from onebeat.engine.plan import Order
from onebeat.engine.router import Router

Row = dict[str, Any]
MIX_PROMPTS = 120
CAPACITY_TURNS = 5
QUESTIONS = 48
RESULTS = Path(__file__).parent / "results" / "engine_cpu.json"


async def capacity(router: Router, seed: int) -> Row:
    """Prompts per second with everybody waiting at once, against the same prompts packed offline.

    The two take turns, as the machine's own speed changes from minute to minute; medians, and each turn's ratio.
    """
    mix = Writer(router, seed).mix(MIX_PROMPTS)
    prompts = [prompt for prompt, _ in mix]
    token_ids = [router.prepare(prompt).token_ids for prompt in prompts]
    tokens, engine_s, offline_s = sum(map(len, token_ids)), [], []
    for _ in range(CAPACITY_TURNS):
        began = time.perf_counter()
        router.runner.features(token_ids)
        offline_s.append(time.perf_counter() - began)
        async with router.serve(prefix_cache_mebibytes=0) as live:
            engine_s.append(await all_at_once_s(live, prompts))
    shares = [ours / theirs for ours, theirs in zip(offline_s, engine_s, strict=True)]
    offline, engine = statistics.median(offline_s), statistics.median(engine_s)
    return {
        "prompts": len(prompts),
        "tokens": tokens,
        "offline_tokens_per_s": round(tokens / offline),
        "engine_tokens_per_s": round(tokens / engine),
        "engine_prompts_per_s": round(len(prompts) / engine, 2),
        "share_of_offline": round(statistics.median(shares), 3),
        "shares": [round(share, 3) for share in sorted(shares)],
        "target": ">= 0.85",
    }


async def latency(router: Router, per_s: float, seed: int, seconds: float) -> Row:
    """Percentiles against offered load; first come, first served beside it at 60 % of capacity."""
    writer = Writer(router, seed)
    row: Row = {"capacity_prompts_per_s": per_s, "loads": []}
    async with router.serve(prefix_cache_mebibytes=0) as live:
        shorts = [prompt for prompt, is_short in writer.mix(60) if is_short]
        row["solo_short_ms"] = round(await solo_ms(live, shorts), 1)
        print(f"solo: a short prompt takes {row['solo_short_ms']} ms (median)")
        for load in (0.3, 0.6, 0.8):
            length_s = seconds if load == 0.6 else seconds / 3
            mix = writer.mix(round(per_s * load * length_s))
            row["loads"].append(_summary(await open_loop(live, mix, per_s * load, seed), load, Order.SHORTEST))
            if load == 0.6:
                asked = mix
    async with router.serve(prefix_cache_mebibytes=0, order=Order.ARRIVAL) as live:
        row["loads"].append(_summary(await open_loop(live, asked, per_s * 0.6, seed), 0.6, Order.ARRIVAL))
    ours = next(r for r in row["loads"] if r["load"] == 0.6 and r["order"] == "shortest")
    theirs = row["loads"][-1]
    row["short_p99_over_solo"] = round(ours["short_p99_ms"] / row["solo_short_ms"], 2)
    row["first_come_over_ours"] = round(theirs["short_p99_ms"] / ours["short_p99_ms"], 2)
    row["target"] = "short p99 <= 5 x solo, first come >= 2.5 x worse"
    return row


def _summary(outcome: Outcome, load: float, order: Order) -> Row:
    short = np.percentile(outcome.short_ms, [50, 90, 99])
    long = np.percentile(outcome.long_ms, [50, 99])
    lag = np.percentile(outcome.lag_ms, 99)
    print(
        f"load {load:.0%} ({outcome.offered_per_s:.1f}/s) {order.value:>8}: short p50 {short[0]:7.1f}"
        f"  p90 {short[1]:7.1f}  p99 {short[2]:7.1f}   long p50 {long[0]:7.1f}  p99 {long[1]:7.1f}"
        f"   loop lag p99 {lag:4.1f}  ms"
    )
    names = ("short_p50_ms", "short_p90_ms", "short_p99_ms", "long_p50_ms", "long_p99_ms", "loop_lag_p99_ms")
    values = {name: round(float(value), 1) for name, value in zip(names, (*short, *long, lag), strict=True)}
    counts = {"short": len(outcome.short_ms), "long": len(outcome.long_ms)}
    return {"load": load, "offered_per_s": round(outcome.offered_per_s, 2), "order": order.value, **counts, **values}


async def prefix(router: Router, seed: int) -> Row:
    """Questions of 40 tokens behind one system prompt of 800, all at once, with and without the prefix cache."""
    writer = Writer(router, seed)
    system = writer.prompt(800 + writer.shortest_tokens - 1)
    questions = [f"{system} {writer.prompt(writer.shortest_tokens + 39)}" for _ in range(QUESTIONS)]
    tokens = len(router.prepare(questions[0]).token_ids)
    rates = {}
    for name, mebibytes in (("with", 256.0), ("without", 0.0)):
        async with router.serve(prefix_cache_mebibytes=mebibytes) as live:
            times = []
            for turn in range(3 if mebibytes else 1):
                if turn:
                    # Another system prompt, so that every turn begins with a cold cache.
                    system = writer.prompt(800 + writer.shortest_tokens - 1)
                    questions = [f"{system} {writer.prompt(writer.shortest_tokens + 39)}" for _ in range(QUESTIONS)]
                times.append(await all_at_once_s(live, questions))
            rates[name] = len(questions) / statistics.median(times)
            saved = live.snapshot().cached_tokens
        print(f"prefix cache {name:>7}: {rates[name]:6.1f} prompts/s of {tokens} tokens, {saved} tokens saved")
    return {
        "tokens_per_prompt": tokens,
        "with_prompts_per_s": round(rates["with"], 1),
        "without_prompts_per_s": round(rates["without"], 1),
        "speedup": round(rates["with"] / rates["without"], 2),
        "target": ">= 6",
    }


async def run(options: argparse.Namespace, router: Router, results: Row) -> None:
    """Measures the rows asked for; each is written to the results file as soon as it is known."""
    rows = options.rows.split(",")

    def keep(name: str, row: Row) -> None:
        results[name] = {"measured": time.strftime("%Y-%m-%dT%H:%M"), **row}
        options.out.write_text(json.dumps(results, indent=1) + "\n")

    # Loads are shares of what the machine can do now, not of what it could when another run measured it.
    if {"capacity", "latency", "soak"} & set(rows) or "capacity" not in results:
        keep("capacity", await capacity(router, options.seed))
    found = results["capacity"]
    print(f"ceiling: {found['offline_tokens_per_s']} tokens/s in packed offline batches of the same prompts")
    print(f"engine:  {found['engine_tokens_per_s']} tokens/s, {found['share_of_offline']:.0%} of it")
    print(f"         share by turn: {found['shares']}")
    if "overhead" in rows:
        keep("overhead", await stubbed_overhead_us(router))
        print(f"overhead with the model stubbed: {results['overhead']}")
    if "prefix" in rows:
        keep("prefix", await prefix(router, options.seed))
    if "latency" in rows:
        keep("latency", await latency(router, found["engine_prompts_per_s"], options.seed, options.seconds))
    if "soak" in rows:
        keep("soak", await soak(router, found["engine_prompts_per_s"], options.seed, options.soak_seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", default="default")
    parser.add_argument("--rows", default="capacity,overhead,prefix,latency")
    parser.add_argument("--seconds", type=float, default=50.0, help="of arrivals at 60 %% of capacity")
    parser.add_argument("--soak-seconds", type=float, default=270.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file that the rows are merged into")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    router = Router.from_pretrained(options.router)
    results: Row = json.loads(options.out.read_text()) if options.out.exists() else {}
    results |= {"bench": "engine", "router": router.config.name, "layers": router.runner.layers, "device": "cpu"}
    results |= {"machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"}
    asyncio.run(run(options, router, results))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
