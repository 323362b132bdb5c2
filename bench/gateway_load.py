"""The two ends of `bench/gateway.py`: an upstream that answers at once, and a client that costs little.

Both are raw asyncio protocols, so that on two cores the gateway is what is measured. Run as
`python bench/gateway_load.py upstream PORT`, or import `Client`.
"""

from __future__ import annotations

import asyncio
import sys
import time

import msgspec

WORDS = 200
ANSWER = "The harbour lies at the mouth of the river, below the old wall. " * 3
COMPLETION = msgspec.json.encode(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "bench",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": ANSWER, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 40, "completion_tokens": 48, "total_tokens": 88},
    }
)
WHOLE = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(COMPLETION) + COMPLETION
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    chunk = {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "bench",
        "choices": [choice],
    }
    data = b"data: " + msgspec.json.encode(chunk) + b"\n\n"
    return b"%x\r\n" % len(data) + data + b"\r\n"


FIRST = _event({"role": "assistant", "content": ""})
CHUNKS = [_event({"content": f"word{i} "}) for i in range(WORDS)]
_DONE = b"data: [DONE]\n\n"
LAST = _event({}, "stop") + b"%x\r\n" % len(_DONE) + _DONE + b"\r\n0\r\n\r\n"


class Upstream(asyncio.Protocol):
    """Answers every POST: whole, or `WORDS` chunks at `pace_ms` (in the path: /v1 or /pNN/v1)."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.held = b""

    def data_received(self, data: bytes) -> None:
        self.held += data
        while (end := self.held.find(b"\r\n\r\n")) >= 0:
            head = self.held[:end].lower()
            at = head.find(b"content-length:")
            stop = head.find(b"\r\n", at)
            length = int(head[at + 15 : stop if stop > 0 else len(head)])
            if len(self.held) < end + 4 + length:
                return
            body = self.held[end + 4 : end + 4 + length]
            self.held = self.held[end + 4 + length :]
            if b'"stream":true' in body or b'"stream": true' in body:
                path = head[5 : head.find(b" ", 5)]
                pace_ms = float(path[2 : path.find(b"/", 1)]) if path.startswith(b"/p") else 0.0
                self.stream(pace_ms)
            else:
                self.transport.write(WHOLE)

    def stream(self, pace_ms: float) -> None:
        if not pace_ms:
            self.transport.write(STREAM_HEAD + FIRST + b"".join(CHUNKS) + LAST)
            return
        loop = asyncio.get_running_loop()
        self.transport.write(STREAM_HEAD + FIRST)
        started = loop.time()

        def send(index: int) -> None:
            if self.transport.is_closing():
                return
            if index == WORDS:
                self.transport.write(LAST)
                return
            self.transport.write(CHUNKS[index])
            loop.call_at(started + (index + 1) * pace_ms / 1e3, send, index + 1)

        send(0)


class Client(asyncio.Protocol):
    """One keep-alive connection: `await ask(...)` gives (seconds to first event, seconds to the end, bytes)."""

    def __init__(self) -> None:
        self.done: asyncio.Future[tuple[float, float, bytes]] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(ConnectionResetError("the server hung up"))

    async def ask(self, request: bytes, marker: bytes = b"content") -> tuple[float, float, bytes]:
        self.pieces: list[bytes] = []
        self.first: float | None = None
        self.marker = marker
        self.started = time.perf_counter()
        self.done = asyncio.get_running_loop().create_future()
        assert self.transport is not None
        self.transport.write(request)
        return await self.done

    def data_received(self, data: bytes) -> None:
        pieces = self.pieces
        pieces.append(data)
        if self.first is None and self.marker in data:
            self.first = time.perf_counter()
        if data.endswith(b"0\r\n\r\n"):
            self.finish(b"".join(pieces))
            return
        whole = data if len(pieces) == 1 else b"".join(pieces)
        end = whole.find(b"\r\n\r\n")
        if end < 0 or len(pieces) > 3:
            return
        at = whole[:end].lower().find(b"content-length:")
        if at >= 0 and len(whole) - end - 4 >= int(whole[at + 15 : at + 25].split(b"\r\n")[0]):
            self.finish(whole)

    def finish(self, whole: bytes) -> None:
        now = time.perf_counter()
        if self.done is not None and not self.done.done():
            self.done.set_result(((self.first or now) - self.started, now - self.started, whole))


async def connect(port: int) -> Client:
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    return client


def request_of(model: str, *, stream: bool = False, number: int = 0, key: str = "sk-bench-0123456789") -> bytes:
    asked = f"{number}: where does the harbour lie, and what can be seen from its wall? "
    messages = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": 2 * asked}]
    body = msgspec.json.encode({"model": model, "messages": messages, "temperature": 0.2, "stream": stream})
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=4096)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[2])))
