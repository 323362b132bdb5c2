"""From a request to its plan: reads `model`, asks the router where there is a choice, makes room where it is too long.

Enters: a `Call`. Leaves: its `plan` (and a shorter request, with what was dropped); `RequestError` where nothing fits.
"""

from __future__ import annotations

import asyncio
import random as stdlib_random
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from onebeat.conductor.call import Call
from onebeat.conductor.context import MARGIN, drop_oldest, size_of
from onebeat.conductor.guard import Guard
from onebeat.conductor.policy import Ask, Choice, Plan, Status, answer_room, choice_of, fits, named_plan, plan
from onebeat.conductor.records import ChatRequest, RequestError
from onebeat.conductor.runtime import Runtime
from onebeat.conductor.scoring import Scorer
from onebeat.engine.errors import ConstraintError, InputError

AUTO = "auto"
_NEEDS = (
    ("tools", lambda r: bool(r.tools)),
    ("json", lambda r: r.answer_format is not None),
    ("images", lambda r: r.has_images),
    ("audio", lambda r: r.has_audio),
    ("documents", lambda r: r.has_documents),
)
_NOTHING: frozenset[str] = frozenset()


class Planner:
    """Holds the runtime in force; `runtime` is set anew by a reload."""

    def __init__(self, runtime: Runtime, scorer: Scorer, random: Callable[[], float] = stdlib_random.random) -> None:
        self.runtime = runtime
        self.scorer = scorer
        self.guard = Guard(scorer)
        self._random = random

    async def decide(self, call: Call) -> None:
        """Sets the call's plan. Raises `RequestError`."""
        runtime, request = call.runtime, call.request
        runtime.refresh_day(call.at)
        ask = self._ask(call)
        call.tradeoff = ask.tradeoff
        now = asyncio.get_running_loop().time()

        def status(name: str) -> Status:
            return runtime.lines[name].status(now)

        if not is_auto(request.model):
            self._decide_named(call, ask, status)
            return
        why_prior = ""
        if len(runtime.table.automatic) > 1:
            router = runtime.fleet.router
            scored = await self.scorer.predict(request, router.deadline_ms, router.drift_share)
            call.predictions, call.router_ms = scored.predictions, scored.router_ms
            why_prior = scored.why or ""
            if call.predictions is not None and router.guard != "off":
                await self.guard.look(call, ask, status)
        try:
            call.plan = plan(runtime.table, ask, call.predictions, status, self._random, why_prior)
        except InputError as error:
            raise RequestError(str(error)) from error
        except ConstraintError as error:
            call.plan = self._shortened(call, [r.name for r in runtime.table.automatic], error, status, why_prior)
        call.notes += call.plan.notes

    def _decide_named(self, call: Call, ask: Ask, status: Callable[[str], Status]) -> None:
        runtime, request = call.runtime, call.request
        name = request.model
        model = runtime.fleet.models.get(name)
        if model is None:
            near = get_close_matches(name, [*runtime.fleet.models, AUTO], n=1, cutoff=0.4)
            hint = (
                f"did you mean {near[0]}?" if near else f"known are {AUTO}, {', '.join(sorted(runtime.fleet.models))}."
            )
            raise RequestError(
                f"The model {name!r} is not in this gateway's fleet; {hint}",
                status=404,
                code="model_not_found",
                param="model",
            )
        fallbacks = request.options.fallbacks
        names = (name, *(model.fallbacks if fallbacks is None else fallbacks))
        try:
            call.plan = named_plan(runtime.table, ask, names, status)
        except ConstraintError as error:
            call.plan = self._shortened(call, names, error, status, "")
        call.notes += call.plan.notes

    def _ask(self, call: Call) -> Ask:
        request, runtime = call.request, call.runtime
        options, policy = request.options, runtime.fleet.policy
        tradeoff = options.tradeoff
        if tradeoff is None:
            suffix = request.model[len(AUTO) :]
            tradeoff = {":cheap": policy.cheap_tradeoff, ":best": policy.best_tradeoff}.get(suffix, policy.tradeoff)
        return Ask(
            size=call.size,
            tradeoff=tradeoff,
            min_quality=options.min_quality,
            max_cost_usd=options.max_cost_usd,
            needs=needs_of(request),
            region=call.region,
            max_output_tokens=request.max_output_tokens,
            expensive_allowed=call.client.expensive_allowed(call.at),
            native_only=request.face.value if request.native_only else None,
        )

    def _shortened(
        self, call: Call, names: Sequence[str], error: ConstraintError, status: Callable[[str], Status], why_prior: str
    ) -> Plan:
        """Where length was all that stood in the way and the fleet says so: the newest turns that fit the largest."""
        runtime = call.runtime
        ask = self._ask(call)
        overflowing = [
            line.route
            for name in names
            if (line := runtime.lines.get(name)) is not None
            and not fits(choice_of(line.route, ask, line.route.prior, line.scale.ratio), ask, 1)
        ]
        if not overflowing or len(overflowing) < len(names):
            raise RequestError(str(error), code="constraint_failed") from error
        if runtime.fleet.context.on_overflow == "error":
            raise RequestError(str(error), code="context_length_exceeded", param="messages") from error
        largest = max(overflowing, key=lambda route: route.model.context_tokens)
        line = runtime.lines[largest.name]
        choice = choice_of(largest, ask, largest.prior, line.scale.ratio)
        room = answer_room(choice, ask, runtime.fleet.context.answer_tokens)
        window = int((largest.model.context_tokens - room) / MARGIN) - 1
        shorter = drop_oldest(call.request, window, largest.model.bytes_per_token, line.scale.ratio)
        if shorter is None:
            raise RequestError(
                f"The newest turn alone is too long for every model ({error})",
                code="context_length_exceeded",
                param="messages",
            ) from error
        call.request = shorter.request
        call.size = size_of(shorter.request)
        call.dropped_messages = shorter.dropped_messages
        turns = "turn" if shorter.dropped_turns == 1 else "turns"
        call.notes.append(f"the oldest {shorter.dropped_turns} {turns} were left out to fit {largest.name}'s window")
        ask = self._ask(call)
        try:
            if is_auto(call.request.model):
                return plan(runtime.table, ask, call.predictions, status, self._random, why_prior)
            return named_plan(runtime.table, ask, names, status)
        except ConstraintError as still:
            raise RequestError(str(still), code="context_length_exceeded", param="messages") from still

    def local_choice(self, call: Call, name: str) -> Choice:
        line = call.runtime.lines[name]
        return choice_of(line.route, self._ask(call), line.route.prior, line.scale.ratio)


def is_auto(model: str) -> bool:
    return model == AUTO or model in (f"{AUTO}:cheap", f"{AUTO}:best")


def needs_of(request: ChatRequest) -> frozenset[str]:
    needs = [name for name, has in _NEEDS if has(request)]
    return frozenset(needs) if needs else _NOTHING
