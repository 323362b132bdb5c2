"""One upstream call with its watch: a whole answer, or a stream of events, or why it came to nothing.

Enters: a line (route at work), a request, the watch's modes. Leaves: an `Answer`, or batches of events; `AttemptError`.
Knows no other attempt and no client: what is sent on, and what comes after a failure, is the dispatcher's business.
"""

from __future__ import annotations

import asyncio
import math

import aiohttp
import msgspec

from onebeat.conductor.answers import (
    Answer,
    Finished,
    Native,
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
from onebeat.conductor.config import Fleet
from onebeat.conductor.errors import AttemptError
from onebeat.conductor.policy import Choice
from onebeat.conductor.providers.base import HttpRequest, StreamDecoder
from onebeat.conductor.records import ChatRequest
from onebeat.conductor.runtime import Line
from onebeat.conductor.upstream import MAX_ERROR_BYTES, Patience, Upstream
from onebeat.conductor.watch import SOFT, Detector, Finding, Watch, watch_answer

_CONTENT = (TextDelta, ToolCallDelta, ReasoningDelta, Native, Finished)
CHARACTERS_PER_TOKEN = 4
FIRST_PIECE_BYTES = 2_048
"""Of a burst that arrives at once, this much is looked at before the first content goes out, and the rest behind it."""
AFTER_FINISH_S = 2.0
"""Behind the finish only usage and the protocol's last word follow: nobody waits longer for them."""


class Attempt:
    """One call. Made once the line's state has counted it; ended by the dispatcher, whatever happens."""

    __slots__ = (
        "_decoder",
        "_error",
        "_has_ended",
        "_unread",
        "accepted",
        "act_on_soft",
        "answer",
        "characters",
        "choice",
        "extra_is_guess",
        "extra_usd",
        "findings",
        "finished",
        "first_token_at",
        "fleet",
        "line",
        "patience",
        "response_model",
        "started",
        "status",
        "text_is_out",
        "upstream",
        "usage",
        "watch",
    )

    def __init__(
        self,
        session: aiohttp.ClientSession,
        fleet: Fleet,
        line: Line,
        choice: Choice,
        request: ChatRequest,
        *,
        act_on_soft: bool,
        deadline_at: float | None = None,
    ) -> None:
        """`deadline_at`: when the answer must have begun, where the caller said so."""
        resilience = fleet.resilience
        self.fleet = fleet
        self.line = line
        self.choice = choice
        total_ms = resilience.total_ms if request.stream else resilience.whole_ms
        self.patience = Patience(total_ms / 1e3, math.inf if deadline_at is None else deadline_at)
        self.upstream = Upstream(session, self.patience)
        self.watch = Watch(
            fleet.watch, wants_json=request.answer_format is not None, max_output_tokens=request.max_output_tokens
        )
        self.act_on_soft = act_on_soft
        self.started = self.patience.fed_at
        self.first_token_at: float | None = None
        self.accepted = False
        """The vendor said 200: it may bill."""
        self.status: int | None = None
        self.usage: Usage | None = None
        self.response_model: str | None = None
        self.answer: Answer | None = None
        """The whole answer, also where a detector would not let it through."""
        self.characters = 0
        self.text_is_out = False
        """The client has some of this answer's text."""
        self.extra_usd = 0.0
        """What is not priced by tokens: a transcription's minutes."""
        self.extra_is_guess = False
        self.findings: list[Finding] = []
        self.finished: Finished | None = None
        self._decoder: StreamDecoder | None = None
        self._error: AttemptError | None = None
        self._has_ended = False
        self._unread: bytes | None = None
        """What the first read brought beyond `FIRST_PIECE_BYTES`; None before it."""

    async def whole(self, request: ChatRequest) -> Answer:
        """The answer, not streamed. Raises `AttemptError`."""
        try:
            http = self.line.provider.build_request(request, self.line.upstream, stream=False)
        except ProviderError as error:
            raise AttemptError(error.problem) from error
        body = await self.exchange(http, "whole answer")
        try:
            answer = self.line.provider.parse_response(body)
        except ProviderError as error:
            raise AttemptError(error.problem) from error
        self.usage = answer.usage if answer.usage.input_tokens or answer.usage.output_tokens else None
        self.response_model = answer.model or None
        self.characters = sum(len(part.text) for part in answer.parts if hasattr(part, "text"))
        self.answer = answer
        self.findings = watch_answer(answer, self.watch)
        for finding in self.findings:
            if self._acts(finding):
                raise bad_answer(finding)
        return answer

    async def exchange(self, http: HttpRequest, phase: str) -> bytes:
        """A whole 200's body within the clock of whole answers, which `phase` names. Raises `AttemptError`."""
        self.patience.allow(self.fleet.resilience.whole_ms / 1e3, phase)
        await self._send(http)
        body = await self.upstream.read()
        self.patience.close()
        return body

    async def begin(self, request: ChatRequest) -> list[StreamEvent]:
        """Opens the stream and reads on until there is content: the events so far. Raises `AttemptError`."""
        self.patience.allow(self.fleet.resilience.first_token_ms / 1e3, "first token")
        try:
            http = self.line.provider.build_request(request, self.line.upstream, stream=True)
        except ProviderError as error:
            raise AttemptError(error.problem) from error
        await self._send(http)
        self._decoder = self.line.provider.decoder()
        events: list[StreamEvent] = []
        while True:
            events += await self.more()
            if self._error is not None:  # Nothing has gone out yet: what came before the failure is worth nothing.
                raise self._error
            if self._has_ended or self.finished is not None:
                return events
            if any(isinstance(event, _CONTENT) for event in events):
                self.patience.meet()
                self._watch_for_stalls()
                return events

    def _watch_for_stalls(self) -> None:
        mode = self.fleet.watch.stall
        limit_s = math.inf if mode == "off" else self.fleet.resilience.between_tokens_ms / 1e3
        self.patience.allow(limit_s, "between tokens", self._stood_still if mode == "report" else None)

    def _stood_still(self, seconds: float) -> None:
        self.findings.append(Finding(Detector.STALL, f"the stream stood still for {seconds:.1f} s", act=False))

    async def more(self) -> list[StreamEvent]:
        """The events that arrived since; empty once the stream has ended well. Raises `AttemptError`.

        What came before a failure is returned first, and the failure raised by the next call: the client may have it.
        """
        if self._error is not None:
            raise self._error
        if self._has_ended:
            return []
        decoder = self._decoder
        assert decoder is not None
        while True:
            try:
                data = await self._next_bytes()
            except AttemptError:
                # The answer is whole: a connection that then breaks, or is never closed, takes nothing from it.
                if self.finished is None:
                    raise
                data = b""
            if data:
                events = self._look_at(decoder.feed(data))
            else:
                self._has_ended = True
                events = self._look_at(decoder.close())
                if self.finished is not None:
                    self._finish()
            if events:
                return events
            if self._error is not None:
                raise self._error
            if self._has_ended:
                return events

    async def _next_bytes(self) -> bytes:
        rest, self._unread = self._unread, b""
        if rest:
            return rest
        data = await self.upstream.chunk()
        if rest is None and len(data) > FIRST_PIECE_BYTES:
            self._unread = data[FIRST_PIECE_BYTES:]
            return data[:FIRST_PIECE_BYTES]
        return data

    async def _send(self, http: HttpRequest) -> None:
        """Opens the call; a status other than 200 is a failure. Raises `AttemptError`."""
        provider = self.line.provider
        response = await self.upstream.open(self.line.url(http.path), http)
        self.status = response.status
        if response.status != 200:
            body = await self.upstream.read(MAX_ERROR_BYTES)
            raise AttemptError(provider.parse_error(response.status, response.headers, body))
        self.accepted = True
        self.line.state.learn(provider.parse_limits(response.headers), asyncio.get_running_loop().time())

    def _look_at(self, events: list[StreamEvent]) -> list[StreamEvent]:
        """Takes notes, feeds clock and watch. A failure cuts the batch short and is kept for later."""
        fed = False
        for index, event in enumerate(events):
            kind = type(event)
            if kind is TextDelta or kind is ToolCallDelta:
                finding = self.watch.feed(event)
                self.characters += len(event.text if kind is TextDelta else event.arguments)  # type: ignore[union-attr]
                fed = True
                if finding is not None:
                    self.findings.append(finding)
                    if self._acts(finding):
                        self._error = bad_answer(finding)
                        events = events[:index]
                        break
            elif kind is ReasoningDelta or kind is Native:
                fed = True
            elif kind is UsageReport:
                self.usage = event.usage  # type: ignore[union-attr]
            elif kind is Finished:
                self.finished = event  # type: ignore[assignment]
                self.watch.feed(event)
                self.patience.allow(AFTER_FINISH_S, "end of stream")
                fed = True
            elif kind is Started:
                self.response_model = event.model or None  # type: ignore[union-attr]
            elif kind is ProviderProblem:
                if self.finished is None:
                    self._error = AttemptError(event)  # type: ignore[arg-type]
                events = events[:index]
                break
        if fed:
            now = asyncio.get_running_loop().time()
            self.patience.fed_at = now
            if self.first_token_at is None:
                self.first_token_at = now
        return events

    def _finish(self) -> None:
        found = self.watch.finish(self.usage.output_tokens if self.usage else None)
        self.findings += found
        for finding in found:
            if self._acts(finding):
                self._error = bad_answer(finding)
                return

    def _acts(self, finding: Finding) -> bool:
        if finding.detector is Detector.REFUSAL and self.text_is_out:
            return False  # Nothing that follows a refusal which the client has read would make it unsaid.
        return finding.act and (self.act_on_soft or finding.detector not in SOFT)

    def billed(self) -> tuple[Usage, bool]:
        """The usage to enter, and whether it is our estimate."""
        written = self.characters // CHARACTERS_PER_TOKEN
        if self.usage is not None:
            # A stream that broke off has reported what it began with (Anthropic) or how far it came (Gemini).
            if self.finished is not None or self._decoder is None or self.usage.output_tokens >= written:
                return self.usage, False
            return msgspec.structs.replace(self.usage, output_tokens=written + 1), True
        if not self.accepted or not self.characters:
            return Usage(), False
        return Usage(self.choice.prompt_tokens, written + 1), True

    @property
    def first_token_ms(self) -> float | None:
        return None if self.first_token_at is None else 1e3 * (self.first_token_at - self.started)


def bad_answer(finding: Finding) -> AttemptError:
    problem = ProviderProblem(ProblemKind.MALFORMED, f"the answer was not fit to give ({finding.note})")
    return AttemptError(problem, finding)
