"""What the gateway adds, beside its ceiling and its peer: `python bench/gateway.py [--litellm PATH_TO_ITS_PYTHON]`.

On two cores: the gateway under test on the first, the load and an upstream that answers at once on the second. The
ceiling is a bare pass-through of aiohttp and msgspec, written here; the peer is LiteLLM's proxy, started from a Python
that has it. In turns, several rounds, each beside the upstream alone. Open loop: requests are sent when they are due,
whatever became of those before. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.gateway_load import WORDS, request_of
from bench.gateway_measure import ROOT, cpu_seconds, many_streams, one_connection, open_loop, process, saturated

HERE = Path(__file__)
KEY = "sk-bench-0123456789"
RESULT = ROOT / "bench" / "results" / "gateway_cpu.json"
MACHINE = "2 cores of an AMD EPYC (Zen 4, AVX-512 VNNI), 24 GB"
TARGETS = {
    "added_p50_ms": 0.65,
    "added_p99_ms": 2.5,
    "requests_per_s": 2400,
    "first_token_added_p50_ms": 1.0,
    "per_chunk_us": 50,
    "streams_memory_mb": 600,
    "loop_lag_p99_ms": 50,
}
FLEET = """
[router]
source = "{router}"
deadline_ms = 1000
[policy]
tradeoff = 0.5
[ledger]
path = "{ledger}"
[keys.bench]
sha256 = "{digest}"
requests_per_minute = 100_000_000
[providers.a]
kind = "openai_compatible"
base_url = "http://127.0.0.1:{port}/v1"
[providers.paced]
kind = "openai_compatible"
base_url = "http://127.0.0.1:{port}/p100/v1"
"""
MODEL = """
[models."{name}"]
provider = "{provider}"
prior_quality = {quality}
context_tokens = 128_000
capabilities = ["tools", "json"]
input_usd_per_million = {price}
output_usd_per_million = {price}
auto = {auto}
scored_as = "{column}"
"""


def pass_through(upstream_port: int) -> None:
    """The ceiling: what must be done at least. Reads the JSON, changes the model, sends it on and the answer back."""
    import aiohttp
    import msgspec
    from aiohttp import web

    async def serve() -> None:
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        url = f"http://127.0.0.1:{upstream_port}/v1/chat/completions"
        fields = msgspec.json.Decoder(dict[str, msgspec.Raw])

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            body = fields.decode(await request.read())
            sent = msgspec.json.encode({**body, "model": "bench"})
            async with session.post(url, data=sent, headers={"content-type": "application/json"}) as response:
                if response.content_type != "text/event-stream":
                    answer = fields.decode(await response.read())
                    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")
                stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
                await stream.prepare(request)
                async for chunk in response.content.iter_any():
                    await stream.write(chunk)
                await stream.write_eof()
                return stream

        runner = web.ServerRunner(web.Server(handle, access_log=None))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(f"listening on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve())


def _loop_factory() -> Any:
    if os.environ.get("BENCH_LOOP") != "uvloop":
        return None
    import uvloop

    return uvloop.new_event_loop


@dataclass(frozen=True)
class Server:
    port: int
    pid: int
    model: str
    saturate: str
    """The model asked for where capacity is measured: `auto` for the gateway, so that its policy works too."""
    requests: int
    rate: float


async def measure(server: Server, upstream: int, seconds: float) -> dict[str, float]:
    """One round for one server, beside the upstream alone in the same moments: added time, and capacity."""
    port, count = server.port, server.requests
    whole, stream = request_of(server.model), request_of(server.model, stream=True)
    alone = await one_connection(upstream, request_of("bench"), 200)
    found = await one_connection(port, whole, count)
    alone_first = await one_connection(upstream, request_of("bench", stream=True), 50, first=True)
    first = await one_connection(port, stream, count // 4, first=True)
    before, asked = cpu_seconds(server.pid), max(20, count // 8)
    ended = await one_connection(port, stream, asked)
    stream_cpu_ms = 1e3 * (cpu_seconds(server.pid) - before) / (asked + max(20, asked // 10))
    before, began = cpu_seconds(server.pid), time.perf_counter()
    busy = request_of(server.saturate)
    rate = await saturated(port, busy, seconds)
    cpu_us = 1e6 * (cpu_seconds(server.pid) - before) / max(1.0, rate * (time.perf_counter() - began))
    opened = await open_loop(port, busy, server.rate, seconds)
    return {
        "added_p50_ms": round(found["p50"] - alone["p50"], 3),
        "added_p99_ms": round(found["p99"] - alone["p99"], 3),
        "first_token_added_p50_ms": round(first["p50"] - alone_first["p50"], 3),
        "per_chunk_us": round(1e3 * max(ended["p50"] - first["p50"], 0.0) / WORDS, 2),
        "per_chunk_cpu_us": round(1e3 * stream_cpu_ms / WORDS, 2),
        "requests_per_s": round(rate, 1),
        "cpu_us_per_request": round(cpu_us, 1),
        "open_loop_offered": server.rate,
        "open_loop_p50_ms": opened["p50"],
        "open_loop_p99_ms": opened["p99"],
        "open_loop_errors": opened["errors"],
    }


def best_of(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Each figure from its least disturbed round: other work on a shared machine only ever makes it worse."""
    best = {}
    for name in rounds[0]:
        values = [row[name] for row in rounds]
        best[name] = max(values) if name == "requests_per_s" else min(values)
    return best


