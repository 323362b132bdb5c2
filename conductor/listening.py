"""The HTTP server beneath the gateway: heads, bodies, and an answer in a vendor's shape for what is neither.

Enters: bytes of a connection. Leaves: requests for the gateway, their bodies within limits, sentences for broken ones.
aiohttp answers a request that it cannot parse by itself, in plain text; here the gateway's faces do.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import RequestHandler

from onebeat.conductor.config import Server
from onebeat.conductor.records import RequestError

log = logging.getLogger("onebeat.http")
HEAD_BYTES = 512
"""Of a request, kept until it is parsed: enough to see which face was meant if it is not."""
_FIRST_LINE = re.compile(rb"[A-Za-z]+ (?:https?://[^/ ]*)?([^ ?\r\n]*)")
_ONCE = ("authorization", "x-api-key")
AnswerBroken = Callable[[bytes, RequestError], web.Response]


class GatewayServer(web.Server):
    """One per gateway. A connection that sends no whole head within the read timeout is closed."""

    def __init__(
        self,
        handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        answer_broken: AnswerBroken,
        server: Server,
    ) -> None:
        self.answer_broken = answer_broken
        self._settings: dict[str, Any] = {
            "access_log": None,
            "keepalive_timeout": server.read_timeout_ms / 1e3,
            "max_line_size": server.max_header_bytes,
            "max_field_size": server.max_header_bytes,
            "max_headers": 128,
            "lingering_time": 1.0,
        }
        super().__init__(handle, handler_cancellation=True)

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._settings)


class _Connection(RequestHandler):
    """One client's connection. Remembers how the request under way began, and ends a body that turns out broken."""

    __slots__ = ("_answer_broken", "_head", "_heads")

    def __init__(self, server: GatewayServer, **settings: Any) -> None:
        super().__init__(server, **settings)
        self._answer_broken = server.answer_broken
        self._head = b""
        self._heads = -1

    def data_received(self, data: bytes) -> None:
        under_way = self._current_request
        if under_way is None and self._heads != self._request_count:
            self._head, self._heads = bytes(data[:HEAD_BYTES]), self._request_count
        super().data_received(data)
        if under_way is None or not self._messages:
            return
        broken = getattr(self._messages[-1][0], "exc", None)
        if isinstance(broken, HttpProcessingError) and not under_way.content.is_eof():
            # The parser gave up inside this request's body: whoever reads it would wait for bytes that never come.
            under_way.content.set_exception(web.RequestPayloadError(str(broken)))
            self._messages.pop()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """As aiohttp's, but in a vendor's shape; a client's bad bytes are no fault of ours and fill no log."""
        if request.writer.output_size > 0:
            raise ConnectionError("an error after the answer had begun")
        if isinstance(exc, HttpProcessingError):
            log.debug("no request from %s: %s", request.remote, exc)
            error = RequestError(sentence_of(exc), status=_status_of(exc), code="bad_http")
        else:
            log.error("a request failed inside the server", exc_info=exc)
            error = RequestError("The gateway failed; its log says how.", status=status, code="internal")
        response = self._answer_broken(self._head, error)
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """aiohttp reads on in a body that was given up, and reports what it finds there: the client has heard it."""
        if isinstance(kwargs.get("exc_info"), web.RequestPayloadError):
            log.debug("a body broke off: %s", kwargs["exc_info"])
        else:
            super().log_exception(*args, **kwargs)


def _status_of(error: HttpProcessingError) -> int:
    """431 and 414 are what RFC 6585 and RFC 9110 have for a head that is too large."""
    if isinstance(error, LineTooLong):
        return 414 if "bytearray(b'/" in error.message else 431
    return 431 if "Too many headers" in error.message else 400


def sentence_of(error: HttpProcessingError) -> str:
    """One line of the parser's several: they draw an arrow below the place, which a JSON string cannot show."""
    words = " ".join(line.strip() for line in error.message.splitlines() if line.strip(" ^"))
    if isinstance(error, LineTooLong):
        words = words.partition(" when reading")[0]
        return f"The request's head is too large ({words}); send shorter headers, and the prompt in the body."
    return f"This is no HTTP request that can be read: {words.rstrip('.:')[:300]}; send HTTP/1.1 as an SDK does."


def path_of(head: bytes) -> tuple[str, bool]:
    """The path of a request that may be broken, and whether it names Anthropic's version."""
    found = _FIRST_LINE.match(head)
    path = found[1].decode("latin-1") if found else ""
    return path, b"\nanthropic-version:" in head.lower()


def speaks_anthropic(path: str, has_version: bool) -> bool:
    """Which face answers: Anthropic's for its own paths, and for a client of its own on paths that both have."""
    return path == "/v1/messages" or path.startswith("/v1/messages/") or (has_version and "/chat/" not in path)


def plain_headers(request: web.BaseRequest) -> dict[str, str]:
    """By lower-case name, once: aiohttp's own fold case at every look, at 2 us each.

    Raises `RequestError` where a key or an option comes twice: which of two was meant is anybody's guess.
    """
    given = request.headers
    headers = {name.lower(): value for name, value in given.items()}
    if len(headers) != len(given):
        for name in headers:
            values = set(given.getall(name)) if name in _ONCE or name.startswith("x-onebeat-") else ()
            if len(values) > 1:
                raise RequestError(
                    f"The header {name} came with {len(values)} values; send it once.", code="bad_header"
                )
    return headers


async def read_body(request: web.BaseRequest, most: int, timeout_s: float) -> bytes:
    """The body, at most `most` bytes of it, within `timeout_s`. Raises `RequestError` 413 or 408."""
    length = request.content_length
    if length is not None and length > most:
        raise RequestError(f"The body is {length} bytes; this gateway takes {most}.", status=413, code="too_large")
    content = request.content
    if content.is_eof():  # The usual case: it came with the head.
        data = content.read_nowait(-1)
    else:
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(timeout_s):
                await invite(request)
                while piece := await content.readany():
                    pieces.append(piece)
                    size += len(piece)
                    if size > most:
                        break
        except web.RequestPayloadError:
            raise RequestError("The body cannot be decoded as its headers say.", code="bad_body") from None
        except TimeoutError:
            raise RequestError(
                f"The body did not arrive within {timeout_s:g} s.", status=408, code="request_timeout"
            ) from None
        data = b"".join(pieces)
    if len(data) > most:
        raise RequestError(f"The body is over {most} bytes, all that is taken.", status=413, code="too_large")
    return data


async def invite(request: web.BaseRequest) -> None:
    """The 100 that a client waits for before it sends its body (RFC 9110, 10.1.1). Raises `RequestError` 417."""
    expected = request.headers.get("expect")
    if expected is None:
        return
    if expected.strip().lower() != "100-continue":
        raise RequestError(
            f"Expect is {expected[:60]!r}; only 100-continue is met here.", status=417, code="bad_header"
        )
    if request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
