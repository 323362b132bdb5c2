"""What every client protocol offers: a body parsed into a `ChatRequest`, and answers, streams and errors rendered.

Enters: a client's bytes, then the records of what came back. Leaves: a request, then bytes for the client. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from onebeat.conductor.answers import Answer, ProviderProblem, Report, StreamEvent, Usage
from onebeat.conductor.records import ChatRequest, RequestError, WireFormat


class HttpError(Struct, frozen=True):
    """An error response in the face's own shape."""

    status: int
    headers: dict[str, str]
    body: bytes


class StreamRenderer(Protocol):
    """One streamed answer, rendered. Keeps one id and one numbering of blocks across re-routes."""

    model: str
    """The fleet's name of the model that is answering: set it anew before the first event of another model."""

    def render(self, event: StreamEvent) -> bytes:
        """The bytes for one event; empty where there is nothing to send yet (the beginning waits for content, usage
        and the finish for `close`)."""
        ...

    def close(self, usage: Usage, report: Report) -> bytes:
        """The end of a good answer: the finish, usage, the onebeat block, the protocol's last word."""
        ...

    def fail(self, problem: ProviderProblem, report: Report | None = None) -> bytes:
        """The end of a bad one: the protocol's in-band error. Nothing may follow it."""
        ...

    def ping(self) -> bytes:
        """A keep-alive that every client ignores."""
        ...


class Face(Protocol):
    @property
    def format(self) -> WireFormat: ...

    def parse(self, body: bytes, headers: Mapping[str, str]) -> ChatRequest:
        """Raises `RequestError` with the field's path and a sentence that helps. `headers`: lower-case names."""
        ...

    def render_answer(self, answer: Answer, report: Report, *, created_s: int) -> bytes:
        """`created_s`: Unix time of the answer's beginning."""
        ...

    def renderer(self, request: ChatRequest, model: str, *, created_s: int) -> StreamRenderer:
        """`model`: the fleet's name of the first model to be asked."""
        ...

    def render_error(self, error: RequestError | ProviderProblem) -> HttpError:
        """Status, headers (`retry-after` where known) and body."""
        ...
