"""Gemini's generateContent as it comes over the wire, typed, and what its errors mean.

Enters: JSON bytes. Leaves: structs for `conductor.providers.gemini`, `ProviderProblem`s. Source: ai.google.dev (API
reference, thinking, function calling, troubleshooting), google.rpc's error details, the `google-genai` package.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct, field

from onebeat.conductor.answers import FinishReason, ProblemKind, ProviderProblem, Usage
from onebeat.conductor.providers.decoding import MAX_MESSAGE_CHARACTERS, kind_of_status
from onebeat.conductor.providers.headers import duration_s
from onebeat.conductor.records import ABSENT

FINISH = {
    "STOP": FinishReason.STOP,
    "MAX_TOKENS": FinishReason.LENGTH,
    "MALFORMED_FUNCTION_CALL": FinishReason.MALFORMED_TOOL_CALL,
    "UNEXPECTED_TOOL_CALL": FinishReason.MALFORMED_TOOL_CALL,
    "TOO_MANY_TOOL_CALLS": FinishReason.MALFORMED_TOOL_CALL,
    "MISSING_THOUGHT_SIGNATURE": FinishReason.MALFORMED_TOOL_CALL,
} | dict.fromkeys(
    (
        "SAFETY",
        "RECITATION",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
        "MODEL_ARMOR",
    ),
    FinishReason.CONTENT_FILTER,
)


class _Camel(Struct, rename="camel"):
    """Gemini's JSON names are in camel case."""


class WireFunctionCall(_Camel):
    name: str | None = None
    args: Raw = ABSENT
    id: str | None = None


class WirePart(_Camel):
    text: str | None = None
    thought: bool = False
    thought_signature: str | None = None
    function_call: WireFunctionCall | None = None


class WireContent(_Camel):
    parts: list[WirePart] | None = None


class WireCandidate(_Camel):
    content: WireContent | None = None
    finish_reason: str | None = None
    finish_message: str | None = None


class WireModality(_Camel):
    modality: str | None = None
    token_count: int | None = None


class WireUsage(_Camel):
    prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    cached_content_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    prompt_tokens_details: list[WireModality] | None = None

    def usage(self) -> Usage:
        """Thoughts are counted apart from candidates and billed as output; a tool's prompt as input."""
        thoughts = self.thoughts_token_count or 0
        audio = sum(each.token_count or 0 for each in self.prompt_tokens_details or () if each.modality == "AUDIO")
        return Usage(
            input_tokens=(self.prompt_token_count or 0) + (self.tool_use_prompt_token_count or 0),
            output_tokens=(self.candidates_token_count or 0) + thoughts,
            cached_input_tokens=self.cached_content_token_count or 0,
            reasoning_tokens=thoughts,
            audio_input_tokens=audio,
        )


class WireFeedback(_Camel):
    block_reason: str | None = None
    block_reason_message: str | None = None


class WireViolation(_Camel):
    quota_id: str | None = None
    quota_metric: str | None = None


class WireDetail(_Camel):
    """One of google.rpc's error details; `kind` says which."""

    kind: str = field(default="", name="@type")
    retry_delay: str | None = None
    violations: list[WireViolation] | None = None
    reason: str | None = None
    metadata: dict[str, Any] | None = None


class WireError(_Camel):
    code: int | None = None
    message: str | None = None
    status: str | None = None
    details: list[WireDetail] | None = None


class WireResponse(_Camel):
    """A whole answer, a frame of a stream, and an error alike."""

    candidates: list[WireCandidate] | None = None
    usage_metadata: WireUsage | None = None
    model_version: str | None = None
    response_id: str | None = None
    prompt_feedback: WireFeedback | None = None
    error: WireError | None = None


def error_of(body: bytes) -> WireError:
    """The error of a body, which some endpoints wrap in a list; the body's text where it is no JSON of Gemini's."""
    try:
        given = msgspec.json.decode(body, type=list[WireResponse] | WireResponse)
        frames = given if isinstance(given, list) else [given]
        if frames and frames[0].error is not None:
            return frames[0].error
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass  # A proxy's page or a plain sentence: the text itself is what there is.
    return WireError(message=body.decode(errors="replace").strip())


def problem_of(error: WireError, status: int | None) -> ProviderProblem:
    message = (error.message or f"the provider answered with status {status} and no message.")[:MAX_MESSAGE_CHARACTERS]
    details = error.details or []
    retry_after_s = None
    for detail in details:
        if detail.retry_delay is not None:
            retry_after_s = duration_s(detail.retry_delay)
    code = next((detail.reason for detail in details if detail.reason), None) or error.status
    kind = _kind(error, details, message.lower(), status if status is not None else error.code)
    if kind is ProblemKind.QUOTA_EXHAUSTED:
        retry_after_s = None  # Google sends seconds beside a day's quota: a call after them is refused again.
    return ProviderProblem(kind, message, status=status, code=code, retry_after_s=retry_after_s)


def _kind(error: WireError, details: list[WireDetail], message: str, status: int | None) -> ProblemKind:
    if error.status == "RESOURCE_EXHAUSTED" or status == 429:
        return ProblemKind.QUOTA_EXHAUSTED if _is_daily(details) else ProblemKind.RATE_LIMITED
    if "input token count" in message and "exceeds" in message:
        return ProblemKind.CONTEXT_OVERFLOW
    if any(detail.reason in ("API_KEY_INVALID", "API_KEY_EXPIRED") for detail in details) or "api key" in message:
        return ProblemKind.AUTH
    if error.status in _BY_STATUS:
        return _BY_STATUS[error.status]
    return ProblemKind.SERVER_ERROR if status is None else kind_of_status(status)


def _is_daily(details: list[WireDetail]) -> bool:
    """A quota per day is not worth a retry, even where a `RetryInfo` of seconds stands beside it."""
    names = [violation.quota_id or "" for detail in details for violation in detail.violations or ()]
    names += [str(detail.metadata.get("quota_limit", "")) for detail in details if detail.metadata]
    return any("perday" in name.lower() for name in names)


_BY_STATUS: dict[str | None, ProblemKind] = {
    "INVALID_ARGUMENT": ProblemKind.INVALID_REQUEST,
    "FAILED_PRECONDITION": ProblemKind.INVALID_REQUEST,
    "OUT_OF_RANGE": ProblemKind.INVALID_REQUEST,
    "UNAUTHENTICATED": ProblemKind.AUTH,
    "PERMISSION_DENIED": ProblemKind.AUTH,
    "NOT_FOUND": ProblemKind.NOT_FOUND,
    "UNAVAILABLE": ProblemKind.OVERLOADED,
    "DEADLINE_EXCEEDED": ProblemKind.TIMEOUT,
    "INTERNAL": ProblemKind.SERVER_ERROR,
    "UNKNOWN": ProblemKind.SERVER_ERROR,
    "ABORTED": ProblemKind.SERVER_ERROR,
    "CANCELLED": ProblemKind.SERVER_ERROR,
}
