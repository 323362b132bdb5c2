"""The conductor's messages and tools in Anthropic's words.

Enters: `Message`, `Tool`, `ToolChoice` records. Leaves: JSON-ready dicts. Raises `ProviderError` UNSUPPORTED for what
the Messages API cannot say. System messages leave the conversation for the top-level `system`, in their order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec
from msgspec import Raw

from onebeat.conductor.providers.openai_messages import unsupported
from onebeat.conductor.records import (
    Media,
    MediaKind,
    Message,
    Part,
    Role,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
    ToolResult,
)

Json = dict[str, object]
_NOT_ID = re.compile(r"[^a-zA-Z0-9_-]")
_OBJECT = msgspec.json.Decoder(dict[str, Raw])


def system_of(messages: Iterable[Message], *, keeps_source: bool) -> object | None:
    """The top-level `system`: the client's own where it is the only one and unchanged, else text blocks."""
    given = [message for message in messages if message.role in (Role.SYSTEM, Role.DEVELOPER)]
    if keeps_source and len(given) == 1 and given[0].source is not None:
        return given[0].source
    texts = [part.text for message in given for part in message.parts if isinstance(part, Text) and part.text]
    return "\n\n".join(texts) or None


def messages_of(messages: Iterable[Message], *, keeps_source: bool) -> list[object]:
    """`keeps_source`: the messages came in Anthropic's own words, so those that nobody changed go out as they came."""
    written: list[object] = []
    for message in messages:
        if message.role in (Role.SYSTEM, Role.DEVELOPER):
            continue
        if keeps_source and message.source is not None:
            written.append(message.source)
            continue
        role = "assistant" if message.role is Role.ASSISTANT else "user"
        blocks = [block for part in message.parts if (block := block_of(part)) is not None]
        last = written[-1] if written else None
        # The results of one turn's calls must come in one message, so neighbours of one role become one.
        if isinstance(last, dict) and last["role"] == role and isinstance(last["content"], list):
            last["content"].extend(blocks)
        elif blocks:
            written.append({"role": role, "content": blocks})
    if isinstance(tail := written[-1] if written else None, dict) and tail["role"] == "assistant":
        _trim(tail)
    return written


def _trim(tail: Json) -> None:
    # A prefill that ends in white space is refused.
    blocks = tail["content"]
    if isinstance(blocks, list) and blocks and blocks[-1]["type"] == "text":
        blocks[-1]["text"] = blocks[-1]["text"].rstrip()
        if not blocks[-1]["text"]:
            blocks.pop()


def block_of(part: Part) -> Json | None:
    """None for what Anthropic refuses to be given: an empty text, thinking that another vendor wrote."""
    if isinstance(part, Text):
        return {"type": "text", "text": part.text} if part.text.strip() else None
    if isinstance(part, Media):
        return media_of(part)
    if isinstance(part, ToolCall):
        return {"type": "tool_use", "id": tool_id(part.id), "name": part.name, "input": input_of(part.arguments)}
    if isinstance(part, ToolResult):
        inner = [block for each in part.parts if (block := block_of(each)) is not None]
        result: Json = {"type": "tool_result", "tool_use_id": tool_id(part.call_id)}
        if inner:
            only_text = len(inner) == 1 and inner[0]["type"] == "text"
            result["content"] = inner[0]["text"] if only_text else inner
        if part.is_error:
            result["is_error"] = True
        return result
    return thinking_of(part)


def thinking_of(part: Thinking) -> Json | None:
    if part.redacted is not None:
        return {"type": "redacted_thinking", "data": part.redacted}
    if part.signature is None:
        return None
    return {"type": "thinking", "thinking": part.text, "signature": part.signature}


def input_of(arguments: str) -> object:
    """Anthropic takes an object only; what a model wrote that is none is kept under one key."""
    if not arguments.strip():
        return {}
    try:
        _OBJECT.decode(arguments)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {"arguments": arguments}
    return Raw(arguments.encode())


def tool_id(call_id: str) -> str:
    return _NOT_ID.sub("_", call_id) or "call"


def media_of(media: Media) -> Json:
    if media.kind is MediaKind.AUDIO:
        raise unsupported("a sound; the Messages API takes images and documents.")
    block: Json = {"type": media.kind.value}
    if media.file_id is not None:
        block["source"] = {"type": "file", "file_id": media.file_id}
    elif media.url is not None:
        block["source"] = {"type": "url", "url": media.url}
    elif media.kind is MediaKind.DOCUMENT and media.media_type == "text/plain":
        raise unsupported("a plain text document as base64; send it as text.")
    else:
        default = "image/png" if media.kind is MediaKind.IMAGE else "application/pdf"
        block["source"] = {"type": "base64", "media_type": media.media_type or default, "data": media.data}
    if media.kind is MediaKind.DOCUMENT and media.name:
        block["title"] = media.name
    return block


def tool_of(tool: Tool) -> Json:
    written: Json = {"name": tool.name, "input_schema": tool.parameters or {"type": "object", "properties": {}}}
    if tool.description is not None:
        written["description"] = tool.description
    if tool.strict:
        written["strict"] = True
    return written


def tool_choice_of(choice: ToolChoice | None, parallel: bool | None) -> Json | None:
    if choice is None and parallel is None:
        return None
    mode = choice.mode if choice else ToolChoiceMode.AUTO
    written: Json = {"type": {ToolChoiceMode.REQUIRED: "any", ToolChoiceMode.NAMED: "tool"}.get(mode, mode.value)}
    if choice and choice.name is not None:
        written["name"] = choice.name
    if parallel is not None and mode is not ToolChoiceMode.NONE:
        written["disable_parallel_tool_use"] = not parallel
    return written
