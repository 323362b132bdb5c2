"""OpenAI's chat completions, and every server that speaks them (vLLM, llama.cpp, Ollama, ...).

Enters: a `ChatRequest`; bytes that came back. Leaves: `HttpRequest`; events, answers, problems, limits. A request from
the OpenAI face keeps every field that its client wrote: only the model, the stream flags and what the model's traits
demand are set. Source: the API reference (platform.openai.com/docs/api-reference/chat) and the `openai` package.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping

import msgspec
from msgspec import Raw

from onebeat.conductor.answers import (
    Answer,
    Finished,
    FinishReason,
    Ping,
    ProviderError,
    ProviderProblem,
    RateLimits,
    ReasoningDelta,
    Started,
    StreamEvent,
    TextDelta,
    ToolCallDelta,
    Usage,
    UsageReport,
)
from onebeat.conductor.assemble import events_of
from onebeat.conductor.providers import openai_messages as words
from onebeat.conductor.providers.base import AudioUpload, HttpRequest, StreamDecoder
from onebeat.conductor.providers.decoding import SSEDecoder, malformed
from onebeat.conductor.providers.headers import duration_s, limit_of, retry_after_s, should_retry
from onebeat.conductor.providers.multipart import form_of
from onebeat.conductor.providers.openai_wire import (
    FINISH,
    WireCompletion,
    WireError,
    WireMessage,
    WireToolCall,
    error_of,
    error_of_field,
    problem_of,
)
from onebeat.conductor.providers.traits import Traits, effort_of
from onebeat.conductor.records import ChatRequest, Role, Text, Thinking, ToolCall, WireFormat, present
from onebeat.conductor.sse import ServerSentEvent

_COMPLETION = msgspec.json.Decoder(WireCompletion)
_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_ENCODER = msgspec.json.Encoder()
# OpenAI's reasoning models answer 400 to sampling settings.
_REASONS = re.compile(r"o\d|gpt-5(?!.*chat)")
_SAMPLING = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs", "logit_bias")


class OpenAIProvider:
    """See `conductor.providers.base.Provider`. The base URL of the route ends in `/v1`."""

    format = WireFormat.OPENAI

    def __init__(
        self, key: str | None = None, *, traits: Traits | None = None, now_s: Callable[[], float] = time.time
    ) -> None:
        self._traits = traits or Traits()
        self._now_s = now_s
        self._headers = {"content-type": "application/json"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"

    def build_request(self, request: ChatRequest, model: str, *, stream: bool) -> HttpRequest:
        is_native = request.face is WireFormat.OPENAI
        if not is_native and request.native_only:
            raise words.unsupported(f"{request.native_only} is a feature of {request.face.value} alone.")
        fields: dict[str, object] = dict(request.wire) if is_native else self._translated(request)
        fields["model"] = model
        keeps_developer = not self._traits.compatible
        if "messages" not in fields or (
            not keeps_developer and any(message.role is Role.DEVELOPER for message in request.messages)
        ):
            fields["messages"] = words.messages_of(
                request.messages, keeps_source=is_native, keeps_developer=keeps_developer
            )
        self._set_stream(fields, stream)
        self._suit_model(fields, request)
        return HttpRequest("/chat/completions", self._headers, _ENCODER.encode(fields))

    def _set_stream(self, fields: dict[str, object], stream: bool) -> None:
        fields["stream"] = stream
        if not stream:
            fields.pop("stream_options", None)
        elif isinstance(asked := fields.get("stream_options"), Raw):
            options: dict[str, object] = dict(_FIELDS.decode(asked)) if bytes(asked) != b"null" else {}
            fields["stream_options"] = options | {"include_usage": True}
        else:
            fields["stream_options"] = {"include_usage": True}

    def _suit_model(self, fields: dict[str, object], request: ChatRequest) -> None:
        traits = self._traits
        if request.max_output_tokens is not None:
            fields.pop("max_tokens", None)
            fields.pop("max_completion_tokens", None)
            fields["max_tokens" if traits.compatible else "max_completion_tokens"] = request.max_output_tokens
        takes_sampling = traits.sampling
        if takes_sampling is None:
            takes_sampling = traits.compatible or not _REASONS.match(str(fields["model"]))
        if not takes_sampling:
            for name in _SAMPLING:
                fields.pop(name, None)
        if traits.reasoning is False:
            fields.pop("reasoning_effort", None)
        last = request.messages[-1] if request.messages else None
        if last is not None and last.role is Role.ASSISTANT and traits.compatible:
            # vLLM's way to continue a message; llama.cpp and Ollama continue it anyway and skip unknown fields.
            fields["continue_final_message"] = True
            fields["add_generation_prompt"] = False

    def _translated(self, request: ChatRequest) -> dict[str, object]:
        fields: dict[str, object] = {}
        for name in ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "user"):
            if (value := getattr(request, name)) is not None:
                fields[name] = value
        if request.top_k is not None and self._traits.compatible:
            fields["top_k"] = request.top_k
        if request.stop:
            if len(request.stop) > 4 and not self._traits.compatible:
                raise words.unsupported(f"{len(request.stop)} stop sequences; OpenAI takes at most 4.")
            fields["stop"] = list(request.stop)
        if request.tools:
            fields["tools"] = [words.tool_of(tool) for tool in request.tools]
            if request.tool_choice is not None:
                fields["tool_choice"] = words.tool_choice_of(request.tool_choice)
            if request.parallel_tool_calls is not None:
                fields["parallel_tool_calls"] = request.parallel_tool_calls
        if request.answer_format is not None:
            fields["response_format"] = words.answer_format_of(request.answer_format)
        effort = effort_of(request.reasoning_effort, request.thinking_budget_tokens)
        if effort is not None and self._traits.reasoning:
            fields["reasoning_effort"] = effort
        return fields

    def parse_response(self, body: bytes) -> Answer:
        try:
            whole = _COMPLETION.decode(body)
            wire = _FIELDS.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ProviderError(malformed(f"the answer is not a chat completion: {error}")) from error
        return _answer_of(whole, wire)

    def decoder(self) -> StreamDecoder:
        return SSEDecoder(_Translator())

    def parse_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderProblem:
        problem = problem_of(error_of(body), status, headers)
        now_s = self._now_s()
        advice = should_retry(headers)
        return msgspec.structs.replace(
            problem,
            retry_after_s=retry_after_s(headers, now_s),
            should_retry=problem.should_retry if advice is None else advice,
            limits=self.parse_limits(headers),
        )

    def parse_limits(self, headers: Mapping[str, str]) -> RateLimits | None:
        get = headers.get
        counters = []
        for name in ("requests", "tokens"):
            reset = get(f"x-ratelimit-reset-{name}")
            counters.append(
                limit_of(
                    get(f"x-ratelimit-limit-{name}"),
                    get(f"x-ratelimit-remaining-{name}"),
                    None if reset is None else duration_s(reset),
                )
            )
        requests, tokens = counters
        return None if requests is None and tokens is None else RateLimits(requests, tokens)

    def takes_prefill(self, model: str) -> bool:
        """OpenAI itself answers anew; compatible servers continue, unless the fleet says otherwise."""
        return self._traits.compatible if self._traits.prefill is None else self._traits.prefill

    def build_transcription(self, upload: AudioUpload, model: str) -> HttpRequest:
        content_type, body = form_of(upload, model)
        return HttpRequest("/audio/transcriptions", self._headers | {"content-type": content_type}, body)


def _answer_of(whole: WireCompletion, wire: Mapping[str, Raw]) -> Answer:
    _raise_error_inside(whole)
    if not whole.choices or (message := whole.choices[0].message) is None:
        raise ProviderError(malformed("the chat completion has no choices."))
    choice = whole.choices[0]
    parts: list[Text | ToolCall | Thinking] = []
    if thought := message.reasoning_content or message.reasoning:
        parts.append(Thinking(thought))
    if message.content:
        parts.append(Text(message.content))
    if message.refusal:
        parts.append(Text(message.refusal, is_refusal=True))
    calls = list(message.tool_calls or ())
    if message.function_call is not None:
        calls.append(WireToolCall(id="call_0", function=message.function_call))
    for index, call in enumerate(calls):
        function = call.function
        if function is None:
            continue  # A custom tool's call: it has no JSON arguments, and `wire` carries it.
        parts.append(
            ToolCall(call.id or f"call_{index}", function.name or "", function.arguments or "", call.signature)
        )
    raw = choice.finish_reason or ""
    return Answer(
        id=whole.id or "",
        model=whole.model or "",
        parts=tuple(parts),
        finish=FINISH.get(raw, FinishReason.UNKNOWN),
        raw_finish=raw,
        usage=whole.usage.usage() if whole.usage else Usage(),
        format=WireFormat.OPENAI,
        wire=wire,
    )


def _raise_error_inside(whole: WireCompletion) -> None:
    if present(whole.error) is not None:
        raise ProviderError(problem_of(error_of_field(whole.error), None, {}))
    if whole.object == "error":
        raise ProviderError(problem_of(WireError(whole.message, code=whole.code), None, {}))


class _Translator:
    """One stream's chunks. OpenAI's order: role, content, finish reason, usage with no choices, `[DONE]`."""

    __slots__ = ("_call_ids", "_started", "is_done", "is_finished")

    def __init__(self) -> None:
        self.is_finished = False
        self.is_done = False
        self._started = False
        self._call_ids: list[str | None] = []

    def translate(self, event: ServerSentEvent, events: list[StreamEvent]) -> None:
        data = event.data
        if data == b"[DONE]":
            # Without a finish reason before it the answer is cut all the same: `close` says so.
            self.is_done = self.is_finished
            return
        chunk = _COMPLETION.decode(data)
        if chunk.error or chunk.object == "error":
            _raise_error_inside(chunk)
        if not self._started:
            self._started = True
            events.append(Started(chunk.id or "", chunk.model or ""))
        if chunk.choices:
            choice = chunk.choices[0]
            if choice.delta is not None:
                self._delta(choice.delta, present(choice.logprobs), events)
            if choice.finish_reason:
                self.is_finished = True
                reason = FINISH.get(choice.finish_reason, FinishReason.UNKNOWN)
                events.append(Finished(reason, choice.finish_reason))
        if chunk.usage is not None:
            events.append(UsageReport(chunk.usage.usage()))

    def _delta(self, delta: WireMessage, logprobs: Raw | None, events: list[StreamEvent]) -> None:
        if delta.content:
            events.append(TextDelta(delta.content, logprobs))
        if thought := delta.reasoning_content or delta.reasoning:
            events.append(ReasoningDelta(thought))
        if delta.refusal:
            events.append(TextDelta(delta.refusal, logprobs, is_refusal=True))
        if delta.tool_calls:
            for call in delta.tool_calls:
                function = call.function
                events.append(
                    ToolCallDelta(
                        self._index(call),
                        call.id or None,
                        function.name if function else None,
                        (function.arguments or "") if function else "",
                        call.signature,
                    )
                )
        if delta.function_call is not None:
            call_id = None if self._call_ids else "call_0"
            self._call_ids.append(call_id)
            function = delta.function_call
            events.append(ToolCallDelta(0, call_id, function.name, function.arguments or ""))
        elif not delta.content and logprobs is None and not events:
            events.append(Ping())

    def _index(self, call: WireToolCall) -> int:
        if call.index is not None:
            return call.index
        # Some servers leave the index out: a new id is a new call, none belongs to the last.
        if call.id and call.id not in self._call_ids:
            self._call_ids.append(call.id)
        return max(0, len(self._call_ids) - 1)

    def whole(self, body: bytes, events: list[StreamEvent]) -> None:
        """A server that ignored `stream`: the completion as events, or its error as a problem."""
        try:
            completion = _COMPLETION.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise ProviderError(problem_of(error_of(body), None, {})) from None
        if completion.choices is None:
            raise ProviderError(problem_of(error_of(body), None, {}))
        events.extend(events_of(_answer_of(completion, {})))
        self.is_finished = True
