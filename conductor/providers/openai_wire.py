"""OpenAI's chat completions as they come over the wire, typed, and what its errors mean.

Enters: JSON bytes. Leaves: structs for `conductor.providers.openai`, `ProviderProblem`s. Servers that imitate OpenAI
leave fields out or send null where OpenAI would not: everything here is optional, unknown fields are skipped.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Raw, Struct

from onebeat.conductor.answers import FinishReason, ProblemKind, ProviderProblem, Usage
from onebeat.conductor.providers.decoding import MAX_MESSAGE_CHARACTERS, kind_of_status
from onebeat.conductor.records import ABSENT, present

FINISH = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}


class PromptDetails(Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None


class CompletionDetails(Struct):
    reasoning_tokens: int | None = None


class WireUsage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None

    def usage(self) -> Usage:
        prompt = self.prompt_tokens_details or PromptDetails()
        completion = self.completion_tokens_details or CompletionDetails()
        return Usage(
            input_tokens=self.prompt_tokens or 0,
            output_tokens=self.completion_tokens or 0,
            cached_input_tokens=prompt.cached_tokens or 0,
            cache_write_tokens=prompt.cache_write_tokens or 0,
            reasoning_tokens=completion.reasoning_tokens or 0,
            audio_input_tokens=prompt.audio_tokens or 0,
        )


class WireFunction(Struct):
    name: str | None = None
    arguments: str | None = None


class GoogleExtra(Struct):
    thought_signature: str | None = None


class ExtraContent(Struct):
    """Where Gemini's OpenAI-compatible endpoint puts what OpenAI has no field for."""

    google: GoogleExtra | None = None


class WireToolCall(Struct):
    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: WireFunction | None = None
    extra_content: ExtraContent | None = None

    @property
    def signature(self) -> str | None:
        return self.extra_content.google.thought_signature if self.extra_content and self.extra_content.google else None


class WireMessage(Struct):
    """A whole message and a delta alike."""

    content: str | None = None
    refusal: str | None = None
    tool_calls: list[WireToolCall] | None = None
    function_call: WireFunction | None = None
    reasoning_content: str | None = None
    """DeepSeek, llama.cpp, vLLM."""
    reasoning: str | None = None
    """vLLM's and OpenRouter's newer name for the same."""


class WireChoice(Struct):
    index: int = 0
    delta: WireMessage | None = None
    message: WireMessage | None = None
    finish_reason: str | None = None
    logprobs: Raw = ABSENT


class WireCompletion(Struct):
    """A whole completion and a chunk alike; `error` where a 200 holds one."""

    id: str | None = None
    model: str | None = None
    choices: list[WireChoice] | None = None
    usage: WireUsage | None = None
    error: Raw = ABSENT
    object: str | None = None
    message: str | None = None
    code: int | str | None = None


class WireError(Struct):
    message: str | None = None
    type: str | None = None
    param: str | None = None
    code: int | str | None = None


class _ErrorBody(Struct):
    error: Raw = ABSENT
    detail: Raw = ABSENT
    """FastAPI servers say it here."""
    message: str | None = None
    type: str | None = None
    param: str | None = None
    code: int | str | None = None


def error_of(body: bytes) -> WireError:
    """The error in any of the shapes that compatible servers use; the body's text where it is none of them."""
    try:
        outer = msgspec.json.decode(body, type=_ErrorBody)
        if present(outer.error) is not None:
            return error_of_field(outer.error)
        if present(outer.detail) is not None:
            return WireError(bytes(outer.detail).decode(errors="replace").strip('"'))
        if outer.message is not None:
            return WireError(outer.message, outer.type, outer.param, outer.code)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass  # An HTML page, a plain sentence, a list: the text itself is what there is.
    return WireError(body.decode(errors="replace").strip())


def error_of_field(error: Raw) -> WireError:
    """The value of `error`: an object, or a bare string (Ollama)."""
    if bytes(error).startswith(b"{"):
        return msgspec.json.decode(error, type=WireError)
    return WireError(bytes(error).decode(errors="replace").strip('"'))


def problem_of(error: WireError, status: int | None, headers: Mapping[str, str]) -> ProviderProblem:
    """What the error means, from its code, then its type, then its words, then the status."""
    message = (error.message or f"the provider answered with status {status} and no message.")[:MAX_MESSAGE_CHARACTERS]
    code = str(error.code) if error.code is not None else error.type
    if status is None and isinstance(error.code, int) and 400 <= error.code < 600:
        status = error.code
    kind = _kind(error, message.lower(), status)
    retry: bool | None = None
    if kind is ProblemKind.RATE_LIMITED and "request too large" in message.lower():
        # One request over the whole minute's tokens: no wait makes it fit.
        retry = False
    return ProviderProblem(kind, message, status=status, code=code, param=error.param, should_retry=retry)


def _kind(error: WireError, message: str, status: int | None) -> ProblemKind:
    # A code is the most exact, then the type.
    for word in (error.code, error.type):
        if isinstance(word, str) and word in _BY_CODE:
            return _BY_CODE[word]
    if (status is None or status in (400, 413, 422, 500)) and any(phrase in message for phrase in _OVERFLOW):
        return ProblemKind.CONTEXT_OVERFLOW
    if status is not None:
        return kind_of_status(status)
    return _BY_TYPE.get(error.type or "", ProblemKind.SERVER_ERROR)


_OVERFLOW = (
    "maximum context length",  # OpenAI, vLLM
    "exceeds the available context size",  # llama.cpp
    "context window",
    "exceed the configured limit",
    "longer than the maximum model length",  # vLLM
    "input length exceeds",  # Ollama
)
_BY_CODE = {
    "context_length_exceeded": ProblemKind.CONTEXT_OVERFLOW,
    "exceed_context_size_error": ProblemKind.CONTEXT_OVERFLOW,
    "content_policy_violation": ProblemKind.CONTENT_POLICY,
    "content_filter": ProblemKind.CONTENT_POLICY,
    "moderation_blocked": ProblemKind.CONTENT_POLICY,
    "invalid_prompt": ProblemKind.CONTENT_POLICY,
    "insufficient_quota": ProblemKind.QUOTA_EXHAUSTED,
    "billing_hard_limit_reached": ProblemKind.QUOTA_EXHAUSTED,
    "billing_not_active": ProblemKind.QUOTA_EXHAUSTED,
    "credit_balance_exhausted": ProblemKind.QUOTA_EXHAUSTED,
    "invalid_api_key": ProblemKind.AUTH,
    "authentication_error": ProblemKind.AUTH,
    "model_not_found": ProblemKind.NOT_FOUND,
    "rate_limit_exceeded": ProblemKind.RATE_LIMITED,
    "rate_limit_error": ProblemKind.RATE_LIMITED,
    "overloaded_error": ProblemKind.OVERLOADED,
    "prefill_not_supported": ProblemKind.PREFILL_REFUSED,
}
_BY_TYPE = {
    "invalid_request_error": ProblemKind.INVALID_REQUEST,
    "server_error": ProblemKind.SERVER_ERROR,
    "timeout": ProblemKind.TIMEOUT,
}
