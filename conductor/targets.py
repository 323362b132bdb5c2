"""The router's dial at the gateway: one reference cost for both, and what a target in `fleet.toml` can promise.

Enters: a fleet, the routes of a day, the router's config. Leaves: the reference cost that a tradeoff means, and the
`Setting` of `policy.target`, or one `ConfigError`. Knows no request.

A router's dial is solved with its own reference cost, among all its columns, at their prices. The same tradeoff gives
the same choices here only by that reference; a target can be promised only where `auto` has that very choice. What is
left is how prompts are counted, by the vendor's tokens here and by the router's there: of 250 prompts of ZeroEval 98.4
to 100 % were routed alike at tradeoffs from 0.25 to 0.75; by twice the reference it was 80 to 92 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from onebeat.conductor.config import Fleet
from onebeat.conductor.routes import Route, RouteTable
from onebeat.engine.errors import ConfigError, ConstraintError, InputError
from onebeat.engine.records import Column
from onebeat.engine.router_config import RouterConfig
from onebeat.engine.targets import Setting, parse_target, setting

SAME_PRICE = 0.01
"""How far, as a share, a price of the fleet may be from its column's and still be the price that was solved for."""


def reference_usd(fleet: Fleet, router: RouterConfig | None) -> float | None:
    """What the router's own decisions weigh dollars by, where it scores a model that `auto` may choose; else None."""
    if router is None:
        return None
    columns = {column.name for column in router.columns}
    scored = any(model.auto and (model.scored_as or name) in columns for name, model in fleet.models.items())
    return router.reference_cost_usd if scored else None


def setting_of(fleet: Fleet, table: RouteTable, router: RouterConfig | None) -> Setting | None:
    """Where `policy.target` sets the dial; None where the fleet names no target.

    Raises `ConfigError`, in one sentence, where the target cannot be promised.
    """
    target = fleet.policy.target
    if target is None:
        return None
    if router is None:
        raise ConfigError(_refusal(target, "no router is loaded", "set router.source, or policy.tradeoff"))
    _check_choice(target, table.automatic, router.columns)
    own = fleet.router.reference_cost_usd
    if own is not None and not math.isclose(own, router.reference_cost_usd, rel_tol=SAME_PRICE):
        why = (
            f"router.reference_cost_usd is {own:g} and the router's dial was solved with {router.reference_cost_usd:g}"
        )
        raise ConfigError(_refusal(target, why, "leave router.reference_cost_usd out"))
    try:
        return setting(router.fitted.get("dial"), parse_target(target))
    except (InputError, ConstraintError) as error:
        raise ConfigError(f"policy.target is {target!r}: {error}") from error


def promise(fleet: Fleet, found: Setting) -> str:
    """What the setting is expected to give here, and what that assumes."""
    explored = fleet.router.exploration_share
    drawn = f"; {100 * explored:g} % of requests are drawn at random to explore" if explored else ""
    return (
        f"policy.target {fleet.policy.target}: {found.sentence()}; assumed are a router that answers in time, models "
        f"that can all be called, and requests without a model, tradeoff or constraint of their own{drawn}"
    )


def _check_choice(target: str, routes: Sequence[Route], columns: Sequence[Column]) -> None:
    """Raises `ConfigError` unless `auto` chooses among the router's columns, all of them, at their prices."""
    solved, offered = [column.name for column in columns], [route.column for route in routes]
    strangers = [route.name for route in routes if route.column not in solved]
    missing = [name for name in solved if name not in offered]
    fit = "fit a router on outcomes of this fleet's models (`onebeat train`), or set policy.tradeoff"
    if strangers or missing:
        odd = [f"`auto` also chooses {', '.join(strangers[:5])}"] if strangers else []
        odd += [f"no model that `auto` may choose is scored as {', '.join(missing[:5])}"] if missing else []
        raise ConfigError(
            _refusal(target, f"the router's dial was solved for {', '.join(solved)}, and {' and '.join(odd)}", fit)
        )
    prices = {column.name: (column.input_usd_per_million, column.output_usd_per_million) for column in columns}
    for route in routes:
        here = (route.model.input_usd_per_million, route.model.output_usd_per_million)
        there = prices[route.column]
        if not all(math.isclose(a, b, rel_tol=SAME_PRICE, abs_tol=1e-9) for a, b in zip(here, there, strict=True)):
            why = (
                f"{route.name} costs {here[0]:g} and {here[1]:g} USD per million tokens here and the router's dial was "
                f"solved at {there[0]:g} and {there[1]:g}"
            )
            raise ConfigError(_refusal(target, why, "fit the router with these prices, or set policy.tradeoff"))


def _refusal(target: str, why: str, way_out: str) -> str:
    return f"policy.target {target} cannot be promised: {why}; {way_out}."
