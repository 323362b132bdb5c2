"""Numbers in answers: integers, decimals, fractions, percentages, powers, units and the LaTeX around them.

Enters: an answer and a reference, as text. Leaves: a `Grade`. Exact where both are exact; a decimal agrees with what
rounds to it: the coarser of both sets the last digit that counts, if it has two decimals and two significant digits or
more. A measure in several units, `1 hour 30 minutes`, is their sum. Does no algebra: an expression that is not one
number, a denial, a bound, a range or a choice cannot be graded here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from onebeat.conductor.learning.graders.around import (
    goes_on,
    in_brackets,
    is_a_side,
    is_about,
    is_denied,
    is_other,
    signed,
    taken_back,
)
from onebeat.conductor.learning.graders.grade import Grade, cannot_grade, right, wrong
from onebeat.conductor.learning.graders.plain import plain
from onebeat.conductor.learning.graders.sums import SUM, summed
from onebeat.conductor.learning.graders.units import unit_of

LONGEST_NAME = 40
NEARLY = Fraction(1, 20)
"""Of the reference: what is said to be approximate and is that near may be a rounding of it."""
MAX_DIGITS = 300
"""Of a number and its power of ten together: beyond them it is no answer, and no float either."""
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_DECIMAL = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_INTEGER = r"\{?\(?(?:[-+]?\d+)\)?\}?"
_VALUE = re.compile(
    rf"(?P<sign>[-+])?(?P<sum>{SUM})?(?P<money>(?:[A-Z]{{1,2}})?[$€£¥₹]\s*|(?:USD|EUR|GBP|JPY|INR)\s+)?"
    rf"(?:(?P<whole>\d+)\s+(?P<above>\d+)\s*/\s*(?P<under>\d+)"
    rf"|(?P<number>{_DECIMAL})(?P<ten>(?:[eE]|\s*[x×*·]\s*10\s*\^\s*){_INTEGER})?"
    rf"(?:\s*\^\s*(?P<power>{_INTEGER}))?(?:\s*/\s*(?P<below>{_DECIMAL}))?)"
    rf"(?:\s+(?P<scale>{'|'.join(_SCALES)})s?\b)?",
    re.IGNORECASE,
)
_WORD = r"(?:[A-Za-z]+|°\s?[CF]?\b|[%¢$€£¥₹])"
_UNIT = re.compile(
    rf"\s*((?:(?:square|sq|cubic)\s+|degrees\s+(?=[CFcf]))?{_WORD}(?:\^\{{?[23]\}}?|[²³])?(?:\s*(?:/|\bper\b)\s*[A-Za-z]+(?:\^\{{?[23]\}}?|[²³])?)?)"
)
_CUE = re.compile(r"####\s*|(?i:(?:final answer|answer)\s*(?:\*\*)?\s*(?:is|=|:)\s*(?:\*\*)?\s*:?\s*)")
_HEDGE = re.compile(r"(?i)\b(?:not|never|neither|nor|either|between|than|least|most|cannot|without|except)\b|n['’]t\b")
_JOINED = re.compile(
    r"\s*|\s*(?:[A-Za-z]+|[%°])?\s*(?:[;&–—,-]"
    r"|,?\s*(?:or|and|then|to|through|out of|of|vs\.?|versus|plus|minus|times|over))"
    r"\s*(?:even|maybe|perhaps|possibly)?\s*",
    re.IGNORECASE,
)
_FILLER = re.compile(
    r"(?i)(?:and|as|at|because|but|by|for|from|if|in|is|of|on|or|since|so|that|then|to|total|altogether|when|where|which"
    r"|with|per|overall|exactly|each|every)\b"
)


_BETWEEN_BOXES = re.compile(r"[\s$]*(?:[,;/&]|,?\s*(?:or|and))?[\s$]*")
_APPLIED = re.compile(r"(?i)[A-Za-z]\($|\b(?:log|ln|exp|sqrt|sin|cos|tan|roots? of)\s*\(?\s*$")
"""What stands before an argument, `f(3)`, `log 2`, `the square root of 2`."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as written."""

    value: Fraction
    step: Fraction | None
    """What its last digit counts; None for an integer or a fraction, which are exact."""
    roundable: bool
    """Whether it has two decimals and two significant digits or more."""
    unit: str | None
    kind: str | None
    """What the unit measures; None where there is no unit, or none that is known."""
    factor: Fraction
    summed: bool = False
    """Whether it was written in several units: which of them a bare number would be in is not known."""
    about: bool = False
    """Whether it is said to be approximate."""


