"""`/v1/audio/transcriptions`: a file goes to the Whisper-class route of the fleet, and the answer comes back as is.

Enters: a multipart form. Leaves: the provider's own response. Clocks, budgets, re-routes and the ledger are those of
every other call; the price is the provider's own count of tokens or seconds, else the length of the file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec
from aiohttp import BodyPartReader, web

from onebeat.conductor.answers import ProblemKind, ProviderError, ProviderProblem, Usage
from onebeat.conductor.attempt import Attempt
from onebeat.conductor.audio import seconds_of
from onebeat.conductor.call import Call
from onebeat.conductor.context import PromptSize
from onebeat.conductor.dispatch import Dispatcher
from onebeat.conductor.errors import AttemptError
from onebeat.conductor.faces.parsing import nearest, options_of
from onebeat.conductor.faces.report import headers_of
from onebeat.conductor.listening import invite
from onebeat.conductor.policy import Ask, Plan, named_plan
from onebeat.conductor.providers.base import AudioUpload
from onebeat.conductor.records import ABSENT, ChatRequest, RequestError, WireFormat, present
from onebeat.conductor.runtime import Runtime
from onebeat.conductor.security import Client
from onebeat.engine.errors import ConstraintError

NEED = "transcription"
MAX_FIELDS = 64
MAX_FIELD_BYTES = 65_536
FORMATS = {
    "json": "application/json",
    "verbose_json": "application/json",
    "diarized_json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "text/plain; charset=utf-8",
    "vtt": "text/plain; charset=utf-8",
}
"""What a client may ask for, and the content type that it gets."""
EVENTS = "text/event-stream; charset=utf-8"
_DONE = b'"transcript.text.done"'


class _Usage(msgspec.Struct):
    seconds: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Transcript(msgspec.Struct):
    text: str | None = None
    duration: float | str | None = None
    """A string in some versions of the API."""
    usage: _Usage | None = None
    error: msgspec.Raw = ABSENT


class Transcriber:
    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def handle(
        self, request: web.BaseRequest, runtime: Runtime, client: Client, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Raises `RequestError` for a form that cannot be used, `UnansweredError` where no route transcribes it."""
        options = options_of(None, headers)
        server = runtime.fleet.server
        upload, model = await read_form(request, server.max_audio_bytes, server.read_timeout_ms / 1e3)
        check_fields(upload)
        names = names_of(runtime, model, options.fallbacks)
        now = asyncio.get_running_loop().time()
        chat = ChatRequest(WireFormat.OPENAI, model, (), options=options)
        call = Call(runtime, chat, client, PromptSize(0, 0, 0), now)
        call.operation = NEED
        seconds, is_guess = seconds_of(upload.data)
        (body, content_type), report = await self._dispatcher.run(
            call, lambda attempt: call_upstream(attempt, upload, seconds, is_guess), plan_of(call, names, seconds)
        )
        report = await self._dispatcher.made_durable(call, report)
        return web.Response(body=body, headers={**headers_of(report), "content-type": content_type})


def names_of(runtime: Runtime, model: str, fallbacks: tuple[str, ...] | None) -> list[str]:
    """The models to try, in order. Raises `RequestError` for one that does not transcribe."""
    models = runtime.fleet.models
    hearing = [name for name, each in models.items() if NEED in each.capabilities]
    if not hearing:
        raise RequestError("The fleet names no model that transcribes.", status=404, code="model_not_found")
    if model in hearing:
        return [model, *(models[model].fallbacks if fallbacks is None else fallbacks)]
    if model in ("auto", "whisper-1"):
        return hearing
    sentence = f"The model {model!r} does not transcribe here; {', '.join(hearing)} do."
    raise RequestError(sentence, status=404, code="model_not_found", param="model")


