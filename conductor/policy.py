"""The choice: a pure function of predictions, prices, health, headroom and what the request asks and needs.

Enters: the fleet's routes, the router's predictions or None, each route's status now, an `Ask`. Leaves: a `Plan`: the
routes in order of preference with the reason, or an error that says what ruled each one out. Knows no clock, no socket
and no wire; the arithmetic of utility is `engine.decision`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from msgspec import Struct
from msgspec.structs import replace as changed

from onebeat.conductor.config import PolicySection
from onebeat.conductor.context import MARGIN, PromptSize
from onebeat.conductor.pricing import expected_usd
from onebeat.conductor.routes import TRANSCRIPTION, Prediction, Route, RouteTable
from onebeat.engine.decision import Candidate, Decision, Offer, choose, weigh
from onebeat.engine.errors import ConstraintError

ROOM_OVER_PREDICTION = 2.0
"""Room kept for an answer whose length is only predicted: a length head is right on the average, not in the tail."""


class Status(Struct, frozen=True, gc=False):
    """A route now: seconds until it may be called (None: now, infinity: unknown) and what is left of its limits."""

    blocked_s: float | None = None
    why: str = ""
    headroom: float = 1.0
    token_scale: float = 1.0


FREE = Status()


class Ask(Struct, frozen=True, gc=False):
    """What one request wants of the policy."""

    size: PromptSize
    tradeoff: float
    min_quality: float | None = None
    max_cost_usd: float | None = None
    needs: frozenset[str] = frozenset()
    region: str | None = None
    max_output_tokens: int | None = None
    expensive_allowed: bool = True
    native_only: str | None = None
    """The one format whose providers can serve the request at all (a vendor's own feature); None for any."""


class Choice(Struct, frozen=True, gc=False):
    """One route of a plan, in its place."""

    route: Route
    quality: float
    prompt_tokens: int
    output_tokens: float
    cost_usd: float
    propensity: float = 1.0


class NothingFitsError(ConstraintError):
    """No route can serve the request; `overflowing` could, if the prompt were shorter."""

    def __init__(self, message: str, overflowing: tuple[str, ...]) -> None:
        super().__init__(message)
        self.overflowing = overflowing


class Plan(Struct, frozen=True, gc=False):
    """Routes in order of preference, whether or not they can be called right now, and the decision they come from."""

    choices: tuple[Choice, ...]
    decision: Decision
    decided_by: str
    """router | prior | named | explored"""
    notes: tuple[str, ...] = ()
    overflowing: tuple[str, ...] = ()
    """Routes left out only because the prompt is too long for them."""


def plan(
    table: RouteTable,
    ask: Ask,
    predictions: Mapping[str, Prediction] | None,
    status: Callable[[str], Status],
    random: Callable[[], float] | None = None,
    why_prior: str = "the router had no answer in time",
) -> Plan:
    """The plan for `auto`. `predictions`: by column, or None where the router had no answer in time.

    Raises `ConstraintError` where nothing is left, naming what ruled out the most. `random` is drawn only where the
    fleet explores.
    """
    policy = table.fleet.policy
    offers: list[Offer] = []
    choices: dict[str, Choice] = {}
    penalties: dict[str, float] = {}
    statuses: dict[str, Status] = {}
    refused: list[tuple[str, str]] = []
    overflowing: list[str] = []
    for route in table.automatic:
        now = statuses[route.name] = status(route.name)
        predicted = route.prior if predictions is None else predictions.get(route.column, route.prior)
        choice = choice_of(route, ask, predicted, now.token_scale)
        unfit = unfit_because(route, ask)
        if unfit is None and not fits(choice, ask, table.fleet.context.answer_tokens):
            overflowing.append(route.name)
            unfit = f"{choice.prompt_tokens} prompt tokens and the answer exceed its {route.model.context_tokens}"
        if unfit is not None:
            refused.append((route.name, unfit))
            continue
        choices[route.name] = choice
        offers.append(Offer(route.name, choice.quality, choice.output_tokens, choice.cost_usd))
        if now.headroom < policy.low_headroom:
            penalties[route.name] = policy.headroom_weight * (1.0 - now.headroom / policy.low_headroom)
    if not offers:
        raise NothingFitsError(_nothing_left(refused), tuple(overflowing))
    weighed: Sequence[Candidate] = weigh(
        offers,
        tradeoff=ask.tradeoff,
        reference_cost_usd=table.reference_cost_usd,
        min_quality=ask.min_quality,
        max_cost_usd=ask.max_cost_usd,
    )
    if penalties:
        weighed = [changed(c, utility=c.utility - penalties.get(c.model, 0.0)) for c in weighed]
        weighed.sort(key=lambda c: (c.ruled_out is not None, -c.utility, c.cost_usd, c.model))
    decided_by = "prior" if predictions is None else "router"
    decision = choose(
        weighed,
        tradeoff=ask.tradeoff,
        min_quality=ask.min_quality,
        max_cost_usd=ask.max_cost_usd,
        note=f"Decided on priors: {why_prior}." if predictions is None and why_prior else "",
    )
    order = [choices[c.model] for c in weighed if c.ruled_out is None]
    share = table.fleet.router.exploration_share
    if share and random is not None and len(order) > 1:
        order, explored = explore(order, weighed, share, random)
        if explored:
            decided_by = "explored"
            first = order[0].route.name
            decision = replace(decision, model=first, reason=f"{first} was drawn to explore. {decision.reason}")
    first_status = statuses[order[0].route.name]
    notes = (f"{order[0].route.name}: {first_status.why}",) if first_status.blocked_s is not None else ()
    return Plan(tuple(order), decision, decided_by, notes, tuple(overflowing))


def explore(
    order: list[Choice], weighed: Sequence[Candidate], share: float, random: Callable[[], float]
) -> tuple[list[Choice], bool]:
    """With probability `share` a draw in proportion to utility above the worst (plus an even floor) goes first.

    Every choice gets the propensity with which it would have been first, whichever way this request went: what
    inverse-propensity estimates need.
    """
    fitting = [c.utility for c in weighed if c.ruled_out is None]
    low, high = min(fitting), max(fitting)
    spread = (high - low) or 1.0
    weights = [0.25 + (value - low) / spread for value in fitting]
    total = sum(weights)
    chances = [share * weight / total for weight in weights]
    chances[0] += 1.0 - share
    with_chances = [changed(choice, propensity=chance) for choice, chance in zip(order, chances, strict=True)]
    if random() >= share:
        return with_chances, False
    drawn, running = random() * total, 0.0
    picked = len(weights) - 1
    for index, weight in enumerate(weights):
        running += weight
        if drawn < running:
            picked = index
            break
    return [with_chances[picked], *with_chances[:picked], *with_chances[picked + 1 :]], True


def named_plan(table: RouteTable, ask: Ask, names: Sequence[str], status: Callable[[str], Status]) -> Plan:
    """The plan for a concrete model and the fallbacks that may stand in, in that order. No scores, no utility.

    Raises `ConstraintError` where none of them can serve the request at all.
    """
    context = table.fleet.context
    choices: list[Choice] = []
    notes: list[str] = []
    overflowing: list[str] = []
    refused: list[tuple[str, str]] = []
    for name in names:
        route, note = table.named(name)
        if route is None:
            refused.append((name, note or ""))
            continue
        if any(route is c.route for c in choices):
            continue
        choice = choice_of(route, ask, route.prior, status(route.name).token_scale)
        unfit = unfit_because(route, ask)
        window = route.model.context_tokens
        # Near the edge the vendor's own count decides, unless the fleet would rather leave turns out than be refused.
        too_long = choice.prompt_tokens > MARGIN * window
        if unfit is None and (too_long or (context.drops_oldest and not fits(choice, ask, context.answer_tokens))):
            overflowing.append(route.name)
            unfit = f"{choice.prompt_tokens} prompt tokens exceed its window of {window}"
        if unfit is not None:
            refused.append((route.name, unfit))
        else:
            choices.append(choice)
            notes += [note] if note else []
    if not choices:
        raise NothingFitsError(_nothing_left(refused), tuple(overflowing))
    first = choices[0]
    name = first.route.name
    candidates = tuple(Candidate(c.route.name, c.quality, c.output_tokens, c.cost_usd, 0.0) for c in choices)
    decision = Decision(name, f"{name} was asked for by name.", candidates, ask.tradeoff, first.prompt_tokens)
    return Plan(tuple(choices), decision, "named", tuple(notes), tuple(overflowing))


def choice_of(route: Route, ask: Ask, predicted: Prediction, token_scale: float) -> Choice:
    model = route.model
    prompt_tokens = ask.size.tokens(model.bytes_per_token, token_scale)
    length = predicted.output_tokens
    if ask.max_output_tokens is not None and ask.max_output_tokens < length:
        length = float(ask.max_output_tokens)
    cost = expected_usd(model, prompt_tokens, length)
    return Choice(route, predicted.quality, prompt_tokens, length, cost)


def unfit_because(route: Route, ask: Ask) -> str | None:
    """Why a route cannot serve the request whatever its health: None where it can."""
    if TRANSCRIPTION in route.capabilities and TRANSCRIPTION not in ask.needs:
        return "it transcribes audio and does not chat"
    if not ask.needs <= route.capabilities:
        return f"it lacks {', '.join(sorted(ask.needs - route.capabilities))}"
    if ask.native_only is not None and ask.native_only != route.wire:
        return f"the request uses a feature of {ask.native_only}'s own format"
    if ask.region is not None and ask.region not in route.regions:
        return f"it is not served in {ask.region}"
    if route.model.expensive and not ask.expensive_allowed:
        return "this key has used up its expensive calls for the hour"
    most = route.model.max_output_tokens
    if most is not None and ask.max_output_tokens is not None and ask.max_output_tokens > most:
        return f"{ask.max_output_tokens} answer tokens exceed its {most}"
    return None


def fits(choice: Choice, ask: Ask, answer_tokens: int) -> bool:
    """Whether the prompt and room for the answer fit the window."""
    room = answer_room(choice, ask, answer_tokens)
    return MARGIN * choice.prompt_tokens + room <= choice.route.model.context_tokens


def answer_room(choice: Choice, ask: Ask, answer_tokens: int) -> float:
    """Tokens kept for the answer: what was asked for, else twice the prediction, at most half the window."""
    if ask.max_output_tokens is not None:
        return float(ask.max_output_tokens)
    window = choice.route.model.context_tokens
    least = float(min(answer_tokens, window // 4))
    return min(max(least, ROOM_OVER_PREDICTION * choice.output_tokens), window / 2)


def takes_over(policy: PolicySection, failed: Choice, following: Choice) -> bool:
    """Whether `following` is nearly as good as `failed`: then it answers at once, and nobody waits."""
    return following.quality >= failed.quality - policy.nearly_as_good


def _nothing_left(refused: Sequence[tuple[str, str]]) -> str:
    if not refused:
        return "no model of the fleet may be chosen by `auto`; set auto = true on one, or ask for a model by name."
    listed = "; ".join(f"{name}: {why}" for name, why in refused[:8])
    return f"no model can serve this request ({listed}); change the request or the fleet."
