"""What a simulated model says: the same prompt gives the same words at every vendor, so that answers can be compared.

Enters: what was asked (`Asked`) and a `Behaviour`. Leaves: a `Speech`: reasoning, text in pieces, calls, finish.
A token is four characters, rounded up: every vendor counts alike, so that a ledger can be reconciled.
"""

from __future__ import annotations

import json
import random
import secrets
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from tools.simulated_providers.script import Behaviour, Fault

WORDS = tuple(
    "river stone harbour lantern meadow copper winter signal orchard violet engine pepper canyon marble "  # noqa: SIM905
    "thunder willow saddle anchor ribbon summit cobalt feather timber glacier velvet compass ember quarry "
    "sparrow tunnel almond beacon cedar delta falcon garnet hollow island jasmine kettle lagoon mantle".split()
)
REFUSAL = "I'm sorry, but I can't help with that request."
LOOP = "the river runs to the sea and "


@dataclass(frozen=True, slots=True)
class Asked:
    """One call, as any of the three formats means it."""

    model: str
    stream: bool
    question: str
    """The last user message's text."""
    prompt_characters: int
    tools: tuple[tuple[str, dict[str, Any]], ...] = ()
    """(name, JSON schema of the arguments)."""
    forced_tool: str | None = None
    may_call: bool = True
    has_tool_result: bool = False
    wants_json: bool = False
    schema: dict[str, Any] | None = None
    prefill: str | None = None
    """The text of a last message by the assistant."""
    max_tokens: int | None = None
    include_usage: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Speech:
    id: str
    model: str
    pieces: tuple[str, ...]
    reasoning: tuple[str, ...]
    calls: tuple[Call, ...]
    finish: str
    """stop | length | tool_calls | content_filter | wrong (a reason that the answer belies)."""
    input_tokens: int
    cached_tokens: int
    is_refusal: bool = False
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def reasoning_tokens(self) -> int:
        return tokens("".join(self.reasoning))

    @property
    def output_tokens(self) -> int:
        return tokens(self.text) + self.reasoning_tokens + sum(tokens(call.arguments) for call in self.calls)


def tokens(text: str) -> int:
    return -(-len(text) // 4)


def full_text(question: str, words: int) -> str:
    """The good answer to a question: no phrase of it repeats."""
    dice = random.Random(crc32(question.encode()))
    body = " ".join(f"{dice.choice(WORDS)} {number}" for number in range(1, max(2, words // 2)))
    return f"Here is what I know of {question[:60].strip() or 'nothing'}: {body}."


def speak(asked: Asked, behaviour: Behaviour) -> Speech:
    """Everything but the transport's faults: those happen to this speech on its way."""
    finish, is_refusal = "stop", False
    calls: tuple[Call, ...] = ()
    text = full_text(asked.question, behaviour.words)
    if behaviour.fault is Fault.REFUSAL:
        text = REFUSAL
        is_refusal = True
    elif behaviour.fault is Fault.EMPTY:
        text = ""
    elif behaviour.fault is Fault.BLANK:
        text = " \n\n \n"
    elif behaviour.fault is Fault.LOOP:
        text = LOOP * 120
        finish = "length"
    elif tool := _tool(asked):
        text, calls, finish = "", (_call(*tool),), "tool_calls"
    elif asked.wants_json:
        text = json.dumps(_instance(asked.schema) if asked.schema else {"answer": text})
    if asked.prefill and not calls:
        # A continuation: what was said already is not said again.
        text = text[len(asked.prefill) :] if text.startswith(asked.prefill) else " " + text
    limit = asked.max_tokens * 4 if asked.max_tokens else None
    if limit is not None and len(text) > limit:
        text, finish = text[:limit], "length"
    if behaviour.fault is Fault.TRUNCATED:
        text, finish = text[: max(1, len(text) // 2)], "length"
    elif behaviour.fault is Fault.WRONG_FINISH:
        text, finish = text[: max(1, len(text) // 2)], "wrong"
    elif behaviour.fault is Fault.FILTERED:
        text, finish = text[: max(1, len(text) // 3)], "content_filter"
    reasoning = full_text("thinking about " + asked.question, behaviour.reasoning) if behaviour.reasoning else ""
    input_tokens = max(1, -(-asked.prompt_characters // 4))
    return Speech(
        id=secrets.token_hex(12),
        model=asked.model,
        pieces=_pieces(text),
        reasoning=_pieces(reasoning),
        calls=calls,
        finish=finish,
        input_tokens=input_tokens,
        cached_tokens=min(behaviour.cached, input_tokens),
        is_refusal=is_refusal,
    )


def _pieces(text: str) -> tuple[str, ...]:
    """A word each, with the white space before it."""
    pieces: list[str] = []
    begin = 0
    for index in range(1, len(text)):
        if text[index] == " " and text[index - 1] != " ":
            pieces.append(text[begin:index])
            begin = index
    return (*pieces, text[begin:]) if text else ()


def _tool(asked: Asked) -> tuple[str, dict[str, Any]] | None:
    if not asked.tools or not asked.may_call or (asked.has_tool_result and not asked.forced_tool):
        return None
    by_name = dict(asked.tools)
    name = asked.forced_tool if asked.forced_tool in by_name else asked.tools[0][0]
    return name, by_name[name]


def _call(name: str, schema: dict[str, Any]) -> Call:
    return Call(f"call_{secrets.token_hex(8)}", name, json.dumps(_instance(schema)))


def _instance(schema: dict[str, Any] | None) -> Any:
    """The plainest value that satisfies a JSON schema of the usual kinds."""
    schema = schema or {}
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        return {name: _instance(inner) for name, inner in schema.get("properties", {}).items()}
    if kind == "array":
        return [_instance(schema.get("items", {}))]
    return {"integer": 7, "number": 7.5, "boolean": True, "null": None}.get(kind, "Paris")
