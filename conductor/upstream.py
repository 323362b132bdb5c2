"""One HTTP call to a provider: connects, keeps the clocks, and turns every way to fail into a `ProviderProblem`.

Enters: an `HttpRequest` and the URL of its route. Leaves: an open response, its bytes, or `AttemptError`. Redirects are
refused; nothing here knows what a body means.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import aiohttp
from yarl import URL

from onebeat.conductor.answers import ProblemKind, ProviderProblem
from onebeat.conductor.config import ResilienceSection
from onebeat.conductor.errors import AttemptError
from onebeat.conductor.providers.base import HttpRequest

MAX_ERROR_BYTES = 262_144
MAX_ANSWER_BYTES = 64_000_000
CALLERS = "caller's deadline"


def make_session(resilience: ResilienceSection) -> aiohttp.ClientSession:
    """One for all providers. No cookies, no proxies from the environment, no limit but the routes' own."""
    connector = aiohttp.TCPConnector(limit=0, limit_per_host=0, ttl_dns_cache=60, keepalive_timeout=30.0)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=resilience.connect_ms / 1e3),
        headers={"accept-encoding": "identity", "user-agent": "onebeat"},
        auto_decompress=True,
        trust_env=False,
        read_bufsize=2**18,
    )


class Patience:
    """The clocks of one call in one timer: `allow` a time for what is awaited next, `feed` when it came.

    Feeding only notes the time; the timer looks at it when it fires and sets itself anew. So a chunk costs one clock
    reading, where a timeout of its own would cost a handle and a heap operation.
    """

    __slots__ = (
        "_deadline_at",
        "_handle",
        "_late",
        "_limit_s",
        "_loop",
        "_start",
        "_task",
        "_total_at",
        "expired",
        "fed_at",
        "phase",
    )

    def __init__(self, total_s: float, deadline_at: float = math.inf) -> None:
        """`deadline_at`: the caller's own, until `meet` says that it was met."""
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._start = self._loop.time()
        self.fed_at = self._start
        self._total_at = self._start + total_s
        self._deadline_at = deadline_at
        self._limit_s = total_s
        self._late: Callable[[float], None] | None = None
        self._handle: asyncio.TimerHandle | None = None
        self.expired: str | None = None
        self.phase = "total"

    def allow(self, seconds: float, phase: str, late: Callable[[float], None] | None = None) -> None:
        """From now on `seconds` may pass between two feedings. With `late` it is told once, and the call goes on."""
        self.fed_at = self._loop.time()
        self._limit_s = seconds
        self.phase = phase
        self._late = late
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_at(self._due(), self._fire)

    def meet(self) -> None:
        """The answer has begun: the caller's deadline was for that."""
        self._deadline_at = math.inf

    def _due(self) -> float:
        return min(self.fed_at + self._limit_s, self._total_at, self._deadline_at)

    def adopt(self) -> None:
        """The call is awaited by another task from here on (a hedge that won)."""
        task = asyncio.current_task()
        assert task is not None
        self._task = task

    def _fire(self) -> None:
        due = self._due()
        if self._loop.time() < due - 5e-4:
            self._handle = self._loop.call_at(due, self._fire)
            return
        if self._late is not None and due not in (self._total_at, self._deadline_at):
            self._late(self._limit_s)
            self._limit_s = math.inf
            self._handle = self._loop.call_at(self._due(), self._fire)
            return
        self.expired = CALLERS if due == self._deadline_at else "total" if due == self._total_at else self.phase
        self._handle = None
        self._task.cancel()

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def problem(self) -> ProviderProblem:
        """What the expired clock means. Call it after `expired` is set, having caught the cancellation."""
        waited = self._loop.time() - self._start
        if self.expired == CALLERS:
            message = f"no answer within the request's own deadline ({waited:.3f} s were left for this call)"
            return ProviderProblem(ProblemKind.DEADLINE, message)
        if self.expired == "between tokens":
            return ProviderProblem(ProblemKind.STALLED, f"the stream stood still for {self._limit_s:.1f} s")
        return ProviderProblem(ProblemKind.TIMEOUT, f"no answer in {waited:.1f} s ({self.expired} clock)")


class Upstream:
    """An open call. Closed early it closes the connection, which is how a vendor is told to stop."""

    __slots__ = ("_patience", "_session", "is_whole", "response")

    def __init__(self, session: aiohttp.ClientSession, patience: Patience) -> None:
        self._session = session
        self._patience = patience
        self.response: aiohttp.ClientResponse | None = None
        self.is_whole = False
        """Whether the body was read to its end: the connection may be used again."""

    async def open(self, url: URL, request: HttpRequest) -> aiohttp.ClientResponse:
        """The response's head. Raises `AttemptError`."""
        try:
            response = await self._session.post(url, data=request.body, headers=request.headers, allow_redirects=False)
        except asyncio.CancelledError:
            raise self._cancelled() from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise AttemptError(_connection_problem(error)) from error
        self.response = response
        if 300 <= response.status < 400:
            raise AttemptError(
                ProviderProblem(
                    ProblemKind.NOT_FOUND,
                    "the provider answered with a redirect, which is refused; mend its base_url",
                    response.status,
                )
            )
        return response

    async def read(self, most: int = MAX_ANSWER_BYTES) -> bytes:
        """The rest of the body, up to `most` bytes."""
        pieces: list[bytes] = []
        size = 0
        while data := await self.chunk():
            pieces.append(data)
            size += len(data)
            if size > most:
                raise AttemptError(ProviderProblem(ProblemKind.MALFORMED, f"the body is over {most} bytes"))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def chunk(self) -> bytes:
        """What has arrived, at least one byte; empty at the end."""
        response = self.response
        assert response is not None
        try:
            data = await response.content.readany()
        except asyncio.CancelledError:
            raise self._cancelled() from None
        except (aiohttp.ClientError, OSError) as error:
            raise AttemptError(
                ProviderProblem(ProblemKind.CUT, f"the connection broke inside the answer ({type(error).__name__})")
            ) from error
        if not data and response.content.at_eof():
            self.is_whole = True
        return data

    def _cancelled(self) -> BaseException:
        """Our own clock's doing, or somebody else's (the client left): only the first is a failure of the route."""
        patience = self._patience
        if patience.expired is not None:
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            problem = patience.problem()
            patience.close()
            return AttemptError(problem)
        return asyncio.CancelledError()

    def close(self) -> None:
        self._patience.close()
        if self.response is not None:
            if self.is_whole:
                self.response.release()
            else:
                self.response.close()


def _connection_problem(error: Exception) -> ProviderProblem:
    if isinstance(error, aiohttp.ServerTimeoutError):
        return ProviderProblem(ProblemKind.TIMEOUT, "the provider did not take the connection in time")
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return ProviderProblem(ProblemKind.CONNECTION, "the provider closed the connection before it answered")
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.ClientPayloadError | ValueError):
        return ProviderProblem(ProblemKind.MALFORMED, f"what came back is not HTTP ({type(error).__name__})")
    return ProviderProblem(ProblemKind.CONNECTION, f"the provider cannot be reached ({type(error).__name__})")
