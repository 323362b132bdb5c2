"""Measures in two or three units, `1 hour 30 minutes`, `5 ft 3 in`, as one.

Enters: plain text. Leaves: the same text in which such a measure stands in its smallest unit, marked as a sum. Only
units that people chain, each smaller than the one before, and no more of it than fits: `1 hour 90 minutes`, `30 minutes
and 1 hour`, `2 hours and 30 minutes respectively` stay as they are.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

from onebeat.conductor.learning.graders.units import unit_of

SUM = "\ue001"
"""Stands before a number that was added up: its unit is not the writer's."""
_CHAINED = (
    "weeks?|days?|hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s|milliseconds?|ms|yards?|yd|feet|foot|ft|inches|inch|in"
    "|pounds?|lbs?|ounces?|oz|dollars?|cents?"
)
_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_JOIN = r"(?:\s*,?\s*(?:and|&)\s+|\s*,\s*|\s*)"
_PART = re.compile(rf"({_NUMBER})\s*({_CHAINED})(?![A-Za-z])")
_CHAIN = re.compile(
    rf"(?<![\w.,/^:]){_PART.pattern}(?:{_JOIN}(?:{_NUMBER})\s*(?:{_CHAINED})(?![A-Za-z]))+"
    r"(?!\s*(?:[/^²³]|per\b|respectively|each\b))",
)
_MEANT = {"m": "minute", "pound": "lb", "pounds": "lb"}
"""What a unit is in a chain, where alone it is something else, too."""


def summed(text: str) -> str:
    """`text` with every chain of measures as one number in its last unit."""
    return _CHAIN.sub(_added, text)


def _added(chain: re.Match[str]) -> str:
    parts = [(Decimal(number.replace(",", "")), _MEANT.get(name, name)) for number, name in _PART.findall(chain[0])]
    known = [unit_of(name) for _, name in parts]
    first = known[0]
    if first is None or any(one is None or one[0] != first[0] for one in known):
        return chain[0]
    # "5 feet 3 in total" has no inches.
    if parts[-1][1] == "in" and re.match(r"\s+[a-z]", chain.string[chain.end() :]):
        return chain[0]
    total, before = Decimal(0), None
    for (number, _), unit in zip(parts, known, strict=True):
        factor = unit[1] if unit is not None else Fraction(1)
        if before is not None:
            ratio = before / factor
            if ratio.denominator != 1 or number >= ratio.numerator or total != total.to_integral_value():
                return chain[0]
            total *= ratio.numerator
        total, before = total + number, factor
    return f"{SUM}{total:f} {parts[-1][1]}"
