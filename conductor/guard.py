"""Routing that no edge of a prompt can make dearer: a dear decision must stand without the edges that do not belong.

Enters: a `Call` with the router's predictions. Leaves: the predictions to decide by, and counts of what was found. Asks
the router again only where the decision is not the cheapest one and the prompt has such an edge (`edges`); then every
view of it is scored at once, and the view whose first choice is cheapest decides. So a sentence put before or behind a
prompt can make its route cheaper, never dearer than it was without that sentence. Knows no tensors.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from onebeat.conductor.call import Call
from onebeat.conductor.edges import NOTED, View, views
from onebeat.conductor.policy import Ask, Plan, Status, plan
from onebeat.conductor.routes import Prediction
from onebeat.conductor.scoring import Scorer
from onebeat.engine.errors import ConstraintError, InputError

Predictions = dict[str, Prediction]
NOTE = NOTED + " {edge}, to which the rest does not belong"
_NAMES = {"first": "beginning", "last": "end", "both": "beginning and end"}


class Guard:
    """One per gateway, for the event loop's thread."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.counts: Counter[tuple[str, str]] = Counter()
        """By edge (first, last, both) and outcome: agreed, cheaper (acted on), reported (only told), late."""

    async def look(self, call: Call, ask: Ask, status: Callable[[str], Status]) -> None:
        """Sets the call's predictions to those of the view that is routed cheapest, where that is not the whole."""
        whole = _plan(call, ask, call.predictions, status)
        if whole is None or _is_cheapest(whole):
            return
        seen = views(call.request.as_prompt())
        if not seen:
            return
        router = call.runtime.fleet.router
        started = time.perf_counter()
        scored = await asyncio.gather(*(self._scorer.ask(view.prompt, router.guard_deadline_ms) for view in seen))
        call.router_ms += 1e3 * (time.perf_counter() - started)
        best: tuple[float, View, Predictions] | None = None
        dollars = {candidate.model: candidate.cost_usd for candidate in whole.decision.scores}
        for view, found in zip(seen, scored, strict=True):
            if found.predictions is None:
                self.counts[view.left_out, "late"] += 1
                continue
            made = _plan(call, ask, found.predictions, status)
            first = None if made is None else made.choices[0]
            # One scale for all views: what the route would cost for the prompt as it was sent.
            usd = float("inf") if first is None else dollars.get(first.route.name, first.cost_usd)
            if usd >= whole.choices[0].cost_usd:
                self.counts[view.left_out, "agreed"] += 1
            elif best is None or usd < best[0]:
                best = (usd, view, found.predictions)
        if best is None:
            return
        _, view, predictions = best
        if router.guard == "act":
            call.predictions = predictions
            call.notes.append(NOTE.format(edge=_NAMES[view.left_out]))
        self.counts[view.left_out, "cheaper" if router.guard == "act" else "reported"] += 1


def _plan(call: Call, ask: Ask, predictions: Predictions | None, status: Callable[[str], Status]) -> Plan | None:
    """Without exploration, whose one draw belongs to the decision itself. None where nothing fits."""
    try:
        return plan(call.runtime.table, ask, predictions, status)
    except (ConstraintError, InputError):
        return None


def _is_cheapest(made: Plan) -> bool:
    """Of all that can serve it, those that look hopeless included: making them look so is an attack as well."""
    return made.choices[0].cost_usd <= min(candidate.cost_usd for candidate in made.decision.scores)
