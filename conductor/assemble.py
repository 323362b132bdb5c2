"""A streamed answer put together, and a whole answer taken apart into events.

Enters: stream events, or an `Answer`. Leaves: the other. Knows no vendor and no clock.
"""

from __future__ import annotations

from onebeat.conductor.answers import (
    Answer,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    StreamEvent,
    TextDelta,
    ToolCallDelta,
    Usage,
    UsageReport,
)
from onebeat.conductor.records import Text, Thinking, ToolCall


class AnswerBuilder:
    """Collects one stream. Text, reasoning and calls keep the order in which each began."""

    __slots__ = ("_blocks", "_calls", "_finished", "_started", "usage")

    def __init__(self) -> None:
        self.usage = Usage()
        self._started: Started | None = None
        self._finished: Finished | None = None
        # Each block is its kind and its pieces; a call's pieces are found by its index.
        self._blocks: list[tuple[str, list[str], dict[str, str | None]]] = []
        self._calls: dict[int, int] = {}

    def add(self, event: StreamEvent) -> None:
        if isinstance(event, TextDelta):
            self._pieces("refusal" if event.is_refusal else "text")[0].append(event.text)
        elif isinstance(event, ToolCallDelta):
            self._add_call(event)
        elif isinstance(event, ReasoningDelta):
            self._add_reasoning(event)
        elif isinstance(event, Started):
            self._started = event
        elif isinstance(event, Finished):
            self._finished = event
        elif isinstance(event, UsageReport):
            self.usage = event.usage

    @property
    def finished(self) -> Finished | None:
        return self._finished

    def answer(self) -> Answer:
        """What there is so far; `finish` is UNKNOWN where no finish reason has come."""
        started = self._started or Started("", "")
        finished = self._finished or Finished(FinishReason.UNKNOWN, "")
        return Answer(
            id=started.id,
            model=started.model,
            parts=tuple(_part(*block) for block in self._blocks),
            finish=finished.reason,
            raw_finish=finished.raw,
            usage=self.usage,
            stop_sequence=finished.stop_sequence,
        )

    def _pieces(self, kind: str) -> tuple[list[str], dict[str, str | None]]:
        if not self._blocks or self._blocks[-1][0] != kind:
            self._blocks.append((kind, [], {}))
        return self._blocks[-1][1], self._blocks[-1][2]

    def _add_reasoning(self, event: ReasoningDelta) -> None:
        if event.redacted is not None:
            self._blocks.append(("reasoning", [], {"redacted": event.redacted}))
            return
        if self._blocks and self._blocks[-1][0] == "reasoning" and "redacted" in self._blocks[-1][2]:
            self._blocks.append(("reasoning", [], {}))
        pieces, names = self._pieces("reasoning")
        pieces.append(event.text)
        if event.signature is not None:
            names["signature"] = (names.get("signature") or "") + event.signature

    def _add_call(self, event: ToolCallDelta) -> None:
        if event.index not in self._calls:
            self._calls[event.index] = len(self._blocks)
            self._blocks.append(("call", [], {}))
        _, pieces, names = self._blocks[self._calls[event.index]]
        pieces.append(event.arguments)
        if event.id is not None:
            names["id"] = event.id
        if event.name is not None:
            names["name"] = event.name
        if event.signature is not None:
            names["signature"] = event.signature


def _part(kind: str, pieces: list[str], names: dict[str, str | None]) -> Text | ToolCall | Thinking:
    joined = "".join(pieces)
    if kind == "call":
        return ToolCall(names.get("id") or "", names.get("name") or "", joined, names.get("signature"))
    if kind == "reasoning":
        return Thinking(joined, names.get("signature"), names.get("redacted"))
    return Text(joined, is_refusal=kind == "refusal")


def events_of(answer: Answer) -> list[StreamEvent]:
    """The events that a stream of the same answer would hold, each block in one piece."""
    events: list[StreamEvent] = [Started(answer.id, answer.model)]
    calls = 0
    for part in answer.parts:
        if isinstance(part, Text):
            events.append(TextDelta(part.text, is_refusal=part.is_refusal))
        elif isinstance(part, Thinking):
            events.append(ReasoningDelta(part.text, part.signature, part.redacted))
        else:
            events.append(ToolCallDelta(calls, part.id, part.name, part.arguments, part.signature))
            calls += 1
    if answer.raw_finish:
        events.append(Finished(answer.finish, answer.raw_finish, answer.stop_sequence))
    events.append(UsageReport(answer.usage))
    return events
