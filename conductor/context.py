"""How many tokens a request is for each candidate, and what to leave out where it fits none.

Enters: a `ChatRequest`, a model's bytes per token. Leaves: token estimates, and shorter requests made of whole turns.
Knows no vendor's tokenizer: it counts bytes, and corrects itself per model by the usage that comes back
(`TokenScale`), so that an estimate is within a few per cent after some tens of answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import Struct

from onebeat.conductor.records import (
    ChatRequest,
    Media,
    MediaKind,
    Message,
    Role,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
)

MESSAGE_TOKENS = 4
"""What the frame of a message costs: OpenAI documents 3 to 4 for its chat format."""
IMAGE_TOKENS = 1_000
"""An image of about 1 megapixel: 765 to 1,105 tokens at OpenAI, 1,334 at Anthropic, 258 a tile at Gemini."""
AUDIO_TOKENS_PER_BYTE = 1 / 1_500
"""Base64 of 16 kbit/s speech at Gemini's 32 tokens a second; nothing better is known without decoding."""
DOCUMENT_TOKENS_PER_BYTE = 1 / 40
WIDE_BYTES_PER_TOKEN = 2.6
"""UTF-8 bytes per token outside ASCII: Chinese about 2.5 to 3, Cyrillic 3 to 4, emoji 1.3 to 2."""
MARGIN = 1.05
"""An estimate is taken this much higher where it decides whether a request fits a window."""


class PromptSize(Struct, frozen=True, gc=False):
    """What there is to read, before any model's tokenizer: bytes inside and outside ASCII, and fixed tokens."""

    ascii_bytes: int
    wide_bytes: int
    fixed_tokens: int

    def tokens(self, bytes_per_token: float, scale: float = 1.0) -> int:
        """The estimate for one model. `scale` is what `TokenScale` has learned for it."""
        text = self.ascii_bytes / bytes_per_token + self.wide_bytes / WIDE_BYTES_PER_TOKEN
        return int(scale * text + self.fixed_tokens) + 1


def size_of(request: ChatRequest) -> PromptSize:
    """The size of messages and tools."""
    narrow = wide = fixed = 0
    for message in request.messages:
        a, w, f = _size_of_message(message)
        narrow += a
        wide += w
        fixed += f
    for tool in request.tools:
        narrow += len(tool.name) + len(tool.description or "") + (len(bytes(tool.parameters)) if tool.parameters else 0)
        fixed += 2 * MESSAGE_TOKENS
    if request.answer_format is not None and request.answer_format.schema is not None:
        narrow += len(bytes(request.answer_format.schema))
    return PromptSize(narrow, wide, fixed)


def _size_of_message(message: Message) -> tuple[int, int, int]:
    narrow = wide = 0
    fixed = MESSAGE_TOKENS
    for part in message.parts:
        if isinstance(part, Media):
            fixed += _media_tokens(part)
            continue
        if isinstance(part, Text | Thinking):
            texts: Sequence[str] = (part.text,)
        elif isinstance(part, ToolCall):
            texts = (part.name, part.arguments)
            fixed += MESSAGE_TOKENS
        else:
            texts = [inner.text for inner in part.parts if isinstance(inner, Text)]
            fixed += sum(_media_tokens(inner) for inner in part.parts if isinstance(inner, Media))
        for text in texts:
            if text.isascii():
                narrow += len(text)
            else:
                total = len(text.encode("utf-8", "surrogatepass"))
                plain = len(text.encode("ascii", "ignore"))
                narrow += plain
                wide += total - plain
    return narrow, wide, fixed


def _media_tokens(media: Media) -> int:
    if media.kind is MediaKind.IMAGE:
        return 85 if media.detail == "low" else IMAGE_TOKENS
    size = len(media.data) if media.data is not None else 100_000
    return int(size * (AUDIO_TOKENS_PER_BYTE if media.kind is MediaKind.AUDIO else DOCUMENT_TOKENS_PER_BYTE)) + 1


class TokenScale:
    """How far a model's own count is from our estimate: a running ratio, learned from the usage of its answers."""

    __slots__ = ("ratio",)

    def __init__(self) -> None:
        self.ratio = 1.0

    def learn(self, estimated: int, counted: int) -> None:
        """`estimated` with the ratio in force. Short prompts teach nothing: their frame outweighs their text."""
        if estimated >= 50 and counted > 0:
            seen = self.ratio * min(4.0, max(0.25, counted / estimated))
            self.ratio = min(4.0, max(0.25, self.ratio + 0.05 * (seen - self.ratio)))


@dataclass(frozen=True, slots=True)
class Shortened:
    """A request after whole turns were left out."""

    request: ChatRequest
    dropped_messages: int
    dropped_turns: int


def turns_of(messages: Sequence[Message]) -> tuple[list[int], list[list[int]]]:
    """Indices of the system's messages, and of each turn: what a user says and everything until he speaks again.

    A turn starts at a user's message that follows an answer; results of tools never start one, so a call and its result
    are always in the same turn.
    """
    system: list[int] = []
    turns: list[list[int]] = []
    answered = True
    for index, message in enumerate(messages):
        if message.role in (Role.SYSTEM, Role.DEVELOPER):
            system.append(index)
            continue
        is_result = message.role is Role.TOOL or any(isinstance(part, ToolResult) for part in message.parts)
        starts = message.role is Role.USER and not is_result and answered
        if starts or not turns:
            turns.append([])
            answered = False
        turns[-1].append(index)
        answered = answered or message.role is Role.ASSISTANT
    return system, turns


def drop_oldest(request: ChatRequest, window_tokens: int, bytes_per_token: float, scale: float) -> Shortened | None:
    """The request without its oldest turns, so that it fits `window_tokens`; None where the last turn alone does not.

    The system's messages and the newest turn always stay, in their order.
    """
    system, turns = turns_of(request.messages)
    sizes = [PromptSize(*_size_of_message(message)) for message in request.messages]
    tokens = [size.tokens(bytes_per_token, scale) for size in sizes]
    bare = size_of(request.with_messages(()))
    room = window_tokens - bare.tokens(bytes_per_token, scale) - sum(tokens[index] for index in system)
    kept: list[int] = []
    first_kept = len(turns)
    for number in range(len(turns) - 1, -1, -1):
        room -= sum(tokens[index] for index in turns[number])
        if room < 0:
            break
        kept += turns[number]
        first_kept = number
    if not turns or first_kept == len(turns):
        return None
    indices = sorted(system + kept)
    shorter = request.with_messages([request.messages[index] for index in indices])
    return Shortened(shorter, len(request.messages) - len(indices), first_kept)
