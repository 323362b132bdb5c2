"""What a fleet or a request asks for beyond recovery: stalls by mode, a day's quota, turns left out, retirements."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import openai
import pytest
from aiohttp import web

from onebeat.conductor.config import Model
from tests.conductor.gateway_rig import CLOCKS, TEXT, fleet_text, rig
from tools.simulated_providers import SimulatedProviders

DROP = (
    "[router]\n",
    '[context]\non_overflow = "drop_oldest"\nanswer_tokens = 50\n[router]\n',
)
WHISPER = (
    '[models.whisper-1]\nprovider = "openai"\ncontext_tokens = 448\ncapabilities = ["transcription"]\nauto = false\n'
    "input_usd_per_million = 0\noutput_usd_per_million = 0\n"
)
SMALL = (
    '[models.blind]\nprovider = "local"\nprior_quality = 0.95\ncontext_tokens = 1000000\n'
    "input_usd_per_million = 0\noutput_usd_per_million = 0\n"
)
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


def conversation(turns: int, characters: int) -> list[dict[str, object]]:
    said: list[dict[str, object]] = [{"role": "system", "content": "Be brief."}]
    for number in range(turns):
        said.append({"role": "user", "content": f"{number} " + "x" * characters})
        said.append({"role": "assistant", "content": "y" * characters})
    return [*said, {"role": "user", "content": TEXT}]


async def test_a_stall_is_acted_on_reported_or_let_be(tmp_path: Path) -> None:
    clocks = CLOCKS.replace("between_tokens_ms = 400", "between_tokens_ms = 50")
    for mode, is_whole, is_noted in (("act", False, False), ("report", True, True), ("off", True, False)):
        folder = tmp_path / mode
        folder.mkdir()
        async with rig(folder, extra=f'[watch]\nstall = "{mode}"\n', clocks=clocks) as bench:
            bench.sim.script("openai", always="ok:chunk_ms=110;words=8")
            result = await bench.ask("gpt-4o", stream=True)
            assert result.is_whole is is_whole, (mode, result.body)
            notes = [note for chunk in result.chunks for note in chunk.get("onebeat", {}).get("notes", ())]
            assert any(note == "stall: the stream stood still for 0.1 s" for note in notes) is is_noted, mode
            assert (result.error is None) is is_whole


async def test_a_days_quota_is_not_asked_again_after_the_seconds_that_stand_beside_it(tmp_path: Path) -> None:
    async with rig(tmp_path) as bench:
        bench.sim.script("gemini", "quota:reset=1")
        result = await bench.ask("gemini-2.5-flash")
        assert result.status == 503 and int(result.headers["retry-after"]) > 600


async def test_a_prompt_that_the_vendor_finds_too_long_loses_its_oldest_turns(tmp_path: Path) -> None:
    for change, status in (((), 400), ((DROP,), 200)):
        folder = tmp_path / str(status)
        folder.mkdir()
        async with rig(folder, change=change) as bench:
            bench.sim.script("openai", "context_overflow")
            result = await bench.ask("gpt-4o", messages=conversation(4, 400))
            assert result.status == status
            if status == 200:
                assert 0 < int(result.headers["x-onebeat-dropped-messages"]) < 8
                assert any("left out" in note for note in result.json["onebeat"]["notes"])
                assert [row["outcome"] for row in await bench.rows("attempts")] == ["failed", "served"]
            else:
                assert result.json["error"]["code"] == "context_length_exceeded"


async def test_one_turn_that_the_vendor_finds_too_long_is_an_error_and_no_endless_chase(tmp_path: Path) -> None:
    async with rig(tmp_path, change=(DROP,)) as bench:
        bench.sim.script("openai", always="context_overflow")
        result = await bench.ask("gpt-4o")
        assert result.status == 400 and result.json["error"]["code"] == "context_length_exceeded"
        assert len(await bench.rows("attempts")) == 1


async def test_a_large_window_that_cannot_see_does_not_keep_turns_from_being_left_out(tmp_path: Path) -> None:
    change = (("context_tokens = 100000", "context_tokens = 6000"), DROP)
    seeing = [*conversation(6, 2000), {"role": "user", "content": [{"type": "text", "text": TEXT}, IMAGE]}]
    async with rig(tmp_path, models=SMALL, change=change) as bench:
        result = await bench.ask("auto", messages=seeing)
        assert result.status == 200, result.body
        assert int(result.headers["x-onebeat-dropped-messages"]) > 0 and result.json["model"] != "blind"


async def test_a_retired_fallback_costs_nothing_and_claims_nothing(tmp_path: Path) -> None:
    past = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=3)
    head = '[models."gemini-2.5-flash"]\n'
    primary = '[models."gpt-4o"]\n'
    change = ((head, f"{head}shutdown_date = {past}\n"), (primary, f'{primary}fallbacks = ["gemini-2.5-flash"]\n'))
    async with rig(tmp_path, change=change) as bench:
        result = await bench.ask("gpt-4o")
        assert result.status == 200 and "notes" not in result.json["onebeat"]
        result = await bench.ask("gemini-2.5-flash")
        assert result.status == 400 and f"it was shut down on {past}" in result.json["error"]["message"]
        kinds = {row["kind"]: row["detail"] for row in await bench.rows("events")}
        assert "no successor is named" in kinds["retirement"]


async def test_what_retires_at_midnight_is_reported_then(tmp_path: Path) -> None:
    tomorrow = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=40)
    head = '[models."gpt-4o"]\n'
    change = ((head, f'{head}shutdown_date = {tomorrow}\nsuccessor = "claude-simulated"\n'),)
    async with rig(tmp_path, change=change) as bench:
        assert (await bench.ask("gpt-4o")).status == 200
        assert not await bench.rows("events")
        runtime = bench.gateway.gateway.planner.runtime
        runtime.day_ends = time.time() - 1.0
        runtime.fleet.models["gpt-4o"] = _retired_today(runtime.fleet.models["gpt-4o"])
        assert (await bench.ask("gpt-4o")).json["model"] == "claude-simulated"
        assert "gpt-4o shut down on" in (await bench.rows("events"))[-1]["detail"]


def _retired_today(model: Model) -> Model:
    return msgspec.structs.replace(model, shutdown_date=datetime.datetime.now(datetime.UTC).date())


async def test_a_transcriber_asked_to_chat_is_refused_and_still_transcribes(tmp_path: Path) -> None:
    async with rig(tmp_path, models=WHISPER) as bench:
        result = await bench.ask("whisper-1")
        assert result.status == 400 and "it transcribes audio" in result.json["error"]["message"]
        assert not bench.sim.bills.totals
        state = bench.gateway.gateway.planner.runtime.lines["whisper-1"].state
        assert state.breaker.opened_at is None


async def test_regions_and_fallbacks_are_asked_for_in_the_body_too(tmp_path: Path) -> None:
    eu = ('kind = "anthropic"\n', 'kind = "anthropic"\nregion = "eu"\n')
    async with rig(tmp_path, change=(eu,)) as bench:
        client = openai.AsyncOpenAI(base_url=f"{bench.gateway.url}/v1", api_key="any", max_retries=0)
        async with client:
            ask = {"model": "auto:best", "messages": [{"role": "user", "content": TEXT}]}
            body = {"onebeat": {"region": "eu", "priority": "low", "deadline_ms": 900, "min_quality": 0.5}}
            answer = await client.chat.completions.create(**ask, extra_body=body)  # type: ignore[call-overload]
            assert answer.model == "claude-simulated"
            headers = {"x-onebeat-region": "mars"}
            with pytest.raises(openai.BadRequestError, match="not served in mars"):
                await client.chat.completions.create(**ask, extra_headers=headers)  # type: ignore[call-overload]
            named = {**ask, "model": "gpt-4o", "extra_body": {"onebeat": {"fallbacks": ["claude-simulatd"]}}}
            with pytest.raises(openai.BadRequestError, match="did you mean claude-simulated"):
                await client.chat.completions.create(**named)  # type: ignore[call-overload]
        assert sum(total["calls"] for total in bench.sim.bills.totals.values()) == 1


@asynccontextmanager
async def vendor(*answers: tuple[int, dict[str, str], bytes]) -> AsyncIterator[tuple[str, list[int]]]:
    """An OpenAI-compatible server that gives `answers` in turn, the last one for ever: the fleet's text, its calls."""
    calls: list[int] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        status, headers, body = answers[min(len(calls), len(answers) - 1)]
        calls.append(status)
        return web.Response(status=status, headers=headers, body=body)

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield (
            (
                f'[providers.odd]\nkind = "openai_compatible"\nbase_url = "{url}"\n'
                '[models.odd]\nprovider = "odd"\ncontext_tokens = 9000\ncapabilities = ["tools"]\n'
                "input_usd_per_million = 0\noutput_usd_per_million = 0\n"
            ),
            calls,
        )
    finally:
        await runner.cleanup()


