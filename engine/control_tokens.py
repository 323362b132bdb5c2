"""What a user writes is text: a control token that is spelt out in it is read as its letters, never as the token.

Enters: the texts of a prompt and the tokenizer's special tokens. Leaves: texts in which every spelling is a number
between two marks, and, from the rendered whole, the pieces again. Knows no tokenizer and no template.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onebeat.engine.errors import InputError

MARKS = range(0xE000, 0xF900)
"""Private-use characters: two that the prompt does not contain become the marks."""


PART_CHARACTERS = 2**18
"""Of a huge text looked at in one go: a search holds the interpreter's lock, and an event loop waits for that."""


def parts_of(text: str, overlap: int = 0) -> Iterator[str]:
    """`text` in parts, each `overlap` characters into the next."""
    if len(text) <= PART_CHARACTERS:
        yield text
        return
    for start in range(0, len(text), PART_CHARACTERS):
        yield text[start : start + PART_CHARACTERS + overlap]


@dataclass(frozen=True, slots=True)
class Hidden:
    """Texts in which the n-th spelling of a control token stands as `begin`, n, `end`."""

    texts: Sequence[str]
    spelt: Sequence[str] = ()
    begin: str = ""
    end: str = ""

    def pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """`text`, rendered around the hidden texts, in order: (piece, whether it is a spelt-out control token)."""
        for index, piece in enumerate(re.split(f"{self.begin}([0-9]+){self.end}", text)):
            if index % 2:
                yield self.spelt[int(piece)], True
            else:
                # Where a long text was cut through a mark, nothing of it is left to read.
                yield re.sub(f"^[0-9]*{self.end}|{self.begin}[0-9]*$", "", piece), False


class ControlTokens:
    """The special tokens of one tokenizer."""

    def __init__(self, tokens: Sequence[str]) -> None:
        # Descending order tries a token before any other that it begins with.
        self._tokens = sorted(filter(None, tokens), reverse=True)
        one_of = "|".join(map(re.escape, self._tokens))
        self._pattern = re.compile(one_of)
        self._nothing_else = re.compile(rf"(?:\s|{one_of})*+" if one_of else r"\s*+")

    def is_all_of(self, text: str) -> bool:
        """Whether `text` holds nothing but control tokens and white space."""
        return self._nothing_else.fullmatch(text) is not None

    def hide(self, texts: Sequence[str]) -> Hidden:
        """The texts with every spelling hidden. Raises `InputError` when no private-use characters are left."""
        overlap = max(map(len, self._tokens), default=1) - 1
        if not any(token in part for text in texts for part in parts_of(text, overlap) for token in self._tokens):
            return Hidden(texts)
        used = {character for text in texts for character in set(text)}
        free = [chr(code) for code in MARKS if chr(code) not in used][:2]
        if len(free) < 2:
            raise InputError(
                f"the prompt spells out control tokens and uses {len(MARKS) - len(free)} of {len(MARKS)} private-use "
                "characters; leave out either."
            )
        begin, end = free
        spelt: list[str] = []

        def number(found: re.Match[str]) -> str:
            spelt.append(found[0])
            return f"{begin}{len(spelt) - 1}{end}"

        return Hidden([self._pattern.sub(number, text) for text in texts], spelt, begin, end)
