"""Everything that one `fleet.toml` makes: routes with their vendors, health, prices, budgets, keys.

Enters: a `Fleet`, the environment, the router's columns. Leaves: `Runtime`. A reload makes another and
keeps what was learned about a route where it is still the same.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from dataclasses import dataclass

from yarl import URL

from onebeat.conductor.config import Fleet, Model
from onebeat.conductor.config import Provider as ProviderConfig
from onebeat.conductor.context import TokenScale
from onebeat.conductor.policy import FREE, Status
from onebeat.conductor.pricing import PriceList
from onebeat.conductor.providers.anthropic import AnthropicProvider
from onebeat.conductor.providers.base import Provider
from onebeat.conductor.providers.gemini import GeminiProvider
from onebeat.conductor.providers.openai import OpenAIProvider
from onebeat.conductor.providers.traits import Traits
from onebeat.conductor.resilience import Budget
from onebeat.conductor.route_state import RouteState
from onebeat.conductor.routes import Prediction, Route, RouteTable
from onebeat.conductor.security import KeyRing, Redactor
from onebeat.conductor.targets import reference_usd, setting_of
from onebeat.engine.router_config import RouterConfig
from onebeat.engine.targets import Setting

MEMORISED_PATHS = 64
DAY_S = 86_400.0


class Line:
    """One route at work: its vendor module, its address, its health. One per model of the fleet."""

    __slots__ = (
        "_base",
        "_status",
        "_urls",
        "name",
        "provider",
        "provider_name",
        "route",
        "scale",
        "state",
        "upstream",
    )

    def __init__(
        self, route: Route, provider_name: str, config: ProviderConfig, provider: Provider, state: RouteState
    ) -> None:
        self.name = route.name
        self.route = route
        self.upstream = route.model.upstream or route.name
        self.provider = provider
        self.provider_name = provider_name
        self.state = state
        self.scale = TokenScale()
        self._base = config.base_url.rstrip("/")
        self._urls: dict[str, URL] = {}
        self._status = FREE

    def url(self, path: str) -> URL:
        """Always under the provider's base URL: a host comes from the config and from nowhere else."""
        url = self._urls.get(path)
        if url is None:
            url = URL(self._base + path, encoded=True)
            if len(self._urls) < MEMORISED_PATHS:
                self._urls[path] = url
        return url

    def status(self, now: float) -> Status:
        """What the policy reads."""
        state = self.state
        until = state.blocked_until(now)
        headroom = state.headroom(now) if state.room.is_known else 1.0
        ratio = self.scale.ratio
        if until is None:
            known = self._status  # The same as last time for most requests: nothing is made anew.
            if known.headroom != headroom or known.token_scale != ratio:
                known = self._status = Status(None, "", headroom, ratio)
            return known
        return Status(until - now, state.why_blocked(now), headroom, ratio)


@dataclass(slots=True)
class Runtime:
    """The fleet in force. Its lines and budgets change as traffic goes; its config does not."""

    fleet: Fleet
    table: RouteTable
    lines: dict[str, Line]
    prices: PriceList
    keys: KeyRing
    redactor: Redactor
    retries: Budget
    hedges: Budget
    columns: dict[str, Prediction]
    reference_usd: float | None
    """What the router's own decisions weigh dollars by; None where it scores nothing of this fleet."""
    setting: Setting | None
    """Where `policy.target` sets the dial."""
    day_ends: float
    """Unix seconds of the next midnight, UTC."""

    @property
    def tradeoff(self) -> float:
        """Of a request that names none: the target's, else the policy's."""
        return self.fleet.policy.tradeoff if self.setting is None else self.setting.tradeoff

    def refresh_day(self, now_unix: float) -> bool:
        """Shutdown dates pass at midnight (UTC): the table is made anew when the day changes. True then."""
        if now_unix < self.day_ends:
            return False
        self.day_ends = midnight_utc(now_unix) + DAY_S
        today = datetime.datetime.fromtimestamp(now_unix, datetime.UTC).date()
        self.table = RouteTable(self.fleet, self.columns, today, self.reference_usd)
        return True


def traits_of(model: Model, kind: str) -> Traits:
    capabilities = model.capabilities
    return Traits(
        sampling=model.sampling,
        prefill=True if "prefill" in capabilities else None,
        reasoning=True if "reasoning" in capabilities else None,
        thinking_by_budget=model.thinking_by_budget,
        json_schema=model.json_schema,
        default_max_output_tokens=min(model.max_output_tokens or 8192, 8192),
        compatible=kind == "openai_compatible",
    )


def make_provider(config: ProviderConfig, model: Model, environ: Mapping[str, str]) -> Provider:
    key = environ.get(config.api_key_env) if config.api_key_env else None
    traits = traits_of(model, config.kind)
    if config.kind == "anthropic":
        return AnthropicProvider(key, traits=traits)
    if config.kind == "gemini":
        return GeminiProvider(key, traits=traits)
    return OpenAIProvider(key, traits=traits)


def make_runtime(
    fleet: Fleet,
    environ: Mapping[str, str],
    router: RouterConfig | None = None,
    *,
    previous: Runtime | None = None,
    today: datetime.date | None = None,
    redactor: Redactor | None = None,
) -> Runtime:
    """The runtime for `fleet`. `previous`: what it takes over the health of routes and the counters of keys from.
    `redactor`: the one that the logs go through; it learns the secrets that this fleet names. Raises `ConfigError` for
    a target that cannot be promised."""
    if redactor is None:
        redactor = previous.redactor if previous else Redactor()
    redactor.learn(secrets_of(fleet, environ))
    priors = {
        column.name: Prediction(column.mean_quality, column.mean_output_tokens or 500.0)
        for column in (router.columns if router else ())
        if column.mean_quality is not None
    }
    reference = reference_usd(fleet, router)
    table = RouteTable(fleet, priors, today or datetime.datetime.now(datetime.UTC).date(), reference)
    lines: dict[str, Line] = {}
    for name, route in table.routes.items():
        config = fleet.providers[route.model.provider]
        provider = make_provider(config, route.model, environ)
        line = Line(route, route.model.provider, config, provider, RouteState(fleet.resilience))
        old = previous.lines.get(name) if previous else None
        if old is not None and previous is not None:
            line.scale = old.scale
            same_place = previous.fleet.providers.get(old.provider_name) == config
            if same_place and old.upstream == line.upstream and previous.fleet.resilience == fleet.resilience:
                line.state = old.state
        lines[name] = line
    resilience = fleet.resilience
    return Runtime(
        fleet=fleet,
        table=table,
        lines=lines,
        prices=PriceList(fleet.models),
        keys=KeyRing(fleet.keys, previous.keys if previous else None),
        redactor=redactor,
        retries=Budget(resilience.retry_share, resilience.retry_burst, previous.retries if previous else None),
        hedges=Budget(resilience.hedge_share, 1.0, previous.hedges if previous else None),
        columns=priors,
        reference_usd=reference,
        setting=setting_of(fleet, table, router),
        day_ends=midnight_utc() + DAY_S,
    )


def secrets_of(fleet: Fleet, environ: Mapping[str, str]) -> list[str]:
    """The values of the variables that the fleet names: providers' keys and the admin's token."""
    names = [provider.api_key_env for provider in fleet.providers.values()] + [fleet.server.admin_token_env]
    return [environ[name] for name in names if name and environ.get(name)]


def midnight_utc(now_unix: float | None = None) -> float:
    """The start of the day that budgets count by."""
    now_unix = time.time() if now_unix is None else now_unix
    return now_unix - now_unix % DAY_S
