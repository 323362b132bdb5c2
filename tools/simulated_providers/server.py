"""The simulated vendors' server: any vendor's name in front of the path, the format by the path behind it.

    /{vendor}/v1/chat/completions            OpenAI's format     (base URL http://.../{vendor}/v1)
    /{vendor}/v1/messages                    Anthropic's         (base URL http://.../{vendor})
    /{vendor}/v1beta/models/{model}:...      Gemini's (or v1)    (base URL http://.../{vendor})
    /{vendor}/v1/audio/transcriptions        OpenAI's
    /sim/script, /sim/limit, /sim/down, /sim/reset (POST), /sim/served, /sim/calls (GET)

Enters: real HTTP. Leaves: answers, faults, bills. A fault is chosen by the header `x-sim-fault`, else by the model's
name (`gpt-x+cut`), else by the vendor's script. Every vendor but `local` wants a key; keys that begin with `bad` fail.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from aiohttp import web

from tools.simulated_providers import anthropic_format, gemini_format, openai_format
from tools.simulated_providers.bills import Bill, Bills
from tools.simulated_providers.delivery import deliver, echoed
from tools.simulated_providers.openai_format import Refused
from tools.simulated_providers.script import Behaviour, Fault, Limiter, Script, behaviour_of
from tools.simulated_providers.speech import Asked, speak
from tools.simulated_providers.transcripts import transcript

_ERRORS = (
    Fault.RATE_LIMIT,
    Fault.RATE_LIMIT_BARE,
    Fault.QUOTA,
    Fault.ERROR_500,
    Fault.ERROR_503,
    Fault.ERROR_529,
    Fault.CONTEXT_OVERFLOW,
    Fault.AUTH,
    Fault.NOT_FOUND,
)


@dataclass(slots=True)
class Vendor:
    scripts: dict[str, Script] = field(default_factory=dict)
    """By model; the one under "" is the vendor's."""
    limiter: Limiter | None = None
    is_down: bool = False