def grade_numeric(answer: str, reference: str) -> Grade:
    """Right when the answer's final number is the reference's."""
    wanted = parse(boxed(reference) or reference)
    if wanted is None:
        return cannot_grade(f"the reference {reference[:40]!r} is not a number")
    given, why = final_quantity(answer)
    if given is None:
        return cannot_grade(why)
    for one, other, whose in ((given, wanted, "reference"), (wanted, given, "answer")):
        if one.summed and not other.unit:
            return cannot_grade(f"the {whose}, {_told(other)}, names no unit")
        if one.kind == "share" and not other.unit and one.value * one.factor == other.value:
            return cannot_grade(f"{_told(one)} and {_told(other)} are the same share, or a hundredth of it")
    left, goal = Fraction(1), Fraction(1)
    if wanted.unit and given.unit:
        if wanted.kind is None or given.kind is None:
            if wanted.unit.lower().removesuffix("s") != given.unit.lower().removesuffix("s"):
                return cannot_grade(f"{given.unit[:20]!r} and {wanted.unit[:20]!r} are not both units known here")
        elif wanted.kind != given.kind:
            if wanted.kind.split(" in ")[0] == given.kind.split(" in ")[0] or "pounds" in (wanted.kind, given.kind):
                return cannot_grade(f"{given.unit} is not turned into {wanted.unit} here")
            return wrong(f"{given.unit} is not a unit of {wanted.kind}")
        left, goal = given.factor, wanted.factor
    # Where one side names no unit, it is taken to be the other's.
    if given.value * left == wanted.value * goal:
        return right(f"{float(given.value):g}")
    steps = [(side.step * scale, side) for side, scale in ((given, left), (wanted, goal)) if side.step is not None]
    if steps:
        step, coarser = max(steps, key=lambda one: one[0])
        if coarser.roundable and abs(given.value * left - wanted.value * goal) <= step / 2:
            return right(f"{float(given.value):g}, rounded")
    if given.about and abs(given.value * left - wanted.value * goal) <= NEARLY * abs(wanted.value * goal):
        return cannot_grade(f"it is said to be about {_told(given)}, and {_told(wanted)} is")
    return wrong(f"{_told(given)} is not {_told(wanted)}")


def _told(quantity: Quantity) -> str:
    return f"{float(quantity.value):g}" + (f" {quantity.unit}" if quantity.unit else "")


