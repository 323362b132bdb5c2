"""Watches an answer while it streams: empty, looping, refusing, truncated, garbled, ended for the wrong reason.

Enters: the events of one answer, in order. Leaves: `Finding`s, each with what its mode asks for. Knows no clock and no
route: a stall is the dispatcher's to notice. Costs a few microseconds a chunk whatever the answer's length: text is
looked at once, and the search for loops runs over the last `TAIL` characters every `LOOK_EVERY`.
"""

from __future__ import annotations

import re
from enum import StrEnum

import msgspec
from msgspec import Struct

from onebeat.conductor.answers import Answer, Finished, FinishReason, StreamEvent, TextDelta, ToolCallDelta
from onebeat.conductor.config import Mode, WatchSection
from onebeat.conductor.records import Text, ToolCall

TAIL = 4_096
LOOK_EVERY = 256
PROBE = 24
"""Characters whose last earlier occurrence proposes a period."""
LOOP_CHARACTERS = 600
LOOP_TIMES = 6
LONG_PERIOD = 150
LONG_LOOP_TIMES = 4
"""A sentence or paragraph said four times over is a loop; a short unit has to fill `LOOP_CHARACTERS` as well."""
HEAD = 160
"""Characters in which a refusal shows."""
GARBAGE_LEAST = 3
GARBAGE_SHARE = 0.02


class Detector(StrEnum):
    EMPTY = "empty"
    REPETITION = "repetition"
    REFUSAL = "refusal"
    TRUNCATED_ANSWER = "truncated_answer"
    TRUNCATED_JSON = "truncated_json"
    UNCLOSED_TOOL_CALL = "unclosed_tool_call"
    WRONG_FINISH = "wrong_finish"
    STALL = "stall"
    GARBAGE = "garbage"


SOFT = frozenset({Detector.REFUSAL, Detector.TRUNCATED_ANSWER, Detector.WRONG_FINISH})
"""What is still an answer: given to the client, with a note, where nothing better can be had."""


class Finding(Struct, frozen=True, gc=False):
    """One detector's word on one answer."""

    detector: Detector
    detail: str
    act: bool

    @property
    def note(self) -> str:
        return f"{self.detector.value}: {self.detail}"


# C0 controls but tab, newline, form feed and return; C1 controls; the replacement character; non-characters.
_GARBAGE = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ufffe\uffff]")
_REFUSAL = re.compile(
    r"\s*(?:i['’]m (?:really |very )?sorry,? but (?:i|as an)\b.{0,60}\b(?:can['’]?t|cannot|unable|won['’]t)"
    r"|(?:i['’]m |i am )?sorry,? (?:but )?(?:i )?(?:can['’]?t|cannot|am unable to|won['’]t) "
    r"(?:help|assist|comply|do|provide)"
    r"|i (?:can['’]?t|cannot|won['’]t|am (?:not able|unable) to|['’]m (?:not able|unable) to) "
    r"(?:help|assist|comply|provide|fulfill|create|generate|support|engage|discuss|share)\b"
    r"|i['’]m (?:not able|unable) to (?:help|assist|comply|provide|fulfill|create|generate|discuss|share)\b"
    r"|as an ai(?: language model)?,? i (?:can['’]?t|cannot|am (?:not able|unable)|must decline|won['’]t)"
    r"|i must (?:respectfully )?decline)",
    re.IGNORECASE | re.DOTALL,
)
_REFUSES_WITH = frozenset("iIaAsS")
"""First letters of what `_REFUSAL` matches: most answers are told apart by one look."""
# An ending after which a sentence always goes on. Colons and dashes are left out: lists and signatures end in them.
_DANGLING_SIGNS = frozenset(",([{")
_DANGLING_WORDS = frozenset(
    "the a an and or but of to with for because therefore which is are was were".split()  # noqa: SIM905
)


def dangles(tail: str) -> bool:
    """Whether a text ends where no text ends."""
    tail = tail.rstrip()
    if not tail:
        return False
    if not tail[-1].isalpha():
        return tail[-1] in _DANGLING_SIGNS
    return tail[-16:].replace("\n", " ").rsplit(" ", 1)[-1] in _DANGLING_WORDS


