"""Requests, from either face to every vendor: exact bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onebeat.conductor.answers import (
    ProblemKind,
    ProviderError,
)
from onebeat.conductor.faces.anthropic import AnthropicFace
from onebeat.conductor.faces.openai import OpenAIFace
from onebeat.conductor.providers.anthropic import AnthropicProvider
from onebeat.conductor.providers.base import Provider
from onebeat.conductor.providers.gemini import GeminiProvider
from onebeat.conductor.providers.openai import OpenAIProvider
from onebeat.conductor.providers.traits import Traits
from onebeat.conductor.records import ChatRequest, Message, Role, Text

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}

CLOSED = SCHEMA | {"additionalProperties": False}


def chat(**fields: Any) -> ChatRequest:
    body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], **fields}
    return OpenAIFace().parse(json.dumps(body).encode(), {})


def messages(**fields: Any) -> ChatRequest:
    body = {"model": "auto", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}], **fields}
    return AnthropicFace().parse(json.dumps(body).encode(), {"anthropic-beta": "some-beta-2026-01-01"})


def sent(provider: Provider, request: ChatRequest, model: str = "m", *, stream: bool = False) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(provider.build_request(request, model, stream=stream).body)
    return body


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Look:"},
            {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,QUJD", "detail": "low"}},
            {"type": "image_url", "image_url": {"url": "https://x.org/cat.webp?size=1"}},
        ],
    },
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a.1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
            {"id": "a2", "type": "function", "function": {"name": "weather", "arguments": '{"city": '}},
        ],
    },
    {"role": "tool", "tool_call_id": "a.1", "content": "sunny"},
    {"role": "tool", "tool_call_id": "a2", "content": '{"sky": "grey"}'},
    {"role": "user", "content": "Thanks."},
]


def test_openai_to_openai_keeps_every_field_the_client_wrote() -> None:
    request = chat(messages=CONVERSATION, verbosity="low", logit_bias={"50256": -100}, stream=True, temperature=0.5)
    body = sent(OpenAIProvider(), request, "gpt-x", stream=True)
    assert body == {
        "model": "gpt-x",
        "messages": CONVERSATION,
        "verbosity": "low",
        "logit_bias": {"50256": -100},
        "stream": True,
        "temperature": 0.5,
        "stream_options": {"include_usage": True},
    }


def test_stream_options_are_merged_and_left_out_where_nothing_is_streamed() -> None:
    request = chat(stream=True, stream_options={"include_obfuscation": False})
    assert sent(OpenAIProvider(), request, stream=True)["stream_options"] == {
        "include_obfuscation": False,
        "include_usage": True,
    }
    assert "stream_options" not in sent(OpenAIProvider(), request, stream=False)


def test_the_word_for_the_limit_goes_by_the_server() -> None:
    request = chat(max_tokens=5)
    assert sent(OpenAIProvider(), request)["max_completion_tokens"] == 5
    assert "max_tokens" not in sent(OpenAIProvider(), request)
    compatible = OpenAIProvider(traits=Traits(compatible=True))
    assert sent(compatible, chat(max_completion_tokens=5))["max_tokens"] == 5
    assert sent(compatible, chat(messages=[{"role": "developer", "content": "x"}]))["messages"][0]["role"] == "system"


def test_models_without_sampling_get_none() -> None:
    traits = Traits(sampling=False, reasoning=False)
    body = sent(OpenAIProvider(traits=traits), chat(temperature=0.1, top_p=0.2, reasoning_effort="low", seed=3))
    assert body["seed"] == 3 and not {"temperature", "top_p", "reasoning_effort"} & set(body)


def test_changed_messages_are_written_and_unchanged_ones_sent_as_they_came() -> None:
    odd = {"role": "user", "content": "hi", "some_new_field": 1}
    request = chat(messages=[odd, *CONVERSATION])
    shortened = request.with_messages([request.messages[0], Message(Role.USER, (Text("new"),))])
    assert sent(OpenAIProvider(), shortened)["messages"] == [odd, {"role": "user", "content": "new"}]


def test_openai_to_anthropic() -> None:
    tools = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA}}]
    request = chat(
        messages=CONVERSATION, tools=tools, tool_choice="required", parallel_tool_calls=False, temperature=1.7,
        top_p=0.3, stop=["END"], user="u1", max_tokens=64,
    )  # fmt: skip
    assert sent(AnthropicProvider(), request, "claude-haiku-4-5", stream=True) == {
        "model": "claude-haiku-4-5",
        "stream": True,
        "max_tokens": 64,
        "temperature": 1.0,
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u1"},
        "system": "Be brief.",
        "tools": [{"name": "weather", "description": "d", "input_schema": SCHEMA}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look:"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "QUJD"}},
                    {"type": "image", "source": {"type": "url", "url": "https://x.org/cat.webp?size=1"}},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": "a_1", "name": "weather", "input": {"city": "Rome"}},
                    {"type": "tool_use", "id": "a2", "name": "weather", "input": {"arguments": '{"city": '}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "a_1", "content": "sunny"},
                    {"type": "tool_result", "tool_use_id": "a2", "content": '{"sky": "grey"}'},
                    {"type": "text", "text": "Thanks."},
                ],
            },
        ],
    }


def test_openai_to_gemini() -> None:
    tools = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA}}]
    choice = {"type": "function", "function": {"name": "weather"}}
    request = chat(messages=CONVERSATION, tools=tools, tool_choice=choice, max_tokens=64, stop="END", seed=4, top_p=0.5)
    built = GeminiProvider("secret").build_request(request, "gemini-3-flash", stream=True)
    assert built.path == "/v1beta/models/gemini-3-flash:streamGenerateContent?alt=sse"
    assert built.headers["x-goog-api-key"] == "secret" and "secret" not in built.path
    body = json.loads(built.body)
    unsigned = sent(GeminiProvider(), request, "gemini-2.5-flash")["contents"][1]["parts"][0]
    assert "thoughtSignature" in body["contents"][1]["parts"][0] and "thoughtSignature" not in unsigned
    assert body == {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [
            {
                "role": "user",
                "parts": [
                    {"text": "Look:"},
                    {"inlineData": {"mimeType": "image/jpeg", "data": "QUJD"}},
                    {"fileData": {"mimeType": "image/webp", "fileUri": "https://x.org/cat.webp?size=1"}},
                ],
            },
            {
                "role": "model",
                "parts": [
                    {
                        "functionCall": {"name": "weather", "args": {"city": "Rome"}},
                        "thoughtSignature": "skip_thought_signature_validator",
                    },
                    {"functionCall": {"name": "weather", "args": {"arguments": '{"city": '}}},
                ],
            },
            {
                "role": "user",
                "parts": [
                    {"functionResponse": {"name": "weather", "response": {"result": "sunny"}}},
                    {"functionResponse": {"name": "weather", "response": {"sky": "grey"}}},
                    {"text": "Thanks."},
                ],
            },
        ],
        "tools": [{"functionDeclarations": [{"name": "weather", "description": "d", "parametersJsonSchema": SCHEMA}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["weather"]}},
        "generationConfig": {"topP": 0.5, "seed": 4, "maxOutputTokens": 64, "stopSequences": ["END"]},
    }


def test_anthropic_to_openai() -> None:
    request = messages(
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        tools=[{"name": "weather", "input_schema": SCHEMA, "strict": True}],
        tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        stop_sequences=["END"],
        messages=[
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "Let me look."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t1",
                        "content": [
                            {"type": "text", "text": "see"},
                            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}},
                        ],
                    },
                    {"type": "text", "text": "So?"},
                ],
            },
        ],
    )
    assert sent(OpenAIProvider(), request, "gpt-x") == {
        "model": "gpt-x",
        "stream": False,
        "max_completion_tokens": 100,
        "stop": ["END"],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": "Let me look.",
                "tool_calls": [
                    {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "see"},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
                    {"type": "text", "text": "So?"},
                ],
            },
        ],
    }


def test_anthropic_to_anthropic_keeps_every_field_and_its_betas() -> None:
    given = {"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}
    request = messages(system=[given], thinking={"type": "adaptive"}, service_tier="auto", temperature=1.0)
    built = AnthropicProvider("k").build_request(request, "claude-opus-5", stream=False)
    body = json.loads(built.body)
    assert built.headers["anthropic-beta"] == "some-beta-2026-01-01" and built.headers["x-api-key"] == "k"
    assert body["system"] == [given] and body["service_tier"] == "auto" and body["thinking"] == {"type": "adaptive"}
    assert "temperature" not in body, "Claude 5 refuses sampling settings"
    shortened = request.with_messages([request.messages[0], Message(Role.USER, (Text("new"),))])
    body = sent(AnthropicProvider(), shortened)
    assert body["system"] == [given]
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "new"}]}]


@pytest.mark.parametrize(
    ("provider", "request_", "what"),
    [
        (AnthropicProvider(), chat(stop=["\n"]), "white space"),
        (GeminiProvider(), chat(stop=list("abcdef")), "at most 5"),
        (AnthropicProvider(), chat(web_search_options={}), "web search"),
        (OpenAIProvider(), messages(tools=[{"type": "web_search_20250305", "name": "web_search"}]), "web_search"),
        (
            AnthropicProvider(),
            chat(
                messages=[
                    {
                        "role": "user",
                        "content": [{"type": "input_audio", "input_audio": {"data": "QQ==", "format": "wav"}}],
                    }
                ]
            ),
            "sound",
        ),
    ],
)
def test_what_a_vendor_cannot_say_is_refused_before_it_is_sent(
    provider: Provider, request_: ChatRequest, what: str
) -> None:
    with pytest.raises(ProviderError, match=what) as raised:
        provider.build_request(request_, "m", stream=False)
    assert raised.value.problem.kind is ProblemKind.UNSUPPORTED


def test_a_prefill_is_sent_to_continue() -> None:
    prefilled = chat().with_messages([Message(Role.USER, (Text("hi"),)), Message(Role.ASSISTANT, (Text("Once "),))])
    tail = sent(AnthropicProvider(), prefilled)["messages"][-1]
    assert tail == {"role": "assistant", "content": [{"type": "text", "text": "Once"}]}
    body = sent(OpenAIProvider(traits=Traits(compatible=True)), prefilled)
    assert body["continue_final_message"] is True and body["messages"][-1]["content"] == "Once "
    assert "continue_final_message" not in sent(OpenAIProvider(), prefilled)
