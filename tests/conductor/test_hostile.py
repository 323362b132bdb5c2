"""What a careless vendor and a hostile client may not get: a key told, a healthy route blamed, one call too many."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from pathlib import Path

import pytest

from onebeat.conductor.answers import ProblemKind
from tests.conductor.gateway_rig import CLOCKS, Result, Rig, rig

KEY = "sk-simulated-0123456789"
ODD_KEY = "plain.vendor.key.without.a.shape"
VENDORS = ("openai", "anthropic", "gemini")
LOCAL = (
    '[models.small]\nprovider = "local"\nprior_quality = 0.3\ncontext_tokens = 8000\nauto = false\n'
    "input_usd_per_million = 0\noutput_usd_per_million = 0\n"
)
LAST_RESORT = (("[contingency]\n", '[contingency]\nlocal_model = "small"\n'),)


def keys(**more: str) -> str:
    return "".join(
        f'[keys.{name}]\nsha256 = "{hashlib.sha256(f"key-{name}".encode()).hexdigest()}"\n{line}\n'
        for name, line in more.items()
    )


def calls_of(bench: Rig, *vendors: str) -> int:
    return sum(int(bench.sim.bills.totals.get(vendor, {}).get("calls", 0)) for vendor in vendors or (*VENDORS, "local"))


@pytest.mark.parametrize("key", [KEY, ODD_KEY])
@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_key_that_a_vendor_echoes_reaches_nobody(vendor: str, path: str, key: str, tmp_path: Path) -> None:
    model = {"openai": "gpt-4o", "anthropic": "claude-simulated", "gemini": "gemini-2.5-flash"}[vendor]
    async with rig(tmp_path, key=key) as bench:
        for stream in (False, True):
            for fault in ("error_in_stream:after=0", "error_in_stream:after=3;chunk_ms=3", "error_503", "auth"):
                bench.sim.script(vendor, always=f"{fault};echo=1")
                result = await bench.ask(model, path=path, stream=stream)
                assert result.error is not None and key not in result.body.decode(), (stream, fault)
                assert key not in str(result.headers)
                if fault != "auth":
                    assert "[redacted]" in result.body.decode() or result.status in (503, 529), (stream, fault)
                bench.gateway.gateway.planner.runtime.lines[model].state.breaker.succeeded()
        details = [row["detail"] for row in await bench.rows("attempts")]
        assert any("is known to me" in (detail or "") for detail in details)
        assert key not in (tmp_path / "ledger.sqlite").read_bytes().decode("latin1")
        assert key.encode() not in (tmp_path / "ledger.sqlite-wal").read_bytes()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_callers_deadline_is_never_the_routes_fault(stream: bool, tmp_path: Path) -> None:
    clocks = CLOCKS.replace("breaker_open_ms = 200", "breaker_open_ms = 60000\nbreaker_failures = 3")
    async with rig(tmp_path, clocks=clocks) as bench:
        bench.sim.script("openai", always="ok:first_ms=100")
        for deadline_ms in ("1", "0.001", "20", "30"):
            for _ in range(4):
                result = await bench.ask("gpt-4o", stream=stream, headers={"x-onebeat-deadline-ms": deadline_ms})
                assert result.status == 504 and result.error is not None and deadline_ms in result.error["message"]
        state = bench.gateway.gateway.planner.runtime.lines["gpt-4o"].state
        assert state.breaker.opened_at is None and state.breaker.failures == 0 and state.concurrency.in_flight == 0
        rows = await bench.rows("attempts")
        assert {row["problem"] for row in rows} == {"deadline"} and len(rows) >= 8
        assert {row["cause"] for row in await bench.rows()} == {"deadline"}
        assert (await bench.ask("gpt-4o", stream=stream)).is_whole
        assert (await bench.ask("gpt-4o", stream=stream, headers={"x-onebeat-deadline-ms": "300"})).is_whole


async def test_nothing_is_called_after_the_callers_deadline(tmp_path: Path) -> None:
    """Not even where the deadline passed before the first call, nor the local model at its end."""
    async with rig(tmp_path, models=LOCAL, change=LAST_RESORT) as bench:
        for path in ("/v1/chat/completions", "/v1/messages"):
            result = await bench.ask("auto", path=path, headers={"x-onebeat-deadline-ms": "0.0001"})
            assert result.status == 504 and "before any model could be asked" in result.json["error"]["message"]
        assert calls_of(bench) == 0
        bench.sim.script("openai", "ok:first_ms=300")
        for vendor in ("anthropic", "gemini"):
            bench.sim.script(vendor, always="rate_limit:reset=60")
        result = await bench.ask("auto:best", headers={"x-onebeat-deadline-ms": "100"})
        assert result.status == 504 and calls_of(bench, "local") == 0
        assert not await bench.rows("attempts") or {r["problem"] for r in await bench.rows("attempts")} == {"deadline"}


async def test_a_local_model_gets_the_second_half_of_the_deadline(tmp_path: Path) -> None:
    clocks = CLOCKS.replace("[resilience]", "[resilience]\nmax_concurrency = 1").replace("_ms = 400", "_ms = 3000")
    async with rig(tmp_path, models=LOCAL, change=LAST_RESORT, clocks=clocks) as bench:
        bench.sim.script("openai", always="ok:first_ms=1500")
        busy = asyncio.create_task(bench.ask("gpt-4o"))
        await asyncio.sleep(0.1)
        result = await bench.ask("gpt-4o", headers={"x-onebeat-deadline-ms": "800"})
        assert result.is_whole and result.json["model"] == "small"
        assert (await busy).is_whole


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["error_500", "empty", "cut:after=0", "silence", "wrong_finish", "refusal"])
async def test_the_local_model_is_inside_the_budget_of_calls(fault: str, stream: bool, tmp_path: Path) -> None:
    watch = '[watch]\nrefusal = "act"\nwrong_finish = "act"\nhold_tokens = 200\n'
    clocks = CLOCKS.replace("[resilience]", "[resilience]\nmax_attempts = 4")
    async with rig(tmp_path, watch, models=LOCAL, change=LAST_RESORT, clocks=clocks) as bench:
        for vendor in VENDORS:
            bench.sim.script(vendor, always=fault)
        for model in ("auto", "gpt-4o"):
            before = calls_of(bench)
            result = await bench.ask(model, stream=stream)
            await asyncio.sleep(0.05)
            assert calls_of(bench) - before <= 4, (model, fault)
            assert result.is_whole, result.body
            if fault in ("error_500", "empty", "cut:after=0"):
                assert result.headers["x-onebeat-model"] == "small" and int(result.headers["x-onebeat-attempts"]) <= 4


async def test_a_budget_of_one_call_is_one_call(tmp_path: Path) -> None:
    clocks = CLOCKS.replace("[resilience]", "[resilience]\nmax_attempts = 1")
    async with rig(tmp_path, models=LOCAL, change=LAST_RESORT, clocks=clocks) as bench:
        bench.sim.script("openai", always="error_500")
        result = await bench.ask("gpt-4o")
        assert result.status == 502 and calls_of(bench) == 1
        assert (await bench.ask("small")).is_whole and calls_of(bench) == 2


async def test_expensive_calls_at_once_share_no_last_place(tmp_path: Path) -> None:
    costly = ('[models."gpt-4o"]\n', '[models."gpt-4o"]\nexpensive = true\n')
    async with rig(tmp_path, keys(c="expensive_calls_per_hour = 2"), change=(costly,)) as bench:
        bench.sim.script("openai", always="ok:first_ms=50")
        ours = {"x-api-key": "key-c"}
        named = await asyncio.gather(*(bench.ask("gpt-4o", headers=ours) for _ in range(8)))
        assert sorted(result.status for result in named) == [200, 200] + [400] * 6
        assert calls_of(bench, "openai") == 2
        assert (await bench.ask("auto:best", headers=ours)).json["model"] != "gpt-4o"


async def test_an_expensive_call_is_counted_once_it_is_made_and_given_back_where_nobody_bills(tmp_path: Path) -> None:
    costly = ('[models."gpt-4o"]\n', '[models."gpt-4o"]\nexpensive = true\n')
    clocks = CLOCKS.replace("[resilience]", "[resilience]\nmax_concurrency = 1").replace("_ms = 400", "_ms = 3000")
    both = keys(c="expensive_calls_per_hour = 2", d="")
    async with rig(tmp_path, both, change=(costly,), clocks=clocks) as bench:
        ours = {"x-api-key": "key-c"}
        bench.sim.script("openai", "error_500", "error_500")
        assert (await bench.ask("gpt-4o", headers=ours)).is_whole  # two calls came to nothing, one is counted
        bench.sim.script("openai", always="ok:first_ms=80")
        # All of these pass the decision, and wait for the one place of the route: only one call is left to the key.
        busy = asyncio.create_task(bench.ask("gpt-4o", headers={"x-api-key": "key-d"}))
        await asyncio.sleep(0.02)
        results = await asyncio.gather(*(bench.ask("gpt-4o", headers=ours) for _ in range(4)))
        assert sorted(result.status for result in results) == [200, 429, 429, 429] and (await busy).is_whole
        assert calls_of(bench, "openai") == 5
        late = next(result for result in results if result.status == 429)
        assert (
            "expensive calls for the hour" in late.json["error"]["message"] and int(late.headers["retry-after"]) > 3000
        )


async def test_requests_at_once_share_no_budget_of_dollars(tmp_path: Path) -> None:
    async with rig(tmp_path, keys(b="budget_usd_per_day = 0.02")) as bench:
        bench.sim.script("openai", always="ok:first_ms=50")
        asked = await bench.ask("gpt-4o", path="/v1/route", headers={"x-api-key": "key-b"})
        expected = asked.json["candidates"][0]["cost_usd"]
        results = await asyncio.gather(*(bench.ask("gpt-4o", headers={"x-api-key": "key-b"}) for _ in range(40)))
        served = [result for result in results if result.status == 200]
        refused = [result for result in results if result.status == 429]
        assert len(served) + len(refused) == 40 and refused
        assert len(served) <= 0.02 / expected + 1
        assert "under way" in refused[0].json["error"]["message"] and "retry-after" in refused[0].headers
        # What was set aside is free again: the key goes on with what is left.
        assert (await bench.ask("gpt-4o", headers={"x-api-key": "key-b"})).is_whole
        client = bench.gateway.gateway.planner.runtime.keys.clients()[0]
        assert client.spent_today(client._day * 86_400.0) == pytest.approx(
            sum(row["cost_usd"] for row in await bench.rows())
        )


def test_the_deadline_is_a_kind_of_its_own() -> None:
    assert not ProblemKind.DEADLINE.is_retryable


@pytest.mark.parametrize("stream", [False, True])
async def test_a_disk_that_fails_stops_no_traffic_and_is_told(stream: bool, tmp_path: Path) -> None:
    durable = (("[ledger]\n", "[ledger]\ndurable = true\n"),)
    async with rig(tmp_path, change=durable) as bench:

        def said(result: Result) -> object:
            return result.chunks[-1]["onebeat"]["durable"] if stream else result.json["onebeat"]["durable"]

        good = await bench.ask(stream=stream)
        assert good.is_whole and said(good) is True and (stream or good.headers["x-onebeat-durable"] == "true")
        holder = sqlite3.connect(bench.ledger)
        holder.execute("BEGIN EXCLUSIVE")
        for _ in range(3):
            bad = await bench.ask(stream=stream)
            assert bad.is_whole and said(bad) is False and (stream or bad.headers["x-onebeat-durable"] == "false")
            assert b"in memory only" in bad.body
        async with bench.session.get(bench.gateway.url + "/readyz") as response:
            ledger = (await response.json())["ledger"]
            assert response.status == 200 and not ledger["healthy"] and ledger["answers_not_durable"] == 3
        async with bench.session.get(bench.gateway.url + "/metrics") as response:
            assert "onebeat_ledger_not_durable 3.0" in await response.text()
        holder.rollback()
        holder.close()
        assert await bench.gateway.ledger.committed(5.0)
        again = await bench.ask(stream=stream)
        assert said(again) is True and len(await bench.rows()) == 5
        for _ in range(50):
            if events := [row for row in await bench.rows("events") if row["kind"] == "not_durable"]:
                break
            await asyncio.sleep(0.02)
        assert events[0]["detail"].startswith("3 answers")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_schemas_and_fallbacks_that_are_none_reach_nobody(path: str, tmp_path: Path) -> None:
    async with rig(tmp_path) as bench:
        for schema in ("x", 5, [], True):
            if path == "/v1/messages":
                asked: list[dict[str, object]] = [
                    {"tools": [{"name": "f", "input_schema": schema}]},
                    {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
                ]
            else:
                form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
                asked = [
                    {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]},
                    {"response_format": form},
                ]
            for fields in asked:
                result = await bench.ask("gpt-4o", path=path, **fields)
                assert result.status == 400 and "no JSON schema" in result.json["error"]["message"]
        result = await bench.ask("gpt-4o", path=path, onebeat={"fallbacks": ["claude-simulatd"]})
        assert result.status == 400 and "did you mean claude-simulated" in result.json["error"]["message"]
        assert not bench.sim.bills.totals


async def test_clients_that_leave_at_every_stage_leave_nothing_behind(tmp_path: Path) -> None:
    clocks = CLOCKS.replace("[resilience]", "[resilience]\nmax_concurrency = 3").replace("_ms = 400", "_ms = 3000")
    both = keys(c="budget_usd_per_day = 1.0\nexpensive_calls_per_hour = 1000")
    costly = ('[models."gpt-4o"]\n', '[models."gpt-4o"]\nexpensive = true\n')
    async with rig(tmp_path, both, clocks=clocks, change=(costly,)) as bench:
        bench.sim.script("openai", always="ok:first_ms=60;chunk_ms=5")
        host, port = bench.gateway.url.removeprefix("http://").split(":")
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: key-c\r\ncontent-length: %d\r\n\r\n"

        async def leave(stream: bool, after_s: float, half: bool) -> None:
            body = b'{"model":"gpt-4o","stream":%s,"messages":[{"role":"user","content":"hi"}]}'
            body %= b"true" if stream else b"false"
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(head % len(body) + (body[:20] if half else body))
            await asyncio.sleep(after_s)
            writer.transport.abort()

        stages = [(stream, after, False) for stream in (False, True) for after in (0.0, 0.005, 0.03, 0.07, 0.12, 0.2)]
        await asyncio.gather(*(leave(*stage) for stage in [*stages, *stages, (False, 0.02, True)]))
        gateway = bench.gateway.gateway
        for _ in range(200):
            if not gateway.under_way and not len(gateway.dispatcher.room):
                break
            await asyncio.sleep(0.02)
        state = gateway.planner.runtime.lines["gpt-4o"].state
        assert gateway.under_way == 0 and len(gateway.dispatcher.room) == 0 and state.concurrency.in_flight == 0
        client = gateway.planner.runtime.keys.clients()[0]
        assert client._reserved_usd == pytest.approx(0.0)
        assert state.breaker.opened_at is None
        billed = [row for row in await bench.rows("attempts") if row["status"] == 200]
        assert len(client._expensive) == len(billed)
        assert (await bench.ask("gpt-4o", headers={"x-api-key": "key-c"})).is_whole


async def test_a_broken_config_under_load_costs_nobody_his_answer(tmp_path: Path) -> None:
    async with rig(tmp_path) as bench:
        wrong = tmp_path / "wrong.toml"
        bench.sim.script("openai", always="ok:chunk_ms=2")
        under_load = [asyncio.create_task(bench.ask("gpt-4o", stream=bool(n % 2))) for n in range(30)]
        for text in ("[serer]\n", "\x00", "[models.x]\n", "[providers]\nopenai = 5\n", "a = [[[[", ""):
            await asyncio.sleep(0.01)
            wrong.write_text(text)
            assert not bench.gateway.reload(str(wrong), {})
        wrong.unlink()
        assert not bench.gateway.reload(str(wrong), {})
        assert all(result.is_whole for result in await asyncio.gather(*under_load))
        assert len([row for row in await bench.rows("events") if row["kind"] == "reload_refused"]) == 7
