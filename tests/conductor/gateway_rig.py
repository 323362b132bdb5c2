"""A gateway before simulated vendors, over real sockets, with clocks short enough for tests."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from onebeat.conductor.admin import Drift
from onebeat.conductor.config import Fleet
from onebeat.conductor.fleet_file import parse_fleet
from onebeat.conductor.scoring import LiveRouter
from onebeat.conductor.serving import RunningGateway, running
from onebeat.engine.records import Column
from onebeat.engine.router_config import HeadConfig, RouterConfig, Tap
from tools.simulated_providers import SimulatedProviders

CLOCKS = """
[resilience]
connect_ms = 500
first_token_ms = 400
between_tokens_ms = 400
whole_ms = 400
total_ms = 5000
backoff_base_ms = 5
short_reset_ms = 300
breaker_open_ms = 200
retry_burst = 1000.0
"""
MODELS = {
    "gpt-4o": ("openai", 0.9, 2.5, 10.0, ""),
    "claude-simulated": ("anthropic", 0.89, 3.0, 15.0, ', "prefill"'),
    "gemini-2.5-flash": ("gemini", 0.88, 0.3, 2.5, ""),
}
TEXT = "Tell me about the harbour"


def fleet_text(url: str, ledger: Path, extra: str = "", clocks: str = CLOCKS, models: str = "") -> str:
    text = f'{clocks}\n[router]\nsource = "none"\n[ledger]\npath = "{ledger}"\n[contingency]\ndeadline_ms = 1500\n'
    for kind, path in (("openai", "openai/v1"), ("anthropic", "anthropic"), ("gemini", "gemini")):
        text += f'[providers.{kind}]\nkind = "{kind}"\nbase_url = "{url}/{path}"\napi_key_env = "SIM_KEY"\n'
    text += f'[providers.local]\nkind = "openai_compatible"\nbase_url = "{url}/local/v1"\nlocal = true\n'
    for name, (provider, quality, input_usd, output_usd, more) in MODELS.items():
        text += (
            f'[models."{name}"]\nprovider = "{provider}"\nprior_quality = {quality}\ncontext_tokens = 100000\n'
            f'capabilities = ["tools", "json", "images"{more}]\n'
            f"input_usd_per_million = {input_usd}\noutput_usd_per_million = {output_usd}\n"
        )
    return text + models + extra


@dataclass
class Rig:
    sim: SimulatedProviders
    gateway: RunningGateway
    session: aiohttp.ClientSession
    ledger: Path

    async def ask(self, model: str = "auto:best", *, path: str = "/v1/chat/completions", **fields: Any) -> Result:
        body = {"model": model, "messages": [{"role": "user", "content": TEXT}], **fields}
        headers = body.pop("headers", {})
        if path == "/v1/messages":
            body.setdefault("max_tokens", 4000)
        async with self.session.post(self.gateway.url + path, json=body, headers=headers) as response:
            return Result(
                response.status,
                {k.lower(): v for k, v in response.headers.items()},
                await response.read(),
                bool(fields.get("stream")),
            )

    async def rows(self, table: str = "requests") -> list[dict[str, Any]]:
        assert await self.gateway.ledger.committed()
        connection = sqlite3.connect(self.ledger)
        connection.row_factory = sqlite3.Row
        found = [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]
        connection.close()
        return found


@dataclass
class Result:
    status: int
    headers: dict[str, str]
    body: bytes
    stream: bool

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def chunks(self) -> list[Any]:
        lines = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: ")]
        return [json.loads(line) for line in lines if line != b"[DONE]"]

    @property
    def error(self) -> dict[str, Any] | None:
        """The vendor's error object, in a body or in band."""
        if not self.stream or self.status != 200:
            found = self.json.get("error") if self.status != 200 else None
        else:
            found = next((chunk["error"] for chunk in self.chunks if "error" in chunk), None)
        return found if found is None or isinstance(found, dict) else {"message": found}

    @property
    def text(self) -> str:
        if not self.stream:
            body = self.json
            if "choices" in body:
                return str(body["choices"][0]["message"]["content"])
            return "".join(part.get("text", "") for part in body["content"])
        pieces = []
        for chunk in self.chunks:
            if "choices" in chunk:
                pieces += [choice["delta"].get("content") or "" for choice in chunk["choices"]]
            elif chunk.get("type") == "content_block_delta":
                pieces.append(chunk["delta"].get("text", ""))
        return "".join(pieces)

    @property
    def finish(self) -> str | None:
        if not self.stream:
            body = self.json
            return str(body["choices"][0]["finish_reason"]) if "choices" in body else str(body["stop_reason"])
        for chunk in self.chunks:
            for choice in chunk.get("choices", ()):
                if choice.get("finish_reason"):
                    return str(choice["finish_reason"])
            if chunk.get("type") == "message_delta" and chunk["delta"].get("stop_reason"):
                return str(chunk["delta"]["stop_reason"])
        return None

    @property
    def is_whole(self) -> bool:
        """A success with its end: what a truncated answer must never look like."""
        if self.status != 200 or self.error is not None or self.finish is None:
            return False
        return not self.stream or b"[DONE]" in self.body or b"message_stop" in self.body


@asynccontextmanager
async def rig(
    folder: Path,
    extra: str = "",
    *,
    clocks: str = CLOCKS,
    models: str = "",
    live: LiveRouter | None = None,
    columns: tuple[Column, ...] = (),
    router: RouterConfig | None = None,
    drift: Drift | None = None,
    change: tuple[tuple[str, str], ...] = (),
    key: str = "sk-simulated-0123456789",
) -> AsyncIterator[Rig]:
    async with SimulatedProviders() as sim:
        ledger = folder / "ledger.sqlite"
        text = fleet_text(sim.url, ledger, extra, clocks, models)
        for old, new in change:
            assert old in text
            text = text.replace(old, new)
        fleet: Fleet = parse_fleet(text)
        environ = {"SIM_KEY": key}
        if columns:
            router = RouterConfig("made up", (Tap(1, "mean"),), columns, HeadConfig("linear"))
        async with (
            running(fleet, environ, live=live, router=router, drift=drift, port=0) as gateway,
            aiohttp.ClientSession() as session,
        ):
            yield Rig(sim, gateway, session, ledger)
