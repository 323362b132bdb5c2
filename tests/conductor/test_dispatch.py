"""The rules of recovery: resume, concrete models, a client that leaves, hold-back, budgets, deadlines, reload."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp
import pytest

from tests.conductor.gateway_rig import CLOCKS, TEXT, Rig, rig

PREFERS = '[models."{}"]\n'
CHEAP = "tiers = [{{above_prompt_tokens = 0, input_usd_per_million = 0.01, output_usd_per_million = 0.01}}]\n"


def prefers(name: str, more: str = "") -> tuple[tuple[str, str], ...]:
    """Makes `name` the first choice of `auto`, by price."""
    head = PREFERS.format(name)
    return ((head, head + CHEAP.format() + more),)


async def calls_of(bench: Rig, vendor: str) -> int:
    await asyncio.sleep(0.02)
    total = bench.sim.bills.totals.get(vendor)
    return int(total["calls"]) if total else 0


async def test_a_cut_stream_goes_on_by_prefill_and_the_client_sees_one_answer(tmp_path: Path) -> None:
    async with rig(tmp_path, change=prefers("claude-simulated")) as bench:
        whole = (await bench.ask("auto", stream=True)).text
        bench.sim.script("anthropic", "cut:after=5;chunk_ms=5")
        result = await bench.ask("auto", stream=True)
        assert result.is_whole and result.text == whole
        assert await calls_of(bench, "anthropic") == 3 and await calls_of(bench, "openai") == 0
        rows = await bench.rows("attempts")
        assert [row["outcome"] for row in rows] == ["served", "failed", "served"]
        assert (await bench.rows())[-1]["attempts"] == 2


async def test_without_prefill_a_restart_skips_what_the_client_has(tmp_path: Path) -> None:
    async with rig(tmp_path) as bench:
        whole = (await bench.ask("gpt-4o", stream=True)).text
        bench.sim.script("openai", "cut:after=5;chunk_ms=5")
        result = await bench.ask("gpt-4o", stream=True)
        assert result.is_whole and result.text == whole
        assert await calls_of(bench, "openai") == 3


async def test_an_answer_that_nobody_can_continue_ends_in_an_honest_error(tmp_path: Path) -> None:
    async with rig(tmp_path) as bench:
        bench.sim.script("openai", always="cut:after=5;chunk_ms=2")
        result = await bench.ask("gpt-4o", stream=True)
        assert result.status == 200 and result.error is not None and not result.is_whole and result.finish is None
        assert result.text and b"[DONE]" not in result.body
        row = (await bench.rows())[-1]
        assert row["outcome"] == "failed" and row["cause"] == "cut" and row["attempts"] <= 4


async def test_a_concrete_model_is_retried_and_falls_back_only_where_it_may(tmp_path: Path) -> None:
    async with rig(tmp_path) as bench:
        bench.sim.script("openai", "error_500", "error_503")
        result = await bench.ask("gpt-4o")
        assert result.is_whole and result.json["model"] == "gpt-4o" and result.headers["x-onebeat-attempts"] == "3"
        bench.sim.script("openai", always="error_500")
        result = await bench.ask("gpt-4o")
        assert result.status == 502 and await calls_of(bench, "anthropic") == 0
        allowed = {"x-onebeat-fallbacks": "claude-simulated"}
        result = await bench.ask("gpt-4o", headers=allowed)
        assert result.is_whole and result.json["model"] == "claude-simulated"
        assert "gpt-4o" in result.json["onebeat"]["reason"]


async def test_a_silent_concrete_model_is_not_called_twice(tmp_path: Path) -> None:
    async with rig(tmp_path) as bench:
        bench.sim.script("openai", always="silence")
        started = time.perf_counter()
        result = await bench.ask("gpt-4o", stream=True)
        assert result.status == 504 and await calls_of(bench, "openai") <= 1
        assert time.perf_counter() - started < 1.0


async def test_a_short_reset_is_waited_for_and_a_long_one_told(tmp_path: Path) -> None:
    async with rig(tmp_path) as bench:
        bench.sim.script("openai", "rate_limit:reset=1")
        started = time.perf_counter()
        result = await bench.ask("gpt-4o")
        assert result.is_whole and 0.9 < time.perf_counter() - started < 1.6
        bench.sim.script("openai", "rate_limit:reset=77")
        result = await bench.ask("gpt-4o")
        assert result.status == 503 and 75 <= int(result.headers["retry-after"]) <= 77
        before = await calls_of(bench, "openai")
        result = await bench.ask("gpt-4o")
        assert result.status == 503 and await calls_of(bench, "openai") == before  # not asked again while it cools


async def test_policy_rejections_and_bad_requests_are_passed_on_not_shopped_around(tmp_path: Path) -> None:
    async with rig(tmp_path, change=prefers("gpt-4o")) as bench:
        bench.sim.script("openai", "content_filter")
        result = await bench.ask("auto")
        assert result.status == 400 and result.error is not None
        assert sum([await calls_of(bench, v) for v in ("openai", "anthropic", "gemini")]) == 1


async def test_context_overflow_goes_to_a_larger_window_only(tmp_path: Path) -> None:
    larger = (
        ('[models."gemini-2.5-flash"]\nprovider = "gemini"\n', '[models."gemini-2.5-flash"]\nprovider = "gemini"\n'),
    )
    async with rig(tmp_path, change=(*prefers("gpt-4o"), *larger)) as bench:
        bench.sim.script("openai", always="context_overflow")
        result = await bench.ask("auto")  # all windows are of one size: nobody is larger
        assert result.status == 400 and result.error is not None and await calls_of(bench, "anthropic") == 0
    quality = "prior_quality = 0.88\ncontext_tokens = 100000"
    async with rig(tmp_path, change=(*prefers("gpt-4o"), (quality, quality + "0"))) as bench:
        bench.sim.script("openai", always="context_overflow")
        result = await bench.ask("auto")
        assert (
            result.is_whole and result.json["model"] == "gemini-2.5-flash" and await calls_of(bench, "anthropic") == 0
        )


async def test_a_client_that_leaves_stops_the_vendor_and_is_billed(tmp_path: Path) -> None:
    async with rig(tmp_path) as bench:
        bench.sim.script("openai", always="ok:chunk_ms=30;words=300")
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": TEXT}], "stream": True}
        async with bench.session.post(bench.gateway.url + "/v1/chat/completions", json=body) as response:
            await response.content.readany()
            await asyncio.sleep(0.15)
            response.close()
        for _ in range(100):
            await asyncio.sleep(0.02)
            if bench.sim.bills.log:
                break
        assert bench.sim.bills.log[-1].outcome == "left"
        row = (await bench.rows())[-1]
        attempt = (await bench.rows("attempts"))[-1]
        assert row["outcome"] == attempt["outcome"] == "cancelled" and row["cost_usd"] > 0 and attempt["estimated"] == 1
        assert bench.gateway.gateway.planner.runtime.lines["gpt-4o"].state.concurrency.in_flight == 0


async def test_held_back_text_is_replaced_unseen(tmp_path: Path) -> None:
    watch = '[watch]\nhold_tokens = 60\nhold_ms = 2000\nrefusal = "act"\n'
    async with rig(tmp_path, watch, change=prefers("gpt-4o")) as bench:
        bench.sim.script("openai", always="refusal")
        result = await bench.ask("auto", stream=True)
        assert result.is_whole and "harbour" in result.text and "sorry" not in result.text.lower()
        assert (await bench.rows("attempts"))[0]["problem"] == "refusal"


async def test_a_refusal_of_everybody_is_an_answer(tmp_path: Path) -> None:
    watch = '[watch]\nhold_tokens = 60\nhold_ms = 2000\nrefusal = "act"\n'
    for stream in (False, True):
        folder = tmp_path / str(stream)
        folder.mkdir()
        async with rig(folder, watch) as bench:
            for vendor in ("openai", "anthropic", "gemini"):
                bench.sim.script(vendor, always="refusal")
            result = await bench.ask("auto", stream=stream)
            assert result.is_whole and result.text, result.body
            assert sum([await calls_of(bench, v) for v in ("openai", "anthropic", "gemini")]) <= 4


async def test_a_loop_is_cut_short_and_replaced_or_ended(tmp_path: Path) -> None:
    async with rig(tmp_path, change=prefers("gpt-4o")) as bench:
        bench.sim.script("openai", always="loop:words=4000")
        whole = await bench.ask("auto")
        assert whole.is_whole and "harbour" in whole.text and whole.json["model"] != "gpt-4o"
        streamed = await bench.ask("auto", stream=True)
        assert streamed.error is not None or "harbour" in streamed.text


async def test_the_retry_budget_bounds_what_a_dead_fleet_costs(tmp_path: Path) -> None:
    clocks = CLOCKS.replace("retry_burst = 1000.0", "retry_burst = 3.0\nretry_share = 0.1\nbreaker_failures = 100000")
    async with rig(tmp_path, clocks=clocks) as bench:
        for vendor in ("openai", "anthropic", "gemini"):
            bench.sim.script(vendor, always="error_500")
        results = [await bench.ask("auto") for _ in range(40)]
        assert all(result.status == 502 for result in results)
        calls = sum([await calls_of(bench, v) for v in ("openai", "anthropic", "gemini")])
        assert calls <= 40 + 3 + 40 * 0.1 + 1


async def test_a_dead_vendor_is_left_alone_by_its_breaker(tmp_path: Path) -> None:
    clocks = CLOCKS.replace("breaker_open_ms = 200", "breaker_open_ms = 60000")
    async with rig(tmp_path, clocks=clocks, change=prefers("gpt-4o")) as bench:
        bench.sim.vendor("openai").is_down = True
        for _ in range(30):
            assert (await bench.ask("auto")).is_whole
        line = bench.gateway.gateway.planner.runtime.lines["gpt-4o"]
        assert line.state.breaker.opened_at is not None
        attempts = await bench.rows("attempts")
        assert 5 <= sum(row["model"] == "gpt-4o" for row in attempts) <= 10


async def test_many_at_once_under_random_faults_all_end_well_and_nothing_leaks(tmp_path: Path) -> None:
    rates = {"error_500": 0.1, "reset": 0.05, "cut:after=2": 0.05, "rate_limit:reset=0.1": 0.05, "empty": 0.05}
    clocks = CLOCKS.replace("[resilience]", "[resilience]\nbreaker_failures = 1000\nmax_attempts = 8")
    async with rig(tmp_path, clocks=clocks) as bench:
        for seed, vendor in enumerate(("openai", "anthropic", "gemini")):
            bench.sim.script(vendor, rates=rates, seed=seed)
        results = await asyncio.gather(*(bench.ask("auto", stream=bool(i % 2)) for i in range(120)))
        assert sum(result.is_whole for result in results) >= 116
        for result in results:
            assert result.is_whole or result.error is not None
        runtime = bench.gateway.gateway.planner.runtime
        assert [line.state.concurrency.in_flight for line in runtime.lines.values()] == [0, 0, 0]
        rows = await bench.rows()
        assert len(rows) == 120 and len({row["id"] for row in rows}) == 120
        served = sum(row["outcome"] == "served" for row in rows)
        assert served == sum(result.is_whole for result in results)


async def test_ledger_and_vendors_agree_to_the_token(tmp_path: Path) -> None:
    async with rig(tmp_path) as bench:
        bench.sim.script("openai", "error_500", "ok:cached=2", "empty")
        for model in ("gpt-4o", "claude-simulated", "gemini-2.5-flash", "gpt-4o"):
            for stream in (False, True):
                assert (await bench.ask(model, stream=stream)).status in (200, 502)
        attempts = await bench.rows("attempts")
        for vendor, total in bench.sim.bills.totals.items():
            mine = [row for row in attempts if row["provider"] == vendor]
            assert sum(row["input_tokens"] for row in mine) == total["input_tokens"], vendor
            assert sum(row["output_tokens"] for row in mine) == total["output_tokens"], vendor
            assert not any(row["estimated"] for row in mine)


async def test_the_local_model_answers_when_nothing_else_can(tmp_path: Path) -> None:
    local = (
        '[models.small]\nprovider = "local"\nprior_quality = 0.3\ncontext_tokens = 8000\nauto = false\n'
        "input_usd_per_million = 0\noutput_usd_per_million = 0\n"
    )
    change = (("[contingency]\n", '[contingency]\nlocal_model = "small"\n'),)
    async with rig(tmp_path, models=local, change=change) as bench:
        for vendor in ("openai", "anthropic", "gemini"):
            bench.sim.script(vendor, always="rate_limit:reset=60")
        result = await bench.ask("auto")
        assert result.is_whole and result.json["model"] == "small"
        assert any("local model" in note for note in result.json["onebeat"]["notes"])


async def test_all_throttled_waits_for_the_earliest_reset_within_the_deadline(tmp_path: Path) -> None:
    async with rig(tmp_path) as bench:
        bench.sim.script("openai", "rate_limit:reset=60")
        bench.sim.script("anthropic", "rate_limit:reset=1")
        bench.sim.script("gemini", "rate_limit:reset=60")
        started = time.perf_counter()
        result = await bench.ask("auto")
        assert result.is_whole and result.json["model"] == "claude-simulated"
        assert 0.9 < time.perf_counter() - started < 1.7
        for vendor in ("openai", "anthropic", "gemini"):
            bench.sim.script(vendor, always="rate_limit:reset=60")
        started = time.perf_counter()
        result = await bench.ask("auto", headers={"x-onebeat-deadline-ms": "400"})
        assert result.status == 503 and int(result.headers["retry-after"]) >= 50
        assert time.perf_counter() - started < 0.4


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_both_faces_end_a_failed_request_in_their_own_shape(path: str, tmp_path: Path) -> None:
    async with rig(tmp_path) as bench:
        bench.sim.script("openai", always="error_500")
        result = await bench.ask("gpt-4o", path=path)
        assert result.status >= 500
        assert ("type" in result.json) == (path == "/v1/messages") and result.json["error"]["message"]


async def test_an_explicit_deadline_bounds_a_slow_answer(tmp_path: Path) -> None:
    async with rig(tmp_path, clocks=CLOCKS.replace("_ms = 400", "_ms = 4000")) as bench:
        bench.sim.script("openai", always="silence")
        started = time.perf_counter()
        result = await bench.ask("gpt-4o", headers={"x-onebeat-deadline-ms": "200"})
        assert result.status in (503, 504) and time.perf_counter() - started < 0.6


async def test_a_reload_keeps_what_is_under_way_and_refuses_what_is_wrong(tmp_path: Path) -> None:
    async with rig(tmp_path) as bench:
        bench.sim.script("openai", always="ok:first_ms=200")
        pending = asyncio.create_task(bench.ask("gpt-4o"))
        await asyncio.sleep(0.05)
        wrong, right = tmp_path / "wrong.toml", tmp_path / "right.toml"
        wrong.write_text("[serer]\n")
        assert not bench.gateway.reload(str(wrong), {})
        assert "gpt-4o" in bench.gateway.gateway.planner.runtime.lines
        right.write_text(
            '[router]\nsource = "none"\n[providers.local]\nkind = "openai_compatible"\n'
            f'base_url = "{bench.sim.url}/local/v1"\n[models.other]\nprovider = "local"\ncontext_tokens = 1000\n'
            "input_usd_per_million = 0\noutput_usd_per_million = 0\n"
        )
        assert bench.gateway.reload(str(right), {})
        assert (await bench.ask("gpt-4o")).status == 404
        assert (await bench.ask("other")).is_whole
        assert (await pending).is_whole
        kinds = [row["kind"] for row in await bench.rows("events")]
        assert kinds == ["reload_refused", "reload", "restart_needed"], "its ledger and connect clock are others"


async def test_a_client_that_reads_nothing_gets_no_more_than_buffers_hold(tmp_path: Path) -> None:
    async with rig(tmp_path) as bench:
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": TEXT}], "stream": True}
        async with (
            aiohttp.ClientSession() as session,
            session.post(bench.gateway.url + "/v1/chat/completions", json=body) as response,
        ):
            assert response.headers["x-onebeat-model"] == "gpt-4o"
            assert response.headers["content-type"].startswith("text/event-stream")
            text = (await response.read()).decode()
            assert '"usage"' not in text.partition('"onebeat"')[0]  # only who asked for it gets a usage chunk


async def test_a_hedge_overtakes_a_slow_route_within_its_budget(tmp_path: Path) -> None:
    clocks = CLOCKS.replace("[resilience]", "[resilience]\nhedge = true\nhedge_share = 0.5").replace("= 400", "= 4000")
    async with rig(tmp_path, clocks=clocks, change=prefers("gpt-4o")) as bench:
        for stream in (False, True):
            for _ in range(22):  # The percentile is learned from twenty answers on.
                assert (await bench.ask("auto", stream=stream)).is_whole
            bench.sim.script("openai", "slow_first:delay=2")
            started = time.perf_counter()
            result = await bench.ask("auto", stream=stream)
            assert result.is_whole and result.headers["x-onebeat-model"] != "gpt-4o"
            assert time.perf_counter() - started < 1.0
            rows = (await bench.rows("attempts"))[-2:]
            assert {row["outcome"] for row in rows} == {"hedged", "served"}
        runtime = bench.gateway.gateway.planner.runtime
        assert all(line.state.concurrency.in_flight == 0 for line in runtime.lines.values())


async def test_a_hedge_that_loses_or_fails_changes_nothing(tmp_path: Path) -> None:
    clocks = CLOCKS.replace("[resilience]", "[resilience]\nhedge = true\nhedge_share = 1.0").replace("= 400", "= 600")
    async with rig(tmp_path, clocks=clocks, change=prefers("gpt-4o")) as bench:
        for _ in range(22):
            await bench.ask("auto")
        bench.sim.script("openai", "ok:first_ms=150")
        for vendor in ("anthropic", "gemini"):
            bench.sim.script(vendor, always="error_500")
        result = await bench.ask("auto")
        assert result.is_whole and result.json["model"] == "gpt-4o"
        bench.sim.script("openai", "silence")
        result = await bench.ask("auto")
        assert result.status in (502, 504)
        runtime = bench.gateway.gateway.planner.runtime
        assert all(line.state.concurrency.in_flight == 0 for line in runtime.lines.values())
