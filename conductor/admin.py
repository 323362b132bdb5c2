"""The gateway's own answers: health, readiness, metrics, the list of models, a decision explained, feedback taken.

Enters: requests about the gateway itself. Leaves: JSON, or Prometheus' text. Calls no provider.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
import numpy as np
from aiohttp import web
from msgspec import Struct
from numpy.typing import NDArray

from onebeat.conductor.call import Call
from onebeat.conductor.dispatch import Dispatcher
from onebeat.conductor.ledger import Ledger
from onebeat.conductor.ledger_rows import FeedbackRow
from onebeat.conductor.metrics import Metrics
from onebeat.conductor.planning import AUTO, Planner, is_auto
from onebeat.conductor.records import RequestError
from onebeat.conductor.report import key_of_request
from onebeat.conductor.route_state import RouteState
from onebeat.conductor.security import Client

_JSON = {"content-type": "application/json"}
_LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
_ID = re.compile(r"ob-[0-9a-f]{24}\Z")


Readings = Callable[[], list[tuple[tuple[str, ...], float]]]


class Drift(Protocol):
    """The drift watch of `conductor.learning`."""

    def observe(
        self, features: NDArray[np.float32], quality: NDArray[np.float32], output_tokens: NDArray[np.float32]
    ) -> None: ...

    def report(self) -> dict[str, object]: ...


def _single(read: Callable[[], float]) -> Readings:
    return lambda: [((), float(read()))]


class _Feedback(Struct, frozen=True, forbid_unknown_fields=True):
    request_id: str
    score: float
    comment: str | None = None


class Admin:
    """Reads the dispatcher's state; `live_state` tells the router's (ready, healthy)."""

    def __init__(
        self,
        planner: Planner,
        dispatcher: Dispatcher,
        ledger: Ledger,
        metrics: Metrics,
        environ: Mapping[str, str],
        live_state: Callable[[], tuple[bool, bool]],
        drift: Drift | None = None,
    ) -> None:
        self._planner = planner
        self._dispatcher = dispatcher
        self._ledger = ledger
        self._metrics = metrics
        self._environ = environ
        self._live_state = live_state
        self._drift = drift
        self.is_draining = False
        self._add_gauges()

    def _add_gauges(self) -> None:
        clock = asyncio.get_running_loop().time
        plain: list[tuple[str, str, Callable[[], float]]] = [
            ("onebeat_waiting_requests", "In the waiting room.", lambda: len(self._dispatcher.room)),
            ("onebeat_shed_requests", "Shed so far.", lambda: self._dispatcher.room.shed),
            ("onebeat_retry_budget", "Retries saved up.", lambda: self._planner.runtime.retries.saved),
            ("onebeat_router_late", "Decisions that the router was too late for.", lambda: self._planner.scorer.late),
            ("onebeat_ledger_healthy", "1 while rows reach the disk.", lambda: self._ledger.status().healthy),
            ("onebeat_ledger_waiting_rows", "Rows in memory.", lambda: self._ledger.status().waiting_rows),
            ("onebeat_ledger_dropped_rows", "Rows lost.", lambda: self._ledger.status().dropped_rows),
            ("onebeat_ledger_not_durable", "Given before they were on disk.", lambda: self._ledger.status().undurable),
        ]
        if self._drift is not None:
            plain.append(("onebeat_drift", "1 while live prompts differ from the fitted.", self._has_drifted))
        by_line: list[tuple[str, str, Callable[[RouteState], float]]] = [
            ("onebeat_route_headroom", "Share of its limits left.", lambda state: state.headroom(clock())),
            ("onebeat_route_blocked", "1 while it is not called.", lambda s: s.blocked_until(clock()) is not None),
            ("onebeat_route_in_flight", "Calls under way.", lambda state: state.concurrency.in_flight),
            ("onebeat_route_concurrency", "Calls at once that it bears.", lambda state: state.concurrency.limit),
        ]
        self._metrics.gauges += [(name, text, (), _single(read)) for name, text, read in plain]
        self._metrics.gauges += [(name, text, ("model",), self._per_line(read)) for name, text, read in by_line]
        guarded = "Prompts scored again without an edge, by what came of it."
        self._metrics.gauges.append(("onebeat_guard", guarded, ("edge", "outcome"), self._guarded))

    def _per_line(self, read: Callable[[RouteState], float]) -> Readings:
        return lambda: [((name,), float(read(line.state))) for name, line in self._planner.runtime.lines.items()]

    def _guarded(self) -> list[tuple[tuple[str, ...], float]]:
        return [(labels, float(count)) for labels, count in self._planner.guard.counts.items()]

    def _has_drifted(self) -> float:
        assert self._drift is not None
        return float(bool(self._drift.report()["drifted"]))

    async def healthz(self, request: web.BaseRequest) -> web.StreamResponse:
        """The event loop turns: that is all it says."""
        return web.Response(body=b'{"status":"ok"}', headers=_JSON)

    async def readyz(self, request: web.BaseRequest) -> web.StreamResponse:
        """503 while stopping, or while the router has failed or not started. A ledger in trouble is told, not fatal."""
        ready, healthy = self._live_state()
        now = asyncio.get_running_loop().time()
        lines = self._planner.runtime.lines
        free = sum(line.state.blocked_until(now) is None for line in lines.values())
        ledger = self._ledger.status()
        is_ready = ready and healthy and not self.is_draining
        body = {
            "status": "ready" if is_ready else "draining" if self.is_draining else "not ready",
            "router": {"ready": ready, "healthy": healthy},
            "routes": {"free": free, "all": len(lines)},
            "ledger": {
                "healthy": ledger.healthy,
                "error": ledger.error,
                "waiting_rows": ledger.waiting_rows,
                "dropped_rows": ledger.dropped_rows,
                "answers_not_durable": ledger.undurable,
            },
        }
        return web.Response(status=200 if is_ready else 503, body=msgspec.json.encode(body), headers=_JSON)

    async def metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        self._check_admin(request)
        headers = {"content-type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=self._metrics.text(), headers=headers)

    def _check_admin(self, request: web.BaseRequest) -> None:
        """The admin's token where one is configured; else only this machine."""
        name = self._planner.runtime.fleet.server.admin_token_env
        token = self._environ.get(name) if name else None
        if token:
            given = request.headers.get("authorization", "")
            secret = given[7:].strip() if given[:7].lower() == "bearer " else ""
            if not hmac.compare_digest(secret.encode("utf-8", "surrogateescape"), token.encode()):
                raise RequestError("This path wants the admin's token.", status=401, code="admin_only")
        elif request.remote not in _LOOPBACK:
            raise RequestError("This path answers on the loopback interface only.", status=403, code="admin_only")

    def models(self) -> bytes:
        """The fleet in a shape that OpenAI's and Anthropic's clients both read."""
        fleet = self._planner.runtime.fleet
        names = [AUTO, f"{AUTO}:cheap", f"{AUTO}:best", *fleet.models]
        data = [self._card(name) for name in names]
        listing = {"object": "list", "data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]}
        return msgspec.json.encode(listing)

    def model(self, name: str) -> bytes:
        if name not in self._planner.runtime.fleet.models and not is_auto(name):
            raise RequestError(
                f"The model {name!r} is not in this gateway's fleet.", status=404, code="model_not_found"
            )
        return msgspec.json.encode(self._card(name))

    def _card(self, name: str) -> dict[str, object]:
        model = self._planner.runtime.fleet.models.get(name)
        card: dict[str, object] = {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": model.provider if model is not None else "onebeat",
            "type": "model",
            "display_name": name,
            "created_at": "1970-01-01T00:00:00Z",
        }
        if model is not None:
            card["context_window"] = model.context_tokens
            card["shutdown_date"] = model.shutdown_date
            card["successor"] = model.successor
        return card

    def decision(self, call: Call) -> bytes:
        """What `/v1/route` answers: the choice, why, and everything that was weighed."""
        plan = call.plan
        assert plan is not None
        return msgspec.json.encode(
            {
                "model": plan.decision.model,
                "reason": plan.decision.reason,
                "decided_by": plan.decided_by,
                "tradeoff": call.tradeoff,
                "router_ms": round(call.router_ms, 3),
                "order": [choice.route.name for choice in plan.choices],
                "propensity": plan.choices[0].propensity,
                "candidates": [
                    {
                        "model": c.model,
                        "quality": round(c.quality, 4),
                        "output_tokens": round(c.output_tokens, 1),
                        "cost_usd": c.cost_usd,
                        "utility": round(c.utility, 6),
                        "ruled_out": c.ruled_out,
                    }
                    for c in plan.decision.scores
                ],
                "dropped_messages": call.dropped_messages,
                "notes": call.notes,
            }
        )

    async def feedback(self, body: bytes, client: Client) -> None:
        """Stores a score for an earlier answer of the same key. Raises `RequestError`."""
        try:
            given = msgspec.json.decode(body, type=_Feedback)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RequestError(
                f'The feedback cannot be read ({error}); send {{"request_id": "ob-...", "score": 0 to 1}}.'
            ) from error
        if not 0.0 <= given.score <= 1.0:
            raise RequestError(f"score is {given.score}; it runs from 0 to 1.", param="score")
        if not _ID.match(given.request_id):
            raise RequestError(
                f"{given.request_id[:60]!r} is no request id; take the one in x-onebeat-request-id.", param="request_id"
            )
        await self._ledger.committed(1.0)
        owner = await asyncio.to_thread(key_of_request, self._ledger.path, given.request_id)
        if owner is None or owner[0] != client.name:
            raise RequestError(f"No request {given.request_id} of this key is known.", status=404, code="not_found")
        self._ledger.append(FeedbackRow(given.request_id, time.time(), client.name, given.score, given.comment))
