"""`POST /v1/chat/completions` read into a `ChatRequest`.

Enters: the body and headers. Leaves: the request, with the client's own JSON kept beside the translation. Raises
`RequestError` for what OpenAI would refuse too, so that nothing malformed reaches a provider.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Raw

from onebeat.conductor.faces.openai_shapes import (
    GivenBody,
    GivenChoice,
    GivenFormat,
    GivenMessage,
    GivenPart,
    GivenTool,
)
from onebeat.conductor.faces.parsing import (
    TOOL_NAME,
    decoded,
    fields_of,
    media_of,
    nearest,
    options_of,
    schema_of,
)
from onebeat.conductor.records import (
    AnswerFormat,
    ChatRequest,
    Media,
    MediaKind,
    Message,
    Part,
    RequestError,
    Role,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
    ToolResult,
    WireFormat,
    present,
)

_BODY = msgspec.json.Decoder(GivenBody)
_MESSAGE = msgspec.json.Decoder(GivenMessage)
_ROLES = {role.value: role for role in Role} | {"function": Role.TOOL}
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def parse(body: bytes, headers: Mapping[str, str]) -> ChatRequest:
    """Raises `RequestError`."""
    wire = fields_of(body)
    options = options_of(wire.pop("onebeat", None), headers)
    given = decoded(_BODY, body)
    if given.n not in (None, 1):
        raise RequestError(f"n is {given.n}; onebeat gives one answer a request: send {given.n} requests.", param="n")
    messages, native_only = _messages(given.messages)
    tools, vendor_tool = _tools(given.tools)
    effort = given.reasoning_effort
    if effort is not None and effort not in _EFFORTS:
        raise RequestError(f"reasoning_effort is {effort!r}{nearest(effort, _EFFORTS)}.", param="reasoning_effort")
    choice, vendor_choice = _tool_choice(given.tool_choice, tools, bool(vendor_tool))
    kinds = {part.kind for message in messages for part in message.parts if isinstance(part, Media)}
    return ChatRequest(
        face=WireFormat.OPENAI,
        model=given.model,
        messages=messages,
        wire=wire,
        stream=bool(given.stream),
        include_usage=bool(given.stream_options and given.stream_options.include_usage),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=given.parallel_tool_calls,
        answer_format=_answer_format(given.response_format),
        max_output_tokens=given.max_completion_tokens or given.max_tokens,
        stop=(given.stop,) if isinstance(given.stop, str) else tuple(given.stop or ()),
        temperature=given.temperature,
        top_p=given.top_p,
        top_k=given.top_k,
        seed=given.seed,
        presence_penalty=given.presence_penalty,
        frequency_penalty=given.frequency_penalty,
        reasoning_effort=effort,
        user=given.user,
        native_only=native_only or vendor_tool or vendor_choice or _vendor_feature(given),
        options=options,
        has_images=MediaKind.IMAGE in kinds,
        has_audio=MediaKind.AUDIO in kinds,
        has_documents=MediaKind.DOCUMENT in kinds,
    )


def _vendor_feature(given: GivenBody) -> str | None:
    if present(given.functions) is not None:
        return "the deprecated field `functions`"
    if present(given.web_search_options) is not None:
        return "OpenAI's web search"
    return "spoken output" if given.modalities and "audio" in given.modalities else None


def _messages(raws: list[Raw]) -> tuple[tuple[Message, ...], str | None]:
    """Raises `RequestError`. The second value names what only OpenAI can serve."""
    if not raws:
        raise RequestError("messages is empty; send at least one message.", param="messages")
    messages: list[Message] = []
    open_calls: set[str] = set()
    native_only: str | None = None
    for index, raw in enumerate(raws):
        where = f"messages[{index}]"
        given = decoded(_MESSAGE, raw, where)
        if given.role not in _ROLES:
            raise RequestError(f"{where}.role is {given.role!r}{nearest(given.role, _ROLES)}.", param=f"{where}.role")
        parts = _parts(given.content, where)
        if given.role == "assistant":
            parts += _assistant_parts(given, where)
            open_calls.update(part.id for part in parts if isinstance(part, ToolCall))
            if given.function_call is not None or any(call.function is None for call in given.tool_calls or ()):
                native_only = "a deprecated function call or a custom tool's call in the history"
        elif given.role == "tool":
            if not given.tool_call_id:
                raise RequestError(f"{where} has no tool_call_id; name the call that it answers.", param=where)
            if given.tool_call_id not in open_calls:
                raise RequestError(
                    f"{where} answers the call {given.tool_call_id!r}, which no earlier assistant message made.",
                    param=f"{where}.tool_call_id",
                )
            parts = [ToolResult(given.tool_call_id, tuple(p for p in parts if isinstance(p, Text | Media)))]
        elif given.role == "function":
            native_only = "the deprecated role `function`"
            parts = [ToolResult(given.name or "", tuple(p for p in parts if isinstance(p, Text | Media)))]
        elif given.content is None:
            raise RequestError(f"{where}.content is missing; a {given.role} message needs it.", param=where)
        if any(isinstance(part, Media) and part.file_id for part in parts):
            native_only = "a file uploaded to OpenAI"
        messages.append(Message(_ROLES[given.role], tuple(parts), given.name, raw))
    return tuple(messages), native_only


def _parts(content: str | list[GivenPart] | None, where: str) -> list[Part]:
    if content is None:
        return []
    if isinstance(content, str):
        return [Text(content)]
    if not content:
        raise RequestError(f"{where}.content is an empty list; send text or at least one part.", param=where)
    return [_part(part, f"{where}.content[{index}]") for index, part in enumerate(content)]


def _part(part: GivenPart, where: str) -> Part:
    if part.type == "text" and part.text is not None:
        return Text(part.text)
    if part.type == "image_url" and part.image_url is not None:
        return media_of(part.image_url.url, MediaKind.IMAGE, f"{where}.image_url.url", part.image_url.detail)
    if part.type == "input_audio" and part.input_audio is not None:
        media_type = {"wav": "audio/wav", "mp3": "audio/mpeg"}.get(part.input_audio.format)
        if media_type is None:
            raise RequestError(
                f"{where}.input_audio.format is {part.input_audio.format!r}; send wav or mp3.", param=where
            )
        return Media(MediaKind.AUDIO, media_type, part.input_audio.data)
    if part.type == "file" and part.file is not None:
        if part.file.file_id:
            return Media(MediaKind.DOCUMENT, file_id=part.file.file_id, name=part.file.filename)
        if part.file.file_data:
            path = f"{where}.file.file_data"
            return media_of(part.file.file_data, MediaKind.DOCUMENT, path, name=part.file.filename)
    if part.type == "refusal" and part.refusal is not None:
        return Text(part.refusal, is_refusal=True)
    known = ("text", "image_url", "input_audio", "file", "refusal")
    if part.type in known:
        raise RequestError(f"{where} is of type {part.type!r} but holds no such field.", param=where)
    raise RequestError(f"{where}.type is {part.type!r}{nearest(part.type, known)}.", param=f"{where}.type")


def _assistant_parts(given: GivenMessage, where: str) -> list[Part]:
    parts: list[Part] = []
    if given.refusal:
        parts.append(Text(given.refusal, is_refusal=True))
    for call in given.tool_calls or ():
        if call.function is not None:
            google = call.extra_content.google if call.extra_content else None
            signature = google.thought_signature if google else None
            parts.append(ToolCall(call.id, call.function.name, call.function.arguments, signature))
    if not parts and given.content is None and not given.tool_calls and given.function_call is None:
        raise RequestError(f"{where} is an assistant message with neither content nor tool_calls.", param=where)
    return parts


def _tools(given: list[GivenTool] | None) -> tuple[tuple[Tool, ...], str | None]:
    tools: list[Tool] = []
    vendor_tool: str | None = None
    names: set[str] = set()
    for index, tool in enumerate(given or ()):
        if tool.type != "function" or tool.function is None:
            if tool.type == "function":
                raise RequestError(f"tools[{index}].function is missing.", param=f"tools[{index}].function")
            vendor_tool = f"OpenAI's tool type {tool.type!r}"
            continue
        function = tool.function
        if not TOOL_NAME.match(function.name):
            where = f"tools[{index}].function.name"
            raise RequestError(f"{where} is {function.name!r}; use 1 to 128 letters, digits, _ or -.", param=where)
        if function.name in names:
            raise RequestError(f"tools[{index}] repeats the name {function.name!r}; names are unique.", param="tools")
        names.add(function.name)
        schema = schema_of(function.parameters, f"tools[{index}].function.parameters")
        tools.append(Tool(function.name, function.description, schema, function.strict))
    return tuple(tools), vendor_tool


def _tool_choice(
    given: str | GivenChoice | None, tools: tuple[Tool, ...], has_vendor_tools: bool
) -> tuple[ToolChoice | None, str | None]:
    if given is None:
        return None, None
    if isinstance(given, str):
        if given not in ("auto", "none", "required"):
            raise RequestError(
                f"tool_choice is {given!r}{nearest(given, ('auto', 'none', 'required'))}.", param="tool_choice"
            )
        if given == "required" and not tools and not has_vendor_tools:
            raise RequestError("tool_choice is `required` but tools is empty.", param="tool_choice")
        return ToolChoice(ToolChoiceMode(given)), None
    if given.type != "function" or given.function is None or given.function.name is None:
        return None, f"OpenAI's tool_choice type {given.type!r}"
    names = [tool.name for tool in tools]
    if given.function.name not in names:
        raise RequestError(
            f"tool_choice names {given.function.name!r}{nearest(given.function.name, names)}.", param="tool_choice"
        )
    return ToolChoice(ToolChoiceMode.NAMED, given.function.name), None


def _answer_format(given: GivenFormat | None) -> AnswerFormat | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return AnswerFormat()
    if given.type != "json_schema":
        known = ("text", "json_object", "json_schema")
        raise RequestError(
            f"response_format.type is {given.type!r}{nearest(given.type, known)}.", param="response_format.type"
        )
    schema = given.json_schema
    if schema is None or present(schema.schema) is None:
        raise RequestError("response_format.json_schema.schema is missing.", param="response_format.json_schema")
    return AnswerFormat(schema_of(schema.schema, "response_format.json_schema.schema"), schema.name, schema.strict)
