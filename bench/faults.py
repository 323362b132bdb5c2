"""Faults survived: every fault, at every vendor, streamed and not, through the whole gateway over real sockets.

    python -m bench.faults                # prints the table and writes bench/results/faults.json
    python -m bench.faults --fault cut    # or --scene once: a part of it, written nowhere

Three scenes. `others`: the first choice of `auto` is faulty, two other routes are well. `nobody`: every route has the
fault. `once`: a model asked for by name has the fault once. Each cell has its own gateway, ledger and vendors.

The goal: the whole answer wherever any route could give it, a clean bounded error otherwise, never a false success,
never more calls than the budget, and a ledger that agrees with what the vendors say they served.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from onebeat.conductor.fleet_file import parse_fleet
from onebeat.conductor.serving import running
from tools.simulated_providers import SimulatedProviders
from tools.simulated_providers.script import Fault
from tools.simulated_providers.speech import REFUSAL, full_text

VENDORS = {"openai": "gpt-4o", "anthropic": "claude-simulated", "gemini": "gemini-2.5-flash"}
SCENES = ("others", "nobody", "once")
MAX_ATTEMPTS = 4
LONGEST_MS = 16_000.0
QUESTION = "Tell me about the harbour"
SAID = full_text(QUESTION, 40)
SETTINGS = {Fault.RATE_LIMIT: "reset=0.2", Fault.SLOW_FIRST: "delay=9"}
FAULTS = tuple(fault for fault in Fault if fault is not Fault.OK)
FLEET = """
[router]
source = "none"
[resilience]
connect_ms = 2000
first_token_ms = 2000
between_tokens_ms = 2000
whole_ms = 2000
total_ms = 16000
backoff_base_ms = 5
short_reset_ms = 500
breaker_open_ms = 200
retry_burst = 1000.0
max_attempts = 4
[watch]
refusal = "act"
wrong_finish = "act"
[contingency]
deadline_ms = 8000
[providers.openai]
kind = "openai"
base_url = "URL/openai/v1"
api_key_env = "SIM_KEY"
[providers.anthropic]
kind = "anthropic"
base_url = "URL/anthropic"
api_key_env = "SIM_KEY"
[providers.gemini]
kind = "gemini"
base_url = "URL/gemini"
api_key_env = "SIM_KEY"
"""
MODEL = """
[models."{name}"]
provider = "{vendor}"
prior_quality = {quality}
context_tokens = {window}
capabilities = ["tools", "json", "images"{prefill}]
input_usd_per_million = 1.0
output_usd_per_million = 4.0
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """One request's fate."""

    scene: str
    fault: str
    vendor: str
    stream: bool
    got: str
    """whole | refusal | filtered | length | noted (given, with a note that its finish is doubtful, where nobody could
    do better) | error STATUS | error in band | FALSE SUCCESS | NOTHING"""
    status: int
    message: str
    calls: int
    ms: float
    ledger_agrees: bool
    ledger_says: str


def fleet_text(url: str, ledger: Path, first: str) -> str:
    text = FLEET.replace("URL", url) + f'[ledger]\npath = "{ledger}"\n'
    for vendor, name in VENDORS.items():
        # The first choice has the smallest window, so that a context overflow there can be served elsewhere.
        quality, window = (0.9, 50_000) if vendor == first else (0.85, 100_000)
        prefill = ', "prefill"' if vendor == "anthropic" else ""
        text += MODEL.format(name=name, vendor=vendor, quality=quality, window=window, prefill=prefill)
    return text


def words_of(fault: Fault) -> str:
    return f"{fault.value}:{SETTINGS[fault]}" if fault in SETTINGS else fault.value


def prepare(sim: SimulatedProviders, scene: str, fault: Fault, vendor: str) -> None:
    # A refused prefill needs an answer that was cut first.
    first = ("cut",) if fault is Fault.PREFILL_REFUSED else ()
    if scene == "nobody":
        for each in VENDORS:
            sim.script(each, *first, always=words_of(fault))
    elif scene == "others":
        sim.script(vendor, *first, always=words_of(fault))
    else:
        sim.script(vendor, *first, words_of(fault))


