"""From a prompt to the token ids that the backbone reads.

Enters: a string or messages. Leaves: a `Prepared`: ids within the router's budget, how many tokens the prompt had and
how many were left out. Knows no tensors; thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onebeat.engine.control_tokens import ControlTokens, Hidden, parts_of
from onebeat.engine.errors import FormatError, InputError
from onebeat.engine.records import Prompt
from onebeat.engine.router_config import DEFAULT_PROMPT_TOKENS
from onebeat.engine.template import Turn, load_template, turns_of

WHOLE_CHARACTERS_PER_TOKEN = 16
"""A text of up to this many characters per token of the budget is tokenised whole and counted exactly (a token of
English has about 4). A longer one is tokenised at both ends only, and its count is an estimate: 5 MB of English would
take 2.4 s and 1.5 million tokens, of which the budget keeps 2,048."""
SAMPLES, SAMPLE_CHARACTERS = 8, 2048
"""Slices of the middle of a very long text that its token count is estimated from."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prompt, ready for the backbone."""

    token_ids: list[int]
    """At most the router's budget."""
    prompt_tokens: int
    """Tokens of the whole prompt, template included."""
    cut_tokens: int
    """Tokens left out of the middle."""
    estimated: bool = False
    """Whether the two counts are estimates, because the prompt was too long to be worth tokenising whole."""


