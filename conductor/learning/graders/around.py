"""What stands around a number and says that it is not the answer itself, and around any answer that takes it back.

Enters: the text before and after a number. Leaves: yes or no. A bound, a range of tolerance, the name of a step, an
operation in words, a sign in words that may be a subtraction: none is guessed at.
"""

from __future__ import annotations

import re

LOOK_BACK = 60
"""Characters before a number that are looked at."""
_ABOUT = re.compile(
    r"(?i)(?:\b(?:about|approximately|approx\.?|roughly|around|nearly|almost|some|circa|ca\.)|[~≈])\s*[-$€£¥₹]?$"
)
_BOUNDED = re.compile(r"(?i)\b(?:up to|over|under|above|below|beyond|exceeds|exceeding|max|maximum|min)\s*[$€£¥₹]?$")
_UNBOUNDED = re.compile(
    r"(?i)\s*(?:[A-Za-z]+\s+)?(?:or|and)\s+(?:more|less|fewer|higher|lower|greater|up|above|below|under|over|so)\b"
)
_NUMBERED = re.compile(
    r"(?i)(?:\b(?:steps?|questions?|problems?|parts?|options?|cases?|examples?|figures?|tables?|pages?|chapters?|base"
    r"|versions?)|(?<!#)#)\s*$"
)
_PARTED = re.compile(
    r"(?i)\s+(?:and\s+)?(?:an?\s+|one\s+|two\s+|three\s+)?(?:half|halves|thirds?|quarters?|fifths?|score|gross)\b"
)
_OTHER_BASE = re.compile(r"(?i)\s*\(?\s*(?:in\s+)?(?:binary|hexadecimal|hex|octal|base\b)")
_WORD_SIGN = re.compile(r"(?i)\b(?:negative|minus)\s*$")
_TOLERANCE = re.compile(r"(?:[±∓~]|\+/-|\\pm)\s*$|[–—]$|\d['’]$")
_WITH_TOLERANCE = re.compile(r"\s*(?:[±∓]|\+/-|\\pm|~\s*\d)|['’]\d")
_SCALE_LETTER = re.compile(r"\s?[MGTB]\b")
_SIGN_IN_WORDS = re.compile(
    r"(?i)(^\s*|[=:≈(]\s*|\b(?:is|be|are|equals|gives|get|answer)\s+)(?:negative|minus)\s+(?=[\d.$])"
)
_PROPORTION = re.compile(
    r"(?i)\b(?:out of|of (?:the|its|their|his|her|our|your|all|these|those)|for (?:the|each|all|every)|per)\s*$"
)
_OPERATED = re.compile(r"(?i)\b(?:half|twice|thrice|double|triple|mod|modulo)\s+(?:of\s+)?$")
_OPERATION = re.compile(
    r"(?i)\s+(?:squared|cubed|(?:divided|multiplied) by|(?:raised )?to the power|mod|modulo|choose|sqrt|pi|less\s+\d"
    r"|(?:more|less|fewer|greater|larger|smaller|higher|lower) than\s+\S*\d)\b|\s+:\s*\d"
)
_DENIED_AFTER = re.compile(
    r"(?i)\s*(?:(?:is|was|are|be|seems|looks)\s+(?:not|wrong|incorrect|false|impossible|invalid)\b|(?:is|was|are)n['’]t\b)"
)
_TAKEN_BACK = re.compile(
    r"(?i)(?:^|[.,;:!?…\n—–(]\s{0,4}|\s[-*]\s?)(?:(?:oh|no|but|and|hm{1,4})\W{1,3})?(?:"
    r"wait(?=\s?(?:[,.;:!…\n—–-]|no\b|actually\b|i\b|that\b|it\b|a (?:minute|moment|second)\b))"
    r"|scratch that|correction\b|oops|just kidding|on (?:second|further) thought|on reflection"
    r"|i(?:['’]ve| have)? made an? (?:\w{1,20} )?(?:mistake|error)|i was wrong|let me (?:re-?[a-z]|correct|fix))"
    r"|(?:^|[.;!?…\n—–]\s{0,4}|\bno\W{1,3})(?:actually|hm{2,4}|i mean)\b|\?\s{0,4}no\b|\s[—–-]{1,3}\s?no\b"
)
"""Where a clause starts with it: `they wait 5 minutes`, `which is actually little` take nothing back."""
_GOES_ON = re.compile(r"(?i)\b(?:so|hence|thus|therefore|giving|gives|makes|making|which is)\b[^=≈]*\d")


def signed(text: str) -> str:
    """`text` with a sign in words as a sign, where nothing can be subtracted from: `minus 5`, `it is negative 5`."""
    return _SIGN_IN_WORDS.sub(r"\1-", text)


def is_about(before: str) -> bool:
    """Whether a number is said to be approximate."""
    return _ABOUT.search(before[-LOOK_BACK:]) is not None


def is_other(before: str, after: str, beyond: str) -> bool:
    """Whether a number is bounded, uncertain, a name, or another one than its digits say.

    `after` starts behind the number, `beyond` behind its unit.
    """
    before = before[-LOOK_BACK:]
    return any(one.search(before) for one in (_BOUNDED, _NUMBERED, _WORD_SIGN, _TOLERANCE, _OPERATED)) or any(
        one.match(text)
        for one, text in (
            (_UNBOUNDED, after),
            (_UNBOUNDED, beyond),
            (_PARTED, after),
            (_OTHER_BASE, after),
            (_WITH_TOLERANCE, after),
            (_WITH_TOLERANCE, beyond),
            (_SCALE_LETTER, after),
            (_OPERATION, after),
            (_OPERATION, beyond),
        )
    )


def is_denied(beyond: str) -> bool:
    """Whether a number, its unit included, is said to be wrong: `5 is not a solution`."""
    return _DENIED_AFTER.match(beyond) is not None


def taken_back(after: str) -> str | None:
    """What is said once an answer is taken back behind it, `. Wait, it is 6`; None where it stands."""
    found = _TAKEN_BACK.search(after)
    return None if found is None else after[found.end() :]


def is_a_side(before: str) -> bool:
    """Whether a number is the other side of a proportion: the 12 in `5 apples are left out of 12`."""
    return _PROPORTION.search(before[-LOOK_BACK:]) is not None


def goes_on(after: str) -> bool:
    """Whether a conclusion with another number follows: `x = 3, so 9`."""
    return _GOES_ON.search(after) is not None


def in_brackets(between: str) -> bool:
    """Whether a bracket opens between two numbers and stays open: `1/6 (about 16.7%)` may say one thing twice."""
    return between.rfind("(") > between.rfind(")")
