"""Which prompts a head was fitted on: kept with it as hashes, so that nobody judges it on them unawares.

Enters: prompts, and what router.json says under `fitted`. Leaves: `fitted.prompt_hashes`, and which prompts are among
them, whatever their file is called. Knows no head.

Eight bytes of `outcomes.prompt_key` for each distinct prompt, sorted, in base64: 50,000 prompts take 533 kB of
router.json, one string that loads in a millisecond. It discloses that a prompt was fitted on to whoever has that
prompt, or can guess it: short and predictable ones can be tried out. Twins by white space and letter case count as the
same; a stranger is taken for one of 50,000 with a chance of 3 in 10^15.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebeat.conductor.learning.outcomes import Outcomes, prompt_key
from onebeat.conductor.learning.splits import recorded
from onebeat.engine.errors import FormatError
from onebeat.engine.records import Prompt

FIELD = "prompt_hashes"
_WORD = np.dtype(">u8")


def hashes(prompts: Iterable[Prompt], known: str = "") -> str:
    """`fitted.prompt_hashes` of these prompts, and of those that `known`, another such text, already holds."""
    return base64.b64encode(np.union1d(_words(prompts), _read(known)).astype(_WORD).tobytes()).decode()


def fitted_among(fitted: Mapping[str, Any], prompts: Sequence[Prompt]) -> NDArray[np.bool_] | None:
    """[n] whether a head was fitted on each prompt; None for a router from before hashes were kept."""
    if FIELD not in fitted:
        return None
    return np.isin(_words(prompts), _read(fitted[FIELD]))


def fitted_by_name(
    fitted: Mapping[str, Any], outcomes: Outcomes, files: Iterable[str]
) -> tuple[NDArray[np.bool_] | None, str]:
    """Of an older router, what its files' names tell: [n] which prompts it was fitted on, as far as its split says, and
    the names in common. (None, names) where its split left none out; no name in common: fitted on none of them."""
    known = ", ".join(sorted(set(files) & set(fitted.get("files", ()))))
    among = np.zeros(len(outcomes.prompts), bool)
    if not known:
        return among, known
    split = fitted.get("split")
    if not split or split["test_side_fitted_on"]:
        return None, known
    among[recorded(split, outcomes).fit] = True
    return among, known


def _words(prompts: Iterable[Prompt]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(prompt_key(prompt)[:8] for prompt in prompts), _WORD).astype(np.uint64)


def _read(text: object) -> NDArray[np.uint64]:
    """Raises `FormatError` for what is no such text."""
    try:
        raw = base64.b64decode(text if isinstance(text, str) else b"!", validate=True)
        return np.frombuffer(raw, _WORD).astype(np.uint64)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"fitted.{FIELD} of router.json cannot be read ({error}); fit the router again.") from None
