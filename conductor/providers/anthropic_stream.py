"""Anthropic's stream events translated: message_start, content blocks, message_delta, message_stop, ping, error.

Enters: server-sent events. Leaves: the conductor's. Blocks and deltas that have no word of their own there (a vendor's
own tools, citations) travel as `Native`. Unknown events are pings, as the API's documentation asks of clients.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

from onebeat.conductor.answers import (
    Finished,
    FinishReason,
    Native,
    Ping,
    ProviderError,
    ReasoningDelta,
    Started,
    StreamEvent,
    TextDelta,
    ToolCallDelta,
    Usage,
    UsageReport,
)
from onebeat.conductor.providers.anthropic_wire import (
    FINISH,
    WireBlock,
    WireDelta,
    WireError,
    WireEvent,
    error_of,
    problem_of,
)
from onebeat.conductor.records import WireFormat, present
from onebeat.conductor.sse import ServerSentEvent

_EVENT = msgspec.json.Decoder(WireEvent)
_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_OWN_BLOCKS = ("text", "tool_use", "thinking", "redacted_thinking")


class AnthropicTranslator:
    __slots__ = ("_calls", "_native", "_usage", "is_done", "is_finished")

    def __init__(self) -> None:
        self.is_finished = False
        self.is_done = False
        self._usage = Usage()
        # Content blocks are numbered through; calls are numbered among themselves.
        self._calls: dict[int, int] = {}
        self._native: set[int] = set()

    def translate(self, event: ServerSentEvent, events: list[StreamEvent]) -> None:
        if not event.data:
            return
        given = _EVENT.decode(event.data)
        kind = given.type
        if kind == "content_block_delta" and given.delta is not None:
            self._delta(given, given.delta, event.data, events)
        elif kind == "content_block_start" and given.content_block is not None:
            self._block(given, given.content_block, event.data, events)
        elif kind == "content_block_stop":
            if given.index in self._native:
                events.append(Native(WireFormat.ANTHROPIC, kind, _FIELDS.decode(event.data)))
        elif kind == "message_start" and given.message is not None:
            events.append(Started(given.message.id, given.message.model))
            if given.message.usage is not None:
                self._usage = given.message.usage.over(self._usage)
                events.append(UsageReport(self._usage))
        elif kind == "message_delta":
            self._end(given, events)
        elif kind == "message_stop":
            # Without a stop reason before it the answer is cut all the same: `close` says so.
            self.is_done = self.is_finished
        elif kind == "error":
            raise ProviderError(problem_of(given.error or WireError(), None))
        else:
            events.append(Ping())

    def _block(self, given: WireEvent, block: WireBlock, data: bytes, events: list[StreamEvent]) -> None:
        if block.type == "tool_use":
            number = self._calls.setdefault(given.index, len(self._calls))
            # The input of a whole block comes at once only where a server does not stream it.
            whole = bytes(present(block.input) or b"").decode()
            arguments = "" if whole == "{}" else whole
            events.append(ToolCallDelta(number, block.id, block.name, arguments))
        elif block.type == "redacted_thinking":
            events.append(ReasoningDelta("", redacted=block.data or ""))
        elif block.type not in _OWN_BLOCKS:
            self._native.add(given.index)
            events.append(Native(WireFormat.ANTHROPIC, given.type, _FIELDS.decode(data)))
        elif block.text:
            events.append(TextDelta(block.text))
        elif block.thinking:
            events.append(ReasoningDelta(block.thinking))
        else:
            events.append(Ping())

    def _delta(self, given: WireEvent, delta: WireDelta, data: bytes, events: list[StreamEvent]) -> None:
        if given.index in self._native:
            events.append(Native(WireFormat.ANTHROPIC, given.type, _FIELDS.decode(data)))
        elif delta.type == "text_delta":
            events.append(TextDelta(delta.text or ""))
        elif delta.type == "input_json_delta":
            number = self._calls.setdefault(given.index, len(self._calls))
            events.append(ToolCallDelta(number, arguments=delta.partial_json or ""))
        elif delta.type == "thinking_delta":
            events.append(ReasoningDelta(delta.thinking or ""))
        elif delta.type == "signature_delta":
            events.append(ReasoningDelta("", signature=delta.signature))
        else:
            events.append(Native(WireFormat.ANTHROPIC, given.type, _FIELDS.decode(data)))

    def _end(self, given: WireEvent, events: list[StreamEvent]) -> None:
        if given.delta is not None and given.delta.stop_reason:
            self.is_finished = True
            raw = given.delta.stop_reason
            events.append(Finished(FINISH.get(raw, FinishReason.UNKNOWN), raw, given.delta.stop_sequence))
        if given.usage is not None:
            self._usage = given.usage.over(self._usage)
            events.append(UsageReport(self._usage))

    def whole(self, body: bytes, events: list[StreamEvent]) -> None:
        """A body that is no event stream: an error in a 200 (a whole message is never sent to a streamed request)."""
        raise ProviderError(problem_of(error_of(body), None))
