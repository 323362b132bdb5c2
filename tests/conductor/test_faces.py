"""Both faces on their own: what they refuse and how they say it, and the bytes they render."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onebeat.conductor.answers import (
    Finished,
    FinishReason,
    Native,
    ProblemKind,
    ProviderProblem,
    ReasoningDelta,
    Report,
    Started,
    StreamEvent,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from onebeat.conductor.faces.anthropic import AnthropicFace
from onebeat.conductor.faces.base import Face
from onebeat.conductor.faces.openai import OpenAIFace
from onebeat.conductor.faces.report import headers_of
from onebeat.conductor.providers.anthropic import AnthropicProvider
from onebeat.conductor.records import Priority, RequestError, Role, ToolResult

USER = {"role": "user", "content": "hi"}
REPORT = Report(model="fleet-name", reason="it won.", attempts=1)
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def refused(face: Face, body: bytes, headers: dict[str, str] | None = None) -> RequestError:
    with pytest.raises(RequestError) as raised:
        face.parse(body, headers or {})
    rendered = face.render_error(raised.value)
    assert rendered.status == 400
    assert raised.value.message in json.loads(rendered.body)["error"]["message"]
    assert raised.value.message.endswith(".") and "$" not in raised.value.message, "a sentence, not a JSON path"
    return raised.value


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"model": 7}, "model", "expected `str`"),
        ({"model": ""}, "model", "length"),
        ({"messages": []}, "messages", "empty"),
        ({"messages": "hi"}, "messages", "expected `array`"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "messages[0].role", "did you mean `user`"),
        ({"messages": [{"content": "x"}]}, "messages[0]", "missing required field `role`"),
        ({"messages": [{"role": "user"}]}, "messages[0]", "content is missing"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0]", "empty list"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages[1]", "neither content nor tool_calls"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]", "no such field"),
        ({"messages": [{"role": "user", "content": [{"type": "txt"}]}]}, "messages[0].content[0].type", "`text`"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
         "messages[0].content[0].image_url.url", "http(s) URL"),
        ({"messages": [USER, {"role": "tool", "tool_call_id": "no", "content": "x"}]},
         "messages[1].tool_call_id", "no earlier"),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages[1]", "no tool_call_id"),
        ({"temperature": 2.5}, "temperature", "<= 2.0"),
        ({"temperature": "hot"}, "temperature", "expected `float"),
        ({"top_p": -1}, "top_p", ">= 0"),
        ({"max_tokens": 0}, "max_tokens", ">= 1"),
        ({"max_tokens": 10**30}, "max_tokens", "expected `int"),
        ({"n": 5}, "n", "one answer a request"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces!"}}]}, "tools[0].function.name", "letters"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing"),
        ({"tool_choice": "always"}, "tool_choice", "known are auto, none, required"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", "names 'g'"),
        ({"tool_choice": "required"}, "tool_choice", "tools is empty"),
        ({"response_format": {"type": "json"}}, "response_format.type", "did you mean `json_"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        ({"reasoning_effort": "hihg"}, "reasoning_effort", "did you mean `high`"),
        ({"onebeat": {"tradeof": 1}}, "onebeat.tradeof", "did you mean `tradeoff`"),
        ({"onebeat": {"tradeoff": 3}}, "onebeat.tradeoff", "<= 1.0"),
        ({"onebeat": []}, "onebeat", "expected `object`"),
    ],
)  # fmt: skip
def test_openai_requests_that_are_refused(fields: dict[str, Any], param: str, says: str) -> None:
    body = {"model": "auto", "messages": [USER], **fields}
    error = refused(OpenAIFace(), json.dumps(body).encode())
    assert (error.param, says in error.message) == (param, True), error.message
    rendered = json.loads(OpenAIFace().render_error(error).body)["error"]
    assert rendered["type"] == "invalid_request_error" and rendered["param"] == param


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"max_tokens": None}, "max_tokens", "missing"),
        ({"messages": []}, "messages", "empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "known are user, assistant, system"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0]", "empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]", "lacks"),
        ({"messages": [{"role": "user", "content": [{"type": "vide"}]}]}, "messages[0].content[0].type", "known are"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}]},
         "messages[0].content[0].tool_use_id", "no earlier"),
        ({"temperature": 1.5}, "temperature", "<= 1.0"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema", "missing"),
        ({"tool_choice": {"type": "tool", "name": "g"}}, "tool_choice", "names 'g'"),
        ({"tool_choice": {"type": "anny"}}, "tool_choice", "did you mean `any`"),
        ({"thinking": {"type": "enabled"}}, "thinking", "budget_tokens"),
    ],
)  # fmt: skip
def test_anthropic_requests_that_are_refused(fields: dict[str, Any], param: str, says: str) -> None:
    body = {"model": "auto", "max_tokens": 10, "messages": [USER], **fields}
    error = refused(AnthropicFace(), json.dumps(body).encode())
    assert (error.param, says in error.message) == (param, True), error.message
    rendered = json.loads(AnthropicFace().render_error(error).body)
    assert rendered["type"] == "error" and rendered["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("face", [OpenAIFace(), AnthropicFace()])
@pytest.mark.parametrize(
    "body", [b"", b"hi", b"[]", b"null", b"\xff\xfe", b'{"model": "a"', b'{"a":' * 5000, b"[" * 10**5]
)
def test_a_body_that_is_no_request(face: Face, body: bytes) -> None:
    refused(face, body)


def test_options_come_from_headers_and_the_body_wins() -> None:
    headers = {"x-onebeat-tradeoff": "0.25", "x-onebeat-priority": "high", "x-onebeat-fallbacks": "a, b"}
    body = {"model": "auto", "messages": [USER], "onebeat": {"tradeoff": 0.75, "deadline_ms": 100}}
    request = OpenAIFace().parse(json.dumps(body).encode(), headers)
    options = request.options
    assert (options.tradeoff, options.deadline_ms, options.priority) == (0.75, 100.0, Priority.HIGH)
    assert options.fallbacks == ("a", "b") and "onebeat" not in request.wire
    error = refused(
        OpenAIFace(), json.dumps({"model": "auto", "messages": [USER]}).encode(), {"x-onebeat-tradeoff": "lots"}
    )
    assert "x-onebeat" in error.message


def test_capabilities_are_seen_wherever_they_hide() -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://x.org/a.png"}}
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    turns = [
        USER,
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [image]}]},
    ]
    body = {"model": "auto", "max_tokens": 9, "messages": turns, "tools": [{"name": "f", "input_schema": {}}]}
    request = AnthropicFace().parse(json.dumps(body).encode(), {})
    assert request.has_images and request.needs_tools and not request.has_audio
    assert request.messages[2].role is Role.USER and isinstance(request.messages[2].parts[0], ToolResult)
    server = AnthropicFace().parse(
        json.dumps({**body, "tools": [{"type": "bash_20250124", "name": "bash"}]}).encode(), {}
    )
    assert server.native_only == "Anthropic's tool type 'bash_20250124'"


def test_the_prompt_that_the_router_reads_is_plain_text() -> None:
    parts = [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}]
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": parts},
        {"role": "assistant", "tool_calls": [CALL]},
    ]
    request = OpenAIFace().parse(json.dumps({"model": "auto", "messages": turns}).encode(), {})
    assert request.as_prompt() == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "Look:"},
        {"role": "assistant", "content": "f({})"},
    ]


def streamed(face: Face, body: dict[str, Any], events: list[StreamEvent]) -> list[dict[str, Any]]:
    request = face.parse(json.dumps(body).encode(), {})
    renderer = face.renderer(request, "fleet-name", created_s=1)
    raw = b"".join(renderer.render(event) for event in events) + renderer.close(Usage(3, 4), REPORT)
    lines = [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: ") and line != b"data: [DONE]"]
    return [json.loads(line) for line in lines]


ANSWER: list[StreamEvent] = [
    Started("x", "vendor-model"),
    ReasoningDelta("hm", signature="sig"),
    TextDelta('say "hi"\n'),
    ToolCallDelta(0, "c.1", "f", ""),
    ToolCallDelta(0, arguments="{}"),
    ToolCallDelta(1, "c2", "g", "{}"),
    Finished(FinishReason.TOOL_CALLS, "STOP"),
]


def test_openai_stream_rendered() -> None:
    frames = streamed(OpenAIFace(), {"model": "auto", "messages": [USER], "stream": True}, ANSWER)
    deltas = [frame["choices"][0]["delta"] for frame in frames]
    assert deltas[:3] == [{"role": "assistant", "content": ""}, {"reasoning_content": "hm"}, {"content": 'say "hi"\n'}]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert [(call["index"], call.get("id")) for call in calls] == [(0, "c.1"), (0, None), (1, "c2")]
    assert frames[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert frames[-1]["onebeat"]["vendor_model"] == "vendor-model"


def test_anthropic_stream_rendered_block_by_block() -> None:
    frames = streamed(AnthropicFace(), {"model": "auto", "max_tokens": 9, "messages": [USER], "stream": True}, ANSWER)
    assert [(frame["type"], frame.get("index")) for frame in frames] == [
        ("message_start", None),
        ("content_block_start", 0), ("content_block_delta", 0), ("content_block_delta", 0), ("content_block_stop", 0),
        ("content_block_start", 1), ("content_block_delta", 1), ("content_block_stop", 1),
        ("content_block_start", 2), ("content_block_delta", 2), ("content_block_stop", 2),
        ("content_block_start", 3), ("content_block_delta", 3), ("content_block_stop", 3),
        ("message_delta", None), ("message_stop", None),
    ]  # fmt: skip
    assert frames[8]["content_block"]["id"] == "c_1", "Anthropic's ids hold no dot"
    assert frames[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}


def test_a_vendors_own_blocks_reach_its_own_clients_with_their_numbers_mended() -> None:
    def raw(kind: str, **fields: Any) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()

    decoder = AnthropicProvider().decoder()
    events = decoder.feed(
        raw("content_block_start", index=5, content_block={"type": "server_tool_use", "id": "s", "name": "web"})
        + raw("content_block_delta", index=5, delta={"type": "input_json_delta", "partial_json": "{}"})
        + raw("content_block_stop", index=5)
        + raw("content_block_start", index=6, content_block={"type": "text", "text": ""})
        + raw("content_block_delta", index=6, delta={"type": "text_delta", "text": "found"})
        + raw("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3})
    )
    assert [event.kind for event in events if isinstance(event, Native)][-1] == "content_block_stop"
    body = {"model": "auto", "max_tokens": 9, "messages": [USER], "stream": True}
    frames = streamed(AnthropicFace(), body, [TextDelta("first"), *events])
    assert [(frame["type"], frame.get("index")) for frame in frames[4:9]] == [
        ("content_block_start", 1), ("content_block_delta", 1), ("content_block_stop", 1),
        ("content_block_start", 2), ("content_block_delta", 2),
    ]  # fmt: skip
    assert frames[4]["content_block"]["name"] == "web"


@pytest.mark.parametrize("kind", list(ProblemKind))
@pytest.mark.parametrize("face", [OpenAIFace(), AnthropicFace()])
def test_every_problem_has_a_shape(face: Face, kind: ProblemKind) -> None:
    rendered = face.render_error(ProviderProblem(kind, "what happened.", retry_after_s=1.2))
    assert 400 <= rendered.status < 600 and rendered.headers["retry-after"] == "2"
    assert json.loads(rendered.body)["error"]["message"] == "what happened."


def test_a_failed_stream_says_so_in_the_clients_own_words() -> None:
    problem = ProviderProblem(ProblemKind.CUT, "the stream was cut.")
    request = OpenAIFace().parse(json.dumps({"model": "auto", "messages": [USER]}).encode(), {})
    failed = OpenAIFace().renderer(request, "m", created_s=1).fail(problem, REPORT)
    assert json.loads(failed.removeprefix(b"data: "))["error"]["code"] == "cut"
    assert b"[DONE]" not in failed, "a client that waits for the last word must not take this for success"
    failed = AnthropicFace().renderer(request, "m", created_s=1).fail(problem)
    assert failed.startswith(b'event: error\ndata: {"type":"error","error":{"type":"api_error"')


def test_headers_hold_nothing_that_could_split_them() -> None:
    headers = headers_of(Report(model="m", reason="a\r\nset-cookie: x \u2603" + "y" * 999, attempts=3, cost_usd=1e-7))
    assert headers["x-onebeat-reason"].startswith("a??set-cookie: x ?") and len(headers["x-onebeat-reason"]) == 500
    assert headers["x-onebeat-cost-usd"] == "0.00000010"
