"""Every face through every vendor's format and back, judged by the SDKs at the client's end and the simulated vendors'
checks at the other: a bridge of a few lines joins a face to a provider, with no policy between."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from aiohttp import web
from pydantic import BaseModel

from onebeat.conductor.answers import ProviderError, ProviderProblem, Report
from onebeat.conductor.assemble import AnswerBuilder
from onebeat.conductor.faces.anthropic import AnthropicFace
from onebeat.conductor.faces.base import Face
from onebeat.conductor.faces.openai import OpenAIFace
from onebeat.conductor.providers.anthropic import AnthropicProvider
from onebeat.conductor.providers.base import Provider
from onebeat.conductor.providers.gemini import GeminiProvider
from onebeat.conductor.providers.openai import OpenAIProvider
from onebeat.conductor.providers.traits import Traits
from onebeat.conductor.records import RequestError
from tools.simulated_providers import SimulatedProviders
from tools.simulated_providers.speech import full_text, tokens

QUESTION = "What is 17 * 23?"
ASK = [{"role": "user", "content": QUESTION}]
SAID = full_text(QUESTION, 40)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "additionalProperties": False,
}
VENDORS: dict[str, tuple[Provider, str, str]] = {
    "openai": (OpenAIProvider("k", traits=Traits(sampling=False)), "/openai/v1", "gpt-5-mini"),
    "anthropic": (AnthropicProvider("k"), "/anthropic", "claude-simulated"),
    "gemini": (GeminiProvider("k"), "/gemini", "gemini-3-flash"),
}
REPORT = Report(model="fleet-name", reason="it won.", attempts=2, cost_usd=0.00123, notes=("a note",))


class Bridge:
    """A model's name is `vendor` or `vendor+fault`."""

    def __init__(self, sim: SimulatedProviders) -> None:
        self.sim = sim
        self.upstream: aiohttp.ClientSession | None = None
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        face: Face = AnthropicFace() if request.path.endswith("/messages") else OpenAIFace()
        try:
            chat = face.parse(await request.read(), {k.lower(): v for k, v in request.headers.items()})
            vendor, plus, fault = chat.model.partition("+")
            provider, base, model = VENDORS[vendor]
            built = provider.build_request(chat, model + plus + fault, stream=chat.stream)
        except (RequestError, ProviderError) as error:
            return self.error(face, error.problem if isinstance(error, ProviderError) else error)
        assert self.upstream is not None
        async with self.upstream.post(self.sim.url + base + built.path, data=built.body, headers=built.headers) as got:
            if got.status != 200:
                headers = {k.lower(): v for k, v in got.headers.items()}
                return self.error(face, provider.parse_error(got.status, headers, await got.read()))
            if not chat.stream:
                try:
                    answer = provider.parse_response(await got.read())
                except ProviderError as error:
                    return self.error(face, error.problem)
                body = face.render_answer(answer, REPORT, created_s=1)
                return web.Response(body=body, content_type="application/json")
            decoder, renderer = provider.decoder(), face.renderer(chat, "fleet-name", created_s=1)
            builder = AnswerBuilder()
            out = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await out.prepare(request)
            await out.write(renderer.ping())
            async for data, _ in got.content.iter_chunks():
                for event in decoder.feed(data):
                    if isinstance(event, ProviderProblem):
                        await out.write(renderer.fail(event, REPORT))
                        return out
                    builder.add(event)
                    await out.write(renderer.render(event))
            decoder.close()
            await out.write(renderer.close(builder.usage, REPORT))
            return out

    def error(self, face: Face, error: RequestError | ProviderProblem) -> web.Response:
        rendered = face.render_error(error)
        return web.Response(status=rendered.status, headers=rendered.headers, body=rendered.body)


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    async with SimulatedProviders() as sim, aiohttp.ClientSession() as upstream:
        bridge = Bridge(sim)
        bridge.upstream = upstream
        app = web.Application()
        app.add_routes([web.post("/v1/chat/completions", bridge.answer), web.post("/v1/messages", bridge.answer)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        bridge.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield bridge
        await runner.cleanup()


def to_openai(bridge: Bridge) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{bridge.url}/v1", api_key="k", max_retries=0)


def to_anthropic(bridge: Bridge) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=bridge.url, api_key="k", max_retries=0)


def extra(model: BaseModel) -> dict[str, Any]:
    found: dict[str, Any] = (model.model_extra or {})["onebeat"]
    return found


@pytest.mark.parametrize("vendor", VENDORS)
async def test_openai_client_whole(bridge: Bridge, vendor: str) -> None:
    async with to_openai(bridge) as client:
        answer = await client.chat.completions.create(model=vendor, messages=ASK, max_tokens=400, temperature=0.3)
    assert answer.choices[0].message.content == SAID and answer.choices[0].finish_reason == "stop"
    assert answer.usage and answer.usage.completion_tokens == tokens(SAID) and answer.model == "fleet-name"
    assert extra(answer)["cost_usd"] == 0.00123 and extra(answer)["vendor_model"] == VENDORS[vendor][2]


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("include_usage", [True, False])
async def test_openai_client_streamed(bridge: Bridge, vendor: str, include_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    async with to_openai(bridge) as client:
        stream = await client.chat.completions.create(
            model=f"{vendor}+ok:reasoning=8", messages=ASK, stream=True, **options
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == SAID
    thought = "".join((c.choices[0].delta.model_extra or {}).get("reasoning_content", "") for c in chunks if c.choices)
    assert thought.startswith("Here is what I know of thinking about")
    assert chunks[0].choices[0].delta.role == "assistant" and len({chunk.id for chunk in chunks}) == 1
    assert extra(chunks[-1])["attempts"] == 2
    if include_usage:
        assert chunks[-1].choices == [] and chunks[-1].usage
        assert chunks[-1].usage.completion_tokens == tokens(SAID) + tokens(thought)
        assert chunks[-2].choices[0].finish_reason == "stop"
    else:
        assert chunks[-1].choices[0].finish_reason == "stop" and not any(chunk.usage for chunk in chunks)


@pytest.mark.parametrize("vendor", VENDORS)
async def test_openai_client_with_tools_there_and_back(bridge: Bridge, vendor: str) -> None:
    tool = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA}}
    asking: dict[str, Any] = {"model": vendor, "tools": [tool], "tool_choice": "auto"}
    async with to_openai(bridge) as client:
        whole = await client.chat.completions.create(messages=ASK, **asking)
        (call,) = whole.choices[0].message.tool_calls or []
        assert (call.type, whole.choices[0].finish_reason) == ("function", "tool_calls")
        assert json.loads(call.function.arguments) == {"city": "Paris", "days": 7}
        async with client.chat.completions.stream(messages=ASK, **asking) as stream:
            streamed = (await stream.get_final_completion()).choices[0].message.tool_calls or []
        assert json.loads(streamed[0].function.arguments) == {"city": "Paris", "days": 7}
        result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        history = [*ASK, whole.choices[0].message.model_dump(exclude_none=True), result]
        last = await client.chat.completions.create(messages=history, **asking)
    assert last.choices[0].message.content and last.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("vendor", VENDORS)
async def test_openai_client_json_mode_and_images(bridge: Bridge, vendor: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    seeing = [{"role": "user", "content": [{"type": "text", "text": QUESTION}, image]}]
    async with to_openai(bridge) as client:
        answer = await client.chat.completions.create(model=vendor, messages=seeing, response_format=form)
    assert json.loads(answer.choices[0].message.content or "") == {"city": "Paris", "days": 7}


@pytest.mark.parametrize("vendor", VENDORS)
async def test_anthropic_client_whole_and_streamed(bridge: Bridge, vendor: str) -> None:
    asking: dict[str, Any] = {"model": f"{vendor}+ok:reasoning=8;cached=2", "max_tokens": 400, "messages": ASK}
    async with to_anthropic(bridge) as client:
        whole = await client.messages.create(system="Be brief.", **asking)
        async with client.messages.stream(system="Be brief.", **asking) as stream:
            said = "".join([text async for text in stream.text_stream])
            streamed = await stream.get_final_message()
    assert said == SAID
    for message in (whole, streamed):
        if vendor != "openai" or message is streamed:
            assert message.content[0].type == "thinking"
        assert message.content[-1].type == "text" and message.content[-1].text == SAID
        assert message.stop_reason == "end_turn"
        usage = message.usage
        assert (usage.input_tokens, usage.cache_read_input_tokens) == (whole.usage.input_tokens, 2)
    assert streamed.usage.output_tokens >= whole.usage.output_tokens
    assert extra(whole)["attempts"] == 2


@pytest.mark.parametrize("vendor", VENDORS)
async def test_anthropic_client_with_tools_there_and_back(bridge: Bridge, vendor: str) -> None:
    tools = [{"name": "weather", "description": "d", "input_schema": SCHEMA}]
    asking: dict[str, Any] = {"model": vendor, "max_tokens": 400, "tools": tools}
    async with to_anthropic(bridge) as client:
        whole = await client.messages.create(messages=ASK, **asking)
        async with client.messages.stream(messages=ASK, **asking) as stream:
            streamed = await stream.get_final_message()
        for message in (whole, streamed):
            assert message.stop_reason == "tool_use"
            assert message.content[-1].type == "tool_use" and message.content[-1].input == {"city": "Paris", "days": 7}
        result = {"type": "tool_result", "tool_use_id": whole.content[-1].id, "content": "sunny"}
        history = [*ASK, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
        last = await client.messages.create(messages=history, **asking)
    assert last.content[0].type == "text" and last.stop_reason == "end_turn"


@pytest.mark.parametrize("vendor", VENDORS)
async def test_both_clients_see_a_broken_stream_as_an_error(bridge: Bridge, vendor: str) -> None:
    async with to_openai(bridge) as client:
        stream = await client.chat.completions.create(model=f"{vendor}+error_in_stream", messages=ASK, stream=True)
        with pytest.raises(openai.APIError):
            _ = [chunk async for chunk in stream]
    async with to_anthropic(bridge) as client_:
        asking: dict[str, Any] = {"model": f"{vendor}+error_in_stream", "max_tokens": 400, "messages": ASK}
        with pytest.raises(anthropic.APIStatusError):
            async with client_.messages.stream(**asking) as messages:
                await messages.get_final_message()


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(
    ("fault", "openai_error", "anthropic_error"),
    [
        ("rate_limit:reset=3", openai.RateLimitError, anthropic.RateLimitError),
        ("error_503", openai.InternalServerError, anthropic.InternalServerError),
        ("context_overflow", openai.BadRequestError, anthropic.BadRequestError),
        ("content_filter", openai.BadRequestError, anthropic.BadRequestError),
        ("not_found", openai.NotFoundError, anthropic.NotFoundError),
        # The vendor refused onebeat's key: that is not the client's authentication.
        ("auth", openai.InternalServerError, anthropic.InternalServerError),
    ],
)
async def test_errors_keep_their_meaning_for_both_clients(
    bridge: Bridge, vendor: str, fault: str, openai_error: type[Exception], anthropic_error: type[Exception]
) -> None:
    async with to_openai(bridge) as client:
        with pytest.raises(openai_error) as raised:
            await client.chat.completions.create(model=f"{vendor}+{fault}", messages=ASK)
    async with to_anthropic(bridge) as client_:
        with pytest.raises(anthropic_error):
            await client_.messages.create(model=f"{vendor}+{fault}", max_tokens=9, messages=ASK)
    if isinstance(raised.value, openai.RateLimitError):
        assert raised.value.response.headers["retry-after"] == "3"
