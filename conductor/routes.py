"""The fleet's routes as the policy reads them: capabilities, regions and priors worked out once, successors resolved.

Enters: a `Fleet`, the router's columns, a day. Leaves: `RouteTable`. Knows no request and no clock.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import Struct

from onebeat.conductor.config import Fleet, Model
from onebeat.conductor.pricing import dearest, expected_usd

UNKNOWN_QUALITY = 0.5
UNKNOWN_OUTPUT_TOKENS = 500.0
REFERENCE_TOKENS = 500
TRANSCRIPTION = "transcription"


class Prediction(Struct, frozen=True, gc=False):
    """What is expected of one model for one prompt."""

    quality: float
    output_tokens: float


@dataclass(frozen=True, slots=True)
class Route:
    """One model of the fleet, with what the policy reads of it worked out once."""

    name: str
    model: Model
    column: str
    regions: frozenset[str]
    capabilities: frozenset[str]
    prior: Prediction
    wire: str
    """openai | anthropic | gemini: whose format its provider speaks."""


class RouteTable:
    """The fleet's routes by name, successors resolved, for one day. Immutable; a reload makes another."""

    def __init__(
        self,
        fleet: Fleet,
        columns: Mapping[str, Prediction],
        today: datetime.date,
        reference_usd: float | None = None,
    ) -> None:
        """`reference_usd`: what the router's own decisions weigh dollars by, where it scores this fleet's models."""
        self.fleet = fleet
        self.today = today
        self.routes = {name: _route(fleet, name, model, columns) for name, model in fleet.models.items()}
        self.replaced = {
            name: self._successor(name) for name, model in fleet.models.items() if _is_past(model, self.today)
        }
        chat = [r for r in self.routes.values() if TRANSCRIPTION not in r.capabilities]
        self.automatic = tuple(r for r in chat if r.model.auto and r.name not in self.replaced)
        self.always_best = fleet.policy.always_best or dearest(fleet.models)
        best = fleet.models[self.always_best] if self.always_best else None
        usd = expected_usd(best, REFERENCE_TOKENS, REFERENCE_TOKENS) if best else 0.0
        self.reference_cost_usd = fleet.router.reference_cost_usd or reference_usd or usd or 1.0

    def _successor(self, name: str) -> str | None:
        """The first successor still in service; None where there is none. The config has ruled out circles."""
        following = self.fleet.models[name].successor
        while following is not None and _is_past(self.fleet.models[following], self.today):
            following = self.fleet.models[following].successor
        return following

    def named(self, name: str) -> tuple[Route | None, str | None]:
        """The route that a request for `name` gets (None where it is gone for good), and what is to be said of that."""
        if name not in self.replaced:
            return self.routes[name], None
        successor = self.replaced[name]
        date = self.fleet.models[name].shutdown_date
        if successor is None:
            return None, f"it was shut down on {date} and the fleet names no successor"
        return self.routes[successor], f"{name} was shut down on {date}; its successor {successor} takes its place."


def _route(fleet: Fleet, name: str, model: Model, columns: Mapping[str, Prediction]) -> Route:
    column = model.scored_as or name
    fitted = columns.get(column)
    quality = model.prior_quality
    if quality is None:
        quality = fitted.quality if fitted else UNKNOWN_QUALITY
    length = model.prior_output_tokens
    if length is None:
        length = fitted.output_tokens if fitted else UNKNOWN_OUTPUT_TOKENS
    provider = fleet.providers[model.provider]
    region = provider.region
    regions = frozenset(model.regions or ((region,) if region else ()))
    wire = "openai" if provider.kind == "openai_compatible" else provider.kind
    return Route(name, model, column, regions, frozenset(model.capabilities), Prediction(quality, length), wire)


def _is_past(model: Model, today: datetime.date) -> bool:
    return model.shutdown_date is not None and model.shutdown_date <= today
