"""Anthropic's messages as they come over the wire, typed, and what its errors mean.

Enters: JSON bytes. Leaves: structs for `conductor.providers.anthropic`, `ProviderProblem`s. Unknown fields are skipped
and unknown event and block types are kept for a client of the same format. Source: docs.anthropic.com (messages,
streaming, errors, rate limits) and the `anthropic` package.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from onebeat.conductor.answers import FinishReason, ProblemKind, ProviderProblem, Usage
from onebeat.conductor.providers.decoding import MAX_MESSAGE_CHARACTERS, kind_of_status
from onebeat.conductor.records import ABSENT

FINISH = {
    "end_turn": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "stop_sequence": FinishReason.STOP_SEQUENCE,
    "tool_use": FinishReason.TOOL_CALLS,
    "pause_turn": FinishReason.PAUSE,
    "refusal": FinishReason.REFUSAL,
    "model_context_window_exceeded": FinishReason.CONTEXT_FULL,
}


class OutputDetails(Struct):
    thinking_tokens: int | None = None


class WireUsage(Struct):
    """`input_tokens` is without what was read from and written to the cache."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens_details: OutputDetails | None = None

    def over(self, earlier: Usage) -> Usage:
        """Cumulative: what this report leaves out stands as it was reported earlier."""
        read = self.cache_read_input_tokens
        written = self.cache_creation_input_tokens
        cached = earlier.cached_input_tokens if read is None else read
        created = earlier.cache_write_tokens if written is None else written
        fresh = self.input_tokens
        if fresh is None:
            fresh = earlier.input_tokens - earlier.cached_input_tokens - earlier.cache_write_tokens
        details = self.output_tokens_details
        thinking = details.thinking_tokens if details else None
        return Usage(
            input_tokens=fresh + cached + created,
            output_tokens=earlier.output_tokens if self.output_tokens is None else self.output_tokens,
            cached_input_tokens=cached,
            cache_write_tokens=created,
            reasoning_tokens=earlier.reasoning_tokens if thinking is None else thinking,
        )


class WireBlock(Struct):
    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: Raw = ABSENT
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None


class WireMessage(Struct):
    id: str
    model: str
    content: list[WireBlock] = []
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: WireUsage | None = None


class WireDelta(Struct):
    """Of a content block, and of the message (`stop_reason`)."""

    type: str | None = None
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None
    signature: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None


class WireError(Struct):
    type: str | None = None
    message: str | None = None


class WireEvent(Struct):
    type: str
    index: int = 0
    message: WireMessage | None = None
    content_block: WireBlock | None = None
    delta: WireDelta | None = None
    usage: WireUsage | None = None
    error: WireError | None = None


class _ErrorBody(Struct):
    error: WireError


def error_of(body: bytes) -> WireError:
    """The error of a body; its text where it is no JSON of Anthropic's (a proxy's page)."""
    try:
        return msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return WireError(None, body.decode(errors="replace").strip())


def problem_of(error: WireError, status: int | None) -> ProviderProblem:
    message = (error.message or f"the provider answered with status {status} and no message.")[:MAX_MESSAGE_CHARACTERS]
    return ProviderProblem(_kind(error, message.lower(), status), message, status=status, code=error.type)


def _kind(error: WireError, message: str, status: int | None) -> ProblemKind:
    if error.type in (None, "invalid_request_error", "request_too_large"):
        for phrases, kind in _BY_WORDS:
            if any(phrase in message for phrase in phrases):
                return kind
    if error.type in _BY_TYPE:
        return _BY_TYPE[error.type]
    return ProblemKind.SERVER_ERROR if status is None else kind_of_status(status)


_BY_WORDS = (
    (("prompt is too long", "exceed context limit", "context window"), ProblemKind.CONTEXT_OVERFLOW),
    (("assistant message prefill", "must end with a user message"), ProblemKind.PREFILL_REFUSED),
    (("content filtering policy",), ProblemKind.CONTENT_POLICY),
    (("credit balance is too low", "spend limit", "usage limits"), ProblemKind.QUOTA_EXHAUSTED),
)
_BY_TYPE = {
    "invalid_request_error": ProblemKind.INVALID_REQUEST,
    "request_too_large": ProblemKind.INVALID_REQUEST,
    "authentication_error": ProblemKind.AUTH,
    "permission_error": ProblemKind.AUTH,
    "billing_error": ProblemKind.QUOTA_EXHAUSTED,
    "not_found_error": ProblemKind.NOT_FOUND,
    "rate_limit_error": ProblemKind.RATE_LIMITED,
    "overloaded_error": ProblemKind.OVERLOADED,
    "timeout_error": ProblemKind.TIMEOUT,
    "api_error": ProblemKind.SERVER_ERROR,
}
