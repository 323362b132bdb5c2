"""Bytes that are no request, bodies that break off, heads that ask twice: a vendor's error, and nothing in the log."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.conductor.gateway_rig import TEXT, Rig, rig

BODY = b'{"model":"gpt-4o","max_tokens":50,"messages":[{"role":"user","content":"hi"}]}'
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"


def post(path: str, head: str = "", body: bytes = BODY) -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def send(bench: Rig, *pieces: bytes, answers: int = 1) -> list[tuple[int, Any]]:
    """Writes the pieces, one after the other, and reads so many answers."""
    host, port = bench.gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    found = []
    async with asyncio.timeout(10):
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.03)
        for _ in range(answers):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
            found.append((int(head.split()[1]), json.loads(await reader.readexactly(length))))
    writer.close()
    return found


def broken(path: str) -> list[tuple[str, list[bytes], int]]:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\n".encode()
    return [
        ("method", [f"BREW {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()], 400),
        ("version", [f"POST {path} HTTP/9.9\r\n\r\n".encode()], 400),
        ("large header", [head + b"x-big: " + b"y" * 40_000 + b"\r\n\r\n"], 431),
        ("large header in pieces", [head + b"x-big: " + b"y" * 9_000, b"y" * 9_000, b"y" * 9_000], 431),
        ("many headers", [head + b"".join(b"x-%d: y\r\n" % n for n in range(300)) + b"\r\n"], 431),
        ("length", [head + b"content-length: abc\r\n\r\n"], 400),
        ("negative length", [head + b"content-length: -5\r\n\r\n"], 400),
        ("two lengths", [head + b"content-length: 5\r\ncontent-length: 6\r\n\r\n12345"], 400),
        ("length and chunks", [head + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"], 400),
        ("chunk", [head + b"transfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n"], 400),
        ("later chunk", [head + b'transfer-encoding: chunked\r\n\r\n3\r\n{"m\r\n', b"zz\r\nabc\r\n"], 400),
        ("encoding", [post(path, "content-encoding: gzip\r\n")], 400),
        ("long path", [f"POST {path}/{'y' * 40_000} HTTP/1.1\r\nhost: x\r\n\r\n".encode()], 414),
    ]


@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/v1/messages/count_tokens"])
async def test_what_is_no_request_gets_an_error_of_its_face(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with rig(tmp_path) as bench:
        for name, pieces, status in broken(path):
            ((got, answer),) = await send(bench, *pieces)
            assert got == status and len(answer["error"]["message"]) > 20, name
            assert (answer.get("type") == "error") == (path != CHAT), name
        # Behind a good request on the same connection too.
        good, bad = await send(bench, post(path), f"BREW {path} HTTP/1.1\r\n\r\n".encode(), answers=2)
        assert good[0] == 200 and bad[0] == 400 and (bad[1].get("type") == "error") == (path != CHAT)
        assert not caplog.records
        assert await bench.gateway.ledger.committed()


async def test_who_waits_for_a_100_gets_it_unless_he_is_refused(tmp_path: Path) -> None:
    key = f'[keys.a]\nsha256 = "{hashlib.sha256(b"key-a").hexdigest()}"\n'
    async with rig(tmp_path, key) as bench:
        host, port = bench.gateway.url.removeprefix("http://").split(":")
        for path in (CHAT, MESSAGES):
            for secret, expected, first in (
                ("key-a", "100-continue", b" 100 "),
                ("no", "100-continue", b" 401 "),
                ("key-a", "tea", b" 417 "),
            ):
                reader, writer = await asyncio.open_connection(host, int(port))
                head = post(path, f"x-api-key: {secret}\r\nexpect: {expected}\r\n")[: -len(BODY)]
                writer.write(head)
                async with asyncio.timeout(5):
                    assert first in await reader.readline()
                    if first == b" 100 ":
                        writer.write(BODY)
                        await reader.readline()
                        assert b" 200 " in await reader.readline()
                writer.close()


async def test_methods_pipelines_and_headers_that_come_twice(tmp_path: Path) -> None:
    async with rig(tmp_path) as bench:
        answers = await send(bench, post(CHAT) + post(MESSAGES) + post("/v1/messages/nowhere"), answers=3)
        assert [status for status, _ in answers] == [200, 200, 404]
        assert answers[1][1]["type"] == "message" and answers[2][1]["type"] == "error"
        for name, values in (("authorization", ("Bearer a", "Bearer b")), ("x-onebeat-deadline-ms", ("1", "5000"))):
            twice = "".join(f"{name}: {value}\r\n" for value in values)
            ((status, answer),) = await send(bench, post(CHAT, twice))
            assert status == 400 and name in answer["error"]["message"]
        same = "x-onebeat-priority: low\r\n" * 2
        assert (await send(bench, post(CHAT, same)))[0][0] == 200
        for method in ("OPTIONS", "PUT", "DELETE", "HEAD"):
            async with bench.session.request(method, bench.gateway.url + MESSAGES) as response:
                assert response.status == 405 and response.headers["allow"] == "POST"
        for path in ("/healthz", "/v1/models"):
            async with bench.session.head(bench.gateway.url + path) as response:
                assert response.status == 200 and await response.read() == b""


async def test_tokens_are_counted_for_anthropics_clients(tmp_path: Path) -> None:
    async with rig(tmp_path) as bench:
        async with anthropic.AsyncAnthropic(base_url=bench.gateway.url, api_key="x", max_retries=0) as client:
            few = await client.messages.count_tokens(
                model="claude-simulated", messages=[{"role": "user", "content": TEXT}]
            )
            many = await client.messages.count_tokens(
                model="auto",
                system="Be brief. " * 200,
                messages=[{"role": "user", "content": TEXT}],
                tools=[{"name": "look", "description": "x" * 400, "input_schema": {"type": "object"}}],
            )
            assert 5 <= few.input_tokens <= 20 and 500 < many.input_tokens < 1000
            with pytest.raises(anthropic.NotFoundError):
                await client.messages.count_tokens(model="nobody", messages=[{"role": "user", "content": "x"}])
            with pytest.raises(anthropic.BadRequestError):
                await client.messages.count_tokens(model="auto", messages=[])
        counted = await bench.ask("gpt-4o", path="/v1/messages/count_tokens")
        assert counted.headers["x-onebeat-estimate"] == "true" and counted.headers["x-onebeat-model"] == "gpt-4o"
        missing = await bench.ask("gpt-4o", path=MESSAGES, max_tokens=None)
        assert missing.status == 400 and "max_tokens is missing" in missing.json["error"]["message"]
        assert not bench.sim.bills.totals and not await bench.rows()
