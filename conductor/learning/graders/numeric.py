"""Numbers in answers: integers, decimals, fractions, percentages, powers of ten, units and the LaTeX around them.

Enters: an answer and a reference, as text. Leaves: a `Grade`. Exact where both are rational; decimals agree to the
digits that the reference gives. Does no algebra: an expression that is not a number cannot be graded here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from onebeat.conductor.learning.graders.grade import Grade, cannot_grade, right, wrong

UNITS: dict[str, tuple[str, Fraction]] = {
    name: (kind, Fraction(factor))
    for kind, names in {
        "length": {
            "mm": "1/1000",
            "cm": "1/100",
            "m": "1",
            "km": "1000",
            "meter": "1",
            "metre": "1",
            "kilometer": "1000",
        },
        "mass": {"mg": "1/1000000", "g": "1/1000", "kg": "1", "gram": "1/1000", "kilogram": "1"},
        "time": {"ms": "1/1000", "s": "1", "sec": "1", "second": "1", "min": "60", "minute": "60", "h": "3600"}
        | {"hour": "3600", "day": "86400", "week": "604800"},
        "money": {"$": "1", "usd": "1", "dollar": "1", "cent": "1/100", "¢": "1/100"},
        "share": {"%": "1/100", "percent": "1/100"},
        "angle": {"degree": "1", "°": "1"},
        "volume": {"ml": "1/1000", "l": "1", "liter": "1", "litre": "1"},
    }.items()
    for name, factor in names.items()
}
MAX_DIGITS = 300
"""Of a number and its power of ten together: beyond them it is no answer, and no float either."""
_NUMBER = r"[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:\s*(?:e|E|[x×]\s*10\s*\^)\s*\{?[-+−]?\d+\}?)?"
_VALUE = re.compile(rf"(?P<whole>{_NUMBER})(?:\s*/\s*(?P<below>\d[\d,]*(?:\.\d+)?))?")
_UNIT = re.compile(r"^\s*(%|°|¢|\$|[A-Za-z]+)")
_FINAL = (
    re.compile(r"####\s*([^\n]+)"),
    re.compile(r"(?i)(?:final answer|answer)\s*(?:is|=|:)\s*:?\s*([^\n]+)"),
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as written."""

    value: Fraction
    digits: int | None
    """After the decimal point; None for an integer or a fraction, which are exact."""
    unit: str | None
    kind: str | None
    factor: Fraction


def grade_numeric(answer: str, reference: str) -> Grade:
    """Right when the answer's final number is the reference's."""
    wanted = parse(boxed(reference) or reference)
    if wanted is None:
        return cannot_grade(f"the reference {reference[:40]!r} is not a number")
    given, why = final_quantity(answer)
    if given is None:
        return cannot_grade(why)
    if wanted.unit and given.unit and wanted.kind != given.kind:
        return wrong(f"{given.unit} is not a unit of {wanted.kind}")
    # Where one side names no unit, it is taken to be the other's.
    left = given.value * given.factor if wanted.unit and given.unit else given.value
    goal = wanted.value * wanted.factor if wanted.unit and given.unit else wanted.value
    if left == goal:
        return right(f"{float(given.value):g}")
    if wanted.digits is not None or given.digits is not None:
        digits = min(d for d in (wanted.digits, given.digits) if d is not None)
        scale = wanted.factor if wanted.unit and given.unit else Fraction(1)
        if digits >= 2 and abs(left - goal) <= Fraction(1, 2) * Fraction(1, 10**digits) * scale:
            return right(f"{float(given.value):g}, to {digits} digits")
    return wrong(f"{float(given.value):g} is not {float(wanted.value):g}")


def final_quantity(answer: str) -> tuple[Quantity | None, str]:
    """The number that an answer ends on: boxed, after `####` or `answer is`, else the last one of the last line."""
    if (inside := boxed(answer)) is not None:
        found = parse(inside)
        return found, "" if found else f"what is boxed, {inside[:40]!r}, is not a number"
    for pattern in _FINAL:
        matches = pattern.findall(answer)
        if matches:
            found = parse(matches[-1], anywhere=True)
            return found, "" if found else f"the final answer {matches[-1][:40]!r} holds no number"
    whole = parse(answer)
    if whole is not None:
        return whole, ""
    lines = [line for line in answer.strip().splitlines() if line.strip()]
    if not lines:
        return None, "the answer is empty"
    numbers = [found for match in _VALUE.finditer(_plain(lines[-1])) if (found := _quantity(match, _plain(lines[-1])))]
    if not numbers:
        return None, "its last line holds no number"
    return numbers[-1], ""