class PromptTokenizer:
    """A folder's tokenizer.json with a prompt template and a budget. Raises `FormatError` when it cannot be used."""

    def __init__(
        self,
        folder: Path,
        *,
        template: str = "chat",
        max_prompt_tokens: int = DEFAULT_PROMPT_TOKENS,
        vocab_size: int | None = None,
    ) -> None:
        """`vocab_size` is how many rows the embedding has: a tokenizer that knows more tokens is refused."""
        self.max_prompt_tokens = max_prompt_tokens
        self._tokenizer = _load(folder, vocab_size)
        self._template = load_template(folder, template)
        # A chat template writes its own first token; around plain text the tokenizer puts what it was trained with.
        self._before, self._after = ([], []) if template == "chat" else _frame(self._tokenizer)
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._control = ControlTokens([token.content for token in added if token.special])
        self._letters: Any = None
        self._letters_lock = threading.Lock()

    def prepare(self, prompt: Prompt) -> Prepared:
        """Template, tokens, cut. Raises `InputError` for a prompt that is empty or has no text of its own."""
        turns = turns_of(prompt)
        self._refuse_unusable(turns)
        hidden = self._control.hide([turn.content for turn in turns])
        text = self._template.render([Turn(turn.role, text) for turn, text in zip(turns, hidden.texts, strict=True)])
        budget = self.max_prompt_tokens - len(self._before) - len(self._after)
        if len(text) > self.max_prompt_tokens * WHOLE_CHARACTERS_PER_TOKEN:
            ends = self._ends(text, budget, hidden)
            if ends is not None:
                return ends
        ids = self._encode(text, hidden)
        if not ids:
            raise InputError(f"the prompt has 0 tokens ({len(text)} characters); it needs text to be routed by.")
        if len(ids) <= budget:
            return self._prepared(ids, len(ids))
        return self._prepared(_join_ends(ids, ids, budget), len(ids))

    def token_id(self, token: str) -> int | None:
        """The id of a token by its exact name, or None."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def _prepared(self, kept: list[int], tokens: int, *, estimated: bool = False) -> Prepared:
        ids = [*self._before, *kept, *self._after]
        return Prepared(ids, tokens + len(ids) - len(kept), tokens - len(kept), estimated)

    def _ends(self, text: str, budget: int, hidden: Hidden) -> Prepared | None:
        """Tokenises as much of both ends as fills the budget. None when that is the whole text after all."""
        characters = self.max_prompt_tokens * WHOLE_CHARACTERS_PER_TOKEN // 4
        while True:
            if 2 * characters >= len(text):
                return None
            head = self._encode(text[:characters], hidden)
            tail = self._encode(text[len(text) - characters :], hidden)
            # The token at the cut may not be one of the whole text: it must not be among those that are kept.
            if min(len(head), len(tail)) > budget // 2 + 1:
                break
            characters *= 2
        middle = text[characters : len(text) - characters]
        step = max(1, len(middle) // SAMPLES)
        samples = [middle[start : start + SAMPLE_CHARACTERS] for start in range(0, len(middle), step)]
        sampled_tokens = sum(len(self._encode(sample, hidden)) for sample in samples)
        middle_tokens = round(sampled_tokens * len(middle) / max(1, sum(map(len, samples))))
        tokens = max(len(head) + middle_tokens + len(tail), budget + 1)
        return self._prepared(_join_ends(head, tail, budget), tokens, estimated=True)

    def _encode(self, text: str, hidden: Hidden) -> list[int]:
        if not hidden.spelt:
            return self._ids(self._tokenizer, text)
        ids: list[int] = []
        for piece, is_spelling in hidden.pieces(text):
            ids += self._ids(self._letters_tokenizer() if is_spelling else self._tokenizer, piece)
        return ids

    def _ids(self, tokenizer: Any, text: str) -> list[int]:
        if not text:
            return []
        try:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        except (KeyboardInterrupt, SystemExit):
            raise
        except (
            BaseException
        ) as error:  # The tokenizers library raises nothing narrower, and its panics are no Exception.
            raise FormatError(f"tokenizer.json cannot tokenise this prompt ({error}); correct its model.") from error
        return ids

    def _letters_tokenizer(self) -> Any:
        """A second tokenizer that reads control tokens as letters; the setting belongs to the object, not the call."""
        with self._letters_lock:
            if self._letters is None:
                from tokenizers import Tokenizer

                letters = Tokenizer.from_str(self._tokenizer.to_str())
                letters.encode_special_tokens = True
                self._letters = letters
            return self._letters

    def _refuse_unusable(self, turns: Sequence[Turn]) -> None:
        length = sum(len(turn.content) for turn in turns)
        for turn in turns:
            _refuse_half_surrogates(turn.content)
        if not any(turn.content and not turn.content.isspace() for turn in turns):
            found = f"only {length} characters of white space" if length else "0 characters"
            raise InputError(f"the prompt is empty ({found}); it needs text to be routed by.")
        if all(self._control.is_all_of(turn.content) for turn in turns):
            raise InputError(
                f"the prompt's {length} characters are nothing but the model's own control tokens; "
                "it needs text to be routed by."
            )


def _join_ends(head: list[int], tail: list[int], budget: int) -> list[int]:
    """The first half of the budget from `head`, the rest from the end of `tail`."""
    return head[: budget // 2] + tail[len(tail) - (budget - budget // 2) :]


def _load(folder: Path, vocab_size: int | None) -> Any:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FormatError(f"{folder} has no tokenizer.json; export the tokenizer with save_pretrained of transformers.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the tokenizers library raises bare Exception, or panics
        raise FormatError(f"{path} is not a tokenizer ({error}); fetch the checkpoint again.") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    known = tokenizer.get_vocab_size(with_added_tokens=True)
    if vocab_size is not None and known > vocab_size:
        raise FormatError(
            f"{path} knows {known} tokens and the embedding has {vocab_size} rows; "
            "they belong to different checkpoints."
        )
    return tokenizer


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after a text, such as Llama's first token."""
    bare: list[int] = tokenizer.encode("beat", add_special_tokens=False).ids
    framed: list[int] = tokenizer.encode("beat", add_special_tokens=True).ids
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return framed[:start], framed[start + len(bare) :]
    return [], []


def _refuse_half_surrogates(text: str) -> None:
    """Python strings can hold halves of surrogate pairs; UTF-8, and so the tokenizer, cannot."""
    before = 0
    for part in parts_of(text):
        try:
            part.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the prompt holds half a surrogate pair (U+{ord(part[error.start]):04X} at character "
                f"{before + error.start}); send valid Unicode."
            ) from None
        before += len(part)
