"""OpenAI's transcriptions: what was sent, said back in the format that was asked for.

Enters: a form. Leaves: an answer, or what comes instead of one where the script says so.
"""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from tools.simulated_providers import openai_format
from tools.simulated_providers.delivery import echoed
from tools.simulated_providers.script import Behaviour, Fault


def transcript(request: web.Request, behaviour: Behaviour, form: Any, name: str, data: bytes) -> web.Response:
    """What was sent, said back in the format that was asked for; `words=0` leaves the usage out."""
    fault, asked = behaviour.fault, str(form.get("response_format", "json"))
    if fault is Fault.ERROR_IN_STREAM:
        body = echoed(request, behaviour, openai_format.error(Fault.ERROR_503, 1.0)[2])
        return web.Response(body=body, content_type="application/json")
    if fault is Fault.HTML:
        return web.Response(text="<html><body>Welcome to the proxy.</body></html>", content_type="text/html")
    if fault is Fault.EMPTY:
        return web.Response(body=b"", content_type="text/plain")
    options = {key: form.getall(key) for key in form if key not in ("file", "model")}
    told = f" with {json.dumps(options)}" if options else ""
    text = f"This is what {name} says in {len(data)} bytes{told}."
    if asked == "text":
        return web.Response(text=text + "\n")
    if asked in ("srt", "vtt"):
        head = "WEBVTT\n\n" if asked == "vtt" else "1\n"
        return web.Response(text=f"{head}00:00:00,000 --> 00:00:01,000\n{text}\n")
    whole: dict[str, Any] = {"text": text}
    if behaviour.words:
        whole["usage"] = {"type": "duration", "seconds": max(1, len(data) // 32000)}
    if asked == "verbose_json":
        whole |= {"task": "transcribe", "duration": max(1, len(data) // 32000), "segments": []}
    if form.get("stream") != "true":
        return web.json_response(whole)
    done = {"type": "transcript.text.done", "text": text, "usage": {"input_tokens": 14, "output_tokens": 45}}
    frames = [{"type": "transcript.text.delta", "delta": text}, *([] if fault is Fault.CUT else [done])]
    return web.Response(
        text="".join(f"data: {json.dumps(frame)}\n\n" for frame in frames), content_type="text/event-stream"
    )
