"""`/v1/audio/transcriptions`: a file goes to the Whisper-class route of the fleet, and the answer comes back as is.

Enters: a multipart form. Leaves: the provider's own response. The ledger gets every attempt; a re-route goes to the
next model that transcribes.
"""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import BodyPartReader, web

from onebeat.conductor.answers import ProblemKind, ProviderError, ProviderProblem
from onebeat.conductor.attempt import Attempt
from onebeat.conductor.call import Call
from onebeat.conductor.config import Model
from onebeat.conductor.context import PromptSize
from onebeat.conductor.dispatch import Dispatcher
from onebeat.conductor.errors import AttemptError
from onebeat.conductor.faces.report import headers_of
from onebeat.conductor.policy import Ask, Plan, named_plan
from onebeat.conductor.providers.base import AudioUpload
from onebeat.conductor.records import ChatRequest, RequestError, WireFormat
from onebeat.conductor.runtime import Runtime
from onebeat.conductor.security import Client
from onebeat.conductor.upstream import MAX_ANSWER_BYTES, MAX_ERROR_BYTES

NEED = "transcription"


class _Usage(msgspec.Struct):
    seconds: float | None = None


class _Transcript(msgspec.Struct):
    duration: float | None = None
    usage: _Usage | None = None


class Transcriber:
    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def handle(self, request: web.BaseRequest, runtime: Runtime, client: Client) -> web.StreamResponse:
        """Raises `RequestError` for a form that cannot be used, `UnansweredError` where no route transcribes it."""
        upload, model = await read_form(request, runtime.fleet.server.max_audio_bytes)
        names = [n for n, m in runtime.fleet.models.items() if NEED in m.capabilities]
        if not names:
            raise RequestError("The fleet names no model that transcribes.", status=404, code="model_not_found")
        if model in names:
            names = [model, *runtime.fleet.models[model].fallbacks]
        elif model not in ("auto", "whisper-1"):
            raise RequestError(
                f"The model {model!r} does not transcribe here; {', '.join(names)} do.", status=404, param="model"
            )
        loop = asyncio.get_running_loop()
        chat = ChatRequest(WireFormat.OPENAI, model, ())
        call = Call(runtime, chat, client, PromptSize(0, 0, 0), loop.time())
        ask = Ask(call.size, 0.5, needs=frozenset({NEED}), expensive_allowed=client.expensive_allowed(call.at))
        plan: Plan = named_plan(runtime.table, ask, names, lambda name: runtime.lines[name].status(loop.time()))
        (body, content_type), report = await self._dispatcher.run(
            call, lambda attempt: call_upstream(attempt, upload), plan
        )
        return web.Response(body=body, headers={**headers_of(report), "content-type": content_type})


async def read_form(request: web.BaseRequest, most: int) -> tuple[AudioUpload, str]:
    """The file, the other fields in order, and the model's name."""
    if not request.content_type.startswith("multipart/"):
        raise RequestError("Send multipart/form-data with the fields `file` and `model`.", status=400)
    length = request.content_length
    if length is not None and length > most + 65_536:
        raise RequestError(f"The form is {length} bytes; this gateway takes {most}.", status=413, code="too_large")
    fields: list[tuple[str, str]] = []
    upload: tuple[str, str, bytes] | None = None
    model = ""
    try:
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            if not isinstance(part, BodyPartReader):
                raise RequestError("The form holds a form; send plain fields.", status=400)
            data = await _read_part(part, most)
            if part.name == "file":
                upload = (part.filename or "audio", part.headers.get("content-type", "application/octet-stream"), data)
            elif part.name == "model":
                model = data.decode("utf-8", "replace")
            elif part.name:
                fields.append((part.name, data.decode("utf-8", "replace")))
    except (ValueError, AssertionError, EOFError) as error:
        raise RequestError(f"The form cannot be read ({error or type(error).__name__}).", status=400) from error
    if upload is None or not upload[2]:
        raise RequestError("The form has no `file`, or an empty one.", status=400, param="file")
    if not model:
        raise RequestError("The form has no `model`; send auto, or a model that transcribes.", param="model")
    return AudioUpload(*upload, tuple(fields)), model


async def _read_part(part: BodyPartReader, most: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while piece := await part.read_chunk(65_536):
        size += len(piece)
        if size > most:
            raise RequestError(f"The file is over {most} bytes, all that is taken.", status=413, code="too_large")
        pieces.append(bytes(piece))
    return b"".join(pieces)


async def call_upstream(attempt: Attempt, upload: AudioUpload) -> tuple[bytes, str]:
    """One attempt: the response's body and content type. Raises `AttemptError`."""
    attempt.patience.allow(attempt.fleet.resilience.whole_ms / 1e3, "transcription")
    line = attempt.line
    try:
        http = line.provider.build_transcription(upload, line.upstream)
    except ProviderError as error:
        raise AttemptError(error.problem) from error
    response = await attempt.upstream.open(line.url(http.path), http)
    attempt.status = response.status
    if response.status != 200:
        body = await attempt.upstream.read(MAX_ERROR_BYTES)
        raise AttemptError(line.provider.parse_error(response.status, response.headers, body))
    attempt.accepted = True
    body = await attempt.upstream.read(MAX_ANSWER_BYTES)
    if not body:
        raise AttemptError(ProviderProblem(ProblemKind.MALFORMED, "the transcript is empty"))
    attempt.extra_usd = minutes_usd(attempt.choice.route.model, body)
    return body, response.headers.get("content-type", "application/json")


def minutes_usd(model: Model, body: bytes) -> float:
    """Dollars by the duration that the answer tells; zero where it tells none (plain text, subtitles)."""
    try:
        told = msgspec.json.decode(body, type=_Transcript)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0.0
    seconds = told.usage.seconds if told.usage is not None and told.usage.seconds is not None else told.duration
    return (seconds or 0.0) / 60.0 * model.usd_per_minute
