"""The face that Anthropic's clients see: messages, their stream events and errors.

Enters: events, answers, problems, and onebeat's `Report`. Leaves: bytes. onebeat's own block goes into a field
`onebeat` beside `usage`, which Anthropic's SDKs keep without looking at it.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping

import msgspec

from onebeat.conductor.answers import (
    Answer,
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
    UsageReport,
)
from onebeat.conductor.faces import anthropic_request
from onebeat.conductor.faces.base import HttpError
from onebeat.conductor.faces.report import block_of
from onebeat.conductor.providers.anthropic_messages import input_of, tool_id
from onebeat.conductor.records import ChatRequest, RequestError, Text, Thinking, ToolCall, WireFormat

_encode = msgspec.json.Encoder().encode
FINISH = {
    FinishReason.STOP: "end_turn",
    FinishReason.STOP_SEQUENCE: "stop_sequence",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.TOOL_CALLS: "tool_use",
    FinishReason.CONTENT_FILTER: "refusal",
    FinishReason.REFUSAL: "refusal",
    FinishReason.PAUSE: "pause_turn",
    FinishReason.CONTEXT_FULL: "model_context_window_exceeded",
    FinishReason.MALFORMED_TOOL_CALL: "end_turn",
    FinishReason.UNKNOWN: "end_turn",
}
_STATUS = {
    ProblemKind.RATE_LIMITED: (429, "rate_limit_error"),
    ProblemKind.QUOTA_EXHAUSTED: (429, "rate_limit_error"),
    ProblemKind.OVERLOADED: (529, "overloaded_error"),
    ProblemKind.CONTEXT_OVERFLOW: (400, "invalid_request_error"),
    ProblemKind.CONTENT_POLICY: (400, "invalid_request_error"),
    ProblemKind.INVALID_REQUEST: (400, "invalid_request_error"),
    ProblemKind.UNSUPPORTED: (400, "invalid_request_error"),
    ProblemKind.PREFILL_REFUSED: (400, "invalid_request_error"),
    ProblemKind.NOT_FOUND: (404, "not_found_error"),
    ProblemKind.TIMEOUT: (504, "timeout_error"),
    ProblemKind.DEADLINE: (504, "timeout_error"),
    ProblemKind.STALLED: (504, "timeout_error"),
}
_OF_STATUS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class AnthropicFace:
    """See `conductor.faces.base.Face`."""

    format = WireFormat.ANTHROPIC

    def parse(self, body: bytes, headers: Mapping[str, str]) -> ChatRequest:
        return anthropic_request.parse(body, headers)

    def parse_count(self, body: bytes, headers: Mapping[str, str]) -> ChatRequest:
        """`POST /v1/messages/count_tokens`: as a message, without the length of its answer."""
        return anthropic_request.parse(body, headers, is_count=True)

    def render_answer(self, answer: Answer, report: Report, *, created_s: int) -> bytes:
        block = block_of(report, answer.model)
        if answer.format is WireFormat.ANTHROPIC and answer.wire:
            return _encode({**answer.wire, "model": report.model, "onebeat": block})
        return _encode(
            {
                "id": answer.id or new_id(),
                "type": "message",
                "role": "assistant",
                "model": report.model,
                "content": [block_of_part(part) for part in answer.parts if not isinstance(part, Text) or part.text],
                "stop_reason": FINISH[answer.finish],
                "stop_sequence": answer.stop_sequence,
                "usage": usage_of(answer.usage),
                "onebeat": block,
            }
        )

    def renderer(self, request: ChatRequest, model: str, *, created_s: int) -> AnthropicStream:
        return AnthropicStream(model)

    def render_error(self, error: RequestError | ProviderProblem) -> HttpError:
        headers = {"content-type": "application/json"}
        if error.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
        if isinstance(error, ProviderProblem):
            status, kind = _STATUS.get(error.kind, (502, "api_error"))
        else:
            default = "invalid_request_error" if error.status < 500 else "api_error"
            status, kind = error.status, _OF_STATUS.get(error.status, default)
        return HttpError(status, headers, _encode(_error(kind, error.message)))


def _error(kind: str, message: str) -> dict[str, object]:
    return {"type": "error", "error": {"type": kind, "message": message}}


def new_id() -> str:
    return f"msg_{secrets.token_hex(12)}"


def usage_of(usage: Usage) -> dict[str, object]:
    written: dict[str, object] = {
        "input_tokens": usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_input_tokens,
        "output_tokens": usage.output_tokens,
    }
    if usage.reasoning_tokens:
        written["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return written


def block_of_part(part: Text | ToolCall | Thinking) -> dict[str, object]:
    """A block of an answer. Thinking of another vendor has no signature: an empty one says that it cannot go back."""
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, ToolCall):
        return {"type": "tool_use", "id": tool_id(part.id), "name": part.name, "input": input_of(part.arguments)}
    if part.redacted is not None:
        return {"type": "redacted_thinking", "data": part.redacted}
    return {"type": "thinking", "thinking": part.text, "signature": part.signature or ""}


def _event(kind: str, body: Mapping[str, object]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + _encode({"type": kind, **body}) + b"\n\n"


class AnthropicStream:
    """One streamed answer: blocks are opened, numbered and closed here, whoever's events they come from."""

    __slots__ = ("_finished", "_id", "_index", "_is_begun", "_kind", "_native", "_usage", "_vendor_model", "model")

    def __init__(self, model: str) -> None:
        self.model = model
        self._id = new_id()
        self._is_begun = False
        self._index = -1
        # The open block: a kind, or a call's number; None when there is none.
        self._kind: str | int | None = None
        # The vendor's numbers of blocks that are sent on as they are.
        self._native: dict[bytes, int] = {}
        self._usage = Usage()
        self._finished: Finished | None = None
        self._vendor_model = ""

    def render(self, event: StreamEvent) -> bytes:
        if isinstance(event, TextDelta):
            opening = self._open("text", {"type": "text", "text": ""}) if self._kind != "text" else b""
            head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":' % self._index
            return opening + head + b'{"type":"text_delta","text":' + _encode(event.text) + b"}}\n\n"
        if isinstance(event, ToolCallDelta):
            return self._call(event)
        if isinstance(event, ReasoningDelta):
            return self._reasoning(event)
        if isinstance(event, Native):
            return self._pass_on(event)
        if isinstance(event, UsageReport):
            self._usage = event.usage
        elif isinstance(event, Finished):
            self._finished = event
        elif isinstance(event, Started):
            self._vendor_model = event.model
        return b""

    def close(self, usage: Usage, report: Report) -> bytes:
        finished = self._finished or Finished(FinishReason.UNKNOWN, "")
        delta = {"stop_reason": FINISH[finished.reason], "stop_sequence": finished.stop_sequence}
        block = block_of(report, self._vendor_model)
        ending = _event("message_delta", {"delta": delta, "usage": usage_of(usage), "onebeat": block})
        return self._begin() + self._shut() + ending + _event("message_stop", {})

    def fail(self, problem: ProviderProblem, report: Report | None = None) -> bytes:
        _, kind = _STATUS.get(problem.kind, (502, "api_error"))
        error = _error(kind, problem.message)
        if report is not None:
            error["onebeat"] = block_of(report, self._vendor_model)
        return _event("error", error)

    def ping(self) -> bytes:
        return self._begin() + _event("ping", {})

    def _begin(self) -> bytes:
        if self._is_begun:
            return b""
        self._is_begun = True
        message: dict[str, object] = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_of(self._usage),
        }
        return _event("message_start", {"message": message})

    def _shut(self) -> bytes:
        if self._kind is None:
            return b""
        self._kind = None
        return _event("content_block_stop", {"index": self._index})

    def _open(self, kind: str | int, block: Mapping[str, object]) -> bytes:
        opening = self._begin() + self._shut()
        self._kind = kind
        self._index += 1
        return opening + _event("content_block_start", {"index": self._index, "content_block": block})

    def _delta(self, delta: Mapping[str, object]) -> bytes:
        return _event("content_block_delta", {"index": self._index, "delta": delta})

    def _call(self, event: ToolCallDelta) -> bytes:
        opening = b""
        if self._kind != event.index:
            block = {"type": "tool_use", "id": tool_id(event.id or ""), "name": event.name or "", "input": {}}
            opening = self._open(event.index, block)
        if not event.arguments:
            return opening
        return opening + self._delta({"type": "input_json_delta", "partial_json": event.arguments})

    def _reasoning(self, event: ReasoningDelta) -> bytes:
        if event.redacted is not None:
            block = {"type": "redacted_thinking", "data": event.redacted}
            return self._open("redacted", block) + self._shut()
        rendered = b""
        if self._kind != "thinking":
            rendered = self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        if event.text:
            rendered += self._delta({"type": "thinking_delta", "thinking": event.text})
        if event.signature is not None:
            rendered += self._delta({"type": "signature_delta", "signature": event.signature})
        return rendered

    def _pass_on(self, event: Native) -> bytes:
        if event.format is not WireFormat.ANTHROPIC:
            return b""
        number = bytes(event.fields.get("index", b"0"))
        if event.kind == "content_block_start":
            opening = self._begin() + self._shut()
            self._index += 1
            self._kind = f"native {number.decode()}"
            self._native[number] = self._index
            return opening + self._sent_on(event, self._index)
        index = self._native.get(number, self._index)
        if event.kind == "content_block_stop":
            self._kind = None
        return self._sent_on(event, index)

    def _sent_on(self, event: Native, index: int) -> bytes:
        fields: dict[str, object] = {**event.fields, "index": index}
        return b"event: " + event.kind.encode() + b"\ndata: " + _encode(fields) + b"\n\n"
