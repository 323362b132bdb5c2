"""From a request to its plan: reads `model`, asks the router where there is a choice, makes room where it is too long.

Enters: a `Call`. Leaves: its `plan` (and a shorter request, with what was dropped); `RequestError` where nothing fits.
"""

from __future__ import annotations

import asyncio
import random as stdlib_random
from collections.abc import Callable
from difflib import get_close_matches

from onebeat.conductor.call import Call
from onebeat.conductor.context import MARGIN, drop_oldest, size_of
from onebeat.conductor.guard import Guard
from onebeat.conductor.policy import (
    Ask,
    Choice,
    NothingFitsError,
    Plan,
    Status,
    answer_room,
    choice_of,
    named_plan,
    plan,
)
from onebeat.conductor.records import ChatRequest, RequestError
from onebeat.conductor.routes import Route
from onebeat.conductor.runtime import Runtime
from onebeat.conductor.scoring import Scorer
from onebeat.engine.errors import ConstraintError, InputError

AUTO = "auto"
SHORTER = 0.75
"""What is kept of a prompt that a vendor counted longer than we did: it does not say by how much."""
_NOTHING: frozenset[str] = frozenset()


class Planner:
    """Holds the runtime in force; `runtime` is set anew by a reload."""

    def __init__(
        self,
        runtime: Runtime,
        scorer: Scorer,
        random: Callable[[], float] = stdlib_random.random,
        *,
        on_new_day: Callable[[Runtime], None] | None = None,
    ) -> None:
        """`on_new_day` is told when shutdown dates may have passed (UTC midnight)."""
        self.runtime = runtime
        self.scorer = scorer
        self.guard = Guard(scorer)
        self._random = random
        self._on_new_day = on_new_day

    async def decide(self, call: Call) -> None:
        """Sets the call's plan. Raises `RequestError`."""
        runtime, request = call.runtime, call.request
        if runtime.refresh_day(call.at) and self._on_new_day is not None:
            self._on_new_day(runtime)
        ask = self._ask(call)
        call.tradeoff = ask.tradeoff
        status = _status_of(runtime)
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
            call.plan = self._shortened(call, error, status, why_prior)
        call.notes += call.plan.notes

    def _decide_named(self, call: Call, ask: Ask, status: Callable[[str], Status]) -> None:
        runtime, request = call.runtime, call.request
        name = request.model
        if name not in runtime.fleet.models:
            raise _unknown(name, [AUTO, *runtime.fleet.models], 404, "model")
        for fallback in request.options.fallbacks or ():
            if fallback not in runtime.fleet.models:
                raise _unknown(fallback, list(runtime.fleet.models), 400, "onebeat.fallbacks")
        try:
            call.plan = named_plan(runtime.table, ask, names_of(call), status)
        except ConstraintError as error:
            call.plan = self._shortened(call, error, status, "")
        call.notes += call.plan.notes

    def count(self, request: ChatRequest) -> tuple[int, str]:
        """The estimate of a prompt's tokens and the model that it holds for: of `auto` the one that counts the most, so
        that what is cut to fit it fits all. Raises `RequestError` for a model that is not there."""
        runtime = self.runtime
        if is_auto(request.model):
            names = [route.name for route in runtime.table.automatic]
        elif request.model in runtime.fleet.models:
            names = [request.model]
        else:
            raise _unknown(request.model, [AUTO, *runtime.fleet.models], 404, "model")
        if not names:
            raise RequestError("No model of the fleet may be chosen by `auto`; count for one by name.", param="model")
        size = size_of(request)
        lines = [runtime.lines[name] for name in names]
        return max((size.tokens(line.route.model.bytes_per_token, line.scale.ratio), line.name) for line in lines)

    def _ask(self, call: Call) -> Ask:
        request, runtime = call.request, call.runtime
        options, policy = request.options, runtime.fleet.policy
        tradeoff = options.tradeoff
        if tradeoff is None:
            suffix = request.model[len(AUTO) :]
            tradeoff = {":cheap": policy.cheap_tradeoff, ":best": policy.best_tradeoff}.get(suffix, runtime.tradeoff)
        return Ask(
            size=call.size,
            tradeoff=tradeoff,
            min_quality=options.min_quality,
            max_cost_usd=options.max_cost_usd,
            needs=needs_of(request),
            region=options.region,
            max_output_tokens=request.max_output_tokens,
            expensive_allowed=call.client.expensive_allowed(call.at),
            native_only=request.face.value if request.native_only else None,
        )

    def _shortened(self, call: Call, error: ConstraintError, status: Callable[[str], Status], why_prior: str) -> Plan:
        """Where length was all that stood in the way and the fleet says so: the newest turns that fit the largest."""
        runtime = call.runtime
        overflowing = error.overflowing if isinstance(error, NothingFitsError) else ()
        if not overflowing:
            raise RequestError(str(error), code="constraint_failed") from error
        if not runtime.fleet.context.drops_oldest:
            raise RequestError(str(error), code="context_length_exceeded", param="messages") from error
        largest = max((runtime.lines[name].route for name in overflowing), key=lambda route: route.model.context_tokens)
        choice = choice_of(largest, self._ask(call), largest.prior, runtime.lines[largest.name].scale.ratio)
        room = answer_room(choice, self._ask(call), runtime.fleet.context.answer_tokens)
        window = int((largest.model.context_tokens - room) / MARGIN) - 1
        if not self._drop_oldest(call, largest, window):
            raise RequestError(
                f"The newest turn alone is too long for every model ({error})",
                code="context_length_exceeded",
                param="messages",
            ) from error
        try:
            return self._plan(call, status, why_prior)
        except ConstraintError as still:
            raise RequestError(str(still), code="context_length_exceeded", param="messages") from still

    def shorten_refused(self, call: Call) -> bool:
        """After a vendor counted a prompt longer than we did, and no larger window is left: the pursuit goes on with
        fewer turns, where the fleet leaves turns out. False where there is nothing to leave out."""
        attempt, pursuit = call.last_attempt, call.pursuit
        if attempt is None or pursuit is None or not call.runtime.fleet.context.drops_oldest or call.sent:
            return False
        if not self._drop_oldest(call, attempt.line.route, int(SHORTER * attempt.choice.prompt_tokens)):
            return False
        try:
            call.plan = self._plan(call, _status_of(call.runtime), "")
        except (ConstraintError, InputError):
            return False  # Only the clock can have changed that: the vendor's own words are the answer then.
        pursuit.shortened(call.plan)
        return True

    def _plan(self, call: Call, status: Callable[[str], Status], why_prior: str) -> Plan:
        table, ask = call.runtime.table, self._ask(call)
        if is_auto(call.request.model):
            return plan(table, ask, call.predictions, status, self._random, why_prior)
        return named_plan(table, ask, names_of(call), status)

    def _drop_oldest(self, call: Call, route: Route, window_tokens: int) -> bool:
        """Leaves out whole turns until the request fits `window_tokens` of `route`; False where that cannot be."""
        scale = call.runtime.lines[route.name].scale.ratio
        shorter = drop_oldest(call.request, window_tokens, route.model.bytes_per_token, scale)
        if shorter is None or not shorter.dropped_turns:
            return False
        call.request = shorter.request
        call.size = size_of(shorter.request)
        call.dropped_messages += shorter.dropped_messages
        turns = "turn" if shorter.dropped_turns == 1 else "turns"
        call.notes.append(f"the oldest {shorter.dropped_turns} {turns} were left out to fit {route.name}'s window")
        return True

    def local_choice(self, call: Call, name: str) -> Choice:
        line = call.runtime.lines[name]
        return choice_of(line.route, self._ask(call), line.route.prior, line.scale.ratio)


