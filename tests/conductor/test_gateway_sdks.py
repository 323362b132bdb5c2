"""The vendors' own clients before a whole gateway: they notice nothing, and what they ask of onebeat is done."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from bench.faults import VENDORS, fleet_text
from onebeat.conductor.fleet_file import parse_fleet
from onebeat.conductor.serving import RunningGateway, running
from tools.simulated_providers import SimulatedProviders
from tools.simulated_providers.speech import full_text

MODELS = tuple(VENDORS.values())
QUESTION = "Tell me about the harbour"
ASK = [{"role": "user", "content": QUESTION}]
SAID = full_text(QUESTION, 40)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
MORE = """
[models."whisper"]
provider = "openai"
auto = false
capabilities = ["audio", "transcription"]
context_tokens = 1000
input_usd_per_million = 1.0
output_usd_per_million = 1.0
[models."small"]
provider = "openai"
prior_quality = 0.6
context_tokens = 100_000
input_usd_per_million = 0.01
output_usd_per_million = 0.04
"""


@dataclass
class Bench:
    sim: SimulatedProviders
    gateway: RunningGateway
    ledger: Path


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    ledger = tmp_path / "ledger.sqlite"
    async with SimulatedProviders() as sim:
        fleet = parse_fleet(fleet_text(sim.url, ledger, "openai") + MORE)
        async with running(fleet, {"SIM_KEY": "sk-simulated-0123456789"}, port=0) as gateway:
            yield Bench(sim, gateway, ledger)


def openai_client(bench: Bench) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{bench.gateway.url}/v1", api_key="any", max_retries=0)


def anthropic_client(bench: Bench) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=bench.gateway.url, api_key="any", max_retries=0)


@pytest.mark.parametrize("model", ["auto:best", "auto:cheap", *MODELS])
async def test_openai_client(bench: Bench, model: str) -> None:
    async with openai_client(bench) as client:
        raw = await client.chat.completions.with_raw_response.create(model=model, messages=ASK)
        whole = raw.parse()
        assert whole.choices[0].message.content == SAID
        assert raw.headers["x-onebeat-model"] == whole.model
        assert model not in MODELS or whole.model == model
        stream = await client.chat.completions.create(
            model=model, messages=ASK, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == SAID
    assert chunks[-1].usage and whole.usage and chunks[-1].usage.total_tokens == whole.usage.total_tokens
    block = (chunks[-1].model_extra or {})["onebeat"]
    assert block["attempts"] == 1 and block["cost_usd"] > 0 and block["request_id"]
    assert await bench.gateway.ledger.committed()
    rows = sqlite3.connect(bench.ledger).execute("SELECT id, outcome FROM requests ORDER BY at").fetchall()
    ids = [(whole.model_extra or {})["onebeat"]["request_id"], block["request_id"]]
    assert rows == [(each, "served") for each in ids]


@pytest.mark.parametrize("model", MODELS)
async def test_openai_client_tools_json_and_images(bench: Bench, model: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    seeing = [{"role": "user", "content": [{"type": "text", "text": QUESTION}, IMAGE]}]
    async with openai_client(bench) as client:
        called = await client.chat.completions.create(model=model, messages=ASK, tools=[TOOL])
        (call,) = called.choices[0].message.tool_calls or []
        assert called.choices[0].finish_reason == "tool_calls"
        history = [*ASK, called.choices[0].message.model_dump(exclude_none=True)]
        history.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
        answered = await client.chat.completions.create(model=model, messages=history, tools=[TOOL])
        assert answered.choices[0].message.content
        async with client.chat.completions.stream(model=model, messages=ASK, tools=[TOOL]) as stream:
            streamed = (await stream.get_final_completion()).choices[0].message.tool_calls or []
        assert json.loads(streamed[0].function.arguments) == {"city": "Paris", "days": 7}
        answer = await client.chat.completions.create(model=model, messages=seeing, response_format=form)
    assert json.loads(answer.choices[0].message.content or "") == {"city": "Paris", "days": 7}


@pytest.mark.parametrize("model", ["auto:best", *MODELS])
async def test_anthropic_client(bench: Bench, model: str) -> None:
    asking: dict[str, Any] = {"model": model, "max_tokens": 400, "messages": ASK}
    tools = [{"name": "weather", "description": "d", "input_schema": SCHEMA}]
    async with anthropic_client(bench) as client:
        whole = await client.messages.create(**asking)
        assert whole.content[0].type == "text" and whole.content[0].text == SAID
        async with client.messages.stream(**asking) as stream:
            assert "".join([text async for text in stream.text_stream]) == SAID
            assert (await stream.get_final_message()).usage.output_tokens == whole.usage.output_tokens
        async with client.messages.stream(tools=tools, **asking) as stream:
            called = await stream.get_final_message()
    assert called.stop_reason == "tool_use"
    assert called.content[-1].type == "tool_use" and called.content[-1].input == {"city": "Paris", "days": 7}


async def test_what_is_asked_of_onebeat_itself(bench: Bench) -> None:
    async with openai_client(bench) as client:
        by_body = await client.chat.completions.create(
            model="auto", messages=ASK, extra_body={"onebeat": {"tradeoff": 1.0}}
        )
        assert by_body.model == "gpt-4o", "the best"
        by_header = await client.chat.completions.create(
            model="auto", messages=ASK, extra_headers={"x-onebeat-max-cost-usd": "0.0001", "x-onebeat-tradeoff": "1"}
        )
        assert by_header.model == "small", "the only one that cheap"
        bench.sim.script("openai", always="error_500")
        fallen = await client.chat.completions.create(
            model="gpt-4o", messages=ASK, extra_body={"onebeat": {"fallbacks": ["claude-simulated"]}}
        )
        assert fallen.model == "claude-simulated" and fallen.choices[0].message.content == SAID
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="gpt-4o", messages=ASK)
        models = [model.id async for model in client.models.list()]
    assert {"auto", *MODELS} <= set(models)


async def test_bad_requests_reach_no_provider(bench: Bench) -> None:
    async with openai_client(bench) as client:
        for wrong, error in (
            ({"messages": []}, openai.BadRequestError),
            ({"messages": [{"role": "usr", "content": "x"}]}, openai.BadRequestError),
            ({"temperature": 99}, openai.BadRequestError),
            ({"model": "gpt-4oo"}, openai.NotFoundError),
        ):
            with pytest.raises(error):
                await client.chat.completions.create(**{"model": "auto", "messages": ASK, **wrong})
    async with anthropic_client(bench) as client_:
        with pytest.raises(anthropic.BadRequestError, match="did you mean"):
            await client_.messages.create(model="auto", max_tokens=9, messages=[{"role": "assitant", "content": "x"}])
    assert not bench.sim.bills.log


async def test_a_transcription(bench: Bench) -> None:
    async with openai_client(bench) as client:
        heard = await client.audio.transcriptions.create(model="whisper", file=("a.wav", b"RIFF1234", "audio/wav"))
        assert heard.text == "This is what a.wav says in 8 bytes."
        with pytest.raises(openai.APIStatusError):
            await client.audio.transcriptions.create(model="gpt-4o", file=("a.wav", b"RIFF", "audio/wav"))
