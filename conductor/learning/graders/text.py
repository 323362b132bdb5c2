"""Text that must match, and the letters of multiple choice.

Enters: an answer and a reference. Leaves: a `Grade`. Knows no meaning: paraphrases are wrong here, a judge's work.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from onebeat.conductor.learning.graders.around import taken_back
from onebeat.conductor.learning.graders.grade import Grade, cannot_grade, right, wrong
from onebeat.conductor.learning.graders.numeric import boxed, joined_boxes
from onebeat.conductor.learning.graders.plain import plain, squeezed

_LETTER = (
    r"[\"'(\[*]{0,3}([A-Z])"
    r"(?=\s*$|\s*[)\].,:;*\"–—-](?!\w)|'(?!\w)|[)\]*]|\s*\n|\s*\(|\s+(?:because|since|as|due|given|for|which|or|and)\b)"
)
_LOW = (
    r"[\"'*]{0,3}(?:[(\[]([a-z])[)\]]|([a-z])[)\]](?!\w)|([b-hj-z])(?=[\"'*]*[.!]?[\"'*]*[^\S\n]*(?:\n|$))"
    r"|([ai])(?=[\"'*]*(?:[.!][\"'*]*[^\S\n]*(?:\n|$)|[^\S\n]*(?:\n\s*[^a-z\s]|\n\s*$|$))))"
)
"""A small letter counts in brackets, or at the end of a line: `the answer is a bit subtle` names none."""
_CUE = r"\b(?:answer|(?:correct|best|right) (?:option|choice))\s*\**\s*(?:is|:|=|must be|would be)\s*:?\s*\**\s*"
_STATED = re.compile(rf"(?i:{_CUE}(?:option|choice)?\s*)(?:{_LETTER}|{_LOW})")
_SAID = re.compile(
    r"(?i:\b(?:it is|it's|it must be|it has to be|i choose|i pick|i select|go with)\s+(?:option|choice)?\s*)"
    rf"(?:{_LETTER}|[(\[]([a-z])[)\]])"
    r"|(?i:\b(?:option|choice)\s+)([a-z])\b(?=\s+is\s+(?:the\s+)?(?:correct|right|best)\b)"
    r"|(?<!\w)[(\[]([a-z])[)\]]\s+is\s+(?:the\s+)?(?:correct|right|best)(?=\s*(?:$|[.,;:!]|answer|option|choice|one\b))"
    r"|(?<!\w)\(?([A-Z])\)?\s+is\s+(?:the\s+)?(?:correct|right|best)(?=\s*(?:$|[.,;:!]|answer|option|choice|one\b|because))"
)
_ALONE = re.compile(r"^[\s\"'(\[*]*([A-Za-z])[\s\"')\].:*]*$")
_LEADING = re.compile(
    r"^[\s\"'(\[*]*(?:([A-Z])[)\].:]|([a-z])[)\]])\**\s+(?!(?:is|isn|was|can|could|seems|looks|or|and|nor)\b)"
)
_MENTIONED = re.compile(r"(?<![A-Za-z])\(?([A-Z])\)(?![A-Za-z])")
_DENIED = re.compile(
    r"(?i)\b(?:not|never|neither|nor|either|cannot|if|unless|wrong|incorrect|false|eliminated)\b|n['’]t\b"
)
_ANOTHER = re.compile(
    r"[\s)\]*\"']*(?:,|/|&|,?\s*\b(?:or|and)\b)\s*(?:maybe\s+|perhaps\s+|possibly\s+)?(?:either\s+|option\s+)?[(\[*\"']{0,3}"
    r"(?:[A-Z]|[a-z](?=[)\]])|[b-hj-z])(?![A-Za-z'’])"
)
MOST_FRAMES = 8
"""Of quotes and marks around a text, within each other."""
_ANSWER = re.compile(r"(?i)answer\s*(?:is|:)\s*:?\s*([^\n]+)")


def grade_exact(answer: str, reference: str) -> Grade:
    """Right when both are the same but for case, white space, an article in front and prose's final punctuation."""
    wanted, answer = normalised(boxed(reference) or reference), squeezed(answer)
    if not wanted:
        return cannot_grade("the reference is empty")
    if not answer.strip():
        return cannot_grade("the answer is empty")
    if joined_boxes(answer):
        return cannot_grade("the answer boxes several texts")
    stated = list(_ANSWER.finditer(answer))
    if stated and wanted != normalised(answer) and taken_back(answer[stated[-1].start(1) :]) is not None:
        return cannot_grade("the answer is taken back")
    return right("same text") if wanted in _conclusions(answer) else wrong("other text")


def _conclusions(answer: str) -> set[str]:
    """What an answer may be read to conclude with, normalised: all of it, what it boxes, its last line, `answer is`."""
    candidates = [answer, boxed(answer) or "", answer.strip().rsplit("\n", 1)[-1], *_ANSWER.findall(answer)[-1:]]
    return {normalised(candidate) for candidate in candidates} - {""}