def write_fleet(folder: Path, upstream: int, router: str, columns: list[str]) -> Path:
    import hashlib

    digest = hashlib.sha256(KEY.encode()).hexdigest()
    text = FLEET.format(router=router, ledger=folder / "ledger.sqlite", digest=digest, port=upstream)
    for index, column in enumerate(columns):
        text += MODEL.format(
            name=f"m{index}",
            provider="a",
            quality=0.9 - 0.05 * index,
            price=3.0 / (index + 1),
            auto="true",
            column=column,
        )
    text += MODEL.format(name="bench", provider="a", quality=0.5, price=1.0, auto="false", column="none")
    text += MODEL.format(name="paced", provider="paced", quality=0.5, price=1.0, auto="false", column="none")
    path = folder / "fleet.toml"
    path.write_text(text)
    return path


@asynccontextmanager
async def gateway(upstream: int, router: str, columns: list[str], loop: str) -> AsyncIterator[tuple[int, int, Path]]:
    with tempfile.TemporaryDirectory() as name:
        path = write_fleet(Path(name), upstream, router, columns)
        command = [sys.executable, "-m", "onebeat", "serve", "--config", str(path), "--port", "0", "--loop", loop]
        env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with process(command, 0, env=env, wait_s=180) as (port, pid):
            yield port, pid, Path(name) / "ledger.sqlite"


LITELLM = """
model_list:
  - model_name: bench
    litellm_params: {{model: openai/bench, api_base: "http://127.0.0.1:{port}/v1", api_key: sk-bench-0123456789}}
litellm_settings: {{drop_params: true, telemetry: false}}
"""


