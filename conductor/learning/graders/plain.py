"""LaTeX, Markdown and typography to plain characters.

Enters: text of an answer. Leaves: text in which a number is a number: `\\frac{3}{4}` is `3/4`, `\\text{ km}` is ` km`,
`50\\%` is `50%`, `1½` is `1 1/2`. A command that has no plain form stays, with its backslash.
"""

from __future__ import annotations

import re
import unicodedata


def squeezed(text: str) -> str:
    """`text` with no more than two blanks or two line ends in a row: patterns with several `\\s*` take the square of a
    run's length, and a model that ends in 100,000 blanks is no rarity."""
    return re.sub(r"(?:[^\S\n]*\n){3,}", "\n\n", re.sub(r"[^\S\n]{3,}", "  ", text))


def plain(text: str) -> str:
    """`text` without what only frames or spaces it."""
    text = re.sub(r"[¼-¾⅐-⅞]", lambda found: " " + unicodedata.normalize("NFKC", found[0]).replace("⁄", "/"), text)
    text = re.sub(r"(?<=\d)[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: "^{" + _lowered(found[0]) + "}", text)
    text = text.replace("−", "-").replace("{,}", ",").replace("\\$", "\ue000")
    text = squeezed(text.replace("$$", " "))
    # A dollar sign is LaTeX's frame where a pair holds something tight between them, and money elsewhere.
    text = re.sub(r"(?<!\d)\$(?=\S)([^$\n]*?\S)\$(?!\d)", r" \1 ", text)
    text = re.sub(r"(\d),\\!(\d{3})", r"\1,\2", text)
    text = re.sub(r"(?<=\d)\\[cdt]?frac", r" \\frac", text)
    text = re.sub(r"\\[cdt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*-\s*(\d+)\s*\}", r"-\1/\2", text)
    text = re.sub(r"\\[cdt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}", r"\1/\2", text)
    text = re.sub(r"\\[cdt]?frac\s*(\d)\s*(\d)", r"\1/\2", text)
    text = re.sub(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", "°", text)
    text = re.sub(r"\\(?:times|cdot)\b", "×", text)
    text = re.sub(r"\\approx\b", "≈", text).replace("\\%", "%")
    text = re.sub(r"\\(?:left|right|quad)\b|\\[!,;: ()\[\]\\]", " ", text)
    text = text.replace("\ue000", "$")
    text = re.sub(r"(?<=\d)\*\*(?=\d)", "^", text)
    text = re.sub(r"\*{2,}|_{2,}|`+", "", text)
    return re.sub(r"(?<!\w)([*_])(\S(?:[^*_\n]*\S)?)\1(?!\w)", r"\2", text)


def _lowered(superscript: str) -> str:
    return unicodedata.normalize("NFKC", superscript).replace("−", "-")
