"""Bad input, a wrong key, a huge or slow body: the vendor's own error, and nothing reaches a provider."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import numpy as np
import openai
import pytest

from onebeat.engine.errors import DeadlineError
from onebeat.engine.records import Column, Scores
from tests.conductor.gateway_rig import CLOCKS, TEXT, Rig, rig

GOOD = {"model": "auto", "messages": [{"role": "user", "content": TEXT}]}
SMALL = (
    (
        '[router]\nsource = "none"\n',
        '[router]\nsource = "none"\n[server]\nmax_body_bytes = 2000\nread_timeout_ms = 300\n',
    ),
)
PATHS = ["/v1/chat/completions", "/v1/messages"]


async def post(bench: Rig, body: bytes, path: str = PATHS[0], **headers: str) -> tuple[int, Any, dict[str, str]]:
    async with bench.session.post(bench.gateway.url + path, data=body, headers=headers) as response:
        found = await response.json(content_type=None)
        return response.status, found, {name.lower(): value for name, value in response.headers.items()}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[1]", 400),
        (b'{"model": "auto"}', 400),
        (b'{"model": "auto", "max_tokens": 5, "messages": []}', 400),
        (b'{"model": "auto", "max_tokens": 5, "messages": [{"role": "wizard", "content": "x"}]}', 400),
        (b'{"model": 3, "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}', 400),
        (b'{"model": "auto", "max_tokens": -5, "messages": [{"role": "user", "content": "x"}]}', 400),
        (b'{"model": "auto", "max_tokens": 5, "temperature": 99, "messages": [{"role": "user", "content": "x"}]}', 400),
        (b'{"model": "nobody", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}', 404),
        (
            b'{"model": "auto", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}], "onebeat": {"x": 1}}',
            400,
        ),
        (b"\xff\xfe\x00", 400),
        (b"[" * 5000 + b"]" * 5000, 400),
    ],
)
async def test_bad_bodies_get_the_vendors_error(path: str, body: bytes, status: int, tmp_path: Path) -> None:
    async with rig(tmp_path) as bench:
        got, answer, _ = await post(bench, body, path)
        assert got == status and len(answer["error"]["message"]) > 10
        assert (answer.get("type") == "error") == (path == "/v1/messages")
        assert not bench.sim.bills.totals


@pytest.mark.parametrize("path", PATHS)
async def test_a_body_too_large_or_too_slow_is_refused(path: str, tmp_path: Path) -> None:
    async with rig(tmp_path, change=SMALL) as bench:
        status, answer, _ = await post(bench, b"x" * 3000, path)
        assert status == 413 and "2000" in answer["error"]["message"]

        async def endless() -> Any:
            for _ in range(100):
                yield b"x" * 1000

        async with bench.session.post(bench.gateway.url + path, data=endless()) as response:
            assert response.status == 413
        host, port = bench.gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{".encode())
        started = time.perf_counter()
        head = await asyncio.wait_for(reader.readline(), 2.0)
        assert b" 408 " in head and time.perf_counter() - started < 1.0
        writer.close()
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost:")
        assert await asyncio.wait_for(reader.read(), 2.0) == b""  # closed without a word: there was no request
        writer.close()
        assert not bench.sim.bills.totals


async def test_large_headers_and_unknown_paths(tmp_path: Path) -> None:
    async with rig(tmp_path) as bench:
        async with bench.session.get(bench.gateway.url + "/v1/models", headers={"x-big": "y" * 40_000}) as response:
            assert response.status == 431 and "16384" in (await response.json())["error"]["message"]
        status, answer, _ = await post(bench, b"{}", "/v1/nowhere")
        assert status == 404 and "/v1/chat/completions" in answer["error"]["message"]
        async with bench.session.get(bench.gateway.url + "/v1/chat/completions") as response:
            assert response.status == 405


async def test_keys_budgets_and_expensive_calls(tmp_path: Path) -> None:
    keys = ""
    for name, more in (
        ("a", "requests_per_minute = 3"),
        ("b", "budget_usd_per_day = 0.0000001"),
        ("c", "expensive_calls_per_hour = 1"),
        ("d", "revoked = true"),
    ):
        keys += f'[keys.{name}]\nsha256 = "{hashlib.sha256(f"key-{name}".encode()).hexdigest()}"\n{more}\n'
    costly = ('[models."gpt-4o"]\n', '[models."gpt-4o"]\nexpensive = true\n')
    async with rig(tmp_path, keys, change=(costly,)) as bench:
        for given, sentence in (
            ({}, "No API key"),
            ({"x-api-key": "no"}, "not known"),
            ({"x-api-key": "key-d"}, "revoked"),
        ):
            result = await bench.ask(headers=given)
            assert result.status == 401 and sentence in result.json["error"]["message"]
        statuses = [(await bench.ask(headers={"authorization": "Bearer key-a"})).status for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        statuses = [(await bench.ask(headers={"x-api-key": "key-b"})).status for _ in range(2)]
        assert statuses == [200, 429]
        first = await bench.ask("auto:best", headers={"x-api-key": "key-c"})
        second = await bench.ask("auto:best", headers={"x-api-key": "key-c"})
        assert first.json["model"] == "gpt-4o" and second.json["model"] != "gpt-4o"
        named = await bench.ask("gpt-4o", headers={"x-api-key": "key-c"})
        assert named.status == 400 and "expensive" in named.json["error"]["message"]
        async with bench.session.get(bench.gateway.url + "/v1/models") as response:
            assert response.status == 401
        rows = await bench.rows()
        assert {row["key_name"] for row in rows} == {"a", "b", "c"}
        assert "key-a" not in (tmp_path / "ledger.sqlite").read_bytes().decode("latin1")


async def test_the_vendors_own_clients_work(tmp_path: Path) -> None:
    async with rig(tmp_path) as bench:
        async with openai.AsyncOpenAI(base_url=bench.gateway.url + "/v1", api_key="x", max_retries=0) as client:
            answer = await client.chat.completions.create(model="auto", messages=[{"role": "user", "content": TEXT}])
            assert answer.choices[0].message.content and answer.model_extra and "onebeat" in answer.model_extra
            text = ""
            stream = await client.chat.completions.create(
                model="auto:cheap",
                messages=[{"role": "user", "content": TEXT}],
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"onebeat": {"tradeoff": 0.2}},
            )
            usage = None
            async for chunk in stream:
                text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
                usage = chunk.usage or usage
            assert text == answer.choices[0].message.content and usage is not None and usage.completion_tokens > 0
            names = [model.id for model in (await client.models.list()).data]
            assert names[:3] == ["auto", "auto:cheap", "auto:best"] and "gpt-4o" in names
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])
        async with anthropic.AsyncAnthropic(base_url=bench.gateway.url, api_key="x", max_retries=0) as client:
            async with client.messages.stream(
                model="gpt-4o", max_tokens=1000, messages=[{"role": "user", "content": TEXT}]
            ) as stream:
                message = await stream.get_final_message()
            assert message.content[0].text == text and message.stop_reason == "end_turn"
            with pytest.raises(anthropic.NotFoundError):
                await client.messages.create(model="x", max_tokens=5, messages=[{"role": "user", "content": "x"}])


class FakeRouter:
    """Stands where `router.serve()` does: scores by column, slowly where told."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.ready = self.healthy = True
        self.fails: Exception | None = None

    async def score(self, prompt: Any, *, deadline_ms: float | None = None, features: bool = False) -> Scores:
        if self.fails is not None:
            raise self.fails
        await asyncio.sleep(self.delay_s)
        quality = np.array([[0.2, 0.95, 0.3]], dtype=np.float32)
        lengths = np.full((1, 3), 50.0, dtype=np.float32)
        return Scores(
            ("gpt-4o", "claude-simulated", "gemini-2.5-flash"), quality, lengths, np.array([5]), np.array([0])
        )


