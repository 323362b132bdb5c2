"""The demo's second half: the gateway between the official `openai` client and three simulated vendors.

Run by tools/demo.py. Real sockets on loopback, the real gateway in a process of its own; only the vendors are
simulated, and they are killed and throttled on the way. Nothing here leaves this machine.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import openai

from tools.simulated_providers import SimulatedProviders

VENDORS = {
    "openai": ("openai", "/openai/v1", ["gpt-4o-2024-08-06", "gpt-4o-mini"]),
    "anthropic": ("anthropic", "/anthropic", ["claude-3-5-sonnet-20241022", "claude-3-5-haiku"]),
    "google": ("gemini", "/google", ["gemini-1.5-pro", "gemini-1.5-flash"]),
}
PRICES = {
    "gpt-4o-2024-08-06": (2.5, 10.0),
    "gpt-4o-mini": (0.15, 0.6),
    "claude-3-5-sonnet-20241022": (3.0, 15.0),
    "claude-3-5-haiku": (0.8, 4.0),
    "gemini-1.5-pro": (1.25, 5.0),
    "gemini-1.5-flash": (0.075, 0.3),
}
"""List prices of 2024 in dollars per million tokens: those of the answers that the default router was fitted on."""

READY_WITHIN_S = 60.0
RESET_S = 2


async def run(prompts: Mapping[str, str]) -> None:
    """A dozen prompts, one vendor killed midway, then all three throttled, then the report."""
    with tempfile.TemporaryDirectory(prefix="onebeat-demo-") as folder:
        async with SimulatedProviders() as simulated:
            config = Path(folder) / "fleet.toml"
            config.write_text(fleet_toml(simulated.url, Path(folder) / "ledger.sqlite"), encoding="utf-8")
            async with gateway(config) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="demo") as client:
                await ask_all(client, simulated, prompts)
                await throttle_all(client.with_options(max_retries=0), simulated)
        print("\nThe ledger, after the gateway has stopped (`onebeat report`):\n")
        report = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "onebeat", "report", "--config", str(config)
        )
        if await report.wait():
            raise SystemExit("demo: the report failed")


def fleet_toml(url: str, ledger: Path) -> str:
    """Three simulated vendors under their own wire formats."""
    lines = ["[server]", "port = 0", "[ledger]", f'path = "{ledger}"', "[contingency]", "deadline_ms = 5000"]
    # The router shares two cores with the client, the vendors and the gateway: give it more than the usual 50 ms.
    lines += ["[router]", "deadline_ms = 2000"]
    for vendor, (kind, path, _) in VENDORS.items():
        lines += [f"[providers.{vendor}]", f'kind = "{kind}"', f'base_url = "{url}{path}"', 'api_key_env = "DEMO_KEY"']
    for vendor, (_, _, models) in VENDORS.items():
        for model in models:
            input_usd, output_usd = PRICES[model]
            lines += [f'[models."{model}"]', f'provider = "{vendor}"', "context_tokens = 128000"]
            lines += [f"input_usd_per_million = {input_usd}", f"output_usd_per_million = {output_usd}"]
    return "\n".join(lines) + "\n"


@asynccontextmanager
async def gateway(config: Path) -> AsyncIterator[str]:
    """`onebeat serve` in a process of its own, ready, and stopped with SIGTERM as a service manager would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "onebeat", "serve", "--config", str(config), "--port", str(port)]
    environment = {**os.environ, "DEMO_KEY": "no-secret"}
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        await until_ready(url, process)
        yield url
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def until_ready(url: str, process: asyncio.subprocess.Process) -> None:
    """Waits for /readyz."""
    deadline = time.monotonic() + READY_WITHIN_S
    async with aiohttp.ClientSession() as session:
        while process.returncode is None and time.monotonic() < deadline:
            try:
                async with session.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)
                continue
            await asyncio.sleep(0.1)
    raise SystemExit(f"demo: the gateway was not ready within {READY_WITHIN_S:.0f} s; its own words stand above.")


async def ask_all(client: openai.AsyncOpenAI, simulated: SimulatedProviders, prompts: Mapping[str, str]) -> None:
    """Every second answer streamed; in the middle the vendor that has answered most goes down."""
    print(f"\n{'prompt':18} {'how':9} {'answered by':28} {'attempts':>8} {'ms':>7}  answer")
    answered: Counter[str] = Counter()
    for number, (name, prompt) in enumerate(prompts.items()):
        if number == len(prompts) // 2:
            victim = answered.most_common(1)[0][0]
            simulated.vendor(victim).is_down = True
            print(f"--- the simulated endpoint of {victim}, which has answered most, goes down ---")
        start = time.perf_counter()
        streamed = number % 2 == 1
        model, attempts, text = await (ask_streamed if streamed else ask)(client, prompt)
        elapsed_ms = (time.perf_counter() - start) * 1e3
        answered[next(vendor for vendor, (_, _, models) in VENDORS.items() if model in models)] += 1
        how = "streamed" if streamed else "whole"
        print(f"{name:18} {how:9} {model:28} {attempts:>8} {elapsed_ms:7.1f}  {text[:32]!r}...")
    simulated.vendor(victim).is_down = False


async def ask(client: openai.AsyncOpenAI, prompt: str) -> tuple[str, str, str]:
    """One whole answer: model, attempts, text."""
    raw = await client.chat.completions.with_raw_response.create(
        model="auto", messages=[{"role": "user", "content": prompt}]
    )
    completion = raw.parse()
    return (
        raw.headers["x-onebeat-model"],
        raw.headers["x-onebeat-attempts"],
        completion.choices[0].message.content or "",
    )


async def ask_streamed(client: openai.AsyncOpenAI, prompt: str) -> tuple[str, str, str]:
    """One streamed answer: model, attempts, text."""
    raw = await client.chat.completions.with_raw_response.create(
        model="auto", messages=[{"role": "user", "content": prompt}], stream=True
    )
    pieces = []
    async for chunk in raw.parse():
        if chunk.choices and chunk.choices[0].delta.content:
            pieces.append(chunk.choices[0].delta.content)
    return raw.headers["x-onebeat-model"], raw.headers["x-onebeat-attempts"], "".join(pieces)


async def throttle_all(client: openai.AsyncOpenAI, simulated: SimulatedProviders) -> None:
    """Every vendor says 429 for two seconds: one caller can wait for that, another cannot."""
    print(f"--- all three vendors throttle, and name a reset in {RESET_S} s ---")
    for vendor in VENDORS:
        simulated.script(vendor, always=f"rate_limit:reset={RESET_S}")
    question = [{"role": "user", "content": "Is anybody there?"}]

    async def recover() -> None:
        await asyncio.sleep(RESET_S - 0.5)
        for vendor in VENDORS:
            simulated.script(vendor, always="ok")

    recovery = asyncio.create_task(recover())
    start = time.perf_counter()
    try:
        await client.chat.completions.create(
            model="auto", messages=question, extra_body={"onebeat": {"deadline_ms": 300}}
        )
    except openai.APIStatusError as error:
        retry_after = error.response.headers.get("retry-after")
        print(f"a caller with 300 ms:  {error.status_code}, Retry-After {retry_after}: {error.body}")
    raw = await client.chat.completions.with_raw_response.create(model="auto", messages=question)
    waited_s = time.perf_counter() - start
    print(f"a caller with 5 s:     answered by {raw.headers['x-onebeat-model']} after {waited_s:.1f} s")
    await recovery
