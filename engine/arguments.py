"""Checks of what callers pass in: one sentence with the name, the value and what it must be.

Enters: arguments of `Router`, of the live router, of `serve()` and of the command line. Leaves: the same values, with
numpy's numbers made Python's. Knows what an argument may be, not what it does. Loads no torch, so that a mistake in a
command's arguments is said at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from numbers import Integral, Real

from onebeat.engine.errors import DeadlineError, InputError, OnebeatError
from onebeat.engine.strict_json import nearest, shown

Refusal = type[OnebeatError]


def number(
    name: str, value: object, meaning: str, *, least: float, largest: float = math.inf, error: Refusal = InputError
) -> float:
    """`value` as a float of `least` to `largest`; `meaning` ends the sentence where it is none. True is no number."""
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):  # A whole number beyond every float is not in any range that is meant.
            if least <= (found := float(value)) <= largest:
                return found
    raise error(f"{name} is {_said(value)}; {meaning}.")


def whole(name: str, value: object, *, least: int, largest: int, error: Refusal = InputError) -> int:
    """`value` as a whole number of `least` to `largest`."""
    if isinstance(value, Integral) and not isinstance(value, bool) and least <= (found := int(value)) <= largest:
        return found
    raise error(f"{name} is {_said(value)}; it must be a whole number of {least} to {largest}.")


def flag(name: str, value: object, *, error: Refusal = InputError) -> bool:
    """`value`, where it is True or False."""
    if not isinstance(value, bool):
        raise error(f"{name} is {_said(value)}; it must be True or False.")
    return value


def check_dial(tradeoff: object, min_quality: object, max_cost_usd: object) -> None:
    """Raises `InputError` where a dial is not a number in its range."""
    number("tradeoff", tradeoff, "it runs from 0 (cheapest that is not hopeless) to 1 (best)", least=0.0, largest=1.0)
    if min_quality is not None:
        number("min_quality", min_quality, "predicted quality runs from 0 to 1", least=0.0, largest=1.0)
    if max_cost_usd is not None:
        number("max_cost_usd", max_cost_usd, "it must be zero or more dollars", least=0.0)


def check_models(models: object, known: Iterable[str]) -> None:
    """Raises `InputError` unless `models` is None or a list of columns that the router scores."""
    if models is None:
        return
    names = list(known)
    if isinstance(models, str) or not isinstance(models, Sequence | set | frozenset):
        raise InputError(f"models is {shown(models)}; it must be a list of columns, such as {shown(names[:2])}.")
    for model in models:
        if model not in names:
            near = nearest(model, names) if isinstance(model, str) else f"known are {', '.join(sorted(names))}"
            raise InputError(f"models names {shown(model)}, which this router does not score; {near}.")


def check_deadline(deadline_ms: object) -> float | None:
    """Milliseconds from now, or None for no deadline, which infinity means too.

    Raises `InputError` for what is no number and `DeadlineError` for what is not ahead.
    """
    if deadline_ms is None:
        return None
    meaning = "it must be a number of milliseconds from now, or None"
    found = number("deadline_ms", deadline_ms, meaning, least=-math.inf)
    if found <= 0.0:
        raise DeadlineError(f"the deadline lies {abs(found):g} ms in the past; give one that lies ahead.")
    return None if found == math.inf else found


def _said(value: object) -> str:
    """`value` in a sentence: JSON writes NaN as null and True as true, which is not what the caller wrote."""
    if not isinstance(value, Real):
        return shown(value)
    try:
        text = str(value)
    except ValueError:  # Python refuses to print a whole number of thousands of digits.
        text = "a whole number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
