"""What a fleet or a request asks for beyond recovery: stalls by mode, a day's quota, turns left out, retirements."""

from __future__ import annotations

import datetime
import logging
import time
from pathlib import Path

import msgspec
import openai
import pytest
from aiohttp import web

from onebeat.conductor.config import Model
from tests.conductor.gateway_rig import CLOCKS, TEXT, rig

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


async def test_a_provider_that_says_retry_is_retried_whatever_its_status(tmp_path: Path) -> None:
    calls = 0

    async def locked(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        return web.json_response(
            {"error": {"message": "lock timeout", "type": "invalid_request_error"}},
            status=400,
            headers={"x-should-retry": "true" if calls < 2 else "false"},
        )

    runner = web.ServerRunner(web.Server(locked))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    provider = f'[providers.locked]\nkind = "openai_compatible"\nbase_url = "{url}"\n'
    model = '[models.m]\nprovider = "locked"\ncontext_tokens = 9000\ninput_usd_per_million = 0\n'
    try:
        async with rig(tmp_path, models=f"{provider}{model}output_usd_per_million = 0\n") as bench:
            result = await bench.ask("m")
            assert result.status == 400 and calls == 2, "once more as it said, then no more as it said"
    finally:
        await runner.cleanup()


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