@asynccontextmanager
async def peer(python: str, upstream: int) -> AsyncIterator[tuple[int, int]]:
    """LiteLLM's proxy on the same core, without its database, logging or callbacks."""
    with tempfile.TemporaryDirectory() as name:
        config = Path(name) / "litellm.yaml"
        config.write_text(LITELLM.format(port=upstream))
        port = free_port()
        program = str(Path(python).parent / "litellm")
        command = [program, "--config", str(config), "--port", str(port), "--host", "127.0.0.1", "--num_workers", "1"]
        env = {"PYTHONPATH": "", "LITELLM_LOG": "ERROR", "LITELLM_MASTER_KEY": KEY}
        env["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"
        with process(command, 0, port=port, env=env, wait_s=90) as started:
            await asyncio.sleep(1.0)
            yield started


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def show(name: str, row: dict[str, Any]) -> None:
    print(f"{name:<34}" + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {"machine": MACHINE, "python": sys.version.split()[0], "targets": TARGETS, "rows": {}}
    rows = result["rows"]
    load = [sys.executable, str(HERE.with_name("gateway_load.py")), "upstream", "0"]
    columns = ["c0", "c1", "c2", "c3", "c4"]
    async with AsyncExitStack() as stack:
        upstream, _ = stack.enter_context(process(load, 1))
        servers: dict[str, Server] = {}
        for loop in options.loops:
            command = [sys.executable, str(HERE), "--pass-through", str(upstream)]
            port, pid = stack.enter_context(process(command, 0, env={"BENCH_LOOP": loop}))
            servers[f"ceiling, {loop}"] = Server(port, pid, "bench", "bench", options.requests, 2400.0)
            port, pid, _ = await stack.enter_async_context(gateway(upstream, "none", columns, loop))
            servers[f"onebeat, {loop}"] = Server(port, pid, "bench", "auto", options.requests, 2400.0)
        if options.litellm:
            port, pid = await stack.enter_async_context(peer(options.litellm, upstream))
            servers["litellm"] = Server(port, pid, "bench", "bench", max(80, options.requests // 8), 50.0)
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        for _ in range(options.rounds):
            for name, server in servers.items():
                rounds[name].append(await measure(server, upstream, options.seconds))
                show(name, rounds[name][-1])
        for name, found in rounds.items():
            rows[name] = {**best_of(found), "rounds": found}
        for loop in options.loops:
            many = [await _streams(upstream, columns, loop, options.streams) for _ in range(options.stream_rounds)]
            rows[f"streams, {loop}"] = {**min(many, key=lambda row: row["loop_lag_p99_ms"]), "rounds": many}
        if options.router:
            try:
                rows["routed"] = await routed(upstream, options)
            except (RuntimeError, AssertionError, OSError) as error:
                rows["routed"] = {"not_measured": str(error)[-500:]}  # The other rows are worth keeping.
    for name, row in rows.items():
        show(f"best: {name}", {key: value for key, value in row.items() if key != "rounds"})
    return result


async def _streams(upstream: int, columns: list[str], loop: str, count: int) -> dict[str, float]:
    async with gateway(upstream, "none", columns, loop) as (port, pid, _):
        return await many_streams(port, pid, request_of("paced", stream=True), count)


async def routed(upstream: int, options: argparse.Namespace) -> dict[str, Any]:
    """Latency with the router deciding, beside its own time as the ledger has it."""
    import sqlite3

    columns = options.columns.split(",")
    async with gateway(upstream, options.router, columns, options.loops[0]) as (port, _, ledger):
        count = max(100, options.requests // 10)
        named = await one_connection(port, request_of("bench"), count)
        auto = await one_connection(port, lambda number: request_of("auto", number=number), count)
        await asyncio.sleep(0.5)
        connection = sqlite3.connect(ledger)
        times = [row[0] for row in connection.execute("SELECT router_ms FROM requests WHERE decided_by = 'router'")]
        priors = connection.execute("SELECT count(*) FROM requests WHERE decided_by = 'prior'").fetchone()[0]
        connection.close()
        if not times:
            return {"not_measured": f"the router answered none of {priors} requests in time"}
        router_ms = sorted(times)[len(times) // 2]
        added_ms = auto["p50"] - named["p50"]
        return {
            "router_p50_ms": round(router_ms, 3),
            "added_by_routing_p50_ms": round(added_ms, 3),
            "over_the_router": round(added_ms / router_ms - 1.0, 4),
            "decided_by_router": len(times),
            "decided_by_prior": priors,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--litellm", metavar="PYTHON", help="a Python that has litellm[proxy]: measures the peer as well"
    )
    parser.add_argument("--router", help="a router (name or folder): measures routing as well")
    parser.add_argument("--columns", default="", help="the router's columns to route among, with commas")
    parser.add_argument("--loops", nargs="+", default=["asyncio"], choices=["asyncio", "uvloop"])
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=1.5, help="of full load, and of open loop, in each round")
    parser.add_argument("--rounds", type=int, default=5, help="each figure is taken from its least disturbed round")
    parser.add_argument("--stream-rounds", type=int, default=2)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--pass-through", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pass_through:
        pass_through(options.pass_through)
        return 0
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})  # The load shares its core with the upstream, never with the gateway.
    result = asyncio.run(run(options))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: {k: v for k, v in row.items() if k != "rounds"} for name, row in result["rows"].items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
