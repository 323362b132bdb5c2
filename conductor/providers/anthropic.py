"""Anthropic's Messages API.

Enters: a `ChatRequest`; bytes that came back. Leaves: `HttpRequest`; events, answers, problems, limits. A request from
the Anthropic face keeps every field that its client wrote. What differs between models of Claude goes by the model's
name unless the fleet's `Traits` say otherwise. Source: docs.anthropic.com and the `anthropic` package.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping

import msgspec
from msgspec import Raw

from onebeat.conductor.answers import Answer, FinishReason, Limit, ProviderError, ProviderProblem, RateLimits, Usage
from onebeat.conductor.providers import anthropic_messages as words
from onebeat.conductor.providers.anthropic_schema import is_taken
from onebeat.conductor.providers.anthropic_stream import AnthropicTranslator
from onebeat.conductor.providers.anthropic_wire import FINISH, WireMessage, error_of, problem_of
from onebeat.conductor.providers.base import AudioUpload, HttpRequest, StreamDecoder
from onebeat.conductor.providers.decoding import SSEDecoder, malformed
from onebeat.conductor.providers.headers import limit_of, retry_after_s, should_retry, until_s
from onebeat.conductor.providers.openai_messages import unsupported
from onebeat.conductor.providers.traits import Traits, budget_of, effort_of
from onebeat.conductor.records import ChatRequest, Text, Thinking, ToolCall, WireFormat, present

VERSION = "2023-06-01"
_MESSAGE = msgspec.json.Decoder(WireMessage)
_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_ENCODER = msgspec.json.Encoder()
_SAMPLING = ("temperature", "top_p", "top_k")
# Up to Claude 4.5 an assistant's last message is continued; 4.6 and everything newer answers 400.
_TAKES_PREFILL = re.compile(
    r"claude-(?:instant|v?[123]\b|(?:opus|sonnet|haiku)-4(?:-[015])?(?:[-@]\d{8})?(?:-latest)?$)"
)
# Up to 4.6 sampling settings are taken; 4.7 and everything newer answers 400.
_TAKES_SAMPLING = re.compile(
    r"claude-(?:instant|v?[123]\b|(?:opus|sonnet|haiku)-4(?:-[0156])?(?:[-@]\d{8})?(?:-latest)?$)"
)
# Structured outputs came with Opus 4.1 and Sonnet 4.5.
_LACKS_SCHEMAS = re.compile(r"claude-(?:instant|v?[123]\b|(?:opus|sonnet)-4(?:-0)?(?:[-@]\d{8})?$)")
_JSON_ONLY = "Answer with one JSON object and nothing else: no prose, no code fence."


class AnthropicProvider:
    """See `conductor.providers.base.Provider`. The base URL of the route has no path."""

    format = WireFormat.ANTHROPIC

    def __init__(
        self, key: str | None = None, *, traits: Traits | None = None, now_s: Callable[[], float] = time.time
    ) -> None:
        self._traits = traits or Traits()
        self._now_s = now_s
        self._headers = {"content-type": "application/json", "anthropic-version": VERSION}
        if key:
            self._headers["x-api-key"] = key

    def build_request(self, request: ChatRequest, model: str, *, stream: bool) -> HttpRequest:
        is_native = request.face is WireFormat.ANTHROPIC
        if not is_native and request.native_only:
            raise unsupported(f"{request.native_only} is a feature of {request.face.value} alone.")
        fields: dict[str, object] = dict(request.wire) if is_native else self._translated(request)
        fields["model"] = model
        fields["stream"] = stream
        if "messages" not in fields:
            fields["messages"] = words.messages_of(request.messages, keeps_source=is_native)
            system = words.system_of(request.messages, keeps_source=is_native)
            if system is not None:
                fields["system"] = system
        if not is_native and request.answer_format is not None:
            self._ask_for_json(fields, request, model)
        self._suit_model(fields, model)
        headers = self._headers
        if is_native and request.betas:
            headers = headers | {"anthropic-beta": request.betas}
        return HttpRequest("/v1/messages", headers, _ENCODER.encode(fields))

    def _suit_model(self, fields: dict[str, object], model: str) -> None:
        takes_sampling = self._traits.sampling
        if takes_sampling is None:
            takes_sampling = bool(_TAKES_SAMPLING.search(model)) or not model.startswith("claude")
        if not takes_sampling:
            for name in _SAMPLING:
                fields.pop(name, None)
        elif "temperature" in fields:
            # Models since 4.1 refuse the two together, and the documentation says to set only one.
            fields.pop("top_p", None)

    def _translated(self, request: ChatRequest) -> dict[str, object]:
        fields: dict[str, object] = {"max_tokens": request.max_output_tokens or self._traits.default_max_output_tokens}
        if request.temperature is not None:
            fields["temperature"] = min(request.temperature, 1.0)
        if request.top_p is not None:
            fields["top_p"] = request.top_p
        if request.top_k is not None:
            fields["top_k"] = request.top_k
        if request.stop:
            if any(not stop.strip() for stop in request.stop):
                raise unsupported("a stop sequence of white space alone; Anthropic refuses it.")
            fields["stop_sequences"] = list(request.stop)
        if request.tools:
            fields["tools"] = [words.tool_of(tool) for tool in request.tools]
            choice = words.tool_choice_of(request.tool_choice, request.parallel_tool_calls)
            if choice is not None:
                fields["tool_choice"] = choice
        if request.user is not None:
            fields["metadata"] = {"user_id": request.user}
        if self._traits.reasoning:
            self._think(fields, request)
        return fields

    def _think(self, fields: dict[str, object], request: ChatRequest) -> None:
        effort = effort_of(request.reasoning_effort, request.thinking_budget_tokens)
        budget = budget_of(request.reasoning_effort, request.thinking_budget_tokens)
        if effort is None or budget is None:
            return
        if effort == "none" or budget <= 0:
            fields["thinking"] = {"type": "disabled"}
        elif not self._traits.thinking_by_budget:
            fields["thinking"] = {"type": "adaptive"}
            fields["output_config"] = {"effort": "low" if effort == "minimal" else effort}
        else:
            limit = fields["max_tokens"]
            assert isinstance(limit, int)
            # The budget counts towards max_tokens and must stay below it; thinking takes no temperature of its own.
            budget = max(1024, budget)
            if limit <= budget:
                fields["max_tokens"] = limit + budget
            fields["thinking"] = {"type": "enabled", "budget_tokens": budget}
            fields.pop("temperature", None)
            fields.pop("top_k", None)

    def _ask_for_json(self, fields: dict[str, object], request: ChatRequest, model: str) -> None:
        form = request.answer_format
        assert form is not None
        takes_schemas = self._traits.json_schema and not _LACKS_SCHEMAS.search(model)
        if form.schema is not None and takes_schemas and is_taken(form.schema):
            config = fields.get("output_config")
            merged = dict(config) if isinstance(config, dict) else {}
            fields["output_config"] = merged | {"format": {"type": "json_schema", "schema": form.schema}}
            return
        wish = _JSON_ONLY
        if form.schema is not None:
            wish += f" It must satisfy this JSON schema: {bytes(form.schema).decode()}"
        system = fields.get("system")
        fields["system"] = f"{system}\n\n{wish}" if isinstance(system, str) else wish

    def parse_response(self, body: bytes) -> Answer:
        try:
            wire = _FIELDS.decode(body)
            if bytes(wire.get("type", b"")) == b'"error"':
                raise ProviderError(problem_of(error_of(body), None))
            whole = _MESSAGE.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ProviderError(malformed(f"the answer is not a message: {error}")) from error
        return answer_of(whole, wire)

    def decoder(self) -> StreamDecoder:
        return SSEDecoder(AnthropicTranslator())

    def parse_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderProblem:
        problem = problem_of(error_of(body), status)
        return msgspec.structs.replace(
            problem,
            retry_after_s=retry_after_s(headers, self._now_s()),
            should_retry=should_retry(headers),
            limits=self.parse_limits(headers),
        )

    def parse_limits(self, headers: Mapping[str, str]) -> RateLimits | None:
        now_s = self._now_s()
        counters: list[Limit | None] = []
        for name in ("requests", "tokens", "input-tokens", "output-tokens"):
            prefix = f"anthropic-ratelimit-{name}"
            reset = headers.get(f"{prefix}-reset")
            counters.append(
                limit_of(
                    headers.get(f"{prefix}-limit"),
                    headers.get(f"{prefix}-remaining"),
                    None if reset is None else until_s(reset, now_s),
                )
            )
        return RateLimits(*counters) if any(counter is not None for counter in counters) else None

    def takes_prefill(self, model: str) -> bool:
        """By the model's name: everything newer than Claude 4.5 refuses."""
        return bool(_TAKES_PREFILL.search(model)) if self._traits.prefill is None else self._traits.prefill

    def build_transcription(self, upload: AudioUpload, model: str) -> HttpRequest:
        raise unsupported("Anthropic has no transcription endpoint; name an OpenAI-compatible route for audio.")


def answer_of(whole: WireMessage, wire: Mapping[str, Raw]) -> Answer:
    parts: list[Text | ToolCall | Thinking] = []
    for block in whole.content:
        if block.type == "text":
            parts.append(Text(block.text or ""))
        elif block.type == "tool_use":
            arguments = bytes(present(block.input) or b"{}").decode()
            parts.append(ToolCall(block.id or "", block.name or "", arguments))
        elif block.type == "thinking":
            parts.append(Thinking(block.thinking or "", block.signature))
        elif block.type == "redacted_thinking":
            parts.append(Thinking("", redacted=block.data))
    raw = whole.stop_reason or ""
    return Answer(
        id=whole.id,
        model=whole.model,
        parts=tuple(parts),
        finish=FINISH.get(raw, FinishReason.UNKNOWN),
        raw_finish=raw,
        usage=whole.usage.over(Usage()) if whole.usage else Usage(),
        stop_sequence=whole.stop_sequence,
        format=WireFormat.ANTHROPIC,
        wire=wire,
    )
