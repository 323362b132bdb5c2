"""Answers, streamed and whole, of every vendor: every ending, good and bad, cut anywhere."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onebeat.conductor.answers import (
    Finished,
    FinishReason,
    Native,
    Ping,
    ProblemKind,
    ProviderError,
    ProviderProblem,
    ReasoningDelta,
    Started,
    StreamEvent,
    TextDelta,
    ToolCallDelta,
    Usage,
    UsageReport,
)
from onebeat.conductor.assemble import AnswerBuilder, events_of
from onebeat.conductor.providers.anthropic import AnthropicProvider
from onebeat.conductor.providers.base import AudioUpload, Provider
from onebeat.conductor.providers.gemini import GeminiProvider
from onebeat.conductor.providers.openai import OpenAIProvider


def data(*payloads: Any) -> bytes:
    return b"".join(b"data: " + (p if isinstance(p, bytes) else json.dumps(p).encode()) + b"\n\n" for p in payloads)


def decoded(provider: Provider, body: bytes, *, cut: int | None = None) -> list[StreamEvent]:
    decoder = provider.decoder()
    pieces = [body] if cut is None else [body[i : i + cut] for i in range(0, len(body), cut)]
    return [event for piece in pieces for event in decoder.feed(piece)] + decoder.close()


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "id": "c",
        "model": "m-2026",
        "choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}],
        **more,
    }


@pytest.mark.parametrize("cut", [None, 1, 7])
def test_openai_stream(cut: int | None) -> None:
    call = {"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": ""}}
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4},
             "completion_tokens_details": {"reasoning_tokens": 2}}  # fmt: skip
    body = b": hello\n\n" + data(
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "hm"}),
        chunk({"content": "Grüß"}),
        chunk({"tool_calls": [call]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}),
        chunk(None, "tool_calls"),
        {"id": "c", "model": "m-2026", "choices": [], "usage": usage},
        b"[DONE]",
    )
    events = [event for event in decoded(OpenAIProvider(), body, cut=cut) if not isinstance(event, Ping)]
    assert events == [
        Started("c", "m-2026"),
        ReasoningDelta("hm"),
        TextDelta("Grüß"),
        ToolCallDelta(0, "t", "f", ""),
        ToolCallDelta(0, None, None, "{}"),
        Finished(FinishReason.TOOL_CALLS, "tool_calls"),
        UsageReport(Usage(9, 5, cached_input_tokens=4, reasoning_tokens=2)),
    ]


def test_openai_tool_calls_without_an_index_are_told_apart() -> None:
    def call(call_id: str, name: str) -> dict[str, Any]:
        return chunk({"tool_calls": [{"id": call_id, "function": {"name": name, "arguments": "{}"}}]})

    events = decoded(OpenAIProvider(), data(call("a", "f"), call("b", "g"), chunk(None, "tool_calls"), b"[DONE]"))
    assert [event.index for event in events if isinstance(event, ToolCallDelta)] == [0, 1]


def problem_in(events: list[StreamEvent]) -> ProviderProblem:
    (problem,) = [event for event in events if isinstance(event, ProviderProblem)]
    assert events[-1] is problem, "nothing follows a problem"
    return problem


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (data(chunk({"content": "half"})), ProblemKind.CUT),
        (data(chunk({"content": "half"}), b"[DONE]"), ProblemKind.CUT),
        (data(chunk({"content": "half"}))[:-9], ProblemKind.CUT),
        (b"", ProblemKind.CUT),
        (data(chunk({"content": "half"}), b'{"choices": [{"delta": {"con'), ProblemKind.MALFORMED),
        (data(b'{"choices": [{"delta": {"content": "\xff\xfe"}}]}'), ProblemKind.MALFORMED),
        (data(b'{"choices": 7}'), ProblemKind.MALFORMED),
        (data(b"[" * 100_000), ProblemKind.MALFORMED),
        (b"<html>Welcome</html>", ProblemKind.SERVER_ERROR),
        (data({"error": {"message": "boom", "type": "server_error", "code": None}}), ProblemKind.SERVER_ERROR),
        (data({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}), ProblemKind.RATE_LIMITED),
        (b'{"error": {"message": "too long", "code": "context_length_exceeded"}}', ProblemKind.CONTEXT_OVERFLOW),
        (data({"object": "error", "message": "boom", "code": 400}), ProblemKind.INVALID_REQUEST),
    ],
)
def test_openai_streams_that_end_badly(body: bytes, kind: ProblemKind) -> None:
    assert problem_in(decoded(OpenAIProvider(), body)).kind is kind


def test_a_missing_last_word_is_no_problem_after_a_finish_reason() -> None:
    events = decoded(OpenAIProvider(), data(chunk({"content": "whole"}), chunk(None, "stop")))
    assert events[-1] == Finished(FinishReason.STOP, "stop")


def test_a_server_that_ignores_stream_is_understood() -> None:
    message = {"role": "assistant", "content": "whole"}
    body = {"id": "c", "model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    events = decoded(OpenAIProvider(), json.dumps(body).encode(), cut=10)
    assert events[1:3] == [TextDelta("whole"), Finished(FinishReason.STOP, "stop")]


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def start(**usage: int) -> bytes:
    message = {"id": "msg", "model": "claude-x", "role": "assistant", "type": "message", "content": [], "usage": usage}
    return event("message_start", message=message)


@pytest.mark.parametrize("cut", [None, 1, 11])
def test_anthropic_stream(cut: int | None) -> None:
    body = b"".join(
        [
            start(input_tokens=10, cache_read_input_tokens=100, cache_creation_input_tokens=7, output_tokens=1),
            event("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""}),
            event("ping"),
            event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "hm"}),
            event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "sig"}),
            event("content_block_stop", index=0),
            event("content_block_start", index=1, content_block={"type": "server_tool_use", "id": "s", "name": "web"}),
            event("content_block_stop", index=1),
            event("something_new", index=9),
            event("content_block_start", index=2, content_block={"type": "text", "text": ""}),
            event("content_block_delta", index=2, delta={"type": "text_delta", "text": "Grüß"}),
            event("content_block_stop", index=2),
            event(
                "content_block_start", index=3, content_block={"type": "tool_use", "id": "t", "name": "f", "input": {}}
            ),
            event("content_block_delta", index=3, delta={"type": "input_json_delta", "partial_json": '{"a"'}),
            event("content_block_delta", index=3, delta={"type": "input_json_delta", "partial_json": ": 1}"}),
            event("content_block_stop", index=3),
            event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 42}),
            event("message_stop"),
        ]
    )
    events = decoded(AnthropicProvider(), body, cut=cut)
    assert [type(each) for each in events if isinstance(each, Native)] == [Native, Native]
    assert [each for each in events if not isinstance(each, Ping | Native)] == [
        Started("msg", "claude-x"),
        UsageReport(Usage(117, 1, cached_input_tokens=100, cache_write_tokens=7)),
        ReasoningDelta("hm"),
        ReasoningDelta("", signature="sig"),
        TextDelta("Grüß"),
        ToolCallDelta(0, "t", "f", ""),
        ToolCallDelta(0, arguments='{"a"'),
        ToolCallDelta(0, arguments=": 1}"),
        Finished(FinishReason.TOOL_CALLS, "tool_use"),
        UsageReport(Usage(117, 42, cached_input_tokens=100, cache_write_tokens=7)),
    ]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (start() + event("error", error={"type": "overloaded_error", "message": "Overloaded"}), ProblemKind.OVERLOADED),
        (start(), ProblemKind.CUT),
        (start() + event("message_stop"), ProblemKind.CUT),
        (start() + b"event: content_block_delta\ndata: {broken\n\n", ProblemKind.MALFORMED),
        (b'{"type": "error", "error": {"type": "overloaded_error", "message": "m"}}', ProblemKind.OVERLOADED),
    ],
)
def test_anthropic_streams_that_end_badly(body: bytes, kind: ProblemKind) -> None:
    assert problem_in(decoded(AnthropicProvider(), body)).kind is kind


def gemini(parts: list[dict[str, Any]], finish: str | None = None, **usage: int) -> dict[str, Any]:
    candidate = {"content": {"role": "model", "parts": parts}} | ({"finishReason": finish} if finish else {})
    return {"candidates": [candidate], "modelVersion": "gemini-x", "responseId": "r", "usageMetadata": usage}


def test_gemini_stream() -> None:
    call = {"functionCall": {"name": "f", "args": {"a": 1}, "id": "given"}, "thoughtSignature": "sig"}
    body = data(
        gemini([{"text": "hm", "thought": True}], promptTokenCount=9, thoughtsTokenCount=3),
        gemini([{"text": "Grüß"}], promptTokenCount=9, thoughtsTokenCount=3, candidatesTokenCount=1),
        gemini([call], "STOP", promptTokenCount=9, cachedContentTokenCount=4, thoughtsTokenCount=3,
               candidatesTokenCount=8, toolUsePromptTokenCount=2),
    ).replace(b"\n", b"\r\n")  # fmt: skip
    events = decoded(GeminiProvider(), body, cut=5)
    usage = Usage(11, 11, cached_input_tokens=4, reasoning_tokens=3)
    assert [each for each in events if not isinstance(each, UsageReport)] == [
        Started("r", "gemini-x"),
        ReasoningDelta("hm"),
        TextDelta("Grüß"),
        ToolCallDelta(0, "given", "f", '{"a": 1}', "sig"),
        Finished(FinishReason.TOOL_CALLS, "STOP"),
    ]
    assert [each for each in events if isinstance(each, UsageReport)][-1].usage == usage


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (data({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {}}), ProblemKind.CONTENT_POLICY),
        (data({"error": {"code": 503, "status": "UNAVAILABLE", "message": "m"}}), ProblemKind.OVERLOADED),
        (b'{"error": {"code": 503, "status": "UNAVAILABLE", "message": "m"}}', ProblemKind.OVERLOADED),
        (data(gemini([{"text": "half"}])), ProblemKind.CUT),
        (data({"usageMetadata": {}}), ProblemKind.CUT),
    ],
)
def test_gemini_streams_that_end_badly(body: bytes, kind: ProblemKind) -> None:
    assert problem_in(decoded(GeminiProvider(), body)).kind is kind


@pytest.mark.parametrize("finish", ["SAFETY", "PROHIBITED_CONTENT", "RECITATION"])
def test_gemini_says_when_its_filter_cut_the_answer(finish: str) -> None:
    answer = GeminiProvider().parse_response(json.dumps(gemini([{"text": "half"}], finish)).encode())
    assert (answer.finish, answer.raw_finish) == (FinishReason.CONTENT_FILTER, finish)


@pytest.mark.parametrize("provider", [OpenAIProvider(), AnthropicProvider(), GeminiProvider()])
@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"<html>", b'{"choices": []}', b'{"candidates": []}', b"{" * 9999])
def test_a_broken_whole_answer_is_malformed(provider: Provider, body: bytes) -> None:
    with pytest.raises(ProviderError) as raised:
        provider.parse_response(body)
    assert raised.value.problem.kind is ProblemKind.MALFORMED


def test_an_error_inside_a_whole_200_is_that_error() -> None:
    with pytest.raises(ProviderError) as raised:
        OpenAIProvider().parse_response(b'{"error": {"message": "m", "code": "insufficient_quota"}}')
    assert raised.value.problem.kind is ProblemKind.QUOTA_EXHAUSTED
    with pytest.raises(ProviderError) as raised:
        AnthropicProvider().parse_response(b'{"type": "error", "error": {"type": "overloaded_error", "message": "m"}}')
    assert raised.value.problem.kind is ProblemKind.OVERLOADED
    with pytest.raises(ProviderError) as raised:
        GeminiProvider().parse_response(b'{"promptFeedback": {"blockReason": "SAFETY"}}')
    assert raised.value.problem.kind is ProblemKind.CONTENT_POLICY


def test_an_answer_taken_apart_and_put_together_is_the_same() -> None:
    call = {"functionCall": {"name": "f", "args": {"a": 1}, "id": "x"}}
    body = json.dumps(gemini([{"text": "hm", "thought": True}, {"text": "text"}, call], "STOP")).encode()
    answer = GeminiProvider().parse_response(body)
    builder = AnswerBuilder()
    for each in events_of(answer):
        builder.add(each)
    assert builder.answer().parts == answer.parts and builder.answer().finish is answer.finish


def test_a_transcription_is_a_form_that_nobody_can_break_out_of() -> None:
    upload = AudioUpload('a"\r\nx: y.wav', "audio/wav", b"RIFF\r\n--", (("language", "de"),))
    built = OpenAIProvider("k").build_transcription(upload, "whisper-1")
    boundary = built.headers["content-type"].partition("boundary=")[2].encode()
    parts = built.body.split(b"--" + boundary)
    assert [part.partition(b"\r\n\r\n")[2] for part in parts[1:-1]] == [b"whisper-1\r\n", b"de\r\n", b"RIFF\r\n--\r\n"]
    assert b'filename="a%22%0D%0Ax: y.wav"' in built.body
    with pytest.raises(ProviderError, match="no transcription"):
        AnthropicProvider().build_transcription(upload, "m")
