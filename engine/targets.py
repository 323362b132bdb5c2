"""A target in words, and the dial position that gives it: "95 %" of the best model's quality, or dollars per thousand.

Enters: a target and the table that fitting solved on validation prompts (`fitted.dial` of router.json). Leaves: a
`Setting`, which says what to expect and in what interval. Arithmetic only: knows no prompt, no head and no provider.

A setting holds for what the table was solved on: prompts of that kind, every column to choose from, at the columns'
prices, without further constraints, and in terms of the router's reference cost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from onebeat.engine.errors import ConstraintError, InputError
from onebeat.engine.strict_json import shown

MIDDLE = 0.5
"""The dial where neither a tradeoff nor a target is given."""
LARGEST_SHARE = 1.2
"""Of the best single model's quality: a router can beat it, by a few per cent."""
_TARGET = re.compile(
    r"(?P<dollar>\$)?\s*(?P<number>\d+(?:\.\d*)?(?:e-?\d+)?|\.\d+)\s*"
    r"(?P<unit>%(?:\s*of the best(?: model)?(?:'s quality)?)?"
    r"|(?:usd|dollars?|\$)?(?:\s*(?:per|/)\s*(?:thousand|1,?000|1?k))?)"
)


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked of the dial: one of the two."""

    share_of_best: float | None = None
    """Of the best single model's mean quality."""
    usd_per_thousand: float | None = None

    def __str__(self) -> str:
        if self.share_of_best is not None:
            return f"{100 * self.share_of_best:g} %"
        return f"{self.usd_per_thousand or 0.0:g} USD per thousand"


class Point(msgspec.Struct, frozen=True):
    """One position of a solved dial."""

    tradeoff: float
    quality: float
    share_of_best: float
    share_interval: tuple[float, float]
    usd_per_thousand: float
    usd_interval: tuple[float, float]


class SolvedDial(msgspec.Struct, frozen=True):
    """`fitted.dial` of router.json."""

    best_model: str
    best_quality: float
    prompts: int
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Setting:
    """A dial position and what it is expected to give on prompts like the `prompts` that it was solved on."""

    tradeoff: float
    share_of_best: float
    share_interval: tuple[float, float]
    usd_per_thousand: float
    usd_interval: tuple[float, float]
    best_model: str
    prompts: int

    def sentence(self) -> str:
        """The position and both expectations, in words."""
        (low, high), (least, most) = self.share_interval, self.usd_interval
        return (
            f"tradeoff {self.tradeoff:g} is expected to give {100 * self.share_of_best:.1f} % "
            f"({100 * low:.1f} to {100 * high:.1f}) of {self.best_model}'s quality for ${self.usd_per_thousand:.3f} "
            f"({least:.3f} to {most:.3f}) per thousand, on prompts like the {self.prompts} that it was solved on"
        )


def parse_target(text: str) -> Target:
    """`95%` or `0.95` is a share of the best model's quality; `0.40 usd` or `$0.40` dollars per thousand requests.

    Raises `InputError` for anything else.
    """
    found = _TARGET.fullmatch(text.strip().lower()) if isinstance(text, str) else None
    if found is not None:
        value, unit = float(found["number"]), found["unit"]
        if found["dollar"] or re.search(r"usd|dollar|\$", unit):
            if "%" not in unit and value < float("inf"):
                return Target(usd_per_thousand=value)
        elif not unit or unit.startswith("%"):
            share = value / 100 if unit else value
            if 0 < share <= LARGEST_SHARE:
                return Target(share_of_best=share)
    raise InputError(f"target is {text!r}; write a share of the best model's quality (95%) or dollars (0.40 usd).")


def setting(dial: Mapping[str, Any] | None, target: Target) -> Setting:
    """The cheapest position that meets a share, or the best one within the dollars.

    Raises `InputError` where there is no solved dial, and `ConstraintError` where no position meets the target, with
    the nearest that comes close.
    """
    solved = read_dial(dial)
    if target.share_of_best is not None:
        fitting = [point for point in solved.points if point.share_of_best >= target.share_of_best]
        if not fitting:
            most = max(solved.points, key=lambda point: point.share_of_best)
            raise ConstraintError(
                f"{target} of {solved.best_model}'s quality is out of reach: the most is "
                f"{100 * most.share_of_best:.1f} % at tradeoff {most.tradeoff:g}; ask for less."
            )
        return _setting(solved, min(fitting, key=lambda point: point.usd_per_thousand))
    budget = target.usd_per_thousand or 0.0
    fitting = [point for point in solved.points if point.usd_per_thousand <= budget]
    if not fitting:
        least = min(solved.points, key=lambda point: point.usd_per_thousand)
        raise ConstraintError(
            f"{target} is out of reach: the least is {least.usd_per_thousand:.4g} at tradeoff {least.tradeoff:g}; "
            "allow more."
        )
    return _setting(solved, max(fitting, key=lambda point: (point.quality, -point.usd_per_thousand)))


def read_dial(dial: Mapping[str, Any] | None) -> SolvedDial:
    """The table, checked. Raises `InputError` where there is none, or it is not what fitting writes."""
    if not dial or not dial.get("points"):
        raise InputError(
            "this router has no solved dial (onboarding a model takes it out), so no target can be promised; fit it "
            "with `onebeat train` on outcomes of every model, 30 or more prompts that all answered, or give a tradeoff."
        )
    try:
        return msgspec.convert(dial, SolvedDial)
    except msgspec.ValidationError as error:
        raise InputError(f"fitted.dial of router.json cannot be read ({error}); fit the router again.") from None


def check_target(tradeoff: object, target: str, models: object) -> Target:
    """The target of a caller's arguments, read.

    Raises `InputError` for one that means nothing, for a tradeoff beside it, and for a target among some of the columns
    only, which nothing was solved for.
    """
    if tradeoff is not None:
        raise InputError(f"both tradeoff {tradeoff} and target {target!r} are given; give one of them.")
    if models is not None:
        raise InputError(
            f"target {target!r} is given with a choice among models {shown(models)}, and the dial was solved for all "
            "columns; leave one of them out."
        )
    return parse_target(target)


def tradeoff_of(
    tradeoff: float | None, target: str | None, models: object, setting_for: Callable[[Target], Setting]
) -> float:
    """The dial position that a caller's arguments amount to: the tradeoff, else the target's, else the middle.

    Raises as `check_target` and `setting` do.
    """
    if target is None:
        return MIDDLE if tradeoff is None else tradeoff
    return setting_for(check_target(tradeoff, target, models)).tradeoff


def _setting(solved: SolvedDial, point: Point) -> Setting:
    return Setting(
        point.tradeoff,
        point.share_of_best,
        point.share_interval,
        point.usd_per_thousand,
        point.usd_interval,
        solved.best_model,
        solved.prompts,
    )
