"""The conductor's messages and tools in Gemini's words.

Enters: `Message`, `Tool`, `ToolChoice` records. Leaves: JSON-ready dicts. Raises `ProviderError` UNSUPPORTED for what
generateContent cannot say. Tool results are named by their function here, so the calls before them are looked up.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Iterable

import msgspec
from msgspec import Raw

from onebeat.conductor.providers.openai_messages import unsupported
from onebeat.conductor.records import (
    Media,
    MediaKind,
    Message,
    Role,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
    ToolResult,
)

Json = dict[str, object]
UNSIGNED = "skip_thought_signature_validator"
"""Gemini's documented signature for a call that another model made: Gemini 3 refuses a turn's first call unsigned."""
_OBJECT = msgspec.json.Decoder(dict[str, Raw])


def system_of(messages: Iterable[Message]) -> Json | None:
    texts = [
        part.text
        for message in messages
        if message.role in (Role.SYSTEM, Role.DEVELOPER)
        for part in message.parts
        if isinstance(part, Text) and part.text
    ]
    return {"parts": [{"text": text} for text in texts]} if texts else None


def contents_of(messages: Iterable[Message], *, signs_calls: bool) -> list[Json]:
    """`signs_calls`: calls that carry no signature get the one that Gemini's documentation gives for them."""
    contents: list[Json] = []
    names: dict[str, str] = {}
    for message in messages:
        if message.role in (Role.SYSTEM, Role.DEVELOPER):
            continue
        role = "model" if message.role is Role.ASSISTANT else "user"
        parts = _parts(message, names, signs_calls)
        last = contents[-1] if contents else None
        # Neighbours of one role become one: the results of a turn's calls must come together.
        if last is not None and last["role"] == role:
            assert isinstance(last["parts"], list)
            last["parts"].extend(parts)
        elif parts:
            contents.append({"role": role, "parts": parts})
    return contents


def _parts(message: Message, names: dict[str, str], signs_calls: bool) -> list[Json]:
    parts: list[Json] = []
    has_call = False
    for part in message.parts:
        if isinstance(part, Text):
            if part.text:
                parts.append({"text": part.text})
        elif isinstance(part, Media):
            parts.append(media_of(part))
        elif isinstance(part, ToolCall):
            names[part.id] = part.name
            call: Json = {"functionCall": {"name": part.name, "args": _object(part.arguments, "arguments")}}
            # Parallel calls carry one signature, on the first.
            if part.signature is not None or (signs_calls and not has_call):
                call["thoughtSignature"] = part.signature or UNSIGNED
            has_call = True
            parts.append(call)
        elif isinstance(part, ToolResult):
            parts.extend(_result(part, names))
    return parts


def _result(result: ToolResult, names: dict[str, str]) -> list[Json]:
    text = "\n".join(part.text for part in result.parts if isinstance(part, Text))
    key = "error" if result.is_error else "result"
    response = {key: text} if result.is_error else _object(text, key)
    name = names.get(result.call_id, result.call_id)
    media = [media_of(part) for part in result.parts if isinstance(part, Media)]
    return [{"functionResponse": {"name": name, "response": response}}, *media]


def _object(text: str, key: str) -> object:
    """Gemini takes an object only; what is none is kept under one key."""
    if not text.strip():
        return {}
    try:
        _OBJECT.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {key: text}
    return Raw(text.encode())


def media_of(media: Media) -> Json:
    if media.file_id is not None:
        raise unsupported("a file uploaded to another vendor; Gemini cannot read it.")
    media_type = media.media_type
    if media.url is not None:
        guessed = media_type or mimetypes.guess_type(media.url.partition("?")[0])[0]
        data: Json = {"fileUri": media.url}
        return {"fileData": data | {"mimeType": guessed} if guessed else data}
    default = {MediaKind.IMAGE: "image/png", MediaKind.AUDIO: "audio/wav", MediaKind.DOCUMENT: "application/pdf"}
    return {"inlineData": {"mimeType": media_type or default[media.kind], "data": media.data}}


def tools_of(tools: Iterable[Tool]) -> list[Json]:
    declarations: list[Json] = []
    for tool in tools:
        declaration: Json = {"name": tool.name, "description": tool.description or tool.name}
        if tool.parameters is not None:
            declaration["parametersJsonSchema"] = tool.parameters
        declarations.append(declaration)
    return [{"functionDeclarations": declarations}]


def tool_choice_of(choice: ToolChoice) -> Json:
    config: Json = {
        "mode": {ToolChoiceMode.AUTO: "AUTO", ToolChoiceMode.NONE: "NONE"}.get(choice.mode, "ANY"),
    }
    if choice.mode is ToolChoiceMode.NAMED:
        config["allowedFunctionNames"] = [choice.name]
    return {"functionCallingConfig": config}