async def cell(scene: str, fault: Fault, vendor: str, stream: bool) -> Cell:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        ledger = Path(folder) / "ledger.sqlite"
        async with SimulatedProviders() as sim:
            fleet = parse_fleet(fleet_text(sim.url, ledger, vendor))
            async with (
                running(fleet, {"SIM_KEY": "sk-simulated-0123456789"}, port=0) as gateway,
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
            ):
                prepare(sim, scene, fault, vendor)
                model = VENDORS[vendor] if scene == "once" else "auto:best"
                body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "stream": stream}
                began = time.perf_counter()
                got, status, message = await ask(session, gateway.url, body)
                elapsed_ms = (time.perf_counter() - began) * 1e3
                await gateway.ledger.committed()
                agrees, says = await reconciled(sim, ledger)
                calls = sum(total["calls"] for total in sim.bills.totals.values())
    return Cell(scene, fault.value, vendor, stream, got, status, message, calls, round(elapsed_ms, 1), agrees, says)


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[str, int, str]:
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            raw = await response.read()
            return judged(response.status, raw, bool(body["stream"]))
    except (aiohttp.ClientError, TimeoutError) as error:
        return "NOTHING", 0, repr(error)


def judged(status: int, raw: bytes, stream: bool) -> tuple[str, int, str]:
    """What a client would make of it: an error that says so, or a success, which had better be one."""
    if status != 200:
        return f"error {status}", status, str(json.loads(raw)["error"]["message"])
    if not stream:
        whole = json.loads(raw)
        choice = whole["choices"][0]
        if "wrong_finish" in " ".join(whole["onebeat"].get("notes", ())):
            return "noted", status, ""
        return success(choice["message"]["content"] or "", choice["finish_reason"]), status, ""
    lines = [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: ")]
    frames = [json.loads(line) for line in lines if line != b"[DONE]"]
    for frame in frames:
        if "error" in frame:
            is_last = frame is frames[-1] and b"[DONE]" not in lines
            return ("error in band" if is_last else "FALSE SUCCESS"), status, str(frame["error"]["message"])
    choices = [frame["choices"][0] for frame in frames if frame["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    finish = next((choice["finish_reason"] for choice in choices if choice["finish_reason"]), None)
    if lines[-1:] != [b"[DONE]"]:
        return "NOTHING", status, "the stream ended without its last word and without an error"
    return success(text, finish), status, text if text != SAID else ""


def success(text: str, finish: str | None) -> str:
    if finish == "stop" and text == SAID:
        return "whole"
    if finish == "stop" and text == REFUSAL:
        return "refusal"
    if finish == "content_filter":
        return "filtered"
    # A length that the vendor says was reached is passed on as that, where nobody could do better.
    return "length" if finish == "length" and SAID.startswith(text) else "FALSE SUCCESS"


async def reconciled(sim: SimulatedProviders, ledger: Path) -> tuple[bool, str]:
    """The ledger's attempts against the vendors' bills, one by one: to the token where the usage was reported, and
    where the stream was broken off, by either side, what had come of it: no higher than what was billed."""
    connection = sqlite3.connect(ledger)
    rows = connection.execute(
        "SELECT provider, estimated OR outcome != 'served' AND output_tokens > 0, input_tokens, output_tokens"
        " FROM attempts ORDER BY at, number"
    ).fetchall()
    connection.close()
    for _ in range(100):  # A vendor notices a caller that left a little later.
        if len(sim.bills.log) >= len(rows):
            break
        await asyncio.sleep(0.02)
    if len(rows) != len(sim.bills.log):
        return False, f"the ledger has {len(rows)} attempts, the vendors had {len(sim.bills.log)} calls"
    for vendor in VENDORS:
        mine = [row[1:] for row in rows if row[0] == vendor]
        bills = sorted((bill for bill in sim.bills.log if bill.vendor == vendor), key=lambda bill: bill.began_s)
        for (broken_off, *entered), bill in zip(mine, bills, strict=False):
            reported = [bill.reported_input_tokens, bill.reported_output_tokens]
            billed = [bill.input_tokens, bill.output_tokens]
            near = abs(entered[0] - billed[0]) <= 4 + billed[0] // 2 and entered[1] <= billed[1] + 4
            if not (near if broken_off else entered == reported):
                return False, f"{vendor}: ledger {entered}, reported {reported}, billed {billed}"
        if len(mine) != len(bills):
            return False, f"{vendor}: the ledger has {len(mine)} attempts, the vendor had {len(bills)} calls"
    return True, ""


async def table(
    scenes: Iterable[str] = SCENES,
    faults: Iterable[Fault] = FAULTS,
    vendors: Iterable[str] = VENDORS,
    streams: Iterable[bool] = (False, True),
    *,
    at_once: int = 12,
) -> list[Cell]:
    """All cells. Most of them wait for clocks most of the time, so several run at once."""
    gate = asyncio.Semaphore(at_once)

    async def one(*which: Any) -> Cell:
        async with gate:
            return await cell(*which)

    return list(
        await asyncio.gather(
            *(one(scene, fault, vendor, stream)
              for scene in scenes for fault in faults for vendor in vendors for stream in streams)
        )
    )  # fmt: skip


PASSED_ON = {
    Fault.CONTENT_FILTER: {"error 400"},
    Fault.FILTERED: {"filtered"},
    # The vendor says that the answer reached its length, and so does the client's finish reason.
    Fault.TRUNCATED: {"length"},
}
SPOILT = {Fault.LOOP: {"error in band"}, Fault.REFUSAL: {"refusal", "filtered"}}
"""What a stream has shown the client before it can be known: a loop ends in an error, a refusal stands."""


def violations(cells: Iterable[Cell]) -> list[str]:
    """Everything that is not as the goal says."""
    found = []
    for each in cells:
        fault = Fault(each.fault)
        where = f"{each.scene} {each.fault} {each.vendor} {'streamed' if each.stream else 'whole'}: {each.got}"
        if each.got in ("FALSE SUCCESS", "NOTHING"):
            found.append(f"{where} ({each.message[:80]})")
        if each.calls > MAX_ATTEMPTS:
            found.append(f"{where} took {each.calls} calls")
        if each.ms > LONGEST_MS:
            found.append(f"{where} took {each.ms} ms")
        if not each.ledger_agrees:
            found.append(f"{where}: {each.ledger_says}")
        if each.scene == "others" and each.got != "whole":
            excused = PASSED_ON.get(fault, set()) | (SPOILT.get(fault, set()) if each.stream else set())
            if each.got not in excused:
                found.append(f"{where}, though another route was well ({each.message[:80]})")
    return found


def printed(cells: list[Cell]) -> str:
    lines = []
    for scene in SCENES:
        lines.append(f"\n{scene}: " + {"others": "two other routes are well", "nobody": "every route has the fault",
                                       "once": "a model asked for by name has the fault once"}[scene])  # fmt: skip
        heads = [f"{vendor} {'streamed' if stream else 'whole'}" for vendor in VENDORS for stream in (False, True)]
        lines.append(f"{'fault':17}" + "".join(f"{head:25}" for head in heads))
        for fault in FAULTS:
            row = {(c.vendor, c.stream): c for c in cells if c.scene == scene and c.fault == fault.value}
            shown = []
            for vendor in VENDORS:
                for stream in (False, True):
                    if (each := row.get((vendor, stream))) is not None:
                        shown.append(f"{each.got} {each.calls}x {each.ms:.0f} ms".ljust(25))
            lines.append(f"{fault.value:17}" + "".join(shown))
    return "\n".join(lines)


def summary(cells: list[Cell]) -> dict[str, Any]:
    counts: dict[str, dict[str, int]] = {}
    for each in cells:
        scene = counts.setdefault(each.scene, {})
        scene[each.got] = scene.get(each.got, 0) + 1
    return {
        "cells": len(cells),
        "got": counts,
        "false_successes": sum(each.got in ("FALSE SUCCESS", "NOTHING") for each in cells),
        "most_calls": max(each.calls for each in cells),
        "longest_ms": max(each.ms for each in cells),
        "ledger_disagreements": sum(not each.ledger_agrees for each in cells),
        "violations": violations(cells),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", choices=[fault.value for fault in FAULTS], help="this one only")
    parser.add_argument("--scene", choices=SCENES, help="this one only")
    args = parser.parse_args()
    faults = [Fault(args.fault)] if args.fault else FAULTS
    cells = asyncio.run(table([args.scene] if args.scene else SCENES, faults))
    print(f"ceiling: {MAX_ATTEMPTS} calls and {LONGEST_MS:.0f} ms for any request")
    print(printed(cells))
    found = summary(cells)
    for violation in found["violations"]:
        print("VIOLATION", violation)
    if not args.fault and not args.scene:
        path = Path(__file__).parent / "results" / "faults.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"summary": found, "cells": [asdict(each) for each in cells]}, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
