"""Chaos: random faults on random routes, and `kill -9` of the gateway in the middle of its work.

    python -m bench.chaos [--requests 2000] [--at-once 48] [--output bench/results/chaos.json]

The gateway runs as a process of its own (`onebeat serve`, a durable ledger); it is killed when half of the requests are
out and started again on the same port. Each request asks its own question, streamed or not, through one of the two
faces. Clients that find nobody listening try again; a client whose connection breaks does not.

The goal: an answer that a client has (its end included) is in the ledger, once, with its attempts; no question is
served twice; no answer is false; what the kill takes is no more than what was under way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench.faults import VENDORS, fleet_text
from tools.simulated_providers import SimulatedProviders
from tools.simulated_providers.speech import full_text

RATES = {
    "rate_limit:reset=0.1": 0.04, "error_500": 0.03, "error_503": 0.02, "error_529": 0.02, "reset": 0.03,
    "silence": 0.004, "stall": 0.004, "cut": 0.04, "end_early": 0.02, "malformed": 0.02, "garbage": 0.01,
    "no_done": 0.02, "error_in_stream": 0.02, "empty": 0.01, "html": 0.01, "slow_first:delay=0.3": 0.02,
}  # fmt: skip
"""Share of calls, at every vendor."""
READY_S = 30.0


@dataclass(slots=True)
class Outcome:
    """What became of one question."""

    question: str
    got: str = "nothing"
    """whole | error | broken (the connection ended without a last word) | FALSE"""
    request_id: str | None = None
    attempts: int = 0
    detail: str = ""


@dataclass(slots=True)
class Findings:
    requests: int
    seconds: float
    got: dict[str, int]
    under_way_at_kill: int
    down_s: float
    acknowledged: int
    violations: list[str] = field(default_factory=list)


class GatewayProcess:
    """`onebeat serve`, to be killed."""

    def __init__(self, config: Path, port: int, log: Path) -> None:
        self._config, self._port, self._log = config, port, log
        self._process: asyncio.subprocess.Process | None = None
        self.url = f"http://127.0.0.1:{port}"

    async def start(self, session: aiohttp.ClientSession) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "onebeat", "serve", "--config", str(self._config), "--port", str(self._port),
                stdout=log, stderr=log, env={**os.environ, "SIM_KEY": "sk-simulated-0123456789"},
            )  # fmt: skip
        until = time.monotonic() + READY_S
        while time.monotonic() < until:
            if self._process.returncode is not None:
                break
            try:
                async with session.get(f"{self.url}/readyz") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)
        raise RuntimeError(f"the gateway did not start:\n{self._log.read_text()[-2000:]}")

    async def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    async def stop(self) -> int:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self._process.wait(), 40)


class Crowd:
    """The clients: `at_once` of them, each with one question at a time."""

    def __init__(self, session: aiohttp.ClientSession, url: str, requests: int, seed: int) -> None:
        self._session, self._url = session, url
        self._dice = random.Random(seed)
        self.outcomes = [Outcome(f"Question {number}: what of it?") for number in range(requests)]
        self._next = iter(self.outcomes)
        self.begun = 0
        self.under_way = 0

    async def client(self) -> None:
        for outcome in self._next:
            self.begun += 1
            self.under_way += 1
            await self._ask(outcome, self._dice.random() < 0.5, self._dice.random() < 0.5)
            self.under_way -= 1

    async def _ask(self, outcome: Outcome, stream: bool, is_anthropic: bool) -> None:
        path = "/v1/messages" if is_anthropic else "/v1/chat/completions"
        body = {
            "model": "auto:best",
            "messages": [{"role": "user", "content": outcome.question}],
            "stream": stream,
            "max_tokens": 500,
        }
        for _ in range(600):
            try:
                async with self._session.post(self._url + path, json=body) as response:
                    read_into(outcome, response.status, await response.read(), stream)
                return
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.05)  # Nobody listens: nothing was accepted.
            except (aiohttp.ClientError, TimeoutError) as error:
                outcome.got, outcome.detail = "broken", repr(error)
                return


def read_into(outcome: Outcome, status: int, raw: bytes, stream: bool) -> None:
    """What one client makes of what it got."""
    if status != 200:
        outcome.got, outcome.detail = "error", raw.decode()[:200]
        return
    frames = [json.loads(raw)] if not stream else _frames(raw)
    if stream and not (raw.endswith(b"data: [DONE]\n\n") or b"event: message_stop" in raw):
        outcome.got = "error" if any("error" in frame for frame in frames) else "broken"
        outcome.detail = raw[-200:].decode(errors="replace")
        return
    block = next((frame["onebeat"] for frame in reversed(frames) if "onebeat" in frame), {})
    outcome.request_id, outcome.attempts = block.get("request_id"), block.get("attempts", 0)
    is_true = "".join(_text(frame) for frame in frames) == full_text(outcome.question, 40)
    outcome.got = "whole" if is_true and outcome.request_id else "FALSE"


def _frames(raw: bytes) -> list[dict[str, Any]]:
    lines = [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def _text(frame: dict[str, Any]) -> str:
    if frame.get("choices"):
        choice = frame["choices"][0]
        return (choice.get("message") or choice.get("delta") or {}).get("content") or ""
    if frame.get("type") == "content_block_delta":
        return str(frame["delta"].get("text", ""))
    return "".join(block.get("text", "") for block in frame.get("content", ()))


def check(outcomes: list[Outcome], ledger: Path, under_way: int) -> list[str]:
    """Everything that is not as the goal says."""
    found = [f"a false answer to {each.question!r}: {each.detail}" for each in outcomes if each.got == "FALSE"]
    found += [f"no outcome for {each.question!r}" for each in outcomes if each.got == "nothing"]
    broken = sum(each.got == "broken" for each in outcomes)
    if broken > under_way:
        found.append(f"{broken} connections broke, {under_way} were under way at the kill")
    connection = sqlite3.connect(ledger)
    if (state := connection.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
        found.append(f"the ledger is damaged: {state}")
    rows = connection.execute("SELECT id, outcome, attempts, prompt FROM requests").fetchall()
    attempts = Counter(row[0] for row in connection.execute("SELECT request_id FROM attempts"))
    connection.close()
    times = Counter(row[0] for row in rows)
    by_id = {row[0]: row for row in rows}
    for each in (outcome for outcome in outcomes if outcome.got == "whole"):
        row = by_id.get(each.request_id or "")
        if row is None or row[1] != "served" or times[row[0]] != 1:
            found.append(
                f"the answer {each.request_id} was given, the ledger says {row} {times[each.request_id or '']} times"
            )
        elif not each.attempts == row[2] == attempts[row[0]]:
            found.append(f"{each.request_id}: {each.attempts} attempts told, {row[2]} entered, {attempts[row[0]]} rows")
    served = Counter(row[3] for row in rows if row[1] == "served")
    found += [f"served {count} times: {prompt}" for prompt, count in served.items() if count > 1]
    ids = Counter(each.request_id for each in outcomes if each.request_id)
    found += [f"the answer {request_id} went to {count} clients" for request_id, count in ids.items() if count > 1]
    return found


async def chaos(requests: int, at_once: int, folder: Path, seed: int = 0) -> Findings:
    ledger = folder / "ledger.sqlite"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    timeout = aiohttp.ClientTimeout(total=60)
    async with (
        SimulatedProviders() as sim,
        aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        for number, vendor in enumerate(VENDORS):
            sim.script(vendor, always="ok:chunk_ms=1", rates=RATES, seed=seed + number)
        config = folder / "fleet.toml"
        text = fleet_text(sim.url, ledger, "openai").replace("_ms = 2000\n", "_ms = 3000\n")
        text = text.replace("deadline_ms = 8000", "deadline_ms = 15000").replace("total_ms = 16000", "total_ms = 30000")
        text = text.replace("[ledger]\n", "[ledger]\ndurable = true\nstore_prompts = true\n")
        config.write_text(text)
        gateway = GatewayProcess(config, port, folder / "gateway.log")
        await gateway.start(session)
        crowd = Crowd(session, gateway.url, requests, seed)
        began = time.monotonic()
        clients = [asyncio.create_task(crowd.client()) for _ in range(at_once)]
        while crowd.begun < requests // 2:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        under_way, begun = crowd.under_way, crowd.begun
        await gateway.kill()
        # While it dies the kernel still takes connections for it.
        under_way += crowd.begun - begun
        down = time.monotonic()
        await gateway.start(session)
        down_s = time.monotonic() - down
        await asyncio.gather(*clients)
        seconds = time.monotonic() - began
        code = await gateway.stop()
    violations = check(crowd.outcomes, ledger, under_way)
    if code != 0:
        violations.append(f"the gateway ended with {code} when told to stop")
    got = Counter(each.got for each in crowd.outcomes)
    return Findings(requests, round(seconds, 2), dict(got), under_way, round(down_s, 2), got["whole"], violations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "chaos.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        findings = asyncio.run(chaos(args.requests, args.at_once, Path(folder), args.seed))
    print(
        f"ceiling: every acknowledged answer of {args.requests} in the ledger once; faults in {sum(RATES.values()):.0%}"
    )
    for name, value in asdict(findings).items():
        print(f"{name:18} {value}")
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps(asdict(findings), indent=1) + "\n")
    print(json.dumps(asdict(findings)))


if __name__ == "__main__":
    main()
