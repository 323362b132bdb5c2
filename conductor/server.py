"""The gateway over HTTP: what each path takes, who may ask, what goes back.

Enters: HTTP requests. Leaves: answers, streams and errors in the shape of the face that was asked. Knows no provider.
aiohttp's low-level server is used, without its router and middlewares: one dictionary finds the handler.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from onebeat.conductor.admin import Admin
from onebeat.conductor.call import Call
from onebeat.conductor.context import size_of
from onebeat.conductor.dispatch import Dispatcher
from onebeat.conductor.errors import UnansweredError
from onebeat.conductor.faces.anthropic import AnthropicFace
from onebeat.conductor.faces.base import Face, StreamRenderer
from onebeat.conductor.faces.openai import OpenAIFace
from onebeat.conductor.faces.report import headers_of
from onebeat.conductor.listening import path_of, plain_headers, read_body, sentence_of, speaks_anthropic
from onebeat.conductor.planning import Planner
from onebeat.conductor.policy import Choice
from onebeat.conductor.records import RequestError
from onebeat.conductor.security import Client, check_depth
from onebeat.conductor.transcription import Transcriber

log = logging.getLogger("onebeat.server")
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
_JSON = {"content-type": "application/json"}
_STREAM = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", "x-accel-buffering": "no"}


class Gateway:
    """All paths of one gateway. `handle` is what the server calls for every request."""

    def __init__(self, dispatcher: Dispatcher, planner: Planner, admin: Admin) -> None:
        self.dispatcher = dispatcher
        self.planner = planner
        self.admin = admin
        self.openai = OpenAIFace()
        self.anthropic = AnthropicFace()
        self.transcriber = Transcriber(dispatcher)
        self.under_way = 0
        self._paths: dict[str, tuple[str, Handler]] = {
            "/v1/chat/completions": ("POST", self._openai_chat),
            "/v1/messages": ("POST", self._anthropic_messages),
            "/v1/messages/count_tokens": ("POST", self._count_tokens),
            "/v1/route": ("POST", self._route),
            "/v1/models": ("GET", self._models),
            "/v1/feedback": ("POST", self._feedback),
            "/v1/audio/transcriptions": ("POST", self._transcribe),
            "/healthz": ("GET", admin.healthz),
            "/readyz": ("GET", admin.readyz),
            "/metrics": ("GET", admin.metrics),
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Never raises for what a client or a provider did; our own faults are logged and answered with a 500."""
        path = request.path
        found = self._paths.get(path)
        face: Face = self.anthropic if speaks_anthropic(path, "anthropic-version" in request.headers) else self.openai
        self.under_way += 1
        try:
            if found is None:
                if path.startswith("/v1/models/") and request.method == "GET":
                    return await self._model(request)
                known = ", ".join(self._paths)
                raise RequestError(f"There is no {path} here; there are {known}.", status=404, code="not_found")
            method, handler = found
            if request.method != method and not (method == "GET" and request.method == "HEAD"):
                refused = RequestError(f"{path} takes {method}, not {request.method}.", status=405, code="bad_method")
                response = self._error(face, refused)
                response.headers["allow"] = f"{method}, HEAD" if method == "GET" else method
                return response
            return await handler(request)
        except RequestError as error:
            return self._error(face, error)
        except UnansweredError as error:
            rendered = face.render_error(error.problem)
            return web.Response(status=rendered.status, headers=rendered.headers, body=rendered.body)
        except ConnectionError:
            # The client left while it was written to: aiohttp takes a cancellation for that, and anything else for
            # a fault of ours.
            raise asyncio.CancelledError from None
        except asyncio.CancelledError:
            raise
        except HttpProcessingError as error:
            return self._error(face, RequestError(sentence_of(error), code="bad_http"))
        except Exception:  # The last line of defence: a client gets its error, we get the trace.
            log.exception("a request to %s failed inside the gateway", path)
            return self._error(face, RequestError("The gateway failed; its log says how.", status=500, code="internal"))
        finally:
            self.under_way -= 1

    def _error(self, face: Face, error: RequestError) -> web.Response:
        rendered = face.render_error(error)
        response = web.Response(status=rendered.status, headers=rendered.headers, body=rendered.body)
        if error.status in (408, 413) or error.code in ("bad_http", "bad_body"):
            response.force_close()  # The rest of the body is not read.
        return response

    def answer_broken(self, head: bytes, error: RequestError) -> web.Response:
        """What a connection gets whose bytes are no request. `head`: their beginning, which may name a path."""
        return self._error(self.anthropic if speaks_anthropic(*path_of(head)) else self.openai, error)

    async def _openai_chat(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._chat(request, self.openai)

    async def _anthropic_messages(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._chat(request, self.anthropic)

    async def _chat(self, request: web.BaseRequest, face: Face) -> web.StreamResponse:
        call = await self._call(request, face)
        if call.request.stream:
            sink = HttpSink(request, face)
            await self.dispatcher.stream(call, sink)
            return await sink.end()
        answer, report = await self.dispatcher.whole(call)
        report = await self.dispatcher.made_durable(call, report)
        body = face.render_answer(answer, report, created_s=int(call.at))
        headers = headers_of(report)
        headers["content-type"] = "application/json"
        return web.Response(body=body, headers=headers)

    async def _read(self, request: web.BaseRequest) -> tuple[Client, bytes, dict[str, str]]:
        """Who asks, the body, the headers. Nothing is read for a stranger."""
        runtime = self.planner.runtime
        headers = plain_headers(request)
        client = runtime.keys.identify(headers)
        client.admit(time.time())
        server = runtime.fleet.server
        body = await read_body(request, server.max_body_bytes, server.read_timeout_ms / 1e3)
        check_depth(body, server.max_depth)
        return client, body, headers

    async def _call(self, request: web.BaseRequest, face: Face) -> Call:
        """Who asks, for what."""
        runtime = self.planner.runtime
        client, body, headers = await self._read(request)
        parsed = face.parse(body, headers)
        now = asyncio.get_running_loop().time()
        return Call(runtime, parsed, client, size_of(parsed), now)

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        call = await self._call(request, self.openai)
        await self.planner.decide(call)
        return web.Response(body=self.admin.decision(call), headers=_JSON)

    async def _count_tokens(self, request: web.BaseRequest) -> web.StreamResponse:
        """Anthropic's count, without a call: bytes, and what each model's own usage has taught about them."""
        _, body, headers = await self._read(request)
        tokens, model = self.planner.count(self.anthropic.parse_count(body, headers))
        told = {"x-onebeat-model": model, "x-onebeat-estimate": "true"}
        return web.Response(body=b'{"input_tokens":%d}' % tokens, headers=_JSON | told)

    async def _models(self, request: web.BaseRequest) -> web.StreamResponse:
        self.planner.runtime.keys.identify(plain_headers(request))
        return web.Response(body=self.admin.models(), headers=_JSON)

    async def _model(self, request: web.BaseRequest) -> web.StreamResponse:
        self.planner.runtime.keys.identify(plain_headers(request))
        return web.Response(body=self.admin.model(request.path.removeprefix("/v1/models/")), headers=_JSON)

    async def _feedback(self, request: web.BaseRequest) -> web.StreamResponse:
        runtime = self.planner.runtime
        client = runtime.keys.identify(plain_headers(request))
        client.admit(time.time())
        body = await read_body(request, 65_536, runtime.fleet.server.read_timeout_ms / 1e3)
        await self.admin.feedback(body, client)
        return web.Response(body=b'{"status":"stored"}', headers=_JSON)

    async def _transcribe(self, request: web.BaseRequest) -> web.StreamResponse:
        runtime = self.planner.runtime
        headers = plain_headers(request)
        client = runtime.keys.identify(headers)
        client.admit(time.time())
        return await self.transcriber.handle(request, runtime, client, headers)


class HttpSink:
    """A streamed answer's way to an HTTP client."""

    __slots__ = ("_face", "_request", "_response")

    def __init__(self, request: web.BaseRequest, face: Face) -> None:
        self._request = request
        self._face = face
        self._response: web.StreamResponse | None = None

    async def start(self, call: Call, choice: Choice) -> StreamRenderer:
        response = web.StreamResponse(headers={**_STREAM, **headers_of(call.report(choice, final=False))})
        self._response = response
        await response.prepare(self._request)
        return self._face.renderer(call.request, choice.route.name, created_s=int(call.at))

    async def write(self, data: bytes) -> None:
        assert self._response is not None
        await self._response.write(data)

    async def end(self) -> web.StreamResponse:
        assert self._response is not None
        await self._response.write_eof()
        return self._response
