"""Units of measure: what kind of thing a unit measures, and how many of the kind's base unit it is.

Enters: a unit as written, `km`, `square feet`, `m/s^2`. Leaves: its kind and factor, or None where it is not known.
Kinds `X in A` and `X in B` measure the same thing, but no fixed factor leads from one to the other: currencies,
temperatures, degrees and radians. A pound is money or mass, and nothing here tells which: a kind of its own.
"""

from __future__ import annotations

import re
from fractions import Fraction

_NAMES: dict[str, dict[str, str]] = {
    "length": {"mm millimeter millimetre": "1/1000", "cm centimeter centimetre": "1/100", "m meter metre": "1"}
    | {"km kilometer kilometre": "1000", "mi mile": "1609.344", "ft foot feet": "0.3048", "in inch inche": "0.0254"}
    | {"yd yard": "0.9144"},
    "mass": {"mg milligram": "1/1000000", "g gram": "1/1000", "kg kilogram": "1", "t tonne": "1000"}
    | {"lb lbs": "0.45359237", "oz ounce": "0.028349523125"},
    "time": {"ms millisecond": "1/1000", "s sec second": "1", "min minute": "60", "h hr hour": "3600"}
    | {"day": "86400", "week": "604800"},
    "length/time": {"mph": "0.44704", "kph kmh": "5/18"},
    "volume": {"ml milliliter millilitre": "1/1000", "l liter litre": "1", "gal gallon": "3.785411784"},
    "share": {"% percent": "1/100"},
    "angle in degrees": {"° degree deg": "1"},
    "angle in radians": {"rad radian": "1"},
    "temperature in °C": {"°c celsiu celsius": "1"},
    "temperature in °F": {"°f fahrenheit": "1"},
    "temperature in K": {"kelvin": "1"},
    "money in USD": {"$ us$ usd dollar": "1", "cent ¢": "1/100"},
    "money in EUR": {"€ eur euro": "1"},
    "money in GBP": {"£ gbp": "1"},
    "pounds": {"pound": "1"},
    "money in JPY": {"¥ jpy yen": "1"},
    "money in INR": {"₹ inr rupee": "1"},
}
_UNITS = {
    name: (kind, Fraction(factor))
    for kind, names in _NAMES.items()
    for group, factor in names.items()
    for name in group.split()
}
_POWERS = {"": 1, "²": 2, "^2": 2, "³": 3, "^3": 3}


def unit_of(text: str) -> tuple[str, Fraction] | None:
    """(kind, factor to the kind's base unit) of a unit as written; None where it is not known here."""
    parts = re.split(r"\s*/\s*|\s+per\s+", text.strip().lower())
    if len(parts) > 2:
        return None
    found = [_one(part) for part in parts]
    if None in found:
        return None
    (kind, factor), *below = [one for one in found if one is not None]
    for under, divisor in below:
        kind, factor = f"{kind}/{under}", factor / divisor
    return kind, factor


def _one(text: str) -> tuple[str, Fraction] | None:
    match = re.fullmatch(r"(square |sq |cubic )?([^\d^²³]+?)\s*(\^\{?[23]\}?|[²³])?", text)
    if match is None:
        return None
    power = {"square ": 2, "sq ": 2, "cubic ": 3}.get(match[1] or "") or _POWERS[re.sub(r"[{}]", "", match[3] or "")]
    name = " ".join(match[2].split()).replace("° ", "°")
    name = {"degrees celsius": "°c", "degrees fahrenheit": "°f"}.get(name, name)
    known = _UNITS.get(name) or _UNITS.get(name.removesuffix("s"))
    if known is None:
        return None
    kind, factor = known
    return (kind if power == 1 else f"{kind}^{power}"), factor**power
