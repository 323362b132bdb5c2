"""What models of one vendor take, and what becomes of a wish for JSON or for reasoning at each vendor."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from onebeat.conductor.faces.anthropic import AnthropicFace
from onebeat.conductor.faces.openai import OpenAIFace
from onebeat.conductor.providers.anthropic import AnthropicProvider
from onebeat.conductor.providers.anthropic_schema import is_taken
from onebeat.conductor.providers.base import Provider
from onebeat.conductor.providers.gemini import GeminiProvider
from onebeat.conductor.providers.openai import OpenAIProvider
from onebeat.conductor.providers.traits import Traits
from onebeat.conductor.records import ChatRequest

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


@pytest.mark.parametrize(
    ("model", "prefill", "sampling"),
    [
        ("claude-3-5-sonnet-20241022", True, True),
        ("claude-opus-4-20250514", True, True),
        ("claude-haiku-4-5-20251001", True, True),
        ("claude-sonnet-4-5@20250929", True, True),
        ("claude-sonnet-4-6", False, True),
        ("claude-opus-4-7", False, False),
        ("claude-fable-5", False, False),
    ],
)
def test_what_a_claude_model_takes_goes_by_its_name(model: str, prefill: bool, sampling: bool) -> None:
    provider = AnthropicProvider()
    assert provider.takes_prefill(model) is prefill
    assert ("temperature" in sent(provider, chat(temperature=0.5), model)) is sampling
    assert AnthropicProvider(traits=Traits(prefill=not prefill)).takes_prefill(model) is not prefill


@pytest.mark.parametrize(
    ("model", "sampling"),
    [("gpt-5-mini", False), ("gpt-5.1", False), ("o4-mini", False), ("gpt-5-chat-latest", True), ("gpt-4o", True)],
)
def test_what_an_openai_model_takes_goes_by_its_name(model: str, sampling: bool) -> None:
    assert ("temperature" in sent(OpenAIProvider(), chat(temperature=0.5), model)) is sampling
    assert "temperature" in sent(OpenAIProvider(traits=Traits(compatible=True)), chat(temperature=0.5), model)
    assert "temperature" in sent(OpenAIProvider(traits=Traits(sampling=True)), chat(temperature=0.5), model)


def test_json_mode_everywhere() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
    request = chat(response_format=form)
    assert sent(OpenAIProvider(), request)["response_format"] == form
    # An open object is none that Anthropic's structured outputs take; a closed one is, by a model that has them.
    assert '"city"' in sent(AnthropicProvider(), request)["system"]
    closed = chat(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": CLOSED}})
    config = sent(AnthropicProvider(), closed)["output_config"]
    assert config == {"format": {"type": "json_schema", "schema": CLOSED}}
    assert "output_config" not in sent(AnthropicProvider(), closed, "claude-3-5-haiku-20241022")
    assert '"city"' in sent(AnthropicProvider(traits=Traits(json_schema=False)), closed)["system"]
    assert "one JSON object" in sent(AnthropicProvider(), chat(response_format={"type": "json_object"}))["system"]
    gemini = sent(GeminiProvider(), request)["generationConfig"]
    assert gemini == {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA}
    back = messages(output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
    assert sent(OpenAIProvider(), back)["response_format"]["json_schema"]["schema"] == SCHEMA


def test_reasoning_is_said_in_each_vendors_words() -> None:
    thinks = Traits(reasoning=True)
    counts = Traits(reasoning=True, thinking_by_budget=True)
    request = chat(reasoning_effort="high", max_tokens=100)
    body = sent(AnthropicProvider(traits=thinks), request)
    assert (body["thinking"], body["output_config"]) == ({"type": "adaptive"}, {"effort": "high"})
    body = sent(AnthropicProvider(traits=counts), request)
    assert body["thinking"] == {"type": "enabled", "budget_tokens": 16384} and body["max_tokens"] > 16384
    config = sent(GeminiProvider(traits=thinks), request)["generationConfig"]
    assert config["thinkingConfig"] == {"thinkingLevel": "HIGH", "includeThoughts": True}
    config = sent(GeminiProvider(traits=counts), request)["generationConfig"]
    assert config["thinkingConfig"] == {"thinkingBudget": 16384, "includeThoughts": True}
    budgeted = messages(thinking={"type": "enabled", "budget_tokens": 4000}, max_tokens=9000)
    assert sent(OpenAIProvider(traits=thinks), budgeted)["reasoning_effort"] == "medium"
    assert "reasoning_effort" not in sent(OpenAIProvider(), budgeted)


@pytest.mark.parametrize(
    ("schema", "taken"),
    [
        ({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}, True),
        ({"type": "object", "properties": {"a": {"type": "string"}}}, False),
        ({"type": "object", "additionalProperties": False}, False),
        ({"type": "object", "properties": {"a": {"minimum": 1}}, "additionalProperties": False}, False),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}, "additionalProperties": False,
          "$defs": {"b": {"type": "object", "properties": {"c": {}}}}}, False),
        ({"type": "array", "items": {"enum": [1, 2]}, "minItems": 1}, True),
        ({"type": "array", "items": {"type": "string"}, "minItems": 2}, False),
        ({"type": "string", "format": "email"}, True),
        ({"type": "string", "format": "phone"}, False),
        ([], False),
    ],
)  # fmt: skip
def test_schemas_that_structured_outputs_take(schema: object, taken: bool) -> None:
    assert is_taken(msgspec.Raw(json.dumps(schema).encode())) is taken
