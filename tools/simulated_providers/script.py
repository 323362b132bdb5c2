"""What a simulated vendor does with a call: faults, and the scripts that choose them.

Enters: words (`cut:after=3`) from a header, a model's name or the admin endpoint. Leaves: a `Behaviour` for each call.
Knows no wire format.
"""

from __future__ import annotations

import difflib
import random
from collections import deque
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any


class Fault(StrEnum):
    OK = "ok"
    RATE_LIMIT = "rate_limit"
    """429 that names its reset (`reset` seconds)."""
    RATE_LIMIT_BARE = "rate_limit_bare"
    """429 that names none."""
    QUOTA = "quota"
    """429 that no wait mends: credit or a day's quota is spent."""
    ERROR_500 = "error_500"
    ERROR_503 = "error_503"
    ERROR_529 = "error_529"
    RESET = "reset"
    """The connection is reset before any header."""
    SILENCE = "silence"
    """The connection is taken and nothing ever comes."""
    SLOW_FIRST = "slow_first"
    """The first token takes `delay` seconds."""
    CUT = "cut"
    """The connection is reset in the middle of the answer, after `after` chunks."""
    END_EARLY = "end_early"
    """The body ends cleanly in the middle of the answer."""
    STALL = "stall"
    """The answer stops in the middle and the connection stays open."""
    STALL_PINGS = "stall_pings"
    """The same, with keep-alives."""
    MALFORMED = "malformed"
    """A chunk in the middle (the whole body, where nothing is streamed) is broken JSON."""
    GARBAGE = "garbage"
    """The same, of bytes that are no UTF-8."""
    NO_DONE = "no_done"
    """A whole answer without the vendor's last word (`[DONE]`, `message_stop`)."""
    CONTEXT_OVERFLOW = "context_overflow"
    CONTENT_FILTER = "content_filter"
    """The prompt is refused by the vendor's filter."""
    FILTERED = "filtered"
    """The answer is cut by the vendor's filter, which says so."""
    PREFILL_REFUSED = "prefill_refused"
    """400 if the last message is the assistant's; a good answer otherwise."""
    ERROR_IN_STREAM = "error_in_stream"
    """An error inside a 200, after `after` chunks."""
    LOOP = "loop"
    REFUSAL = "refusal"
    EMPTY = "empty"
    BLANK = "blank"
    TRUNCATED = "truncated"
    """The answer stops at the limit of its length, and says so."""
    WRONG_FINISH = "wrong_finish"
    """The answer stops in the middle, for a reason that it belies: a call that it never made."""
    HTML = "html"
    """A proxy's page with status 200."""
    REDIRECT = "redirect"
    AUTH = "auth"
    NOT_FOUND = "not_found"


@dataclass(frozen=True, slots=True)
class Behaviour:
    fault: Fault = Fault.OK
    after: int = 3
    """Chunks sent before the fault, where it comes in the middle."""
    delay: float = 5.0
    """Seconds until the first token of `SLOW_FIRST`."""
    reset: float = 1.0
    """Seconds that a 429 asks to wait."""
    words: int = 40
    """Length of the answer."""
    chunk_ms: float = 0.0
    """Time between two chunks."""
    first_ms: float = 0.0
    """Time to the first byte of any good answer."""
    reasoning: int = 0
    """Words of reasoning before the answer."""
    echo: int = 0
    """1: the error's sentence holds the caller's key, as some servers do."""
    cached: int = 0
    """Prompt tokens that were cached."""


def behaviour_of(words: str, base: Behaviour | None = None) -> Behaviour:
    """`cut:after=3;chunk_ms=5`, `ok`, `words=200`. Raises `ValueError` naming the nearest known word."""
    behaviour = base or Behaviour()
    kinds = {each.name: int if each.type == "int" else float for each in fields(Behaviour) if each.name != "fault"}
    known = [fault.value for fault in Fault]
    for word in filter(None, (part.strip() for part in words.replace(":", ";").split(";"))):
        name, has_value, value = word.partition("=")
        if not has_value:
            if name not in known:
                raise ValueError(f"no such fault: {name!r}{_near(name, known)}")
            behaviour = replace(behaviour, fault=Fault(name))
        elif name in kinds:
            changed: dict[str, Any] = {name: kinds[name](value)}
            behaviour = replace(behaviour, **changed)
        else:
            raise ValueError(f"no such setting: {name!r}{_near(name, list(kinds))}")
    return behaviour


def _near(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}."


@dataclass(slots=True)
class Script:
    """What one vendor (or one model of it) does next: a queue first, then dice, then `always`."""

    queue: deque[Behaviour] = field(default_factory=deque)
    always: Behaviour = field(default_factory=Behaviour)
    rates: dict[str, float] = field(default_factory=dict)
    """Fault to its share of calls, 0..1 in sum."""
    dice: random.Random = field(default_factory=lambda: random.Random(0))

    def next(self) -> Behaviour:
        if self.queue:
            return self.queue.popleft()
        if self.rates:
            throw = self.dice.random()
            for words, share in self.rates.items():
                if throw < share:
                    return behaviour_of(words, self.always)
                throw -= share
        return self.always


@dataclass(slots=True)
class Limiter:
    """A vendor's own rate limit: `requests` in each window of `window_s`."""

    requests: int
    window_s: float
    used: int = 0
    began_s: float = 0.0

    def take(self, now_s: float) -> tuple[bool, int, float]:
        """Whether the call is let in, how many are left, and the seconds to the reset."""
        if now_s - self.began_s >= self.window_s:
            self.began_s = now_s
            self.used = 0
        is_let_in = self.used < self.requests
        self.used += is_let_in
        return is_let_in, self.requests - self.used, max(0.0, self.began_s + self.window_s - now_s)
