"""The vendor-neutral half of decoding a stream: bytes to SSE events, and what a broken body becomes.

Enters: bytes, and a vendor's `Translator`. Leaves: stream events; a `ProviderProblem` at most once, and nothing after
it. Knows no vendor. A body that is not SSE at all (a server that ignored `stream`, or put an error in a 200) is kept
whole and given to `Translator.whole`.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from onebeat.conductor.answers import ProblemKind, ProviderError, ProviderProblem, StreamEvent
from onebeat.conductor.sse import MAX_EVENT_BYTES, EventTooLargeError, ServerSentEvent, SSEParser

MAX_MESSAGE_CHARACTERS = 500
"""A vendor's error sentence is cut here: some servers put the whole request, or an HTML page, into it."""


class Translator(Protocol):
    """One vendor's events. It raises `ProviderError` or a JSON error; the decoder turns either into a problem."""

    is_finished: bool
    """Whether a finish reason was seen: the answer is whole, whatever happens to the connection."""
    is_done: bool
    """Whether the vendor's last word was seen: what follows is not looked at."""

    def translate(self, event: ServerSentEvent, events: list[StreamEvent]) -> None: ...

    def whole(self, body: bytes, events: list[StreamEvent]) -> None: ...


class SSEDecoder:
    """`StreamDecoder` for every vendor: only the translator differs."""

    __slots__ = ("_broken", "_parser", "_translator", "_whole")

    def __init__(self, translator: Translator) -> None:
        self._translator = translator
        self._parser = SSEParser()
        self._broken = False
        # None: nothing has come yet. False: it is SSE. A list: the pieces of a body that is not.
        self._whole: list[bytes] | bool | None = None

    def feed(self, data: bytes) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        if self._broken:
            return events
        try:
            if self._whole is not False and self._is_whole(data):
                return events
            translator = self._translator
            for event in self._parser.feed(data):
                if translator.is_done:
                    break
                translator.translate(event, events)
        except (msgspec.MsgspecError, ValueError, RecursionError, ProviderError, EventTooLargeError) as error:
            self._break(error, events)
        return events

    def close(self) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        if self._broken or self._translator.is_done:
            return events
        try:
            if isinstance(self._whole, list):
                self._translator.whole(b"".join(self._whole), events)
            else:
                for event in self._parser.close():
                    self._translator.translate(event, events)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            # The half of an event that a cut connection left is no sign of garbage.
            if not self._translator.is_finished and isinstance(self._whole, list):
                self._break(error, events)
        except ProviderError as error:
            self._break(error, events)
        if not self._broken and not self._translator.is_finished:
            self._broken = True
            message = "the stream ended without a finish reason; the answer is not whole."
            events.append(ProviderProblem(ProblemKind.CUT, message))
        return events

    def _is_whole(self, data: bytes) -> bool:
        if isinstance(self._whole, list):
            self._whole.append(data)
            if sum(map(len, self._whole)) > MAX_EVENT_BYTES:
                raise EventTooLargeError(f"the body is over {MAX_EVENT_BYTES} bytes and no event stream.")
            return True
        begin = data.lstrip()[:1]
        if begin in (b"{", b"[", b"<"):
            self._whole = [data]
            return True
        if begin:
            self._whole = False
        return False

    def _break(self, error: Exception, events: list[StreamEvent]) -> None:
        self._broken = True
        if isinstance(error, ProviderError):
            events.append(error.problem)
        else:
            events.append(malformed(f"the stream holds what is not the vendor's format: {error}"))


def malformed(message: str) -> ProviderProblem:
    return ProviderProblem(ProblemKind.MALFORMED, message[:MAX_MESSAGE_CHARACTERS])


def kind_of_status(status: int) -> ProblemKind:
    """What a status means at every vendor; a vendor's own codes are looked at first."""
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status >= 500:
        return ProblemKind.SERVER_ERROR
    return ProblemKind.INVALID_REQUEST if status >= 400 else ProblemKind.MALFORMED


_BY_STATUS = {
    401: ProblemKind.AUTH,
    402: ProblemKind.QUOTA_EXHAUSTED,
    403: ProblemKind.AUTH,
    404: ProblemKind.NOT_FOUND,
    408: ProblemKind.TIMEOUT,
    # A lock or a concurrent change: the vendors' own SDKs try it again.
    409: ProblemKind.SERVER_ERROR,
    429: ProblemKind.RATE_LIMITED,
    503: ProblemKind.OVERLOADED,
    504: ProblemKind.TIMEOUT,
    529: ProblemKind.OVERLOADED,
}
