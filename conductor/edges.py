"""The edges of a prompt that do not belong to it: what somebody may put around a prompt to be routed dearly.

Enters: a prompt. Leaves: the same prompt without such edges, as `View`s. The model that answers always gets the whole
prompt. Knows no scores: what is done with the views is `guard`'s.

An edge is up to three sentences or lines, at most `MAX_CHARACTERS`, at the beginning or the end. It does not belong
where it has hardly a word in common with the rest (`LEAST_SHARED` of its own, common words and talk of tasks
aside), or where it is odd: mostly symbols, or letters that form no words. One that asks for something stays where
the rest asks for nothing. No list of attacks: 23 % of ZeroEval's prompts have such an edge, by its words alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from onebeat.engine.records import Message, Prompt

NOTED = "routed without its"
"""How the note of a request begins that was routed by a view: what the ledger's report counts."""
MAX_CHARACTERS = 240
MAX_PIECES = 3
LEAST_SHARED = 0.25
LEAST_REST = 0.3
"""Share of the prompt that must be left: one that is all edges is routed as it stands."""
STEM = 5
"""Letters by which two words are the same: bolt and bolts, solve and solving."""
_COMMON = """
a about above after again all also am an and any are as at be because been before being below between both but by can
cannot could did do does doing done down during each else ever every few for from further get give given gives had has
have having he her here hers him his how i if in into is it its itself just let like made make makes many may me might
more most much must my no nor not now of off on once one only or other our out over own per please same shall she should
so some such take takes than that the their them then there these they this those through to too under until up us use
used using very was we were what when where which while who whom why will with without would yes yet you your
answer answers problem problems question questions solve solution solving task tasks prompt request thing things time
"""
COMMON_WORDS = frozenset(_COMMON.split())
"""Words that join nothing: an edge that shares only these with the rest speaks of something else."""
_REQUESTS = """
find compute calculate determine evaluate solve prove show explain write give list describe translate fix complete
implement answer tell compare summarize summarise simplify express convert define classify identify choose select name
draft create generate rewrite correct design derive estimate factor check decide predict state plot draw sort suggest
make compose edit output return print
"""
REQUESTS = frozenset(_REQUESTS.split())
_PIECE = re.compile(r".*?(?:[.!?](?=\s|$)|[。！？]|\n+|$)\s*", re.DOTALL)
_WORD = re.compile(r"[^\W_]+")
_VERB = re.compile(r"(?:^|[,:;]\s+|\bplease\s+|\band\s+)([a-z]+)")


@dataclass(frozen=True, slots=True)
class View:
    """A prompt without an edge that does not belong to it."""

    prompt: Prompt
    left_out: str
    """first | last | both"""


def views(prompt: Prompt) -> tuple[View, ...]:
    """The prompt without its first edge, its last, and both: none for most prompts, at most six. Of messages, the last
    user message is looked at."""
    if isinstance(prompt, str):
        return tuple(View(text, name) for name, text in without_edges(prompt))
    for index in range(len(prompt) - 1, -1, -1):
        content = prompt[index].get("content")
        if prompt[index].get("role") == "user" and isinstance(content, str):
            before, message, after = prompt[:index], prompt[index], prompt[index + 1 :]
            return tuple(
                View(_joined(before, {**message, "content": text}, after), name)
                for name, text in without_edges(content)
            )
    return ()


def without_edges(text: str) -> list[tuple[str, str]]:
    """(which edge, the text without it) for each edge that does not belong."""
    pieces = [piece for piece in _PIECE.findall(text) if piece]
    if len(pieces) < 2:
        return []
    end = len(pieces)
    # The shortest edge is what was put there, or the last sentence of it; the longest is all of it, or more than that.
    found: dict[str, str] = {}
    firsts, lasts = _foreign(pieces, first=True), _foreign(pieces, first=False)
    cuts = [("first", first, end) for first in firsts] + [("last", 0, end - last) for last in lasts]
    cuts += [("both", first, end - last) for first, last in zip(firsts, lasts, strict=True)] if firsts and lasts else []
    for name, start, stop in cuts:
        rest = "".join(pieces[start:stop]).strip()
        if start < stop and len(rest) >= LEAST_REST * len(text.strip()):
            found.setdefault(rest, name)
    return [(name, rest) for rest, name in found.items()]


def _joined(before: Sequence[Message], message: Message, after: Sequence[Message]) -> list[Message]:
    return [*before, message, *after]


def _foreign(pieces: Sequence[str], *, first: bool) -> tuple[int, ...]:
    """How many pieces at this end form the shortest and the longest edge that do not belong to the rest; () is none."""
    counts: list[int] = []
    whole = len("".join(pieces).strip())
    for count in range(1, min(MAX_PIECES, len(pieces) - 1) + 1):
        edge, rest = (pieces[:count], pieces[count:]) if first else (pieces[-count:], pieces[:-count])
        if sum(map(len, edge)) > MAX_CHARACTERS or len("".join(rest).strip()) < LEAST_REST * whole:
            break
        # A blank line at an end is no edge: what is left would be the prompt itself.
        if "".join(edge).strip() and not _belongs(edge, rest):
            counts.append(count)
    return (counts[0], counts[-1]) if counts else ()


def _belongs(edge: Sequence[str], rest: Sequence[str]) -> bool:
    if _asks(edge) and not _asks(rest):
        return True
    text = "".join(edge).strip()
    if is_odd(text):
        # Symbols beside symbols (a formula, code, another script) belong together.
        return any(is_odd(piece.strip()) for piece in rest)
    own = _stems(text)
    shared = len(own & _stems("".join(rest)))
    return shared > 0 and shared >= LEAST_SHARED * len(own)


def _asks(pieces: Sequence[str]) -> bool:
    return any(
        "?" in piece or "？" in piece or not REQUESTS.isdisjoint(_VERB.findall(piece.strip().lower()))
        for piece in pieces
    )


def _stems(text: str) -> set[str]:
    """Beginnings of the words that tell something; of scripts without spaces, pairs of characters."""
    found: set[str] = set()
    for word in _WORD.findall(text.lower()):
        if word[0] >= "⺀":
            found.update(word[at : at + 2] for at in range(max(1, len(word) - 1)))
        elif word not in COMMON_WORDS:
            found.add(word[:STEM])
    return found


def is_odd(text: str) -> bool:
    """Mostly symbols, or Latin letters that do not form words: too few vowels over several words."""
    dense = re.sub(r"\s", "", text)
    # Formulas are symbols that belong to a prompt; an attack that is written as one is told by its words.
    if len(dense) < 8 or any(mark in text for mark in ("\\", "$", "=")):
        return False
    plain = sum(character.isalnum() or character in ".,;:'\"!?()-" for character in dense)
    if plain < 0.6 * len(dense):
        return True
    latin = re.findall(r"[a-z]{4,}", text.lower())
    if len(latin) < 3 or sum(map(len, latin)) < 0.6 * len(dense):
        return False
    vowels = sum(character in "aeiouy" for word in latin for character in word)
    return vowels < 0.15 * sum(map(len, latin))
