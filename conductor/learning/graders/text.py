"""Text that must match, and the letters of multiple choice.

Enters: an answer and a reference. Leaves: a `Grade`. Knows no meaning: paraphrases are wrong here, a judge's work.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from onebeat.conductor.learning.graders.grade import Grade, cannot_grade, right, wrong
from onebeat.conductor.learning.graders.numeric import boxed

_STATED = re.compile(
    r"(?i)(?:final answer|answer|option|choice)\s*(?:is|:|=)?\s*:?\s*[\"'(\[*]{0,3}([A-Z])(?=[\])\"'.*,:;\s]|$)"
)
_ALONE = re.compile(r"^[\s\"'(\[*]*([A-Z])[\s\"')\].:*]*$")
_LEADING = re.compile(r"^[\s\"'(\[*]*([A-Z])[)\].:]\s")


def grade_exact(answer: str, reference: str) -> Grade:
    """Right when both are the same but for case, white space, and punctuation and articles around them."""
    wanted = normalised(boxed(reference) or reference)
    if not wanted:
        return cannot_grade("the reference is empty")
    candidates = [answer, boxed(answer) or "", answer.strip().rsplit("\n", 1)[-1]]
    stated = re.findall(r"(?i)answer\s*(?:is|:)\s*([^\n]+)", answer)
    candidates += stated[-1:]
    if not answer.strip():
        return cannot_grade("the answer is empty")
    return right("same text") if wanted in {normalised(candidate) for candidate in candidates} else wrong("other text")


def normalised(text: str) -> str:
    """Case folded, width and accents' composition unified, LaTeX spacing gone, trimmed of what frames it."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:left|right|!|,|;|quad)|\$", " ", text)
    text = " ".join(text.split())
    text = text.strip("\"'`*_.,;:!?()[] ")
    return re.sub(r"^(?:the|a|an) ", "", text)


def grade_choice(answer: str, reference: str, *, letters: Sequence[str] = "ABCDEFGHIJ") -> Grade:
    """Right when the answer settles on the reference's letter. Two letters without a conclusion cannot be graded."""
    wanted = reference.strip().strip("().").upper()
    if len(wanted) != 1 or wanted not in letters:
        return cannot_grade(f"the reference {reference[:20]!r} is not one of {''.join(letters)}")
    given, why = chosen_letter(answer, letters)
    if given is None:
        return cannot_grade(why)
    return right(given) if given == wanted else wrong(f"{given} is not {wanted}")


def chosen_letter(answer: str, letters: Sequence[str]) -> tuple[str | None, str]:
    """The letter that an answer settles on, or why there is none."""
    inside = boxed(answer)
    if inside is not None:
        match = _ALONE.match(re.sub(r"\\text\{([^}]*)\}", r"\1", inside))
        return (match[1], "") if match and match[1] in letters else (None, "what is boxed is not one letter")
    stated = [letter.upper() for letter in _STATED.findall(answer) if letter.upper() in letters and letter.isupper()]
    if stated:
        return stated[-1], ""
    lines = [line for line in answer.strip().splitlines() if line.strip()]
    for line in (lines[-1:], lines[:1]):
        if line and (match := _ALONE.match(line[0]) or _LEADING.match(line[0])) and match[1] in letters:
            return match[1], ""
    mentioned = set(re.findall(r"(?<![A-Za-z])\(?([A-Z])\)(?![A-Za-z])", answer)) & set(letters)
    if len(mentioned) == 1:
        return mentioned.pop(), ""
    return None, f"it settles on no letter (mentioned: {', '.join(sorted(mentioned)) or 'none'})"