class Watch:
    """One answer's watcher. `feed` every event; `finish` once, after the last. A finding is told once per detector."""

    __slots__ = (
        "_act",
        "_asked_tokens",
        "_call_arguments",
        "_characters",
        "_garbled",
        "_head",
        "_is_refusal",
        "_json",
        "_looked_at",
        "_mode",
        "_told",
        "_wants_json",
        "finish_reason",
        "has_text",
        "tail",
    )

    def __init__(
        self, section: WatchSection, *, wants_json: bool = False, max_output_tokens: int | None = None
    ) -> None:
        self._mode = section
        self._wants_json = wants_json
        self._asked_tokens = max_output_tokens
        self._characters = 0
        self._looked_at = 0
        self._garbled = 0
        self._head: str | None = ""
        self._json: list[str] = []
        self._is_refusal = False
        self._told: set[Detector] = set()
        self._call_arguments: dict[int, list[str]] = {}
        self.tail = ""
        self.has_text = False
        self.finish_reason: Finished | None = None

    def feed(self, event: StreamEvent) -> Finding | None:
        """What `event` gives away, at once; the first finding where there are two."""
        kind = type(event)
        if kind is TextDelta:
            return self._text(event.text, event.is_refusal)  # type: ignore[union-attr]
        if kind is ToolCallDelta:
            pieces = self._call_arguments.setdefault(event.index, [])  # type: ignore[union-attr]
            if event.arguments:  # type: ignore[union-attr]
                pieces.append(event.arguments)  # type: ignore[union-attr]
        elif kind is Finished:
            self.finish_reason = event  # type: ignore[assignment]
        return None

    def _text(self, text: str, is_refusal: bool) -> Finding | None:
        if not text:
            return None
        self._characters += len(text)
        self._is_refusal = self._is_refusal or is_refusal
        if not self.has_text and not text.isspace():
            self.has_text = True
        if self._wants_json:
            self._json.append(text)
        found: Finding | None = None
        if self._head is not None:
            self._head += text
            if len(self._head) >= HEAD:
                found = self._refusal()
        # Most chunks are printable ASCII: telling so costs a tenth of the search.
        if not (text.isascii() and text.isprintable()) and (garbled := len(_GARBAGE.findall(text))):
            self._garbled += garbled
            if self._garbled >= GARBAGE_LEAST and self._garbled >= GARBAGE_SHARE * self._characters:
                found = self._tell(Detector.GARBAGE, f"{self._garbled} control or replacement characters") or found
        tail = self.tail + text
        self.tail = tail
        if self._characters - self._looked_at >= LOOK_EVERY:
            self._looked_at = self._characters
            self.tail = tail = tail[-TAIL:]
            if (loop := loop_in(tail)) is not None:
                period, times = loop
                detail = f"{tail[-min(period, 40) :]!r} over and over, {times} times"
                found = self._tell(Detector.REPETITION, detail) or found
        return found

    def _refusal(self) -> Finding | None:
        head, self._head = self._head or "", None
        begins = head.lstrip()[:1]
        if self._is_refusal or (begins in _REFUSES_WITH and _REFUSAL.match(head)):
            return self._tell(Detector.REFUSAL, f"it begins {head[:60].strip()!r}")
        return None

    def finish(self, output_tokens: int | None = None) -> list[Finding]:
        """What only the whole answer shows. Call it after the stream's end; not where the stream was cut."""
        ended = self.finish_reason
        reason = ended.reason if ended is not None else FinishReason.UNKNOWN
        found = [self._refusal() if self._head is not None else None]
        if reason is FinishReason.REFUSAL or self._is_refusal:
            found.append(self._tell(Detector.REFUSAL, "the model says that it declined"))
        blocked = reason in (FinishReason.CONTENT_FILTER, FinishReason.REFUSAL, FinishReason.PAUSE)
        if not self.has_text and not self._call_arguments and not blocked:
            what = "only white space" if self._characters else "no text and no tool call"
            spent = " before its limit of tokens" if reason is FinishReason.LENGTH else ""
            found.append(self._tell(Detector.EMPTY, what + spent))
        elif not blocked:
            found += self._endings(reason, output_tokens)
        return [finding for finding in found if finding is not None]

    def _endings(self, reason: FinishReason, output_tokens: int | None) -> list[Finding | None]:
        found: list[Finding | None] = []
        broken = [i for i, pieces in self._call_arguments.items() if not _is_json("".join(pieces) or "{}")]
        if broken or reason is FinishReason.MALFORMED_TOOL_CALL:
            found.append(self._tell(Detector.UNCLOSED_TOOL_CALL, "the arguments of a tool call are not whole JSON"))
        if self._call_arguments and reason in (FinishReason.STOP, FinishReason.STOP_SEQUENCE):
            found.append(self._tell(Detector.WRONG_FINISH, "it called a tool and says that it stopped"))
        elif reason is FinishReason.TOOL_CALLS and not self._call_arguments:
            found.append(self._tell(Detector.WRONG_FINISH, "it says that it called a tool and did not"))
        elif reason is FinishReason.UNKNOWN:
            raw = self.finish_reason.raw if self.finish_reason else "nothing"
            found.append(self._tell(Detector.WRONG_FINISH, f"it ended for {raw!r}"))
        if self._wants_json and self.has_text and not _is_json("".join(self._json)):
            found.append(self._tell(Detector.TRUNCATED_JSON, f"{self._characters} characters that are not whole JSON"))
        elif reason is FinishReason.LENGTH:
            # The finish reason says it to the client: it is honest, and asking elsewhere would cost the answer twice.
            if self._asked_tokens is None:
                found.append(self._tell(Detector.TRUNCATED_ANSWER, "it ran into its own limit of tokens", act=False))
            elif output_tokens is not None and output_tokens < 0.9 * self._asked_tokens:
                detail = f"cut at {output_tokens} of the {self._asked_tokens} tokens that were asked for"
                found.append(self._tell(Detector.TRUNCATED_ANSWER, detail, act=False))
        elif reason is FinishReason.STOP and not self._call_arguments and dangles(self.tail[-40:]):
            detail = f"it stopped after {self.tail.rstrip()[-30:]!r}"
            found.append(self._tell(Detector.TRUNCATED_ANSWER, detail))
        return found

    def _tell(self, detector: Detector, detail: str, *, act: bool = True) -> Finding | None:
        mode: Mode = getattr(self._mode, detector.value)
        if mode == "off" or detector in self._told:
            return None
        self._told.add(detector)
        return Finding(detector, detail, act and mode == "act")


