"""The face that OpenAI's clients see: answers, streams and errors in chat completions' shape.

Enters: events, answers, problems, and onebeat's `Report`. Leaves: bytes. What has no place in OpenAI's shape (onebeat's
own block) goes into a top-level field `onebeat`, which OpenAI's SDKs keep without looking at it.
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
from onebeat.conductor.faces import openai_request
from onebeat.conductor.faces.base import HttpError
from onebeat.conductor.faces.report import block_of
from onebeat.conductor.providers.openai_messages import call_of
from onebeat.conductor.records import ChatRequest, RequestError, Text, Thinking, WireFormat

_ENCODER = msgspec.json.Encoder()
_encode = _ENCODER.encode
FINISH = {
    FinishReason.STOP: "stop",
    FinishReason.STOP_SEQUENCE: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CONTEXT_FULL: "length",
    FinishReason.PAUSE: "stop",
    FinishReason.TOOL_CALLS: "tool_calls",
    FinishReason.CONTENT_FILTER: "content_filter",
    FinishReason.REFUSAL: "content_filter",
    FinishReason.MALFORMED_TOOL_CALL: "stop",
    FinishReason.UNKNOWN: "stop",
}
_STATUS = {
    ProblemKind.RATE_LIMITED: (429, "rate_limit_error", "rate_limit_exceeded"),
    ProblemKind.QUOTA_EXHAUSTED: (429, "insufficient_quota", "insufficient_quota"),
    ProblemKind.OVERLOADED: (503, "server_error", "overloaded"),
    ProblemKind.CONTEXT_OVERFLOW: (400, "invalid_request_error", "context_length_exceeded"),
    ProblemKind.CONTENT_POLICY: (400, "invalid_request_error", "content_policy_violation"),
    ProblemKind.INVALID_REQUEST: (400, "invalid_request_error", None),
    ProblemKind.UNSUPPORTED: (400, "invalid_request_error", "unsupported"),
    ProblemKind.PREFILL_REFUSED: (400, "invalid_request_error", "prefill_refused"),
    ProblemKind.NOT_FOUND: (404, "invalid_request_error", "model_not_found"),
    # The provider refused onebeat's key, not the client's: 401 would send the client looking at its own.
    ProblemKind.AUTH: (502, "server_error", "upstream_auth"),
    ProblemKind.TIMEOUT: (504, "server_error", "timeout"),
    ProblemKind.DEADLINE: (504, "server_error", "deadline_exceeded"),
    ProblemKind.STALLED: (504, "server_error", "stalled"),
}
_OF_STATUS = {
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


class OpenAIFace:
    """See `conductor.faces.base.Face`."""

    format = WireFormat.OPENAI

    def parse(self, body: bytes, headers: Mapping[str, str]) -> ChatRequest:
        return openai_request.parse(body, headers)

    def render_answer(self, answer: Answer, report: Report, *, created_s: int) -> bytes:
        if answer.format is WireFormat.OPENAI and answer.wire:
            return _encode({**answer.wire, "model": report.model, "onebeat": block_of(report, answer.model)})
        message: dict[str, object] = {"role": "assistant", "content": None, "refusal": None}
        texts = [part.text for part in answer.parts if isinstance(part, Text) and not part.is_refusal]
        refusals = [part.text for part in answer.parts if isinstance(part, Text) and part.is_refusal]
        thoughts = [part.text for part in answer.parts if isinstance(part, Thinking)]
        calls = [call_of(call) for call in answer.tool_calls]
        if texts or not calls:
            message["content"] = "".join(texts)
        if refusals:
            message["refusal"] = "".join(refusals)
        if calls:
            message["tool_calls"] = calls
        if any(thoughts):
            message["reasoning_content"] = "".join(thoughts)
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": FINISH[answer.finish]}
        return _encode(
            {
                "id": answer.id or new_id(),
                "object": "chat.completion",
                "created": created_s,
                "model": report.model,
                "choices": [choice],
                "usage": usage_of(answer.usage),
                "onebeat": block_of(report, answer.model),
            }
        )

    def renderer(self, request: ChatRequest, model: str, *, created_s: int) -> OpenAIStream:
        return OpenAIStream(model, created_s, request.include_usage)

    def render_error(self, error: RequestError | ProviderProblem) -> HttpError:
        headers = {"content-type": "application/json"}
        if error.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
        if isinstance(error, ProviderProblem):
            status, kind, code = _STATUS.get(error.kind, (502, "server_error", error.kind.value))
            return HttpError(status, headers, _error_body(error.message, kind, code or error.code, error.param))
        kind = _OF_STATUS.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
        return HttpError(error.status, headers, _error_body(error.message, kind, error.code, error.param))


def _error_body(message: str, kind: str, code: str | None, param: str | None) -> bytes:
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def new_id() -> str:
    return f"chatcmpl-{secrets.token_hex(12)}"


def usage_of(usage: Usage) -> dict[str, object]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "audio_tokens": usage.audio_input_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


class OpenAIStream:
    """One streamed answer. `model` may be set anew when another model takes over."""

    __slots__ = (
        "_created_s",
        "_finish",
        "_head",
        "_id",
        "_include_usage",
        "_is_open",
        "_model",
        "_seen",
        "_vendor_model",
    )

    def __init__(self, model: str, created_s: int, include_usage: bool) -> None:
        self._id = new_id()
        self._created_s = created_s
        self._include_usage = include_usage
        self._is_open = False
        self._finish = FinishReason.UNKNOWN
        self._seen: dict[int, int] = {}
        self._vendor_model = ""
        self.model = model

    @property
    def model(self) -> str:
        return self._model

    @model.setter
    def model(self, model: str) -> None:
        self._model = model
        # Everything of a text chunk but its text, written once: a chunk then costs one string's encoding.
        base = {"id": self._id, "object": "chat.completion.chunk", "created": self._created_s, "model": model}
        self._head = b"data: " + _encode(base)[:-1] + b',"choices":[{"index":0,"delta":'

    def render(self, event: StreamEvent) -> bytes:
        if isinstance(event, TextDelta):
            name = b'{"refusal":' if event.is_refusal else b'{"content":'
            tail = b'},"logprobs":' + bytes(event.logprobs) if event.logprobs is not None else b'},"logprobs":null'
            return self._opening() + self._head + name + _encode(event.text) + tail + b',"finish_reason":null}]}\n\n'
        if isinstance(event, ToolCallDelta):
            return self._opening() + self._delta({"tool_calls": [self._call(event)]})
        if isinstance(event, ReasoningDelta):
            return self._opening() + self._delta({"reasoning_content": event.text}) if event.text else b""
        if isinstance(event, Finished):
            self._finish = event.reason
        elif isinstance(event, Started):
            self._vendor_model = event.model
        return b""

    def close(self, usage: Usage, report: Report) -> bytes:
        finish = b'{},"logprobs":null,"finish_reason":' + _encode(FINISH[self._finish]) + b"}]"
        block = b',"onebeat":' + _encode(block_of(report, self._vendor_model))
        if not self._include_usage:
            return self._opening() + self._head + finish + block + b"}\n\ndata: [DONE]\n\n"
        # The usage chunk has no choices: OpenAI's own shape, which only those who asked for it expect.
        last = self._head[: self._head.index(b',"choices":[')] + b',"choices":[],"usage":' + _encode(usage_of(usage))
        return self._opening() + self._head + finish + b"}\n\n" + last + block + b"}\n\ndata: [DONE]\n\n"

    def fail(self, problem: ProviderProblem, report: Report | None = None) -> bytes:
        _, kind, code = _STATUS.get(problem.kind, (502, "server_error", problem.kind.value))
        body = _error_body(problem.message, kind, code or problem.code, problem.param)
        if report is not None:
            body = body[:-1] + b',"onebeat":' + _encode(block_of(report, self._vendor_model)) + b"}"
        return b"data: " + body + b"\n\n"

    def ping(self) -> bytes:
        return b": ping\n\n"

    def _opening(self) -> bytes:
        if self._is_open:
            return b""
        self._is_open = True
        return self._delta({"role": "assistant", "content": ""})

    def _delta(self, delta: dict[str, object]) -> bytes:
        return self._head + _encode(delta) + b',"logprobs":null,"finish_reason":null}]}\n\n'

    def _call(self, event: ToolCallDelta) -> dict[str, object]:
        function: dict[str, object] = {"arguments": event.arguments}
        call: dict[str, object] = {"index": self._seen.setdefault(event.index, len(self._seen)), "function": function}
        if event.id is not None:
            call |= {"id": event.id, "type": "function"}
        if event.name is not None:
            function["name"] = event.name
        if event.signature is not None:
            call["extra_content"] = {"google": {"thought_signature": event.signature}}
        return call