async def test_a_provider_that_says_retry_is_retried_whatever_its_status(tmp_path: Path) -> None:
    body = b'{"error": {"message": "lock timeout", "type": "invalid_request_error"}}'
    said = [(400, {"x-should-retry": word}, body) for word in ("true", "false")]
    async with vendor(*said) as (models, calls), rig(tmp_path, models=models) as bench:
        result = await bench.ask("odd")
        assert result.status == 400 and len(calls) == 2, "once more as it said, then no more as it said"


def tool_stream(arguments: str, finish: str) -> tuple[int, dict[str, str], bytes]:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    deltas = [{"role": "assistant", "tool_calls": [call]}, {}]
    chunks = [
        {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "odd", "choices": [choice]}
        for choice in (
            {"index": 0, "delta": deltas[0], "finish_reason": None},
            {"index": 0, "delta": deltas[1], "finish_reason": finish},
        )
    ]
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return 200, {"content-type": "text/event-stream"}, ("".join(lines) + "data: [DONE]\n\n").encode()


async def test_a_tool_call_that_never_closes_is_asked_for_again_and_no_half_of_it_goes_out(tmp_path: Path) -> None:
    half, whole = tool_stream('{"city": "Par', "tool_calls"), tool_stream('{"city": "Paris"}', "tool_calls")
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    async with vendor(half, whole) as (models, calls), rig(tmp_path, models=models) as bench:
        result = await bench.ask("odd", stream=True, tools=tools)
        pieces = [
            call["function"]["arguments"]
            for chunk in result.chunks
            for choice in chunk["choices"]
            for call in choice["delta"].get("tool_calls", ())
        ]
        assert result.is_whole and "".join(pieces) == '{"city": "Paris"}' and len(calls) == 2
        assert [row["problem"] for row in await bench.rows("attempts")] == ["unclosed_tool_call", None]


