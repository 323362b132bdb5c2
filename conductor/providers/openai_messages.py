"""The conductor's messages and tools in OpenAI's words.

Enters: `Message`, `Tool`, `ToolChoice`, `AnswerFormat` records. Leaves: JSON-ready dicts. Raises `ProviderError`
UNSUPPORTED for what chat completions cannot say. Thinking is left out: OpenAI takes none back.
"""

from __future__ import annotations

from collections.abc import Iterable

from onebeat.conductor.answers import ProblemKind, ProviderError, ProviderProblem
from onebeat.conductor.records import (
    AnswerFormat,
    Media,
    MediaKind,
    Message,
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
AUDIO_FORMATS = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/mpeg": "mp3", "audio/mp3": "mp3"}


def unsupported(what: str) -> ProviderError:
    return ProviderError(ProviderProblem(ProblemKind.UNSUPPORTED, what))


def messages_of(messages: Iterable[Message], *, keeps_source: bool, keeps_developer: bool) -> list[object]:
    """`keeps_source`: the messages came in OpenAI's own words, so those that nobody changed go out as they came."""
    written: list[object] = []
    for message in messages:
        if keeps_source and message.source is not None and (keeps_developer or message.role is not Role.DEVELOPER):
            written.append(message.source)
        else:
            written.extend(_written(message, keeps_developer))
    return written


def _written(message: Message, keeps_developer: bool) -> list[Json]:
    if message.role is Role.ASSISTANT:
        return [_assistant(message)]
    role = message.role.value
    if message.role is Role.DEVELOPER and not keeps_developer:
        role = Role.SYSTEM.value
    written: list[Json] = []
    contents: list[Json] = []
    for part in message.parts:
        if isinstance(part, ToolResult):
            written.append({"role": "tool", "tool_call_id": part.call_id, "content": _texts(part)})
            # A tool's message holds text only: what it returned to look at follows as the user's.
            contents.extend(media_of(inner) for inner in part.parts if isinstance(inner, Media))
        elif isinstance(part, Text):
            contents.append({"type": "text", "text": part.text})
        elif isinstance(part, Media):
            contents.append(media_of(part))
        elif not isinstance(part, Thinking):
            raise unsupported(f"a {role} message holds a tool call; only an assistant's can.")
    if contents or not written:
        only_text = len(contents) == 1 and contents[0]["type"] == "text"
        whole: Json = {"role": "user" if written else role, "content": contents[0]["text"] if only_text else contents}
        if not contents:
            whole["content"] = ""
        if message.name:
            whole["name"] = message.name
        written.append(whole)
    return written


def _assistant(message: Message) -> Json:
    whole: Json = {"role": "assistant"}
    text = "".join(part.text for part in message.parts if isinstance(part, Text) and not part.is_refusal)
    refusal = "".join(part.text for part in message.parts if isinstance(part, Text) and part.is_refusal)
    calls = [part for part in message.parts if isinstance(part, ToolCall)]
    if any(isinstance(part, Media) for part in message.parts):
        raise unsupported("an assistant's message holds media; chat completions take text and tool calls there.")
    whole["content"] = text or (None if calls or refusal else "")
    if refusal:
        whole["refusal"] = refusal
    if calls:
        whole["tool_calls"] = [call_of(call) for call in calls]
    if message.name:
        whole["name"] = message.name
    return whole


def call_of(call: ToolCall) -> Json:
    written: Json = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    if call.signature is not None:
        written["extra_content"] = {"google": {"thought_signature": call.signature}}
    return written


def _texts(result: ToolResult) -> str:
    return "\n".join(part.text for part in result.parts if isinstance(part, Text))


def media_of(media: Media) -> Json:
    if media.kind is MediaKind.IMAGE and media.file_id is None:
        image: Json = {"url": media.url or f"data:{media.media_type or 'image/png'};base64,{media.data}"}
        if media.detail:
            image["detail"] = media.detail
        return {"type": "image_url", "image_url": image}
    if media.kind is MediaKind.AUDIO and media.data is not None:
        if (form := AUDIO_FORMATS.get(media.media_type or "")) is None:
            raise unsupported(f"a sound of type {media.media_type}; chat completions take wav and mp3.")
        return {"type": "input_audio", "input_audio": {"data": media.data, "format": form}}
    if media.kind is MediaKind.DOCUMENT and media.data is not None:
        data = f"data:{media.media_type or 'application/pdf'};base64,{media.data}"
        return {"type": "file", "file": {"filename": media.name or "document.pdf", "file_data": data}}
    raise unsupported(f"a {media.kind.value} by URL or uploaded elsewhere; chat completions need its data.")


def tool_of(tool: Tool) -> Json:
    function: Json = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def tool_choice_of(choice: ToolChoice) -> object:
    if choice.mode is ToolChoiceMode.NAMED:
        return {"type": "function", "function": {"name": choice.name}}
    return choice.mode.value


def answer_format_of(form: AnswerFormat) -> Json:
    if form.schema is None:
        return {"type": "json_object"}
    schema: Json = {"name": form.name or "answer", "schema": form.schema}
    if form.strict is not None:
        schema["strict"] = form.strict
    return {"type": "json_schema", "json_schema": schema}
