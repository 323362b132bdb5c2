"""The simulated vendors, judged by the vendors' own SDKs: what those accept is what a real vendor would send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import anthropic
import openai
import pytest
from google import genai
from google.genai import errors as genai_errors
from google.genai import types as genai_types

from tools.simulated_providers import SimulatedProviders
from tools.simulated_providers.script import Fault, behaviour_of
from tools.simulated_providers.speech import full_text

# google-genai's own session class inherits from aiohttp's, which aiohttp warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
QUESTION = "What is 17 * 23?"
ASK = [{"role": "user", "content": QUESTION}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}


@pytest.fixture
async def sim() -> AsyncIterator[SimulatedProviders]:
    async with SimulatedProviders() as simulated:
        yield simulated


def openai_client(sim: SimulatedProviders) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{sim.url}/openai/v1", api_key="sk-sim", max_retries=0)


def anthropic_client(sim: SimulatedProviders) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=f"{sim.url}/anthropic", api_key="sk-sim", max_retries=0)


def gemini_client(sim: SimulatedProviders) -> genai.Client:
    return genai.Client(api_key="sk-sim", http_options=genai_types.HttpOptions(base_url=f"{sim.url}/gemini"))


async def test_openai_sdk(sim: SimulatedProviders) -> None:
    async with openai_client(sim) as client:
        whole = await client.chat.completions.create(model="gpt-5-mini", messages=ASK)
        assert whole.choices[0].message.content == full_text(QUESTION, 40)
        assert whole.usage and whole.usage.prompt_tokens == 4
        text, usage = "", None
        stream = await client.chat.completions.create(
            model="gpt-5-mini", messages=ASK, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
            usage = chunk.usage or usage
        assert text == full_text(QUESTION, 40)
        assert usage and usage.completion_tokens == whole.usage.completion_tokens
    served = sim.bills.totals["openai"]
    assert (served["served"], served["output_tokens"]) == (2, 2 * usage.completion_tokens)
    assert served["reported_output_tokens"] == served["output_tokens"]


async def test_openai_sdk_with_tools_streamed_through_its_own_accumulator(sim: SimulatedProviders) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": WEATHER, "strict": False}}
    asking = {"model": "gpt-5-mini", "messages": ASK, "tools": [tool]}
    async with openai_client(sim) as client, client.chat.completions.stream(**asking) as stream:
        final = await stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Paris", "days": 7}')
    assert final.choices[0].finish_reason == "tool_calls"


async def test_anthropic_sdk(sim: SimulatedProviders) -> None:
    tool = {"name": "weather", "input_schema": WEATHER}
    async with anthropic_client(sim) as client:
        whole = await client.messages.create(model="claude-simulated", max_tokens=500, messages=ASK)
        assert whole.content[0].type == "text" and whole.content[0].text == full_text(QUESTION, 40)
        async with client.messages.stream(model="claude-simulated", max_tokens=500, messages=ASK) as stream:
            assert "".join([text async for text in stream.text_stream]) == full_text(QUESTION, 40)
            final = await stream.get_final_message()
        assert final.usage.output_tokens == whole.usage.output_tokens
        async with client.messages.stream(
            model="claude-simulated+ok:reasoning=6", max_tokens=500, messages=ASK, tools=[tool]
        ) as stream:
            final = await stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "tool_use"]
    assert final.content[1].type == "tool_use" and final.content[1].input == {"city": "Paris", "days": 7}
    assert final.stop_reason == "tool_use"


async def test_gemini_sdk(sim: SimulatedProviders) -> None:
    client = gemini_client(sim)
    whole = await client.aio.models.generate_content(model="gemini-3-flash", contents=QUESTION)
    assert whole.text == full_text(QUESTION, 40)
    text, last = "", None
    async for chunk in await client.aio.models.generate_content_stream(model="gemini-3-flash", contents=QUESTION):
        text, last = text + (chunk.text or ""), chunk
    assert text == full_text(QUESTION, 40)
    assert last.usage_metadata.candidates_token_count == whole.usage_metadata.candidates_token_count
    declaration = genai_types.FunctionDeclaration(name="weather", parameters_json_schema=WEATHER)
    config = genai_types.GenerateContentConfig(tools=[genai_types.Tool(function_declarations=[declaration])])
    called = await client.aio.models.generate_content(model="gemini-3-flash", contents=QUESTION, config=config)
    assert called.function_calls[0].args == {"city": "Paris", "days": 7}
    blocked = await client.aio.models.generate_content(model="gemini-3-flash+content_filter", contents=QUESTION)
    assert blocked.prompt_feedback.block_reason == genai_types.BlockedReason.PROHIBITED_CONTENT
    await client.aio.aclose()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("rate_limit", openai.RateLimitError),
        ("quota", openai.RateLimitError),
        ("error_500", openai.InternalServerError),
        ("error_503", openai.InternalServerError),
        ("error_529", openai.InternalServerError),
        ("reset", openai.APIConnectionError),
        ("cut", openai.APIConnectionError),
        ("context_overflow", openai.BadRequestError),
        ("content_filter", openai.BadRequestError),
        ("auth", openai.AuthenticationError),
        ("not_found", openai.NotFoundError),
    ],
)
async def test_openai_sdk_knows_the_errors(sim: SimulatedProviders, fault: str, error: type[Exception]) -> None:
    async with openai_client(sim) as client:
        with pytest.raises(error):
            await client.chat.completions.create(model=f"gpt-5-mini+{fault}", messages=ASK)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("rate_limit", anthropic.RateLimitError),
        ("error_529", anthropic.InternalServerError),
        ("context_overflow", anthropic.BadRequestError),
        ("auth", anthropic.AuthenticationError),
    ],
)
async def test_anthropic_sdk_knows_the_errors(sim: SimulatedProviders, fault: str, error: type[Exception]) -> None:
    async with anthropic_client(sim) as client:
        with pytest.raises(error):
            await client.messages.create(model=f"claude-simulated+{fault}", max_tokens=50, messages=ASK)


async def test_errors_inside_a_stream_reach_each_sdk(sim: SimulatedProviders) -> None:
    async with openai_client(sim) as client:
        stream = await client.chat.completions.create(model="gpt-5-mini+error_in_stream", messages=ASK, stream=True)
        with pytest.raises(openai.APIError, match="had an error"):
            _ = [chunk async for chunk in stream]
    async with anthropic_client(sim) as anthropic_:
        with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
            async with anthropic_.messages.stream(
                model="claude-simulated+error_in_stream", max_tokens=50, messages=ASK
            ) as messages:
                await messages.get_final_message()
    client_ = gemini_client(sim)
    with pytest.raises(genai_errors.APIError, match="overloaded"):
        model = "gemini-3-flash+error_in_stream"
        _ = [chunk async for chunk in await client_.aio.models.generate_content_stream(model=model, contents=QUESTION)]
    await client_.aio.aclose()


async def test_scripts_come_in_order_then_always(sim: SimulatedProviders) -> None:
    sim.script("openai", "error_500", "ok", always="rate_limit")
    async with openai_client(sim) as client:
        seen = []
        for _ in range(4):
            try:
                await client.chat.completions.create(model="gpt-5-mini", messages=ASK)
                seen.append(200)
            except openai.APIStatusError as error:
                seen.append(error.status_code)
    assert seen == [500, 200, 429, 429]
    assert sim.bills.totals["openai"]["refused"] == 3


async def test_a_caller_that_hangs_up_is_billed_for_what_was_sent(sim: SimulatedProviders) -> None:
    async with openai_client(sim) as client:
        stream = await client.chat.completions.create(model="gpt-5-mini+chunk_ms=20", messages=ASK, stream=True)
        async for _ in stream:
            break
        await stream.close()
    for _ in range(100):
        if sim.bills.log:
            break
        await asyncio.sleep(0.02)
    (bill,) = sim.bills.log
    assert bill.outcome == "left" and 0 < bill.output_tokens < 20 and bill.reported_output_tokens == 0


async def test_a_vendor_refuses_what_the_real_one_does(sim: SimulatedProviders) -> None:
    async with openai_client(sim) as client:
        with pytest.raises(openai.BadRequestError, match="max_completion_tokens"):
            await client.chat.completions.create(model="gpt-5-mini", messages=ASK, max_tokens=5)
    async with anthropic_client(sim) as anthropic_:
        prefill = [*ASK, {"role": "assistant", "content": "Here is"}]
        with pytest.raises(anthropic.BadRequestError, match="prefill"):
            await anthropic_.messages.create(model="claude-opus-4-6", max_tokens=50, messages=prefill)
        continued = await anthropic_.messages.create(model="claude-simulated", max_tokens=500, messages=prefill)
        assert "Here is" + continued.content[0].text == full_text(QUESTION, 40)


def test_every_fault_has_a_word_and_misspelt_ones_are_named() -> None:
    assert {behaviour_of(fault.value).fault for fault in Fault} == set(Fault)
    with pytest.raises(ValueError, match="did you mean 'stall'"):
        behaviour_of("stal")
