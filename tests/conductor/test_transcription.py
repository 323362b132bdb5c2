"""Sound through the gateway: options arrive, text costs what json costs, and it is as unbreakable as the rest."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import struct
import wave
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebeat.conductor.audio import GUESSED_BYTES_PER_S, seconds_of
from tests.conductor.gateway_rig import Rig, rig

URL = "/v1/audio/transcriptions"


def model(name: str, usd: float = 0.006, more: str = "") -> str:
    return (
        f'[models."{name}"]\nprovider = "openai"\ncapabilities = ["transcription"]\n'
        "context_tokens = 448\nauto = false\n"
        f"input_usd_per_million = 0\noutput_usd_per_million = 0\nusd_per_minute = {usd}\n{more}"
    )


WHISPER = model("whisper-1")


def wav(seconds: float) -> bytes:
    held = io.BytesIO()
    with wave.open(held, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(b"\0\0" * int(16_000 * seconds))
    return held.getvalue()


SOUND = wav(30.0)


def form(*fields: tuple[str, str], file: bytes | None = SOUND, model: str | None = "whisper-1") -> aiohttp.FormData:
    data = aiohttp.FormData(default_to_multipart=True)
    if file is not None:
        data.add_field("file", file, filename="a.wav", content_type="audio/wav")
    if model is not None:
        data.add_field("model", model)
    for name, value in fields:
        data.add_field(name, value)
    return data


async def send(bench: Rig, data: Any, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    async with bench.session.post(bench.gateway.url + URL, data=data, headers=headers) as response:
        return response.status, await response.read(), {k.lower(): v for k, v in response.headers.items()}


@pytest.mark.parametrize("asked", ["json", "verbose_json", "text", "srt", "vtt"])
async def test_every_format_costs_the_same_minutes_and_options_arrive(asked: str, tmp_path: Path) -> None:
    async with rig(tmp_path, models=WHISPER) as bench:
        bench.sim.script("openai", "error_500", "ok:words=0" if asked != "json" else "ok")
        fields = [("language", "en"), ("prompt", "The harbour"), ("temperature", "0.2"), ("response_format", asked)]
        if asked == "verbose_json":
            fields += [("timestamp_granularities[]", "word"), ("timestamp_granularities[]", "segment")]
        status, body, headers = await send(bench, form(*fields))
        assert status == 200 and headers["x-onebeat-attempts"] == "2" and headers["x-onebeat-model"] == "whisper-1"
        assert headers["content-type"].startswith("application/json" if "json" in asked else "text/plain")
        for name, value in fields:
            assert name in body.decode() and value in body.decode()
        row = (await bench.rows())[-1]
        assert row["cost_usd"] == pytest.approx(0.5 * 0.006, rel=0.01) == float(headers["x-onebeat-cost-usd"])
        assert row["outcome"] == "served" and row["best_usd"] == row["cost_usd"] and row["attempts"] == 2
        attempts = await bench.rows("attempts")
        assert [each["outcome"] for each in attempts] == ["failed", "served"] and attempts[0]["cost_usd"] == 0
        assert not attempts[1]["estimated"]


async def test_a_stream_of_events_and_tokens_are_priced(tmp_path: Path) -> None:
    by_token = WHISPER.replace("usd_per_million = 0", "usd_per_million = 1000")
    async with rig(tmp_path, models=by_token) as bench:
        status, body, headers = await send(bench, form(("stream", "true")))
        assert status == 200 and headers["content-type"].startswith("text/event-stream") and b"text.done" in body
        row = (await bench.rows("attempts"))[-1]
        assert (row["input_tokens"], row["output_tokens"]) == (14, 45) and row["cost_usd"] == pytest.approx(0.059)
        bench.sim.script("openai", "cut")
        status, body, headers = await send(bench, form(("stream", "true")))
        assert status == 200 and b"text.done" in body and headers["x-onebeat-attempts"] == "2"
        assert [each["problem"] for each in await bench.rows("attempts")] == [None, "cut", None]


FAULTS = (
    ("silence", "timeout"),
    ("html", "malformed"),
    ("empty", "malformed"),
    ("error_in_stream;echo=1", "server_error"),
    ("rate_limit:reset=60", "rate_limited"),
)


async def test_faults_clocks_and_deadlines_are_those_of_every_call(tmp_path: Path) -> None:
    names = model("whisper-1", more='fallbacks = ["second"]\n') + model("second", 0.02)
    async with rig(tmp_path, models=names) as bench:
        bench.sim.script("openai", model="second")
        for fault, problem in FAULTS:
            bench.sim.script("openai", always=fault, model="whisper-1")
            status, body, headers = await send(bench, form())
            assert status == 200 and headers["x-onebeat-model"] == "second", (fault, body)
            row = (await bench.rows("attempts"))[-2]
            assert row["problem"] == problem and "sk-simulated" not in (row["detail"] or "")
            state = bench.gateway.gateway.planner.runtime.lines["whisper-1"].state
            state.cooling_until = 0.0
            state.breaker.succeeded()
        bench.sim.script("openai", always="silence", model="second")
        bench.sim.script("openai", always="silence", model="whisper-1")
        status, body, _ = await send(bench, form(), **{"x-onebeat-deadline-ms": "50"})
        assert status == 504 and b"deadline of 50 ms" in body
        assert bench.gateway.gateway.planner.runtime.lines["whisper-1"].state.breaker.failures == 0


async def test_a_deadline_ends_what_is_silent_and_every_model_broken_is_an_error(tmp_path: Path) -> None:
    async with rig(tmp_path, models=WHISPER) as bench:
        bench.sim.script("openai", always="error_500;echo=1")
        status, body, _ = await send(bench, form())
        assert status == 502 and b"[redacted]" in body and b"sk-simulated" not in body
        assert len(await bench.rows("attempts")) <= 4
        assert (await bench.rows())[-1]["outcome"] == "failed"


@pytest.mark.parametrize(
    ("fields", "word", "status"),
    [
        ({"file": None}, "no `file`", 400),
        ({"file": b""}, "empty", 400),
        ({"model": None}, "no `model`", 400),
        ({"model": "gpt-4o"}, "does not transcribe", 404),
        ({"fields": [("response_format", "jsn")]}, "did you mean `json`", 400),
        ({"fields": [("temperature", "1e308")]}, "from 0 to 1", 400),
        ({"fields": [("temperature", "warm")]}, "from 0 to 1", 400),
        ({"fields": [("temperature", "nan")]}, "from 0 to 1", 400),
        ({"fields": [("timestamp_granularities[]", "word")]}, "verbose_json", 400),
        ({"fields": [("stream", "maybe")]}, "true or false", 400),
        ({"fields": [("prompt", "x" * 70_000)]}, "`prompt` is over", 413),
        ({"fields": [(f"f{number}", "x") for number in range(70)]}, "over 64 fields", 400),
    ],
)
async def test_forms_that_are_refused_reach_nobody(
    fields: dict[str, Any], word: str, status: int, tmp_path: Path
) -> None:
    async with rig(tmp_path, models=WHISPER) as bench:
        given = dict(fields)
        got, body, _ = await send(bench, form(*given.pop("fields", ()), **given))
        assert got == status and word in json.loads(body)["error"]["message"]
        assert not bench.sim.bills.totals


async def test_forms_too_large_too_slow_or_torn_are_refused(tmp_path: Path) -> None:
    server = "[server]\nmax_audio_bytes = 100000\nread_timeout_ms = 300\n"
    change = (('[router]\nsource = "none"\n', '[router]\nsource = "none"\n' + server),)
    async with rig(tmp_path, models=WHISPER, change=change) as bench:

        async def endless() -> Any:
            yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(30):
                yield b"y" * 10_000

        async def many() -> Any:
            for number in range(60):
                yield f'--x\r\ncontent-disposition: form-data; name="f{number}"\r\n\r\n{"y" * 9000}\r\n'.encode()

        async def slow() -> Any:
            yield b"--x\r\n"
            await asyncio.sleep(1.0)
            yield b"--x--\r\n"

        kind = {"content-type": "multipart/form-data; boundary=x"}
        for body, status in ((endless(), 413), (many(), 413), (slow(), 408)):
            got, answer, _ = await send(bench, body, **kind)
            assert got == status and json.loads(answer)["error"]["message"]
        for torn in (
            b"",
            b"nonsense",
            b"--x\r\n\r\n",
            b"--x--",
            b'--x\r\ncontent-disposition: form-data; name="file"\r\n',
        ):
            got, answer, _ = await send(bench, torn, **kind)
            assert got == 400 and json.loads(answer)["error"]["message"], torn
        assert not bench.sim.bills.totals


async def test_a_transcriber_does_not_chat_and_limits_hold(tmp_path: Path) -> None:
    key = f'[keys.b]\nsha256 = "{hashlib.sha256(b"key-b").hexdigest()}"\nbudget_usd_per_day = 0.004\n'
    async with rig(tmp_path, key, models=WHISPER) as bench:
        ours = {"x-api-key": "key-b"}
        for path in ("/v1/chat/completions", "/v1/messages"):
            refused = await bench.ask("whisper-1", path=path, headers=ours)
            assert refused.status == 400 and "does not chat" in refused.json["error"]["message"]
        assert not bench.sim.bills.totals
        status, body, _ = await send(bench, form(), **ours, **{"x-onebeat-max-cost-usd": "0.001"})
        assert status == 400 and b"30 s of sound" in body
        results = await asyncio.gather(*(send(bench, form(), **ours) for _ in range(6)))
        statuses = [status for status, _, _ in results]
        assert set(statuses) == {200, 429} and statuses.count(200) <= 2


async def test_the_sdk_is_served(tmp_path: Path) -> None:
    async with rig(tmp_path, models=WHISPER) as bench:
        url = bench.gateway.url + "/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as client:
            whole = await client.audio.transcriptions.create(model="auto", file=("a.wav", SOUND), language="en")
            assert "a.wav" in whole.text
            text = await client.audio.transcriptions.create(
                model="whisper-1", file=("a.wav", SOUND), response_format="text"
            )
            assert "a.wav" in str(text)
            with pytest.raises(openai.NotFoundError):
                await client.audio.transcriptions.create(model="nobody", file=("a.wav", SOUND))


def test_lengths_are_read_off_the_head() -> None:
    assert seconds_of(SOUND) == (pytest.approx(30.0), False)
    streamed = SOUND[:40] + b"\xff\xff\xff\xff" + SOUND[44:]
    assert seconds_of(streamed) == (pytest.approx(30.0), False)
    flac = b"fLaC\0\0\0\x22" + b"\0" * 10 + ((16_000 << 44) | (15 << 36) | 16_000 * 12).to_bytes(8, "big") + b"\0" * 900
    assert seconds_of(flac) == (pytest.approx(12.0), False)
    opus = b"OggS" + b"\0" * 24 + b"OpusHead" + b"\0" * 400 + b"OggS\0\4" + struct.pack("<q", 48_000 * 7) + b"\0" * 300
    assert seconds_of(opus) == (pytest.approx(7.0), False)
    mp3 = b"ID3\4\0\0\0\0\0\x0a" + b"\0" * 10 + b"\xff\xfb\x90\x00" + b"\0" * (16_000 * 5 - 4)
    assert seconds_of(mp3) == (pytest.approx(5.0), False)  # 128 kbit/s
    mp4 = b"\0\0\0\x18ftypM4A " + b"\0" * 16 + b"mvhd" + b"\0" * 12 + struct.pack(">II", 1000, 9_500) + b"\0" * 99
    assert seconds_of(mp4) == (pytest.approx(9.5), False)
    assert seconds_of(b"\x1aE\xdf\xa3" + b"x" * 8_000) == (8_004 / GUESSED_BYTES_PER_S, True)


@given(st.sampled_from([b"RIFF____WAVE", b"fLaC", b"OggS", b"____ftyp", b"ID3", b"\xff", b""]), st.binary(max_size=200))
def test_no_bytes_break_it(head: bytes, rest: bytes) -> None:
    seconds, _ = seconds_of(head + rest)
    assert 0.0 <= seconds <= len(head + rest)
