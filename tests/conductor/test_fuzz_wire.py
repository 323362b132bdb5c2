"""Fuzzing: whatever comes, a face gives a request or a `RequestError`, a decoder events, and neither anything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onebeat.conductor.answers import Finished, ProblemKind, ProviderError, ProviderProblem
from onebeat.conductor.faces.anthropic import AnthropicFace
from onebeat.conductor.faces.base import Face
from onebeat.conductor.faces.openai import OpenAIFace
from onebeat.conductor.providers.anthropic import AnthropicProvider
from onebeat.conductor.providers.base import Provider
from onebeat.conductor.providers.gemini import GeminiProvider
from onebeat.conductor.providers.openai import OpenAIProvider
from onebeat.conductor.providers.traits import Traits
from onebeat.conductor.records import ChatRequest, RequestError

RELAXED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FACES = [OpenAIFace(), AnthropicFace()]
PROVIDERS: list[Provider] = [
    OpenAIProvider("k"),
    OpenAIProvider(traits=Traits(compatible=True, reasoning=True)),
    AnthropicProvider("k", traits=Traits(reasoning=True)),
    AnthropicProvider(traits=Traits(reasoning=True, thinking_by_budget=True, json_schema=False)),
    GeminiProvider("k", traits=Traits(reasoning=True)),
]
KEYS = st.sampled_from(
    "role content type text model messages tools tool_choice function name arguments id tool_calls tool_call_id"  # noqa: SIM905
    " image_url url source data media_type tool_use_id input system stream max_tokens stop temperature onebeat"
    " response_format json_schema schema input_schema thinking budget_tokens stream_options n file input_audio".split()
)
WORDS = st.sampled_from(
    "user assistant system tool function text image_url tool_use tool_result thinking image auto enabled base64"  # noqa: SIM905
    " json_schema data:image/png;base64,QQ== https://x.org/a.png a \ud83d c1 {} [] file document input_audio".split()
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS | st.text(max_size=8)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=25
)
GOOD: list[dict[str, Any]] = [
    {
        "model": "auto",
        "max_tokens": 100,
        "stream": True,
        "temperature": 0.5,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "done"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
        "stop": ["x"],
        "onebeat": {"tradeoff": 0.5},
    },
    {
        "model": "auto",
        "max_tokens": 100,
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "t", "signature": "s"},
                {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "done"}]}]},
        ],
        "tools": [{"name": "f", "input_schema": {}}],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
    },
]  # fmt: skip


def read_and_sent(face: Face, body: bytes) -> ChatRequest | None:
    """The request, after every provider has had to write it; None where the face refused it in good form."""
    try:
        request = face.parse(body, {})
    except RequestError as error:
        rendered = face.render_error(error)
        assert rendered.status == 400 and json.loads(rendered.body)["error"]["message"] == error.message
        return None
    for provider in PROVIDERS:
        for changed in (request, request.with_messages(request.messages)):
            try:
                built = provider.build_request(changed, "some-model", stream=request.stream)
            except ProviderError as error:
                assert error.problem.kind is ProblemKind.UNSUPPORTED
                continue
            assert isinstance(json.loads(built.body), dict)
    return request


@pytest.mark.parametrize("face", FACES)
def test_the_good_requests_are_good(face: Face) -> None:
    assert read_and_sent(face, json.dumps(GOOD[FACES.index(face)]).encode()) is not None


@RELAXED
@given(st.sampled_from(FACES), st.dictionaries(KEYS, TREES, max_size=6))
def test_any_json(face: Face, body: dict[str, Any]) -> None:
    read_and_sent(face, json.dumps(body).encode())


@RELAXED
@given(st.sampled_from(FACES), st.data())
def test_a_good_request_with_one_thing_wrong(face: Face, data: st.DataObject) -> None:
    body = json.loads(json.dumps(GOOD[FACES.index(face)]))
    node: Any = body
    for _ in range(data.draw(st.integers(1, 6))):
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or data.draw(st.booleans()):
            node[key] = data.draw(TREES)
            break
        node = node[key]
    read_and_sent(face, json.dumps(body).encode())


@RELAXED
@given(st.sampled_from(FACES), st.binary(max_size=200))
def test_any_bytes(face: Face, body: bytes) -> None:
    read_and_sent(face, body)


@RELAXED
@given(st.sampled_from(FACES), st.integers(0, 2000), st.binary(max_size=3), st.integers(0, 5))
def test_a_good_request_with_bytes_replaced(face: Face, at: int, put: bytes, drop: int) -> None:
    body = json.dumps(GOOD[FACES.index(face)]).encode()
    read_and_sent(face, body[:at] + put + body[at + drop :])


CHUNKS = st.one_of(
    st.binary(max_size=60),
    TREES.map(lambda tree: b"data: " + json.dumps(tree).encode() + b"\n\n"),
    st.sampled_from(
        [
            b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n',
            b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
            b"data: [DONE]\n\n",
            b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n',
            b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}}\n\n',
            b'data: {"candidates":[{"content":{"parts":[{"text":"x"}]},"finishReason":"STOP"}]}\r\n\r\n',
            b'{"error":{"message":"m"}}',
            b"\r",
            b"\n\n",
        ]
    ),
)


@RELAXED
@given(st.sampled_from(PROVIDERS), st.lists(CHUNKS, max_size=8))
def test_any_stream_ends_in_a_finish_or_in_one_problem(provider: Provider, chunks: list[bytes]) -> None:
    decoder = provider.decoder()
    events = [event for chunk in chunks for event in decoder.feed(chunk)] + decoder.close()
    problems = [event for event in events if isinstance(event, ProviderProblem)]
    assert len(problems) <= 1
    if problems:
        assert events[-1] is problems[0]
    else:
        assert any(isinstance(event, Finished) for event in events)


@RELAXED
@given(
    st.sampled_from(PROVIDERS),
    st.integers(300, 599),
    st.binary(max_size=200) | TREES.map(lambda t: json.dumps(t).encode()),
)
def test_any_error_body_is_a_problem(provider: Provider, status: int, body: bytes) -> None:
    assert provider.parse_error(status, {"retry-after": body.decode("latin-1")}, body).message


@RELAXED
@given(st.sampled_from(PROVIDERS), st.binary(max_size=100) | TREES.map(lambda t: json.dumps(t).encode()))
def test_any_whole_body_is_an_answer_or_a_problem(provider: Provider, body: bytes) -> None:
    try:
        provider.parse_response(body)
    except ProviderError as error:
        assert error.problem.message
