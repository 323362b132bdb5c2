"""From a prompt or a conversation to the one text that the backbone reads.

Enters: a string or OpenAI-style messages, and the folder's chat template or a text with `{prompt}` in it. Leaves: text.
Knows no tokens. Content that is no text (an image, a tool call) is named in brackets, never dropped in silence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onebeat.engine.errors import FormatError, InputError
from onebeat.engine.records import Prompt
from onebeat.engine.router_config import PROMPT_MARK
from onebeat.engine.strict_json import read_object, shown

if TYPE_CHECKING:
    from jinja2 import Template

ROLES = {"developer": "system", "function": "tool", "model": "assistant"}
"""Roles that chat templates do not know, and the one that each stands for."""
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message as plain text."""

    role: str
    content: str


def turns_of(prompt: Prompt) -> list[Turn]:
    """The conversation that `prompt` is; a string is one user message. Raises `InputError` for what cannot be read."""
    if isinstance(prompt, str):
        return [Turn("user", prompt)]
    if not isinstance(prompt, list) or not prompt:
        raise InputError(f"a prompt is {shown(prompt)}; give a string or a list of at least one message.")
    turns = []
    for index, message in enumerate(prompt):
        role = message.get("role") if isinstance(message, Mapping) else None
        # Templates print the role among their control tokens: it must not be able to spell one.
        if not isinstance(role, str) or not re.fullmatch(r"[A-Za-z_-]{1,32}", role):
            raise InputError(f'message {index} is {shown(message)}; it must be {{"role": ..., "content": ...}}.')
        text = _text_of(message.get("content"), f"message {index}")
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            text = "\n".join(filter(None, [text, *(f"[tool call {_call(call)}]" for call in calls)]))
        turns.append(Turn(ROLES.get(role, role), text))
    return turns


def transcript(turns: Sequence[Turn]) -> str:
    """The conversation as one text: a lone message as it is, several with their roles in front."""
    if len(turns) == 1:
        return turns[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)


@dataclass(frozen=True, slots=True)
class PlainTemplate:
    """A text around the prompt."""

    text: str

    def render(self, turns: Sequence[Turn]) -> str:
        """The text with the transcript in the place of `{prompt}`."""
        before, _, after = self.text.partition(PROMPT_MARK)
        return before + transcript(turns) + after


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The checkpoint's own chat template, ending where the assistant would begin."""

    template: Template
    tokens: Mapping[str, str]

    def render(self, turns: Sequence[Turn]) -> str:
        """The rendered conversation.

        Templates refuse shapes that they do not know (Mistral's wants user and assistant in turns): such a conversation
        is rendered as a single user message that holds its transcript. Raises `InputError` when even that is refused.
        """
        refusal: Exception
        try:
            return self._render(turns)
        except Exception as error:  # noqa: BLE001 - a template's expressions can raise whatever Python's can
            refusal = error
        try:
            return self._render([Turn("user", transcript(turns))])
        except Exception:  # noqa: BLE001 - as above; what is told is why the conversation itself was refused
            raise InputError(f"the chat template refuses this conversation ({refusal}).") from refusal

    def _render(self, turns: Sequence[Turn]) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        return self.template.render(messages=messages, add_generation_prompt=True, **self.tokens)


def load_template(folder: Path, template: str) -> PlainTemplate | ChatTemplate:
    """`chat`: the folder's chat template, tried once; else `template` is the text itself. Raises `FormatError`."""
    if template != "chat":
        return PlainTemplate(template)
    settings = read_object(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    source = _chat_template_source(folder, settings)
    if source is None:
        raise FormatError(
            f'{folder} has no chat template (chat_template in tokenizer_config.json); set template to "{PROMPT_MARK}" '
            "in router.json, or fetch the template."
        )
    from jinja2 import TemplateError

    try:
        chat = ChatTemplate(_environment().from_string(source), _special_tokens(settings))
        works = "beat" in chat.render([Turn("user", "beat")])
    except (TemplateError, InputError, RecursionError) as error:
        raise FormatError(f"the chat template in {folder} cannot be rendered ({error}); correct it.") from error
    if not works:
        raise FormatError(f"the chat template in {folder} leaves out the user's message; correct it.")
    return chat


def _environment() -> Any:
    """Jinja as transformers sets it up for chat templates: sandboxed, blocks trimmed.

    `strftime_now` stays undefined on purpose: a template that prints the date falls back to its own constant, and the
    same prompt has the same score tomorrow.
    """
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    return environment


def _chat_template_source(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Where transformers looks: chat_template.jinja, then chat_template.json, then tokenizer_config.json."""
    found: Any = settings.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        try:
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FormatError(f"{folder / 'chat_template.jinja'} cannot be read: {error}.") from error
    if (folder / "chat_template.json").is_file():
        found = read_object(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise FormatError(f"the chat template in {folder} is {shown(found)}; it must be text.")
    return found


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and its like, which templates print; transformers writes them as text or as `{"content": ...}`."""
    tokens = {}
    for name in SPECIAL_TOKENS:
        value = settings.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _text_of(content: object, place: str) -> str:
    """The text of a message's content: a string, nothing, or parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InputError(f"the content of {place} is {shown(content)}; it must be text or a list of parts.")
    return "\n".join(_part(part, place) for part in content)


def _part(part: object, place: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise InputError(f'a part of {place} is {shown(part)}; it must be {{"type": ..., ...}}.')
    kind, text = part["type"], part.get("text")
    if isinstance(text, str):
        return text
    if kind == "tool_result":
        return _text_of(part.get("content"), place)
    if kind == "tool_use":
        return f"[tool call {_call(part)}]"
    return f"[{kind}]"


def _call(call: object) -> str:
    """Name and arguments of a tool call, in OpenAI's form or Anthropic's."""
    if not isinstance(call, Mapping):
        return ""
    function = call.get("function", call)
    if not isinstance(function, Mapping):
        return ""
    arguments = function.get("arguments", function.get("input", ""))
    return f"{function.get('name', '')} {arguments if isinstance(arguments, str) else shown(arguments)}".strip()