class SimulatedProviders:
    """Use as `async with SimulatedProviders() as sim:`; then `sim.url` and its methods, or `/sim/...` over HTTP."""

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        self._host = host
        self._port = port
        self._runner: web.AppRunner | None = None
        self.bills = Bills()
        self.vendors: dict[str, Vendor] = {}
        self.url = ""

    async def __aenter__(self) -> SimulatedProviders:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.add_routes(
            [
                web.post("/sim/{what:script|limit|down|reset}", self._admin),
                web.get("/sim/served", self._served),
                web.get("/sim/calls", self._calls),
                web.post("/{vendor}/v1/chat/completions", self._openai),
                web.post("/{vendor}/v1/messages", self._anthropic),
                web.post("/{vendor}/{version:v1|v1beta}/models/{model}:{method}", self._gemini),
                web.post("/{vendor}/v1/audio/transcriptions", self._transcribe),
            ]
        )
        # A caller that hangs up cancels its handler, so that the bill says how far the answer came.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port, backlog=4096)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://{self._host}:{port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def vendor(self, name: str) -> Vendor:
        return self.vendors.setdefault(name, Vendor())

    def script(
        self,
        vendor: str,
        *faults: str,
        model: str = "",
        always: str | None = None,
        rates: dict[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        """`faults`: one for each of the next calls. `always`: for those after. `rates`: by dice."""
        script = self.vendor(vendor).scripts.setdefault(model, Script())
        script.queue.extend(behaviour_of(fault) for fault in faults)
        if always is not None:
            script.always = behaviour_of(always)
        if rates is not None:
            for words in rates:
                behaviour_of(words)
            script.rates = rates
            script.dice = random.Random(seed)

    def reset(self) -> None:
        self.vendors.clear()
        self.bills.clear()

    async def _admin(self, request: web.Request) -> web.Response:
        given = await request.json() if request.can_read_body else {}
        what = request.match_info["what"]
        try:
            if what == "script":
                faults = given.pop("faults", [])
                self.script(given.pop("vendor"), *faults, **given)
            elif what == "limit":
                self.vendor(given["vendor"]).limiter = Limiter(int(given["requests"]), float(given["window_s"]))
            elif what == "down":
                self.vendor(given["vendor"]).is_down = bool(given.get("down", True))
            else:
                self.reset()
        except (KeyError, TypeError, ValueError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"ok": True})

    async def _served(self, request: web.Request) -> web.Response:
        return web.json_response(self.bills.totals)

    async def _calls(self, request: web.Request) -> web.Response:
        return web.json_response(self.bills.calls())

    async def _openai(self, request: web.Request) -> web.StreamResponse:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        return await self._chat(request, openai_format, key, None)

    async def _anthropic(self, request: web.Request) -> web.StreamResponse:
        if "anthropic-version" not in request.headers:
            body = anthropic_format.error_body("invalid_request_error", "anthropic-version: header is required")
            return web.Response(status=400, body=body, content_type="application/json")
        # The SDK sends its key as a bearer token since 2.0; `x-api-key` is what the documentation names.
        key = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        return await self._chat(request, anthropic_format, key, None)

    async def _gemini(self, request: web.Request) -> web.StreamResponse:
        if "key" in request.query:
            body = gemini_format.error_body(400, "INVALID_ARGUMENT", "the key belongs into x-goog-api-key")
            return web.Response(status=400, body=body, content_type="application/json")
        return await self._chat(
            request, gemini_format, request.headers.get("x-goog-api-key", ""), request.match_info["model"]
        )

    async def _chat(self, request: web.Request, form: ModuleType, key: str, model: str | None) -> web.StreamResponse:
        name = request.match_info["vendor"]
        bill = Bill(name, model or "", "ok", False, began_s=time.time())
        try:
            response = await self._answer(request, form, key, model, bill)
        except (asyncio.CancelledError, ConnectionResetError):
            bill.outcome = "left"
            raise
        finally:
            bill.ended_s = time.time()
            if bill.outcome == "open":
                bill.outcome = "served" if bill.status == 200 else "refused"
            self.bills.close(bill)
        return response

    async def _answer(
        self, request: web.Request, form: ModuleType, key: str, model: str | None, bill: Bill
    ) -> web.StreamResponse:
        vendor = self.vendor(bill.vendor)
        if vendor.is_down:
            return _reset(request, bill)
        try:
            body = json.loads(await request.read())
            asked, behaviour = self._read(request, form, body, model, vendor)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return _refusal(form, bill, Refused("invalid_request_error", f"malformed request: {error!r}", None))
        except Refused as refused:
            return _refusal(form, bill, refused)
        bill.model, bill.fault, bill.stream = asked.model, behaviour.fault.value, asked.stream
        limits: dict[str, str] = {}
        if (not key and bill.vendor != "local") or key.startswith("bad"):
            return _error(request, form, bill, Fault.AUTH, behaviour)
        if vendor.limiter is not None:
            is_let_in, left, reset_s = vendor.limiter.take(time.monotonic())
            limits = _limit_headers(form, vendor.limiter.requests, left, reset_s)
            if not is_let_in:
                return _error(request, form, bill, Fault.RATE_LIMIT, Behaviour(reset=reset_s), limits)
        return await self._misbehave(request, form, asked, behaviour, bill, limits)

    def _read(
        self, request: web.Request, form: ModuleType, body: dict[str, Any], model: str | None, vendor: Vendor
    ) -> tuple[Asked, Behaviour]:
        name, has_fault, words = str(model or body.get("model")).partition("+")
        script = vendor.scripts.get(name) or vendor.scripts.get("") or Script()
        if header := request.headers.get("x-sim-fault"):
            behaviour = behaviour_of(header)
        elif has_fault:
            behaviour = behaviour_of(words)
        else:
            behaviour = script.next()
        if "model" in body:
            body["model"] = name
        asked: Asked = form.read(body, name)
        if request.match_info.get("method") == "streamGenerateContent":
            asked = replace(asked, stream=True)
        return asked, behaviour

    async def _misbehave(
        self,
        request: web.Request,
        form: ModuleType,
        asked: Asked,
        behaviour: Behaviour,
        bill: Bill,
        limits: dict[str, str],
    ) -> web.StreamResponse:
        fault = behaviour.fault
        if fault in _ERRORS or (fault is Fault.PREFILL_REFUSED and asked.prefill is not None):
            return _error(request, form, bill, fault, behaviour, limits)
        if fault is Fault.CONTENT_FILTER:
            if form is not gemini_format:
                return _error(request, form, bill, fault, behaviour, limits)
            bill.outcome = "refused"
            blocked = gemini_format.blocked(asked)
            if asked.stream:
                blocked = b"data: " + blocked + b"\r\n\r\n"
            kind = "text/event-stream" if asked.stream else "application/json"
            return web.Response(body=blocked, content_type=kind)
        if fault is Fault.RESET:
            return _reset(request, bill)
        if fault is Fault.SILENCE:
            await asyncio.sleep(3600)
        if fault is Fault.REDIRECT:
            bill.status = 302
            return web.Response(status=302, headers={"location": "http://127.0.0.1:9/elsewhere"})
        if fault is Fault.HTML:
            bill.outcome = "broken"
            return web.Response(text="<html><body>Welcome to the proxy.</body></html>", content_type="text/html")
        return await deliver(request, form, asked, speak(asked, behaviour), behaviour, bill, limits)

    async def _transcribe(self, request: web.Request) -> web.StreamResponse:
        bill = Bill(request.match_info["vendor"], "", "ok", False, began_s=time.time())
        form = await request.post()
        upload = form.get("file")
        if not isinstance(upload, web.FileField) or not form.get("model"):
            bill.status, bill.outcome = 400, "refused"
            self.bills.close(bill)
            body = openai_format.error_body("you must provide a file and a model", "invalid_request_error", None)
            return web.Response(status=400, body=body, content_type="application/json")
        data = upload.file.read()
        upload.file.close()
        bill.model, bill.outcome, bill.ended_s = str(form["model"]), "served", time.time()
        script = self.vendor(bill.vendor).scripts.get(bill.model) or self.vendor(bill.vendor).scripts.get("")
        behaviour = behaviour_of(request.headers["x-sim-fault"]) if "x-sim-fault" in request.headers else None
        behaviour = behaviour or (script.next() if script else Behaviour())
        bill.fault = behaviour.fault.value
        bill.input_tokens = 0
        if behaviour.fault is Fault.SILENCE:
            await asyncio.sleep(3600)
        if behaviour.fault in _ERRORS:
            response = _error(request, openai_format, bill, behaviour.fault, behaviour)
            self.bills.close(bill)
            return response
        self.bills.close(bill)
        return transcript(request, behaviour, form, str(upload.filename), data)


def _reset(request: web.Request, bill: Bill) -> web.Response:
    bill.outcome = "broken"
    bill.status = 0
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _refusal(form: ModuleType, bill: Bill, refused: Refused) -> web.Response:
    bill.status = 400
    code, message, param = refused.args
    if form is openai_format:
        body = openai_format.error_body(message, "invalid_request_error", code, param)
    elif form is anthropic_format:
        body = anthropic_format.error_body("invalid_request_error", message)
    else:
        body = gemini_format.error_body(400, "INVALID_ARGUMENT", message)
    return web.Response(status=400, body=body, content_type="application/json")


def _error(
    request: web.Request,
    form: ModuleType,
    bill: Bill,
    fault: Fault,
    behaviour: Behaviour,
    limits: dict[str, str] | None = None,
) -> web.Response:
    bill.status, headers, body = form.error(fault, behaviour.reset)
    body = echoed(request, behaviour, body)
    bill.outcome = "refused"
    return web.Response(
        status=bill.status, headers={**(limits or {}), **headers}, body=body, content_type="application/json"
    )


def _limit_headers(form: ModuleType, limit: int, left: int, reset_s: float) -> dict[str, str]:
    if form is openai_format:
        return {
            "x-ratelimit-limit-requests": str(limit),
            "x-ratelimit-remaining-requests": str(left),
            "x-ratelimit-reset-requests": f"{int(reset_s * 1000)}ms",
        }
    if form is anthropic_format:
        return {
            "anthropic-ratelimit-requests-limit": str(limit),
            "anthropic-ratelimit-requests-remaining": str(left),
            "anthropic-ratelimit-requests-reset": anthropic_format.moment(reset_s),
        }
    return {}