def _status_of(runtime: Runtime) -> Callable[[str], Status]:
    now = asyncio.get_running_loop().time()
    return lambda name: runtime.lines[name].status(now)


def names_of(call: Call) -> tuple[str, ...]:
    """The concrete model that was asked for, and what may stand in for it: the request's word over the fleet's."""
    name, asked = call.request.model, call.request.options.fallbacks
    return (name, *(call.runtime.fleet.models[name].fallbacks if asked is None else asked))


def _unknown(name: str, known: list[str], status: int, param: str) -> RequestError:
    near = get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}."
    message = f"The model {name!r} is not in this gateway's fleet; {hint}"
    return RequestError(message, status=status, code="model_not_found", param=param)


def is_auto(model: str) -> bool:
    return model == AUTO or model in (f"{AUTO}:cheap", f"{AUTO}:best")


def needs_of(request: ChatRequest) -> frozenset[str]:
    media = request.has_images or request.has_audio or request.has_documents
    if not (media or request.tools or request.answer_format):
        return _NOTHING
    asked = {
        "tools": request.needs_tools,
        "json": request.needs_json,
        "images": request.has_images,
        "audio": request.has_audio,
        "documents": request.has_documents,
    }
    return frozenset(name for name, is_asked in asked.items() if is_asked)
