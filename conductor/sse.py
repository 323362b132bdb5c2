"""Server-sent events, parsed incrementally (WHATWG HTML, section 9.2.6).

Enters: bytes in any pieces. Leaves: `ServerSentEvent` records whose data is still bytes (UTF-8 is left to the JSON
decoder, so a character split between two pieces needs no care here). Knows nothing of what the data means.

Two departures from the standard, both for servers that are met in the wild: an event that the end of the body leaves
without its blank line is dispatched by `close`, and an event larger than a bound is refused.
"""

from __future__ import annotations

from msgspec import Struct

from onebeat.engine.errors import OnebeatError

MAX_EVENT_BYTES = 64 * 1024 * 1024
"""An image or a long tool call is a few megabytes in one event; what is larger than this is no answer."""

_BOM = b"\xef\xbb\xbf"


class ServerSentEvent(Struct, frozen=True, gc=False):
    data: bytes
    type: bytes = b"message"


class EventTooLargeError(OnebeatError):
    """One event grew past its bound."""


class SSEParser:
    """One body's parser. `last_id` and `retry_ms` hold what the stream last said of them."""

    __slots__ = (
        "_at_start",
        "_data",
        "_event_bytes",
        "_held",
        "_line_bytes",
        "_max",
        "_skip_lf",
        "_type",
        "last_id",
        "retry_ms",
    )

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.last_id = b""
        self.retry_ms: int | None = None
        self._max = max_event_bytes
        self._at_start = True
        self._skip_lf = False
        # The pieces of a line that has not ended yet: joined once, so that a large event costs linear time.
        self._held: list[bytes] = []
        self._line_bytes = 0
        # Bytes of the unfinished event's whole data lines.
        self._event_bytes = 0
        self._data: list[bytes] = []
        self._type = b""

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """The events that `data` completes. Raises `EventTooLargeError`; the parser is of no use afterwards."""
        if self._at_start:
            data = self._without_bom(data)
        if self._skip_lf and data:
            # The CR that ended the last piece was a line's end already: this LF belongs to it.
            self._skip_lf = False
            if data[0] == 10:
                data = data[1:]
        if b"\r" in data:
            self._skip_lf = data[-1] == 13
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = data.split(b"\n")
        if self._held:
            if len(lines) == 1:
                self._hold(data)
                return []
            self._held.append(lines[0])
            lines[0] = self._unhold()
        rest = lines.pop()
        events = self._take(lines) if lines else []
        if rest:
            self._hold(rest)
        return events

    def close(self) -> list[ServerSentEvent]:
        """What the end of the body leaves unfinished: at most one event."""
        return self._take([self._unhold(), b""])

    def _take(self, lines: list[bytes]) -> list[ServerSentEvent]:
        events: list[ServerSentEvent] = []
        fields = self._data
        for line in lines:
            if not line:
                if fields:
                    data = fields[0] if len(fields) == 1 else b"\n".join(fields)
                    events.append(ServerSentEvent(data, self._type) if self._type else ServerSentEvent(data))
                    fields.clear()
                self._type = b""
                self._event_bytes = 0
            elif line.startswith(b"data: "):
                self._add(line[6:])
            elif line[0] != 58:  # A comment begins with a colon.
                self._other_field(line)
        return events

    def _other_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if name == b"data":
            self._add(value)
        elif name == b"event":
            self._type = value
        elif name == b"id":
            if b"\0" not in value:
                self.last_id = value
        elif name == b"retry" and value.isdigit():
            self.retry_ms = int(value)

    def _add(self, value: bytes) -> None:
        self._event_bytes += len(value) + 1
        if self._event_bytes > self._max:
            self._refuse()
        self._data.append(value)

    def _hold(self, piece: bytes) -> None:
        self._held.append(piece)
        self._line_bytes += len(piece)
        if self._event_bytes + self._line_bytes > self._max:
            self._refuse()

    def _unhold(self) -> bytes:
        line = b"".join(self._held)
        self._held.clear()
        self._line_bytes = 0
        return line

    def _refuse(self) -> None:
        raise EventTooLargeError(
            f"one server-sent event is over {self._max} bytes; raise the bound if the provider means it."
        )

    def _without_bom(self, data: bytes) -> bytes:
        # The BOM itself may come split: hold until three bytes are there or it cannot be one.
        if self._held:
            data = self._unhold() + data
        if len(data) < 3 and _BOM.startswith(data):
            if data:
                self._hold(data)
            return b""
        self._at_start = False
        return data[3:] if data.startswith(_BOM) else data