COLUMNS = (Column("gpt-4o", 2.5, 10.0, 0.8, 100.0), Column("claude-simulated", 3.0, 15.0, 0.7, 100.0))


async def test_the_router_decides_within_its_deadline_else_the_prior_and_says_so(tmp_path: Path) -> None:
    router = FakeRouter()
    async with rig(tmp_path, live=router, columns=COLUMNS) as bench:
        decided = await bench.ask("auto:best", path="/v1/route")
        assert decided.json["model"] == "claude-simulated" and decided.json["decided_by"] == "router"
        assert decided.json["candidates"][0]["quality"] == pytest.approx(0.95, abs=1e-4)
        router.delay_s = 0.5
        started = time.perf_counter()
        late = await bench.ask("auto:best", path="/v1/route")
        assert late.json["decided_by"] == "prior" and "within 50 ms" in late.json["reason"]
        assert time.perf_counter() - started < 0.2
        router.fails = DeadlineError("no")
        assert (await bench.ask("auto:best")).json["model"] == "gpt-4o"
        rows = await bench.rows()
        assert rows[-1]["decided_by"] == "prior" and rows[-1]["router_ms"] >= 0
        router.fails = None
        router.delay_s = 0.0
        await bench.ask("auto:best")
        row = (await bench.rows())[-1]
        assert row["decided_by"] == "router" and '"claude-simulated":[0.95,50.0]' in row["scores"]
        assert (
            row["router_usd"] == pytest.approx(row["router_ms"] / 3.6e6 * 0.10) and row["decided_model"] == row["model"]
        )
        router.healthy = False
        async with bench.session.get(bench.gateway.url + "/readyz") as response:
            assert response.status == 503
        async with bench.session.get(bench.gateway.url + "/healthz") as response:
            assert response.status == 200


