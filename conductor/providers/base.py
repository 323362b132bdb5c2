"""What every vendor module offers: a request out, and answers, events, problems and limits back.

Enters: a `ChatRequest` and the model's name at the vendor. Leaves: bytes to send, and records from what came back.
Does no I/O and knows no clock: the dispatcher owns sockets, retries and time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from onebeat.conductor.answers import Answer, ProviderProblem, RateLimits, StreamEvent
from onebeat.conductor.records import ChatRequest, WireFormat


class HttpRequest(Struct, frozen=True):
    """A POST: `path` goes behind the route's base URL (scheme, host and fixed prefix, no trailing slash)."""

    path: str
    headers: dict[str, str]
    body: bytes


class AudioUpload(Struct, frozen=True):
    """A file to transcribe and the form's other text fields, in order (`model` excepted)."""

    filename: str
    content_type: str
    data: bytes
    fields: tuple[tuple[str, str], ...] = ()


class StreamDecoder(Protocol):
    """One streamed answer's bytes to events. Keeps the SSE parser and the vendor's open blocks."""

    def feed(self, data: bytes) -> list[StreamEvent]:
        """The events that `data` completes, in order; often none."""
        ...

    def close(self) -> list[StreamEvent]:
        """Call at the end of the body: what was still held, and a `ProviderProblem` CUT where `Finished` is missing."""
        ...


class Provider(Protocol):
    """One vendor's wire format with one credential. Immutable, shared by all requests of a route."""

    @property
    def format(self) -> WireFormat: ...

    def build_request(self, request: ChatRequest, model: str, *, stream: bool) -> HttpRequest:
        """Raises `ProviderError` UNSUPPORTED where the format cannot express the request.

        A last message of the assistant is sent as a prefill to continue from: see `takes_prefill`.
        """
        ...

    def parse_response(self, body: bytes) -> Answer:
        """A 200's whole body. Raises `ProviderError`: MALFORMED, or the error that the body holds."""
        ...

    def decoder(self) -> StreamDecoder: ...

    def parse_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderProblem:
        """What a status other than 200 says. Never raises, whatever the body holds. `headers`: lower-case names."""
        ...

    def parse_limits(self, headers: Mapping[str, str]) -> RateLimits | None:
        """The rate-limit headers of any response; None where there are none."""
        ...

    def takes_prefill(self, model: str) -> bool:
        """Whether the model continues an assistant's message that ends the request."""
        ...

    def build_transcription(self, upload: AudioUpload, model: str) -> HttpRequest:
        """Raises `ProviderError` UNSUPPORTED for a vendor without such an endpoint."""
        ...