def boxed(text: str) -> str | None:
    """The inside of the last `\\boxed{...}`, braces balanced."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for place in range(start + 6, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + 7 : place]
    return None


def parse(text: str, *, anywhere: bool = False) -> Quantity | None:
    """The number that `text` is (`anywhere`: the last that it holds), units and LaTeX aside. None: it is not one."""
    plain = _plain(text)
    if anywhere:
        whole = parse(text)
        if whole is not None:
            return whole
        # "12 because 3 of 15 fell" says 12; "3 + 4 = 7" says 7.
        told = plain.rsplit("=", 1)[-1].strip()
        lead = _VALUE.match(told)
        if lead and (leading := _quantity(lead, told)):
            return leading
        held = [found for match in _VALUE.finditer(plain) if (found := _quantity(match, plain))]
        return held[-1] if held else None
    stripped = plain.strip().rstrip(".").strip()
    if "=" in stripped:
        # "x = 5" is 5; "2 + 3 = 5" too.
        stripped = stripped.rsplit("=", 1)[1].strip()
    lead = re.match(r"^\$\s*", stripped)
    body = stripped[lead.end() :] if lead else stripped
    match = _VALUE.match(body)
    found = _quantity(match, body) if match else None
    if found is None or match is None:
        return None
    rest = body[match.end() :].strip()
    if rest and not re.fullmatch(r"(%|°|¢|\$|[A-Za-z]+(?:\s[A-Za-z]+)?)\.?", rest):
        return None
    if lead and found.unit is None:
        return Quantity(found.value, found.digits, "$", "money", Fraction(1))
    return found


def _plain(text: str) -> str:
    """LaTeX and typography to plain characters: `\\frac{3}{4}` to `3/4`, `\\text{ km}` to ` km`, `50\\%` to `50%`."""
    text = re.sub(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}", r"\1/\2", text)
    text = re.sub(r"\\[dt]?frac\s*(\d)\s*(\d)", r"\1/\2", text)
    text = re.sub(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", "°", text)
    text = text.replace("\\times", "×").replace("\\cdot", "×").replace("−", "-")
    text = re.sub(r"\\([%$])", r"\1", text)
    text = re.sub(r"\\(?:left|right|!|,|;|:|quad|\(|\)|\[|\])", " ", text)
    # A dollar sign is money before a digit and LaTeX's frame elsewhere.
    text = re.sub(r"\$(?!\s*\d)", " ", text) if text.count("$") % 2 else re.sub(r"^\s*\$(.*)\$\s*\.?$", r"\1", text)
    text = re.sub(r"(\d),\\?!?(\d{3})", r"\1,\2", text)
    return re.sub(r"[*_`]{2,}", "", text)


def _quantity(match: re.Match[str], text: str) -> Quantity | None:
    whole = match["whole"].replace(",", "").replace("−", "-").replace(" ", "")
    if not re.search(r"\d", whole):
        return None
    mantissa, _, power = re.sub(r"[eE]|[x×]10\^", "e", whole).replace("{", "").replace("}", "").partition("e")
    if not re.search(r"\d", mantissa) or len(mantissa) + len(match["below"] or "") > MAX_DIGITS:
        return None
    if power and (len(power) > 4 or abs(int(power)) + len(mantissa) > MAX_DIGITS):
        return None
    value = Fraction(mantissa) * Fraction(10) ** int(power or 0)
    digits = len(mantissa.partition(".")[2]) if "." in mantissa else None
    if match["below"]:
        below = Fraction(match["below"].replace(",", ""))
        if below == 0:
            return None
        value, digits = value / below, None
    before = text[: match.start()].rstrip()
    after = _UNIT.match(text[match.end() :])
    name = "$" if before.endswith("$") else (after[1] if after else None)
    known = UNITS.get(name) or UNITS.get(name.lower().removesuffix("s")) if name else None
    if known is None:
        return Quantity(value, digits, None, None, Fraction(1))
    return Quantity(value, digits, name, known[0], known[1])
