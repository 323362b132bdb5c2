"""A speech on its way to the caller, with the faults that happen on the way.

Enters: a request, a `Speech`, a `Behaviour`. Leaves: bytes on the socket, and the bill filled in as they go.
"""

from __future__ import annotations

import asyncio
from types import ModuleType

from aiohttp import web

from tools.simulated_providers import anthropic_format, gemini_format, openai_format
from tools.simulated_providers.bills import Bill
from tools.simulated_providers.script import Behaviour, Fault
from tools.simulated_providers.speech import Asked, Speech, tokens

_MIDWAY = (
    Fault.CUT,
    Fault.END_EARLY,
    Fault.STALL,
    Fault.STALL_PINGS,
    Fault.MALFORMED,
    Fault.GARBAGE,
    Fault.ERROR_IN_STREAM,
)


async def deliver(
    request: web.Request,
    form: ModuleType,
    asked: Asked,
    speech: Speech,
    behaviour: Behaviour,
    bill: Bill,
    limits: dict[str, str],
) -> web.StreamResponse:
    bill.input_tokens = speech.input_tokens
    bill.cached_tokens = speech.cached_tokens
    await asyncio.sleep(behaviour.delay if behaviour.fault is Fault.SLOW_FIRST else behaviour.first_ms / 1000)
    if asked.stream:
        return await _stream(request, form, asked, speech, behaviour, bill, limits)
    bill.output_tokens = speech.output_tokens
    body = form.whole(speech)
    fault = behaviour.fault
    if fault in (Fault.CUT, Fault.END_EARLY, Fault.STALL, Fault.STALL_PINGS):
        return await _half(request, body, fault, bill)
    if fault is Fault.MALFORMED:
        body = body[: len(body) // 2]
    elif fault is Fault.GARBAGE:
        body = body.replace(b'"', b"\xff\xfe", 3)
    elif fault is Fault.ERROR_IN_STREAM:
        _, _, body = form.error(Fault.ERROR_503, 1.0)
        body = echoed(request, behaviour, body)
        bill.output_tokens = bill.input_tokens = bill.cached_tokens = 0
    if fault in _MIDWAY:
        bill.outcome = "broken"
    else:
        bill.reported_input_tokens, bill.reported_output_tokens = bill.input_tokens, bill.output_tokens
    return web.Response(body=body, headers=limits, content_type="application/json")


async def _half(request: web.Request, body: bytes, fault: Fault, bill: Bill) -> web.StreamResponse:
    """Half of a body whose whole length was promised."""
    bill.outcome = "broken"
    response = web.StreamResponse(headers={"content-type": "application/json"})
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    await _break_off(request, fault)
    return response


async def _break_off(
    request: web.Request, fault: Fault, ping: bytes = b"", response: web.StreamResponse | None = None
) -> None:
    if fault is Fault.STALL_PINGS and response is not None:
        for _ in range(36_000):
            await asyncio.sleep(0.1)
            await response.write(ping)
    elif fault in (Fault.STALL, Fault.STALL_PINGS):
        await asyncio.sleep(3600)
    # What was written is on its way before the connection goes.
    await asyncio.sleep(0.01)
    if request.transport is not None:
        request.transport.abort()


async def _stream(
    request: web.Request,
    form: ModuleType,
    asked: Asked,
    speech: Speech,
    behaviour: Behaviour,
    bill: Bill,
    limits: dict[str, str],
) -> web.StreamResponse:
    begin, content, ending = form.frames(speech, asked)
    fault = behaviour.fault
    response = web.StreamResponse(headers={**limits, "content-type": "text/event-stream", "cache-control": "no-cache"})
    await response.prepare(request)
    for frame in begin:
        await response.write(frame)
    if form is anthropic_format:
        bill.reported_input_tokens, bill.reported_output_tokens = speech.input_tokens, 1
    said = ""
    for number, (frame, text) in enumerate(content):
        if fault in _MIDWAY and number == behaviour.after:
            break
        await response.write(frame)
        said += text
        bill.output_tokens = tokens(said)
        if form is gemini_format:
            bill.reported_input_tokens, bill.reported_output_tokens = speech.input_tokens, bill.output_tokens
        if behaviour.chunk_ms:
            await asyncio.sleep(behaviour.chunk_ms / 1000)
    if fault in _MIDWAY:
        bill.outcome = "broken"
        return await _midway(request, form, response, behaviour)
    bill.output_tokens = speech.output_tokens
    *before, done = ending
    for frame in before:
        await response.write(frame)
    if form is not openai_format or asked.include_usage:
        bill.reported_input_tokens, bill.reported_output_tokens = speech.input_tokens, speech.output_tokens
    # The answer is whole from here on: a caller that leaves before the last word has been served.
    bill.outcome = "served"
    if fault is not Fault.NO_DONE and done:
        await response.write(done)
    await response.write_eof()
    return response


def echoed(request: web.Request, behaviour: Behaviour, body: bytes) -> bytes:
    """An error that repeats the caller's key, where the script says so."""
    if not behaviour.echo:
        return body
    headers = request.headers
    key = headers.get("x-api-key") or headers.get("x-goog-api-key") or headers.get("authorization", "")
    return body.replace(b'"message": "', b'"message": "the key ' + key.encode() + b" is known to me: ", 1)


async def _midway(
    request: web.Request, form: ModuleType, response: web.StreamResponse, behaviour: Behaviour
) -> web.StreamResponse:
    fault = behaviour.fault
    if fault is Fault.MALFORMED:
        await response.write(b'data: {"id": "broken", "choices": [{"index": 0, "delta": {"con\n\n')
    elif fault is Fault.GARBAGE:
        await response.write(b'data: {"choices": [{"delta": {"content": "\xff\xfe\xfd"}}]}\n\n')
    elif fault is Fault.ERROR_IN_STREAM:
        await response.write(echoed(request, behaviour, form.error_frame()))
    elif fault is not Fault.END_EARLY:
        await _break_off(request, fault, form.PING, response)
        return response
    await response.write_eof()
    return response
