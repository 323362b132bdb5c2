"""Gemini's generateContent and streamGenerateContent.

Enters: a `ChatRequest`; bytes that came back. Leaves: `HttpRequest`; events, answers, problems. The key travels in a
header, never in the URL. No face speaks this format, so every request is translated. Gemini names no rate limits in
headers: what it says of them is in an error's body. Source: ai.google.dev and the `google-genai` package.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Mapping
from urllib.parse import quote

import msgspec
from msgspec import Raw

from onebeat.conductor.answers import (
    Answer,
    Finished,
    FinishReason,
    Ping,
    ProblemKind,
    ProviderError,
    ProviderProblem,
    RateLimits,
    ReasoningDelta,
    Started,
    StreamEvent,
    TextDelta,
    ToolCallDelta,
    UsageReport,
)
from onebeat.conductor.assemble import AnswerBuilder
from onebeat.conductor.providers import gemini_messages as words
from onebeat.conductor.providers.base import AudioUpload, HttpRequest, StreamDecoder
from onebeat.conductor.providers.decoding import SSEDecoder, malformed
from onebeat.conductor.providers.gemini_wire import FINISH, WirePart, WireResponse, error_of, problem_of
from onebeat.conductor.providers.headers import retry_after_s
from onebeat.conductor.providers.openai_messages import unsupported
from onebeat.conductor.providers.traits import Traits, budget_of, effort_of
from onebeat.conductor.records import ChatRequest, WireFormat, present
from onebeat.conductor.sse import ServerSentEvent

_RESPONSE = msgspec.json.Decoder(WireResponse)
_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_ENCODER = msgspec.json.Encoder()
# Up to 2.5 thought signatures are not asked for.
_UNSIGNED = re.compile(r"gemini-(?:pro|[12](?:\.\d)?)\b")


class GeminiProvider:
    """See `conductor.providers.base.Provider`. The base URL of the route has no path."""

    format = WireFormat.GEMINI

    def __init__(
        self, key: str | None = None, *, traits: Traits | None = None, now_s: Callable[[], float] = time.time
    ) -> None:
        self._traits = traits or Traits()
        self._now_s = now_s
        self._headers = {"content-type": "application/json"}
        if key:
            self._headers["x-goog-api-key"] = key

    def build_request(self, request: ChatRequest, model: str, *, stream: bool) -> HttpRequest:
        if request.native_only:
            raise unsupported(f"{request.native_only} is a feature of {request.face.value} alone.")
        fields: dict[str, object] = {
            "contents": words.contents_of(request.messages, signs_calls=not _UNSIGNED.search(model))
        }
        if (system := words.system_of(request.messages)) is not None:
            fields["systemInstruction"] = system
        if request.tools:
            fields["tools"] = words.tools_of(request.tools)
            if request.tool_choice is not None:
                fields["toolConfig"] = words.tool_choice_of(request.tool_choice)
        if config := self._config(request):
            fields["generationConfig"] = config
        method = "streamGenerateContent?alt=sse" if stream else "generateContent"
        path = f"/v1beta/models/{quote(model.removeprefix('models/'), safe='')}:{method}"
        return HttpRequest(path, self._headers, _ENCODER.encode(fields))

    def _config(self, request: ChatRequest) -> dict[str, object]:
        config: dict[str, object] = {}
        if self._traits.sampling is not False:
            for name, given in (
                ("temperature", request.temperature),
                ("topP", request.top_p),
                ("topK", request.top_k),
                ("seed", request.seed),
                ("presencePenalty", request.presence_penalty),
                ("frequencyPenalty", request.frequency_penalty),
            ):
                if given is not None:
                    config[name] = given
        if request.max_output_tokens is not None:
            config["maxOutputTokens"] = request.max_output_tokens
        if request.stop:
            if len(request.stop) > 5:
                raise unsupported(f"{len(request.stop)} stop sequences; Gemini takes at most 5.")
            config["stopSequences"] = list(request.stop)
        if request.answer_format is not None:
            config["responseMimeType"] = "application/json"
            if request.answer_format.schema is not None:
                config["responseJsonSchema"] = request.answer_format.schema
        if self._traits.reasoning and (thinking := self._thinking(request)):
            config["thinkingConfig"] = thinking
        return config

    def _thinking(self, request: ChatRequest) -> dict[str, object] | None:
        """A budget for Gemini 2.5, a level for what came later; the two in one request are refused."""
        if self._traits.thinking_by_budget:
            budget = budget_of(request.reasoning_effort, request.thinking_budget_tokens)
            return None if budget is None else {"thinkingBudget": budget, "includeThoughts": budget > 0}
        effort = effort_of(request.reasoning_effort, request.thinking_budget_tokens)
        if effort is None:
            return None
        # Thinking cannot be turned off there: the least there is stands for none.
        level = {"none": "MINIMAL", "xhigh": "HIGH", "max": "HIGH"}.get(effort, effort.upper())
        return {"thinkingLevel": level, "includeThoughts": effort != "none"}

    def parse_response(self, body: bytes) -> Answer:
        events: list[StreamEvent] = []
        translator = _Translator()
        try:
            translator.frame(_RESPONSE.decode(body), events)
            wire = _FIELDS.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ProviderError(malformed(f"the answer is not a generateContent response: {error}")) from error
        if not translator.has_candidates:
            raise ProviderError(malformed("the response has no candidates and says not why."))
        builder = AnswerBuilder()
        for event in events:
            builder.add(event)
        return msgspec.structs.replace(builder.answer(), format=WireFormat.GEMINI, wire=wire)

    def decoder(self) -> StreamDecoder:
        return SSEDecoder(_Translator())

    def parse_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderProblem:
        problem = problem_of(error_of(body), status)
        return msgspec.structs.replace(
            problem,
            retry_after_s=problem.retry_after_s
            if problem.retry_after_s is not None
            else retry_after_s(headers, self._now_s()),
        )

    def parse_limits(self, headers: Mapping[str, str]) -> RateLimits | None:
        return None

    def takes_prefill(self, model: str) -> bool:
        """Not documented, and refused by some models: only where the fleet says so."""
        return self._traits.prefill is True

    def build_transcription(self, upload: AudioUpload, model: str) -> HttpRequest:
        raise unsupported("Gemini has no transcription endpoint; name an OpenAI-compatible route for audio.")


class _Translator:
    """Each frame is a whole response with the new parts only. There is no last word but the end of the body."""

    __slots__ = ("_calls", "_started", "has_candidates", "is_done", "is_finished")

    def __init__(self) -> None:
        self.is_finished = False
        self.is_done = False
        self.has_candidates = False
        self._started = False
        self._calls = 0

    def translate(self, event: ServerSentEvent, events: list[StreamEvent]) -> None:
        self.frame(_RESPONSE.decode(event.data), events)

    def frame(self, response: WireResponse, events: list[StreamEvent]) -> None:
        if response.error is not None:
            raise ProviderError(problem_of(response.error, None))
        if not self._started:
            self._started = True
            events.append(Started(response.response_id or "", response.model_version or ""))
        if response.candidates:
            self.has_candidates = True
            candidate = response.candidates[0]
            for part in (candidate.content.parts if candidate.content else None) or ():
                self._part(part, events)
            if candidate.finish_reason and candidate.finish_reason != "FINISH_REASON_UNSPECIFIED":
                self._finish(candidate.finish_reason, events)
        if response.usage_metadata is not None:
            events.append(UsageReport(response.usage_metadata.usage()))
        feedback = response.prompt_feedback
        if feedback is not None and feedback.block_reason and not self.has_candidates:
            what = feedback.block_reason_message or f"the prompt was blocked: {feedback.block_reason}."
            problem = ProviderProblem(ProblemKind.CONTENT_POLICY, what, code=feedback.block_reason)
            raise ProviderError(problem)

    def _part(self, part: WirePart, events: list[StreamEvent]) -> None:
        if part.function_call is not None:
            call = part.function_call
            # Gemini's calls often come without an id, and clients need one to answer by.
            call_id = call.id or f"call_{secrets.token_hex(8)}"
            arguments = bytes(present(call.args) or b"{}").decode()
            events.append(ToolCallDelta(self._calls, call_id, call.name, arguments, part.thought_signature))
            self._calls += 1
        elif part.thought:
            events.append(ReasoningDelta(part.text or ""))
        elif part.text:
            events.append(TextDelta(part.text))
        else:
            events.append(Ping())

    def _finish(self, raw: str, events: list[StreamEvent]) -> None:
        self.is_finished = True
        reason = FINISH.get(raw, FinishReason.UNKNOWN)
        # Gemini says STOP after a call too.
        if reason is FinishReason.STOP and self._calls:
            reason = FinishReason.TOOL_CALLS
        events.append(Finished(reason, raw))

    def whole(self, body: bytes, events: list[StreamEvent]) -> None:
        """An error in a 200, or an answer without `alt=sse`: a list of frames."""
        try:
            frames = msgspec.json.decode(body, type=list[WireResponse] | WireResponse)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise ProviderError(problem_of(error_of(body), None)) from None
        for frame in frames if isinstance(frames, list) else [frames]:
            self.frame(frame, events)