async def test_a_call_that_says_it_stopped_is_reported(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    async with vendor(tool_stream("{}", "stop")) as (models, _), rig(tmp_path, models=models) as bench:
        result = await bench.ask("odd", stream=True, tools=tools)
        notes = [note for chunk in result.chunks for note in chunk.get("onebeat", {}).get("notes", ())]
        assert result.is_whole and notes == ["wrong_finish: it called a tool and says that it stopped"]


async def test_prompts_are_kept_only_where_the_fleet_says_so(tmp_path: Path) -> None:
    for stored in (False, True):
        folder = tmp_path / str(stored)
        folder.mkdir()
        change = (("[ledger]\n", f"[ledger]\nstore_prompts = {str(stored).lower()}\n"),)
        async with rig(folder, change=change) as bench:
            await bench.ask("gpt-4o")
            await bench.ask("auto", messages=[])
            rows = await bench.rows()
            assert [TEXT in (row["prompt"] or "") for row in rows] == [stored]
            assert (TEXT.encode() in (folder / "ledger.sqlite-wal").read_bytes()) is stored


async def test_a_hangup_reads_the_fleet_again_while_a_stream_goes_on(tmp_path: Path) -> None:
    async with SimulatedProviders() as sim, aiohttp.ClientSession() as session:
        path = tmp_path / "fleet.toml"
        path.write_text(fleet_text(sim.url, tmp_path / "ledger.sqlite"))
        sim.script("openai", always="ok:chunk_ms=20")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "onebeat", "serve", "--config", str(path), "--port", "0",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "SIM_KEY": "sk-simulated-0123456789"},
        )  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        try:
            async with asyncio.timeout(60):
                url = (await process.stdout.readline()).decode().split()[3]
                ask = {"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": TEXT}]}
                async with session.post(f"{url}/v1/chat/completions", json=ask) as response:
                    begun = await response.content.readany()
                    for text, known in ((path.read_text() + SMALL, True), ("[serer]\n", True)):
                        path.write_text(text)
                        process.send_signal(signal.SIGHUP)
                        while b"fleet.toml" not in await process.stderr.readline():
                            pass
                        async with session.get(f"{url}/v1/models/blind") as listed:
                            assert (listed.status == 200) is known
                    rest = await response.read()
                assert b"[DONE]" in begun + rest
                process.terminate()
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def test_a_reload_says_what_wants_a_restart_and_takes_over_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig(tmp_path) as bench:
        fleet = bench.gateway.gateway.planner.runtime.fleet
        path = tmp_path / "fleet.toml"
        path.write_text(
            f'[server]\nport = 1\n[router]\nsource = "none"\n[ledger]\npath = "{tmp_path / "other.sqlite"}"\n'
            "[resilience]\nconnect_ms = 500\nretry_burst = 3.0\n[contingency]\nqueue_requests = 7\n"
            f'[providers.local]\nkind = "openai_compatible"\nbase_url = "{bench.sim.url}/local/v1"\n'
            '[models.other]\nprovider = "local"\ncontext_tokens = 1000\n'
            "input_usd_per_million = 0\noutput_usd_per_million = 0\n"
        )
        with caplog.at_level(logging.WARNING, "onebeat"):
            assert bench.gateway.reload(str(path), {})
        assert "server.port, ledger.path changed; a restart is needed" in caplog.text
        assert [row["kind"] for row in await bench.rows("events")] == ["reload", "restart_needed"]
        assert bench.gateway.gateway.dispatcher.room.places == 7 != fleet.contingency.queue_requests
        assert bench.gateway.gateway.planner.runtime.retries.saved == 3.0
