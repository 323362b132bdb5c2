"""Puts a gateway together and runs it: router, ledger, session, server, signals.

Enters: a checked `Fleet`, the environment. Leaves: a running server, until a signal. SIGHUP reads the fleet again and
keeps the old one where the new is wrong; SIGTERM and SIGINT stop taking requests and let those under way end.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from onebeat.conductor.admin import Admin, Drift
from onebeat.conductor.config import Fleet
from onebeat.conductor.dispatch import Dispatcher
from onebeat.conductor.engine_metrics import families
from onebeat.conductor.fleet_file import load_fleet, missing_variables, retirements, unscored
from onebeat.conductor.ledger import Ledger
from onebeat.conductor.listening import GatewayServer
from onebeat.conductor.metrics import Metrics
from onebeat.conductor.planning import Planner
from onebeat.conductor.report import spent_today
from onebeat.conductor.runtime import Runtime, make_runtime, midnight_utc, secrets_of
from onebeat.conductor.scoring import LiveRouter, Scorer
from onebeat.conductor.security import Redactor
from onebeat.conductor.server import Gateway
from onebeat.conductor.targets import promise, setting_of
from onebeat.conductor.upstream import make_session
from onebeat.engine.errors import ConfigError
from onebeat.engine.router_config import RouterConfig
from onebeat.engine.snapshot import EngineSnapshot

log = logging.getLogger("onebeat")
NO_ROUTER = "none"


class RunningGateway:
    """A gateway that listens. `url` is where."""

    def __init__(self, gateway: Gateway, ledger: Ledger, url: str, router: RouterConfig | None) -> None:
        self.gateway = gateway
        self.ledger = ledger
        self.url = url
        self._router = router

    def reload(self, path: str, environ: Mapping[str, str]) -> bool:
        """Reads the fleet again. A wrong one is reported and kept out; requests under way keep theirs."""
        planner = self.gateway.planner
        try:
            fleet = load_fleet(path)
            missing = missing_variables(fleet, environ)
            if missing:
                raise ConfigError(f"the environment lacks {', '.join(missing.values())}.")
            runtime = make_runtime(fleet, environ, self._router, previous=planner.runtime)
        except ConfigError as error:
            log.error("%s was not taken over, the fleet stays as it was:\n%s", path, error)
            self.ledger.event("reload_refused", str(error))
            return False
        before = planner.runtime.fleet
        planner.runtime = runtime
        room = self.gateway.dispatcher.room
        room.places = fleet.contingency.queue_requests
        room.wake_all()
        report_fleet(runtime, self._router, self.ledger)
        log.info("%s was read again: %d models", path, len(fleet.models))
        self.ledger.event("reload", f"{len(fleet.models)} models of {len(fleet.providers)} providers")
        if waiting := needs_restart(before, fleet):
            log.warning("%s changed; a restart is needed for that to take effect", ", ".join(waiting))
            self.ledger.event("restart_needed", ", ".join(waiting))
        return True


_ONLY_AT_START = {
    "server": ("host", "port", "max_header_bytes", "read_timeout_ms"),
    "router": ("source", "precision", "device"),
    "resilience": ("connect_ms",),
    "ledger": ("path", "queue_rows"),
}


def needs_restart(before: Fleet, after: Fleet) -> list[str]:
    """The settings that differ and are read when the gateway starts only."""
    return [
        f"{section}.{key}"
        for section, keys in _ONLY_AT_START.items()
        for key in keys
        if getattr(getattr(before, section), key) != getattr(getattr(after, section), key)
    ]


def report_fleet(runtime: Runtime, router: RouterConfig | None, ledger: Ledger) -> None:
    """Retirements, unscored models, what the target promises: into the log, and the ledger for `onebeat report`."""
    fleet = runtime.fleet
    report_retirements(fleet, datetime.datetime.now(datetime.UTC).date(), ledger)
    for sentence in unscored(fleet, [column.name for column in router.columns] if router else []):
        log.warning(sentence)
    if runtime.setting is not None:
        log.info(promise(fleet, runtime.setting))
        ledger.event("target", promise(fleet, runtime.setting))


def report_new_day(runtime: Runtime, router: RouterConfig | None, ledger: Ledger) -> None:
    """What midnight changed: models that retire, and a target that was promised with them."""
    report_retirements(runtime.fleet, runtime.table.today, ledger)
    try:
        setting_of(runtime.fleet, runtime.table, router)
    except ConfigError as error:
        log.warning("%s The dial stays at tradeoff %g.", error, runtime.tradeoff)
        ledger.event("target_lapsed", str(error))


def report_retirements(fleet: Fleet, today: datetime.date, ledger: Ledger) -> None:
    for sentence in retirements(fleet, today):
        log.warning(sentence)
        ledger.event("retirement", sentence)


class WatchedDrift:
    """Hands features on to the drift watch, and writes into log and ledger when its verdict changes."""

    EVERY = 50
    """Prompts between two looks at the verdict: a look costs more than an observation."""

    def __init__(self, drift: Drift, ledger: Ledger) -> None:
        self._drift = drift
        self._ledger = ledger
        self._seen = 0
        self._has_drifted = False

    def observe(
        self, features: NDArray[np.float32], quality: NDArray[np.float32], output_tokens: NDArray[np.float32]
    ) -> None:
        self._drift.observe(features, quality, output_tokens)
        self._seen += 1
        if self._seen % self.EVERY:
            return
        report = self._drift.report()
        drifted = bool(report["drifted"])
        if drifted == self._has_drifted:
            return
        self._has_drifted = drifted
        changed = report.get("changed")
        named = ", ".join(map(str, changed)) if isinstance(changed, list | tuple) and changed else "nothing by name"
        verdict = f"changed: {named}" if drifted else "live prompts look like those it was fitted on again"
        detail = f"{verdict} (statistic {report['statistic']}, threshold {report['threshold']}, n {report['n']})"
        log.warning("drift: %s", detail)
        self._ledger.event("drift", detail)


@asynccontextmanager
async def running(
    fleet: Fleet,
    environ: Mapping[str, str],
    *,
    live: LiveRouter | None = None,
    router: RouterConfig | None = None,
    drift: Drift | None = None,
    host: str | None = None,
    port: int | None = None,
    redactor: Redactor | None = None,
) -> AsyncIterator[RunningGateway]:
    """A gateway that listens as long as the context is open. `live`: the router, started by the caller; None decides on
    priors. `router`: its description. `drift`: an object with `observe(features, quality, output_tokens)` and
    `report()`. `redactor`: the one that the logs go through."""
    async with AsyncExitStack() as stack:
        ledger = Ledger(fleet.ledger.path, queue_rows=fleet.ledger.queue_rows)
        stack.callback(ledger.close)
        runtime = make_runtime(fleet, environ, router, redactor=redactor)
        spent = spent_today(ledger.path, midnight_utc())
        for client in runtime.keys.clients():
            if client.name in spent:
                client.charge(spent[client.name], midnight_utc() + 1.0)
        report_fleet(runtime, router, ledger)
        session: aiohttp.ClientSession = await stack.enter_async_context(make_session(fleet.resilience))
        metrics = Metrics()
        snapshot: Callable[[], EngineSnapshot] | None = getattr(live, "snapshot", None)
        if snapshot is not None:
            metrics.more.append(lambda: families(snapshot()))
        watched = WatchedDrift(drift, ledger).observe if drift is not None else None
        scorer = Scorer(live, on_features=watched)
        planner = Planner(runtime, scorer, on_new_day=lambda at: report_new_day(at, router, ledger))
        dispatcher = Dispatcher(planner, session, ledger, metrics)
        admin = Admin(planner, dispatcher, ledger, metrics, environ, lambda: _state_of(live), drift)
        gateway = Gateway(dispatcher, planner, admin)
        server = GatewayServer(gateway.handle, gateway.answer_broken, fleet.server)
        runner = web.ServerRunner(server)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, host or fleet.server.host, fleet.server.port if port is None else port, backlog=2048)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(f"cannot listen on {fleet.server.host}:{fleet.server.port}: {error}.") from error
        bound = runner.addresses[0]
        running_gateway = RunningGateway(gateway, ledger, f"http://{_shown(bound[0])}:{bound[1]}", router)
        try:
            yield running_gateway
        finally:
            admin.is_draining = True
            await site.stop()
            await _drain(gateway, fleet.server.drain_ms / 1e3)


async def _drain(gateway: Gateway, seconds: float) -> None:
    """Answers under way may end; what is not done by then is cut, and entered as cancelled."""
    until = asyncio.get_running_loop().time() + seconds
    while gateway.under_way and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    if gateway.under_way:
        log.warning("%d requests were cut by the stop after %.0f s", gateway.under_way, seconds)


def _state_of(live: LiveRouter | None) -> tuple[bool, bool]:
    if live is None:
        return True, True
    return bool(getattr(live, "ready", True)), bool(getattr(live, "healthy", True))


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def serve(
    fleet: Fleet, path: str, environ: Mapping[str, str], *, host: str | None = None, port: int | None = None
) -> int:
    """`onebeat serve`, until SIGTERM or SIGINT."""
    redactor = Redactor(secrets_of(fleet, environ))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    handler.addFilter(redactor)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        live, router, drift = await stack.enter_async_context(_router(fleet))
        gateway = await stack.enter_async_context(
            running(fleet, environ, live=live, router=router, drift=drift, host=host, port=port, redactor=redactor)
        )
        loop.add_signal_handler(signal.SIGHUP, gateway.reload, path, environ)
        print(f"onebeat: listening on {gateway.url} ({len(fleet.models)} models)", flush=True)
        await stop.wait()
        log.info("stopping: no new requests; those under way have %.0f s", fleet.server.drain_ms / 1e3)
    return 0


@asynccontextmanager
async def _router(fleet: Fleet) -> AsyncIterator[tuple[LiveRouter | None, RouterConfig | None, Drift | None]]:
    """The router in this process, serving; nothing where the fleet decides on priors."""
    source = fleet.router.source
    if source is None or source == NO_ROUTER:
        yield None, None, None
        return
    from onebeat.engine.router import Router

    router = await asyncio.to_thread(
        Router.from_pretrained, source, precision=fleet.router.precision, device=fleet.router.device
    )
    drift = None
    if fleet.router.drift_share > 0:
        from onebeat.conductor.learning.drift import DriftWatch

        drift = DriftWatch(router.config.drift, [column.name for column in router.columns])
    async with router.serve() as live:
        yield live, router.config, drift
