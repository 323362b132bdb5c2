"""From one prompt's scores to a choice, and the sentence that explains it.

Enters: predicted quality and answer length per model, list prices, a tradeoff and constraints. Leaves: a `Decision`.
Pure arithmetic: knows nothing of tensors, providers, health or headroom (the conductor's policy adds those).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import Struct

from onebeat.engine.arguments import check_dial
from onebeat.engine.errors import ConstraintError
from onebeat.engine.records import Timing

_NO_TIME = Timing()
HOPELESS_SHARE = 0.25
"""A model predicted to reach less than this share of the best prediction is hopeless: cheapness does not redeem it.

At a half the cheapest end of the dial cost twice the cheapest model and was 3 points worse than mixing at equal cost.
"""


class Offer(Struct, frozen=True, gc=False):
    """What one model is predicted to deliver for one prompt, and at what price, before any choice."""

    model: str
    quality: float
    output_tokens: float
    cost_usd: float


class Candidate(Struct, frozen=True, gc=False):
    """An offer after weighing: its utility, and why it was ruled out (None when it was not)."""

    model: str
    quality: float
    output_tokens: float
    cost_usd: float
    utility: float
    ruled_out: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The chosen model, why, and everything that was weighed."""

    model: str
    reason: str
    scores: tuple[Candidate, ...]
    """Best utility first; those ruled out last."""
    tradeoff: float
    prompt_tokens: int = 0
    cut_tokens: int = 0
    """Tokens left out of the middle of a long prompt before scoring; 0 when it was read whole."""
    timing: Timing = Timing()
    estimated: bool = False
    """Whether the two counts are estimates: a prompt of megabytes is tokenised at both ends only."""


def utility(quality: float, cost_usd: float, tradeoff: float, reference_cost_usd: float) -> float:
    """`tradeoff * quality - (1 - tradeoff) * cost / reference`: linear in dollars, so one dial is optimal for a budget.

    At tradeoff 0.5 `reference_cost_usd` dollars weigh as much as the whole way from quality 0 to quality 1. It is the
    router's own (`RouterConfig.reference_cost_usd`), wherever one decides: a tradeoff solved for it means nothing by
    another.
    """
    return tradeoff * quality - (1.0 - tradeoff) * cost_usd / reference_cost_usd


def weigh(
    offers: Sequence[Offer],
    *,
    tradeoff: float,
    reference_cost_usd: float,
    min_quality: float | None = None,
    max_cost_usd: float | None = None,
) -> tuple[Candidate, ...]:
    """Every offer with its utility, best first and the ruled-out last. Raises `InputError` for a dial out of range."""
    check_dial(tradeoff, min_quality, max_cost_usd)
    if not offers:
        raise ConstraintError("no model is left to choose from; add a column to the router or a model to the fleet.")
    # Only among those that the constraints allow: the cap on dollars must not turn what it leaves into hopeless cases.
    bound = min_quality is not None or max_cost_usd is not None
    allowed = [o.quality for o in offers if not bound or _ruled_out(o, 0.0, min_quality, max_cost_usd) is None]
    hopeless_below = HOPELESS_SHARE * max(allowed, default=0.0)
    weighed = [
        Candidate(
            offer.model,
            offer.quality,
            offer.output_tokens,
            offer.cost_usd,
            utility(offer.quality, offer.cost_usd, tradeoff, reference_cost_usd),
            _ruled_out(offer, hopeless_below, min_quality, max_cost_usd)
            if bound or offer.quality < hopeless_below
            else None,
        )
        for offer in offers
    ]
    # Ties go to the cheaper, then to the name, so that a decision never depends on the order of columns.
    return tuple(sorted(weighed, key=lambda c: (c.ruled_out is not None, -c.utility, c.cost_usd, c.model)))


def choose(
    weighed: Sequence[Candidate],
    *,
    tradeoff: float,
    min_quality: float | None = None,
    max_cost_usd: float | None = None,
    prompt_tokens: int = 0,
    cut_tokens: int = 0,
    timing: Timing | None = None,
    estimated: bool = False,
    note: str = "",
) -> Decision:
    """The first that is not ruled out, with its reason and `note`. Raises `ConstraintError` naming what failed."""
    fitting = [candidate for candidate in weighed if candidate.ruled_out is None]
    if not fitting:
        raise ConstraintError(_which_failed(weighed, min_quality, max_cost_usd))
    reason = explain(fitting, tradeoff)
    if cut_tokens:
        total = f"about {prompt_tokens}" if estimated else str(prompt_tokens)
        reason += f" It read {prompt_tokens - cut_tokens} of {total} tokens: the middle was left out."
    return Decision(
        fitting[0].model,
        f"{reason} {note}" if note else reason,
        tuple(weighed),
        float(tradeoff),
        prompt_tokens,
        cut_tokens,
        timing if timing else _NO_TIME,
        estimated,
    )


def explain(fitting: Sequence[Candidate], tradeoff: float) -> str:
    """One sentence: why the first of `fitting` won."""
    winner = fitting[0]
    won = f"{winner.model} wins at tradeoff {tradeoff:g}: quality {winner.quality:.2f} for ${winner.cost_usd:.6f}"
    if len(fitting) == 1:
        return won + ", the only model that satisfies the constraints."
    best = max(fitting, key=lambda c: c.quality)
    cheapest = min(fitting, key=lambda c: c.cost_usd)
    if winner is best and winner is cheapest:
        return won + ", both the best and the cheapest."
    if winner is best:
        return won + f", the best; {cheapest.model} would cost ${cheapest.cost_usd:.6f} at {cheapest.quality:.2f}."
    return won + f"; {best.model} would reach {best.quality:.2f} for ${best.cost_usd:.6f}."


def _ruled_out(
    offer: Offer, hopeless_below: float, min_quality: float | None, max_cost_usd: float | None
) -> str | None:
    if min_quality is not None and offer.quality < min_quality:
        return f"quality {offer.quality:.2f} is below min_quality {min_quality:.2f}"
    if max_cost_usd is not None and offer.cost_usd > max_cost_usd:
        return f"${offer.cost_usd:.6f} is above max_cost_usd ${max_cost_usd:.6f}"
    if offer.quality < hopeless_below:
        return f"quality {offer.quality:.2f} is hopeless beside the best, {hopeless_below / HOPELESS_SHARE:.2f}"
    return None


def _which_failed(weighed: Sequence[Candidate], min_quality: float | None, max_cost_usd: float | None) -> str:
    best = max(weighed, key=lambda c: c.quality)
    cheapest = min(weighed, key=lambda c: c.cost_usd)
    if min_quality is not None and best.quality < min_quality:
        return f"min_quality {min_quality:g} failed: the best is {best.model} at {best.quality:.2f}; lower min_quality."
    if max_cost_usd is not None and cheapest.cost_usd > max_cost_usd:
        return (
            f"max_cost_usd {max_cost_usd:g} failed: the cheapest is {cheapest.model} at ${cheapest.cost_usd:.6f}; "
            "raise max_cost_usd."
        )
    return (
        f"min_quality {min_quality} and max_cost_usd {max_cost_usd} cannot both hold: {best.model} reaches "
        f"{best.quality:.2f} for ${best.cost_usd:.6f} and {cheapest.model} {cheapest.quality:.2f} for "
        f"${cheapest.cost_usd:.6f}; relax one of them."
    )