def normalised(text: str) -> str:
    """Case folded, white space and accents' composition unified, and what only frames it gone: LaTeX's and Markdown's
    marks, quotes, the article, the final punctuation of prose. Brackets, factorials and signs are part of a text."""
    text = unicodedata.normalize("NFC", text).casefold()
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:left|right)\b\s*", "", text)
    text = re.sub(r"\\(?:[!,;]|quad\b)", " ", text).replace("$$", " ")
    text = re.sub(r"(?<![\\\d])\$(?=\S)([^$\n]*?\S)\$(?!\d)", r"\1", text)
    text = re.sub(r"\s*([,()\[\]{}=])\s*", r"\1", " ".join(text.split()))
    for _ in range(MOST_FRAMES):
        text = re.sub(r"(?<=[^\W\d_]{2})[!?]+$", "", text.strip()).rstrip(".,;: ")
        text = re.sub(r"^(\*\*|__|[\"'`*_])(.*)\1$", r"\2", text)
    return re.sub(r"^(?:the|a|an) (?=[^\W\d_]{2})", "", text)


def grade_choice(
    answer: str, reference: str, *, letters: Sequence[str] = "ABCDEFGHIJ", options: Sequence[str] = ()
) -> Grade:
    """Right when the answer settles on the reference's letter, or on its option's text where `options` (one a letter)
    are given. An answer that settles on several, or on none, cannot be graded."""
    wanted, answer = reference.strip().strip("().").upper(), squeezed(answer)
    if len(wanted) != 1 or wanted not in letters:
        return cannot_grade(f"the reference {reference[:20]!r} is not one of {''.join(letters)}")
    given, why = chosen_letter(answer, letters)
    named = _named_option(answer, letters, options)
    if given is not None and named is not None and given != named:
        return cannot_grade(f"it settles on {given} and on the text of {named}")
    given = given or named
    if given is None:
        return cannot_grade(why)
    return right(given) if given == wanted else wrong(f"{given} is not {wanted}")


def _named_option(answer: str, letters: Sequence[str], options: Sequence[str]) -> str | None:
    """The letter of the one option whose text the answer concludes with, or else names in its conclusion undenied."""
    texts = [normalised(option) for option in options]
    concluded = _conclusions(answer)
    same = [letter for letter, text in zip(letters, texts, strict=False) if text in concluded]
    if same:
        return same[0] if len(same) == 1 else None
    end = normalised((_ANSWER.findall(answer) or [answer.strip().rsplit("\n", 1)[-1]])[-1])
    if _DENIED.search(end):
        return None
    held = [
        (letter, text)
        for letter, text in zip(letters, texts, strict=False)
        if text and re.search(rf"(?<!\w){re.escape(text)}(?!\w)", end)
    ]
    # "ice" is named by "dry ice" only if that is not an option too.
    outer = [(letter, text) for letter, text in held if not any(text != other and text in other for _, other in held)]
    return outer[0][0] if len(outer) == 1 else None


def chosen_letter(answer: str, letters: Sequence[str]) -> tuple[str | None, str]:
    """The letter that an answer settles on, or why there is none."""
    inside = boxed(answer)
    if inside is not None:
        match = _ALONE.match(re.sub(r"\\text\{([^}]*)\}", r"\1", inside))
        letter = match[1].upper() if match else ""
        if joined_boxes(answer):
            return None, "it boxes several letters"
        return (letter, "") if letter in letters else (None, "what is boxed is not one letter")
    answer = plain(answer)
    stated, said = _claims(_STATED, answer, letters), _claims(_SAID, answer, letters)
    if stated or said:
        last = max(stated[-1:] + said[-1:])
        if stated and last[1] != stated[-1][1]:
            return None, f"it states {stated[-1][1]} and then says {last[1]}"
        beyond = taken_back(answer[last[0] :])
        if beyond is not None and set(re.findall(r"\b[A-Z]\b", beyond)) & set(letters) - {last[1]}:
            return None, f"it states {last[1]} and takes it back"
        return (last[1], "") if last[1] else (None, "it states several letters")
    mentioned = sorted(set(_MENTIONED.findall(answer)) & set(letters))
    lines = [line for line in answer.strip().splitlines() if line.strip()]
    ends = [match for line in (lines[-1:] + lines[:1]) if (match := _ALONE.match(line) or _LEADING.match(line))]
    found = ({_letter_of(match) for match in ends} & set(letters)) | set(mentioned)
    if len(found) == 1 and not (_DENIED.search(answer) and not ends):
        return found.pop(), ""
    return None, f"it settles on no letter (mentioned: {', '.join(sorted(found)) or 'none'})"


def _letter_of(match: re.Match[str]) -> str:
    """The one letter that a pattern found, as a capital."""
    return next(group for group in match.groups() if group).upper()


def _claims(pattern: re.Pattern[str], answer: str, letters: Sequence[str]) -> list[tuple[int, str]]:
    """(place, letter) of what is claimed and not denied; the letter is empty where several are named at once."""
    found = []
    for match in pattern.finditer(answer):
        letter = _letter_of(match)
        clause = re.split(r"[.,;:!?\n]", answer[: match.start()])[-1]
        if letter in letters and not _DENIED.search(clause):
            found.append((match.start(), "" if _ANOTHER.match(answer, match.end()) else letter))
    return found
