"""Ways to measure one HTTP server from outside: latency, capacity in open loop, many streams at once.

Enters: a port, a process id. Leaves: dictionaries of figures. Knows nothing of what the server is.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bench.gateway_load import WORDS, Client, connect

ROOT = Path(__file__).parents[1]
ALL_CORES = sorted(os.sched_getaffinity(0))


@contextmanager
def process(
    command: list[str],
    core: int,
    *,
    pattern: str = r"listening on http://127\.0\.0\.1:(\d+)",
    port: int | None = None,
    env: dict[str, str] | None = None,
    wait_s: float = 90.0,
) -> Iterator[tuple[int, int]]:
    """Starts a server on one core; yields its port and process id once it says where it listens, or `port` answers."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(
            ["taskset", "-c", str(ALL_CORES[min(core, len(ALL_CORES) - 1)]), *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
        )
        try:
            yield _wait_for(child, output, pattern, port, time.monotonic() + wait_s), child.pid
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            os.sched_setaffinity(0, set(cores))


def _wait_for(child: subprocess.Popen[bytes], output: IO[str], pattern: str, port: int | None, until: float) -> int:
    while time.monotonic() < until and child.poll() is None:
        time.sleep(0.1)
        if port is not None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return port
            continue
        output.seek(0)
        if found := re.search(pattern, output.read()):
            return int(found[1])
    output.seek(0)
    raise RuntimeError(f"{child.args} did not start: {output.read()[-2000:]}")


def percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {f"p{q}": round(1e3 * ordered[min(len(ordered) - 1, int(q / 100 * len(ordered)))], 4) for q in (50, 90, 99)}


async def one_connection(
    port: int, request: bytes | Callable[[int], bytes], count: int, *, first: bool = False
) -> dict[str, float]:
    """Percentiles of `count` requests, one after the other; a function makes each anew from its number."""
    client = await connect(port)
    make = request if callable(request) else lambda number: request
    for number in range(max(20, count // 10)):
        await client.ask(make(-1 - number))
    times = []
    for number in range(count):
        to_first, to_end, body = await client.ask(make(number))
        assert b" 200 " in body[:20], body[:400]
        times.append(to_first if first else to_end)
    return percentiles(times)


async def saturated(port: int, request: bytes, seconds: float, connections: int = 32) -> float:
    """Requests a second with every connection always busy: the server's capacity, measured in one go."""
    clients = [await connect(port) for _ in range(connections)]
    until = time.perf_counter() + seconds
    served = 0

    async def one(client: Client) -> None:
        nonlocal served
        while time.perf_counter() < until:
            _, _, body = await client.ask(request)
            assert b" 200 " in body[:20], body[:300]
            served += 1

    started = time.perf_counter()
    await asyncio.gather(*(one(client) for client in clients))
    return served / (time.perf_counter() - started)


async def open_loop(port: int, request: bytes, rate: float, seconds: float) -> dict[str, float]:
    """Poisson arrivals at `rate`: achieved requests a second, and latency from when each was due."""
    loop = asyncio.get_running_loop()
    idle: list[Client] = [await connect(port) for _ in range(64)]
    latencies: list[float] = []
    errors = sent = 0
    dice = random.Random(0)

    async def one(due: float) -> None:
        nonlocal errors
        client = idle.pop() if idle else await connect(port)
        try:
            _, _, body = await client.ask(request)
            if b" 200 " not in body[:20]:
                errors += 1
            latencies.append(time.perf_counter() - due)
            idle.append(client)
        except OSError:
            errors += 1

    tasks: set[asyncio.Task[None]] = set()
    started = due = time.perf_counter()
    while due < started + seconds:
        due += dice.expovariate(rate)
        while (now := time.perf_counter()) < due:  # noqa: ASYNC110
            await asyncio.sleep(min(due - now, 0.001))
        if len(tasks) > 2000:
            break
        sent += 1
        task = loop.create_task(one(due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks, timeout=20)
    elapsed = time.perf_counter() - started
    return {
        "offered": rate,
        "sent": sent,
        "served": len(latencies),
        "achieved": round(len(latencies) / elapsed, 1),
        "errors": errors,
        **percentiles(latencies or [9.9]),
    }


async def many_streams(port: int, pid: int, request: bytes, streams: int) -> dict[str, float]:
    """`streams` at once, each of `WORDS` chunks, ten a second: complete ones, memory, the loop's lag."""
    clients = await asyncio.gather(*(connect(port) for _ in range(streams)))
    probe = await connect(port)
    lags: list[float] = []
    peak = 0
    health = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"

    async def watch() -> None:
        nonlocal peak
        while True:
            _, took, _ = await probe.ask(health, b"status")
            lags.append(took)
            peak = max(peak, memory_kb(pid))
            await asyncio.sleep(0.02)

    watcher = asyncio.create_task(watch())
    started = time.perf_counter()
    answers = await asyncio.gather(*(client.ask(request) for client in clients), return_exceptions=True)
    seconds = time.perf_counter() - started
    watcher.cancel()
    whole = 0
    for answer in answers:
        if not isinstance(answer, BaseException):
            body = answer[2]
            whole += body.count(b'"content":"word') == WORDS and b"[DONE]" in body
    ordered = sorted(lags)
    return {
        "streams": streams,
        "complete": whole,
        "seconds": round(seconds, 2),
        "memory_mb": round(peak / 1024, 1),
        "loop_lag_p50_ms": round(1e3 * statistics.median(ordered), 2),
        "loop_lag_p99_ms": round(1e3 * ordered[int(0.99 * len(ordered))], 2),
    }


def memory_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return int(found[1]) if found else 0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