def final_quantity(answer: str) -> tuple[Quantity | None, str]:
    """The number that an answer ends on: boxed, after `####` or `answer is`, else the last one of the last line.

    None, and why, where there is none, where it is part of an expression, or where it is denied or one of several.
    """
    if (box := _last_box(answer)) is not None:
        inside = answer[box[1] : box[2]]
        if joined_boxes(answer):
            return None, "it boxes several answers"
        if _withdrawn(answer[box[2] :], inside):
            return None, "it takes back what it boxes"
        found = parse(inside)
        return found, "" if found else f"what is boxed, {inside[:40]!r}, is not a number"
    whole = parse(answer)
    if whole is not None:
        return whole, ""
    text = signed(summed(plain(answer)))
    cues = list(_CUE.finditer(text))
    if cues:
        start = cues[-1].end()
        settled = _VALUE.search(text, start)
        if settled is not None and _withdrawn(text[settled.end() :], settled[0]):
            return None, "it takes its final answer back"
        end = text.find("\n", start)
        line_start = text.rfind("\n", 0, cues[-1].start()) + 1
        return _stated(text[line_start : len(text) if end < 0 else end], start - line_start)
    lines = [line for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return None, "the answer is empty"
    # The "3." of a third point is no number.
    point = r"^\s*(?:[*+•]|\d{1,2}[.)](?=\s+\D))\s+" if len(lines) > 1 else r"^\s*[*+•]\s+"
    return _stated(re.sub(point, "", lines[-1]), None)


def _withdrawn(after: str, settled: str) -> bool:
    """Whether what follows a conclusion takes it back for another number."""
    beyond = taken_back(after)
    return beyond is not None and any(match[0].strip() != settled.strip() for match in _VALUE.finditer(beyond))


def _stated(line: str, start: int | None) -> tuple[Quantity | None, str]:
    """The number that a line settles on: the leading one after `start` or a last `=`, else the last one."""
    equal, cue = max(line.rfind("="), line.rfind("≈")), start
    where = f"the final answer {line[start:][:40]!r}" if start is not None else "its last line"
    if equal >= (start or 0):
        if re.search(r"[=≈][^=≈]*(?:[,;]\s|\b(?:and|or)\b)[^=≈]*[=≈]", line[start or 0 :]):
            return None, f"{where} holds several equations"
        start = equal + 1
    matches = [match for match in _VALUE.finditer(line, start or 0) if not _in_a_name(line, match)]
    if not matches:
        return None, f"{where} holds no number"
    leads = start is not None and not line[start : matches[0].start()].strip(" ([")
    place = 0 if leads else len(matches) - 1
    chosen = matches[place]
    if leads and cue is None and goes_on(line[chosen.end() :]):
        return None, f"{where} goes on after its equation"
    if not leads and place > 0:
        between = line[_end(line, matches[place - 1]) : chosen.start()]
        if is_a_side(between) or (in_brackets(between) and not _agree(matches[place - 1], chosen, line)):
            return None, f"{where} names several numbers"
    clause = re.split(r"[.,;:!?]\s", line[: chosen.start()])[-1]
    if _HEDGE.search(clause) or is_denied(line[_end(line, chosen) :]):
        return None, f"{where} denies or bounds its number"
    for first, second in pairwise(matches[max(0, place - 1) : place + 2]):
        if _JOINED.fullmatch(line, _end(line, first), second.start()):
            return None, f"{where} names several numbers"
    found = _quantity(chosen, line)
    return found, "" if found else f"{where} holds an expression that is not evaluated here"


def _agree(first: re.Match[str], second: re.Match[str], line: str) -> bool:
    """Whether two numbers with units are the same quantity."""
    one, other = _quantity(first, line), _quantity(second, line)
    if one is None or other is None or one.kind != other.kind:
        return False
    return one.value * one.factor == other.value * other.factor


def _in_a_name(text: str, match: re.Match[str]) -> bool:
    """Whether the digits belong to a name, like `H2O`: no number at all."""
    return (
        re.search(r"(?<![\\A-Za-z])[A-Za-z]+$", text[max(0, match.start() - LONGEST_NAME) : match.start()]) is not None
    )


def boxed(text: str) -> str | None:
    """The inside of the last `\\boxed{...}` or `\\fbox{...}`, braces balanced."""
    found = _last_box(text)
    return None if found is None else text[found[1] : found[2]]


def joined_boxes(text: str) -> bool:
    """Whether the last box and the one before it are named together, as in `\\boxed{3} or \\boxed{4}`, and differ."""
    last = _last_box(text)
    before = _last_box(text[: last[0]]) if last else None
    if last is None or before is None or text[before[1] : before[2]] == text[last[1] : last[2]]:
        return False
    return _BETWEEN_BOXES.fullmatch(text, before[2] + 1, last[0]) is not None


def _last_box(text: str) -> tuple[int, int, int] | None:
    """(where the last box starts, where its inside starts, where that ends)."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    inside, depth = text.index("{", start) + 1, 1
    for place in range(inside, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return start, inside, place
    return None


def parse(text: str) -> Quantity | None:
    """The number that `text` is, units and LaTeX aside, or is set equal to, as `x = 5`. None: it is not one."""
    body = signed(summed(plain(text))).strip().rstrip(".").strip()
    if "\n" in body:
        return None
    if re.search(r"[=≈][^=≈]*(?:[,;]\s|\b(?:and|or)\b)[^=≈]*[=≈]", body):
        return None
    approximate = body.rfind("≈") > body.rfind("=")
    body = re.split(r"[=≈]", body)[-1].strip()
    match = _VALUE.match(body)
    found = _quantity(match, body) if match else None
    if found is None or match is None:
        return None
    found = replace(found, about=found.about or approximate)
    rest = body[match.end() :].strip()
    if not rest or (found.unit is not None and body[_end(body, match) :].strip() == ""):
        return found
    if not re.fullmatch(r"[A-Za-z]+(?:\s[A-Za-z]+)?", rest) or _FILLER.match(rest):
        return None
    return replace(found, unit=rest, kind=None, factor=Fraction(1))


def _unit_after(text: str, match: re.Match[str]) -> tuple[str, int] | None:
    """(the unit after a number, where it ends); a word that is no known unit, and no filler, counts too."""
    found = _UNIT.match(text, match.end())
    if found is None:
        return None
    for end in (found.end(), match.end() + len(found[0].split("/")[0].rstrip())):
        name = text[match.end() : end].strip()
        # "5 in total" is no inch.
        preposition = name.lower() == "in" and re.match(r"\s+[a-z]", text[end:])
        if unit_of(name) is not None and not preposition:
            return name, end
    return (found[1], found.end()) if not _FILLER.match(found[1]) else None


def _end(text: str, match: re.Match[str]) -> int:
    after = _unit_after(text, match)
    return after[1] if after and unit_of(after[0]) else match.end()


def _evaluated(text: str, match: re.Match[str]) -> bool:
    """Whether the number stands alone, not as a part of an expression, a range, a time or a date."""
    before, after, beyond = text[: match.start()], text[match.end() :], text[_end(text, match) :]
    variable = r"(?:\d|(?<![A-Za-z])[A-Za-z]|\))\s*"
    if re.search(rf"[\w.{{}}^\\√π]$|[+*/^×·÷√<>≤≥≠π]\s*$|\d[,:]$|{variable}[-–—]\s*$|^\s*[-–]\s+$", before):
        return False
    if _APPLIED.search(before) or is_other(before, after, beyond):
        return False
    if re.search(r"\\[A-Za-z]+\s*[{(\[]?\s*$", before) or (match["sign"] and re.search(rf"{variable}$", before)):
        return False
    if re.match(r"[\d{}^_\\√π!²³(]|-\S|[,.:]\d", after) or re.match(r"\s*[-–—]\s*\d|\d", beyond):
        return False
    if re.match(r"[A-Za-z]", after) and (match["money"] or _end(text, match) == match.end()):
        return False
    return not re.match(r"\s*(?:[+*/^×·÷√π<>≤≥≠\\]|x\s*\d)", beyond)


def _quantity(match: re.Match[str], text: str) -> Quantity | None:
    if not _evaluated(text, match) or match.end() - match.start() > MAX_DIGITS:
        return None
    read = _value(match)
    if read is None:
        return None
    value, step, roundable = read
    scale = _SCALES[match["scale"].lower()] if match["scale"] else 1
    value *= scale
    step = step * scale if step is not None else None
    after = _unit_after(text, match)
    name = match["money"].strip() if match["money"] else (after[0] if after else None)
    known = unit_of(name) if name else None
    kind, factor = known or (None, Fraction(1))
    about = is_about(text[: match.start()])
    return Quantity(value, step, roundable, name, kind, factor, match["sum"] is not None, about)


def _value(match: re.Match[str]) -> tuple[Fraction, Fraction | None, bool] | None:
    """(value, what its last digit counts, whether it may be rounded to)."""
    sign = -1 if match["sign"] == "-" else 1
    if match["whole"]:
        above, under = int(match["above"]), int(match["under"])
        return (sign * (int(match["whole"]) + Fraction(above, under)), None, False) if above < under else None
    number = re.sub(r"[^\d.]", "", match["number"])
    ten = int(re.sub(r"[{}()\s]", "", re.split(r"[eE^]", match["ten"])[-1])) if match["ten"] else 0
    if abs(ten) + len(number) > MAX_DIGITS:
        return None
    value, decimals = Fraction(number), len(number.partition(".")[2])
    step = Fraction(10) ** (ten - decimals) if decimals else None
    value *= Fraction(10) ** ten
    if match["power"]:
        power = int(re.sub(r"[{}()]", "", match["power"]))
        if abs(power) > 1024 or (value == 0 and power <= 0):
            return None
        value, step = value**power, None
        if value and not Fraction(1, 10**MAX_DIGITS) < value < 10**MAX_DIGITS:
            return None
    if match["below"]:
        below = Fraction(re.sub(r"[^\d.]", "", match["below"]))
        if below == 0:
            return None
        value, step = value / below, None
    significant = len(number.replace(".", "").lstrip("0"))
    return sign * value, step, decimals >= 2 and significant >= 2
