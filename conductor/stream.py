"""What of a stream goes to the client, and when: the hold-back, tool calls in one piece, and the seam after a failure.

Enters: events of one attempt after another. Leaves: bytes in the sink. Text waits until the hold is over, tool calls
until the answer has ended well (half a call is of no use to anybody), reasoning and pings pass at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from onebeat.conductor.answers import (
    Native,
    Ping,
    ProviderProblem,
    ReasoningDelta,
    Report,
    Started,
    StreamEvent,
    TextDelta,
    ToolCallDelta,
)
from onebeat.conductor.attempt import Attempt
from onebeat.conductor.call import Call
from onebeat.conductor.faces.base import StreamRenderer
from onebeat.conductor.records import ChatRequest
from onebeat.conductor.resume import Resume, Skipper, resume_request
from onebeat.conductor.runtime import Line

if TYPE_CHECKING:
    from onebeat.conductor.dispatch import Sink


class Release:
    """One answer's way out, over all of its attempts."""

    __slots__ = (
        "_attempt",
        "_call",
        "_held",
        "_held_calls",
        "_held_characters",
        "_held_since",
        "_held_visible",
        "_is_holding",
        "_sink",
        "_skipper",
        "_started",
        "renderer",
        "resume",
    )

    def __init__(self, call: Call, sink: Sink) -> None:
        self._call = call
        self._sink = sink
        self._attempt: Attempt | None = None
        self.renderer: StreamRenderer | None = None
        self.resume: Resume | None = None
        self._reset()

    def _reset(self) -> None:
        self._held: list[StreamEvent] = []
        self._held_calls: list[StreamEvent] = []
        self._held_characters = 0
        self._held_visible = False
        self._held_since: float | None = None
        self._is_holding = True
        self._skipper: Skipper | None = None
        self._started: StreamEvent | None = None

    def request_for(self, line: Line) -> ChatRequest:
        return resume_request(self._call.request, self.resume)

    async def take_over(self, attempt: Attempt) -> None:
        """A new attempt's events follow; what an earlier one left unsent is forgotten."""
        self._reset()
        self._attempt = attempt
        if self.resume is not None:
            self._skipper = Skipper(self.resume)
        if self.renderer is not None:
            self.renderer.model = attempt.line.name

    async def send(self, events: list[StreamEvent]) -> None:
        """Takes the events of one read. One write at most."""
        out: list[StreamEvent] = []
        for event in events:
            kind = type(event)
            if kind is TextDelta:
                if self._skipper is not None:
                    rest = self._skip(event)  # type: ignore[arg-type]
                    if rest is None:
                        continue
                    event = rest
                if self._is_holding:
                    self._hold(event)
                    if self._is_holding:
                        continue
                    out += self._held
                    self._held = []
                else:
                    out.append(event)
            elif kind is ToolCallDelta or kind is Native:
                self._held_calls.append(event)
            elif kind is Ping:
                if self.renderer is not None and not out:
                    await self._sink.write(self.renderer.ping())
            elif kind is ReasoningDelta:
                # What an answer thinks before its text is no content: a re-route behind it stays unseen.
                out.append(event)
            elif kind is Started:
                self._started = event
        if out:
            await self._write(out)

    def _skip(self, event: TextDelta) -> TextDelta | None:
        assert self._skipper is not None
        text = self._skipper.take(event.text)
        if self._skipper.is_done:
            self._skipper = None
        return TextDelta(text, None, event.is_refusal) if text else None

    def _hold(self, event: StreamEvent) -> None:
        assert isinstance(event, TextDelta)
        watch = self._call.runtime.fleet.watch
        self._held.append(event)
        self._held_characters += len(event.text)
        self._held_visible = self._held_visible or not event.text.isspace()
        if self._held_since is None:
            self._held_since = asyncio.get_running_loop().time()
        tokens = max(len(self._held), self._held_characters // 4)
        if self._held_visible and tokens >= watch.hold_tokens:
            self._is_holding = False

    def holds_for_s(self) -> float | None:
        """How much longer held text may wait; None where nothing visible is held."""
        if not self._is_holding or not self._held_visible or self._held_since is None:
            return None
        until = self._held_since + self._call.runtime.fleet.watch.hold_ms / 1e3
        return max(0.0, until - asyncio.get_running_loop().time())

    async def let_go(self) -> None:
        """The hold's time is over: what is held goes out."""
        self._is_holding = False
        held, self._held = self._held, []
        if held:
            await self._write(held)

    async def finish(self) -> None:
        """The attempt ended well: what waited for that goes out."""
        if self._skipper is not None:
            self._skipper.finish()
        assert self._attempt is not None
        last: list[StreamEvent] = [*self._held, *self._held_calls]
        self._held, self._held_calls = [], []
        if self._attempt.finished is not None:
            last.append(self._attempt.finished)
        await self._write(last)

    async def _write(self, events: list[StreamEvent]) -> None:
        attempt, call = self._attempt, self._call
        assert attempt is not None
        if self.renderer is None:
            self.renderer = await self._sink.start(call, attempt.choice)
        render = self.renderer.render
        pieces: list[bytes] = []
        if self._started is not None:
            events = [self._started, *events]
            self._started = None
        for event in events:
            if data := render(event):
                pieces.append(data)
            if type(event) is TextDelta:
                call.sent.append(event.text)
                attempt.text_is_out = True
        if pieces:
            if call.first_token_ms is None:
                call.first_token_ms = 1e3 * (asyncio.get_running_loop().time() - call.started)
            await self._sink.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    async def close(self, report: Report) -> None:
        """The end of a good answer: usage, the report, the protocol's last word."""
        assert self.renderer is not None
        await self._sink.write(self.renderer.close(self._call.usage, report))

    async def fail(self, problem: ProviderProblem) -> None:
        """The in-band error."""
        assert self.renderer is not None and self._attempt is not None
        await self._sink.write(self.renderer.fail(problem, self._call.report(self._attempt.choice, final=True)))