def watch_answer(answer: Answer, watch: Watch) -> list[Finding]:
    """All findings of a whole answer: a new `watch`, fed with its parts."""
    found: list[Finding | None] = []
    calls = 0
    for part in answer.parts:
        if isinstance(part, Text):
            found += [watch._text(piece, part.is_refusal) for piece in _pieces(part.text)]
        elif isinstance(part, ToolCall):
            watch.feed(ToolCallDelta(calls, part.id, part.name, part.arguments))
            calls += 1
    watch.finish_reason = Finished(answer.finish, answer.raw_finish)
    output_tokens = answer.usage.output_tokens
    return [finding for finding in found if finding is not None] + watch.finish(output_tokens or None)


def _pieces(text: str) -> list[str]:
    """A loop is looked for in the last `TAIL` characters only: a long text is fed as a stream would be."""
    if len(text) <= TAIL:
        return [text]
    return [text[at : at + TAIL // 2] for at in range(0, len(text), TAIL // 2)]


def loop_in(tail: str) -> tuple[int, int] | None:
    """Period in characters and repetitions, where `tail` ends in a loop; None where it does not.

    The last `PROBE` characters are looked for further back: their distance is the only period that can be. What is
    white space or one character only (a ruler, an indent) must fill twice as much.
    """
    size = len(tail)
    if size < LOOP_CHARACTERS:
        return None
    probe = tail[-PROBE:]
    found = tail.rfind(probe, 0, size - 1)
    if found < 0:
        return None
    period = size - PROBE - found
    # The longest suffix that equals itself one period earlier, by bisection on slices: C speed, no Python loop.
    low, high = 0, size - period
    while low < high:
        middle = (low + high + 1) // 2
        if tail[size - middle :] == tail[size - middle - period : size - period]:
            low = middle
        else:
            high = middle - 1
    looped = low + period
    times = looped // period
    needed = LONG_LOOP_TIMES if period >= LONG_PERIOD else LOOP_TIMES
    least = 2 * LOOP_CHARACTERS if period == 1 or tail[-period:].isspace() else LOOP_CHARACTERS
    return (period, times) if times >= needed and looped >= least else None


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return False
    return True