def plan_of(call: Call, names: list[str], seconds: float) -> Plan:
    """The named models that can, with what the sound is expected to cost at each."""
    runtime = call.runtime
    loop = asyncio.get_running_loop()
    allowed = call.client.expensive_allowed(call.at)
    ask = Ask(call.size, 0.5, needs=frozenset({NEED}), region=call.request.options.region, expensive_allowed=allowed)
    try:
        made = named_plan(runtime.table, ask, names, lambda name: runtime.lines[name].status(loop.time()))
    except ConstraintError as error:
        raise RequestError(str(error), code="constraint_failed") from error
    priced = [
        msgspec.structs.replace(choice, cost_usd=seconds / 60.0 * choice.route.model.usd_per_minute)
        for choice in made.choices
    ]
    most = call.request.options.max_cost_usd
    if most is not None and not (priced := [choice for choice in priced if choice.cost_usd <= most]):
        raise RequestError(
            f"{seconds:.0f} s of sound cost more than max_cost_usd = {most:g} at every model that may transcribe it.",
            code="constraint_failed",
        )
    return msgspec.structs.replace(made, choices=tuple(priced))


async def read_form(request: web.BaseRequest, most: int, timeout_s: float) -> tuple[AudioUpload, str]:
    """The file, the other fields in order, and the model's name; `most` bytes in all, within `timeout_s`."""
    if not request.content_type.startswith("multipart/"):
        raise RequestError("Send multipart/form-data with the fields `file` and `model`.", status=400)
    length = request.content_length
    if length is not None and length > most + MAX_FIELD_BYTES:
        raise RequestError(f"The form is {length} bytes; this gateway takes {most}.", status=413, code="too_large")
    form = _Form(most)
    try:
        async with asyncio.timeout(timeout_s):
            await invite(request)
            reader = await request.multipart()
            while (part := await reader.next()) is not None:
                if not isinstance(part, BodyPartReader):
                    raise RequestError("The form holds a form; send plain fields.", status=400)
                await form.add(part)
    except TimeoutError:
        sentence = f"The form did not arrive within {timeout_s:g} s."
        raise RequestError(sentence, status=408, code="request_timeout") from None
    except (ValueError, AssertionError, EOFError, LookupError, web.RequestPayloadError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(f"The form cannot be read ({what}).", code="bad_body") from error
    if form.file is None or not form.file[2]:
        raise RequestError("The form has no `file`, or an empty one.", status=400, param="file")
    if not form.model:
        raise RequestError("The form has no `model`; send auto, or a model that transcribes.", param="model")
    return AudioUpload(*form.file, tuple(form.fields)), form.model


class _Form:
    """What has been read of one form so far."""

    def __init__(self, most: int) -> None:
        self.fields: list[tuple[str, str]] = []
        self.file: tuple[str, str, bytes] | None = None
        self.model = ""
        self._most = most
        self._left = most + MAX_FIELD_BYTES

    async def add(self, part: BodyPartReader) -> None:
        name = part.name or ""
        data = await self._data(part, self._most if name == "file" else MAX_FIELD_BYTES, name)
        if name == "file":
            if self.file is not None:
                raise RequestError("The form holds two files; send one a request.", param="file")
            content_type = part.headers.get("content-type", "application/octet-stream")
            self.file = (part.filename or "audio", content_type, data)
        elif name == "model":
            self.model = data.decode("utf-8", "replace")[:256]
        elif name:
            if len(self.fields) >= MAX_FIELDS:
                raise RequestError(f"The form has over {MAX_FIELDS} fields; send what the model reads.")
            self.fields.append((name, data.decode("utf-8", "replace")))

    async def _data(self, part: BodyPartReader, most: int, name: str) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while piece := await part.read_chunk(65_536):
            size += len(piece)
            self._left -= len(piece)
            if size > most or self._left < 0:
                what = f"The field `{name[:60]}`" if size > most else "The form"
                limit = most if size > most else self._most
                raise RequestError(f"{what} is over {limit} bytes, all that is taken.", status=413, code="too_large")
            pieces.append(bytes(piece))
        return b"".join(pieces)


def check_fields(upload: AudioUpload) -> None:
    """The options that every model reads are what they may be; others are sent on. Raises `RequestError`."""
    given = dict(upload.fields)
    form = given.get("response_format", "json")
    if form not in FORMATS:
        raise RequestError(f"response_format is {form[:60]!r}{nearest(form, FORMATS)}.", param="response_format")
    if (heat := given.get("temperature")) is not None:
        try:
            is_good = 0.0 <= float(heat) <= 1.0
        except ValueError:
            is_good = False
        if not is_good:
            raise RequestError(f"temperature is {heat[:60]!r}; it runs from 0 to 1.", param="temperature")
    name = "timestamp_granularities[]"
    for each in [value for key, value in upload.fields if key in (name, name[:-2])]:
        if each not in ("word", "segment"):
            raise RequestError(f"{name} is {each[:60]!r}{nearest(each, ('word', 'segment'))}.", param=name)
        if form != "verbose_json":
            raise RequestError(f"{name} needs response_format verbose_json; it is {form}.", param=name)
    if (stream := given.get("stream", "false").lower()) not in ("true", "false"):
        raise RequestError(f"stream is {stream[:60]!r}; send true or false.", param="stream")


async def call_upstream(attempt: Attempt, upload: AudioUpload, seconds: float, is_guess: bool) -> tuple[bytes, str]:
    """One attempt: the response's body and content type. Raises `AttemptError`."""
    provider, model = attempt.line.provider, attempt.choice.route.model
    try:
        http = provider.build_transcription(upload, attempt.line.upstream)
    except ProviderError as error:
        raise AttemptError(error.problem) from error
    body = await attempt.exchange(http, "transcription")
    given = dict(upload.fields)
    form = given.get("response_format", "json")
    is_stream = given.get("stream", "").lower() == "true"
    # Whatever comes of it, the vendor has heard the sound.
    attempt.extra_usd, attempt.extra_is_guess = seconds / 60.0 * model.usd_per_minute, is_guess
    content_type = EVENTS if is_stream else FORMATS[form]
    if is_stream and body.lstrip()[:1] == b"{":
        content_type = FORMATS["json"]  # whisper-1 ignores `stream`.
    told = _told(attempt, body, content_type)
    if told is not None and told.usage is not None and told.usage.input_tokens is not None:
        attempt.usage = Usage(told.usage.input_tokens, told.usage.output_tokens or 0)
        if model.input_usd_per_million or model.output_usd_per_million:
            attempt.extra_usd, attempt.extra_is_guess = 0.0, False
    elif told is not None and (counted := _seconds(told)) is not None:
        attempt.extra_usd, attempt.extra_is_guess = counted / 60.0 * model.usd_per_minute, False
    return body, content_type


def _told(attempt: Attempt, body: bytes, content_type: str) -> _Transcript | None:
    """What the answer says of itself; None for text and subtitles. Raises `AttemptError` where it is no transcript."""
    if not body:
        raise AttemptError(ProviderProblem(ProblemKind.MALFORMED, "the transcript is empty"))
    if content_type == EVENTS:
        lines = [line[5:].strip() for line in body.splitlines() if line.startswith(b"data:")]
        last = next((line for line in reversed(lines) if _DONE in line), None)
        if last is None:
            raise AttemptError(ProviderProblem(ProblemKind.CUT, "the transcript's stream ended before its last event"))
        body = last
    elif not content_type.startswith("application/json"):
        if body.lstrip()[:1] == b"<":
            raise AttemptError(ProviderProblem(ProblemKind.MALFORMED, "a page came back instead of a transcript"))
        return None
    try:
        told = msgspec.json.decode(body, type=_Transcript)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem = ProviderProblem(ProblemKind.MALFORMED, f"the answer is no transcript: {str(error)[:200]}")
        raise AttemptError(problem) from error
    if present(told.error) is not None:
        attempt.extra_usd = 0.0  # It says so itself: nothing was transcribed.
        raise AttemptError(attempt.line.provider.parse_error(500, {}, body))
    if told.text is None:
        raise AttemptError(ProviderProblem(ProblemKind.MALFORMED, "the answer has no text"))
    return told


def _seconds(told: _Transcript) -> float | None:
    given: float | str | None = told.usage.seconds if told.usage is not None else None
    try:
        seconds = float(told.duration if given is None else given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return seconds if 0.0 <= seconds < 1e7 else None