async def test_feedback_metrics_and_long_conversations(tmp_path: Path) -> None:
    drop = (
        ("context_tokens = 100000", "context_tokens = 400"),
        ("[router]\n", '[context]\non_overflow = "drop_oldest"\nanswer_tokens = 50\n[router]\n'),
    )
    async with rig(tmp_path, change=drop) as bench:
        answer = await bench.ask()
        identifier = answer.headers["x-onebeat-request-id"]
        url = bench.gateway.url + "/v1/feedback"
        for body, status in (
            ({"request_id": identifier, "score": 0.9, "comment": "good"}, 200),
            ({"request_id": identifier, "score": 1.5}, 400),
            ({"request_id": "ob-" + "0" * 24, "score": 1}, 404),
            ({"request_id": "'; DROP TABLE requests", "score": 1}, 400),
            ({"score": 1}, 400),
        ):
            async with bench.session.post(url, json=body) as response:
                assert response.status == status, body
        assert [row["score"] for row in await bench.rows("feedback")] == [0.9]
        turns = []
        for number in range(6):
            turns += [
                {"role": "user", "content": f"{number} " + "x" * 300},
                {"role": "assistant", "content": "y" * 100},
            ]
        long = await bench.ask("auto", messages=[*turns, {"role": "user", "content": TEXT}])
        assert long.is_whole and int(long.headers["x-onebeat-dropped-messages"]) > 0
        assert any("left out" in note for note in long.json["onebeat"]["notes"])
        async with bench.session.get(bench.gateway.url + "/metrics") as response:
            text = await response.text()
        for name in (
            "gen_ai_client_operation_duration_seconds_bucket",
            "gen_ai_client_token_usage_sum",
            "onebeat_requests_total",
            "onebeat_route_headroom",
            "onebeat_ledger_healthy 1.0",
        ):
            assert name in text


async def test_too_long_for_every_window_is_a_clear_error(tmp_path: Path) -> None:
    async with rig(tmp_path, change=(("context_tokens = 100000", "context_tokens = 400"),)) as bench:
        for model in ("auto", "gpt-4o"):
            result = await bench.ask(model, messages=[{"role": "user", "content": "x " * 4000}])
            assert result.status == 400 and result.json["error"]["code"] == "context_length_exceeded"
        assert not bench.sim.bills.totals


async def test_transcription_goes_to_the_route_that_hears(tmp_path: Path) -> None:
    model = (
        '[models.whisper-1]\nprovider = "openai"\ncontext_tokens = 448\ncapabilities = ["transcription"]\n'
        "auto = false\ninput_usd_per_million = 0\noutput_usd_per_million = 0\nusd_per_minute = 0.006\n"
    )
    async with rig(tmp_path, models=model) as bench:

        def form(**fields: Any) -> aiohttp.FormData:
            data = aiohttp.FormData()
            for name, value in fields.items():
                if isinstance(value, bytes):
                    data.add_field(name, value, filename="a.wav", content_type="audio/wav")
                else:
                    data.add_field(name, value)
            return data

        url = bench.gateway.url + "/v1/audio/transcriptions"
        bench.sim.script("openai", "error_500")
        async with bench.session.post(
            url, data=form(file=b"RIFF" * 1000, model="whisper-1", language="en")
        ) as response:
            assert response.status == 200 and (await response.json())["text"]
            assert response.headers["x-onebeat-model"] == "whisper-1"
        for bad, status in (
            (form(model="whisper-1"), 400),
            (form(file=b"x"), 400),
            (form(file=b"x", model="gpt-4o"), 404),
        ):
            async with bench.session.post(url, data=bad) as response:
                assert response.status == status
        assert (await bench.rows())[-1]["outcome"] == "served"


async def test_waiting_requests_are_served_by_priority(tmp_path: Path) -> None:
    clocks = CLOCKS.replace("[resilience]", "[resilience]\nmax_concurrency = 1").replace(
        "whole_ms = 400", "whole_ms = 4000"
    )
    async with rig(tmp_path, clocks=clocks) as bench:
        bench.sim.script("openai", always="ok:first_ms=100")
        order: list[str] = []

        async def one(priority: str) -> None:
            result = await bench.ask("gpt-4o", headers={"x-onebeat-priority": priority})
            assert result.is_whole
            order.append(priority)

        tasks = [asyncio.create_task(one("normal"))]
        await asyncio.sleep(0.03)
        for priority in ("low", "normal", "high", "low", "high"):
            tasks.append(asyncio.create_task(one(priority)))
            await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)
        assert order == ["normal", "high", "high", "normal", "low", "low"]


async def test_a_model_retires_at_midnight_without_a_restart(tmp_path: Path) -> None:
    head = '[models."gpt-4o"]\n'
    date = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86_400 * 2))
    change = ((head, f'{head}shutdown_date = {date}\nsuccessor = "claude-simulated"\n'),)
    async with rig(tmp_path, change=change) as bench:
        assert (await bench.ask("gpt-4o")).json["model"] == "gpt-4o"
        runtime = bench.gateway.gateway.planner.runtime
        runtime.refresh_day(time.time() + 86_400 * 3)
        answer = await bench.ask("gpt-4o")
        assert answer.json["model"] == "claude-simulated"
        assert any("its successor claude-simulated" in note for note in answer.json["onebeat"]["notes"])
