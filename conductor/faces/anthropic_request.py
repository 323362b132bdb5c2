"""`POST /v1/messages` read into a `ChatRequest`.

Enters: the body and headers. Leaves: the request, with the client's own JSON kept beside the translation. Raises
`RequestError` for what Anthropic would refuse too, so that nothing malformed reaches a provider.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Raw

from onebeat.conductor.faces.anthropic_shapes import GivenBlock, GivenBody, GivenMessage, GivenSource, GivenTool
from onebeat.conductor.faces.parsing import TOOL_NAME, decoded, fields_of, nearest, options_of, schema_of
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
    Thinking,
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
_CONTENT = msgspec.json.Decoder(str | list[GivenBlock])
_ROLES = {"user": Role.USER, "assistant": Role.ASSISTANT, "system": Role.SYSTEM}
_MODES = {
    "auto": ToolChoiceMode.AUTO,
    "any": ToolChoiceMode.REQUIRED,
    "tool": ToolChoiceMode.NAMED,
    "none": ToolChoiceMode.NONE,
}
_BLOCKS = ("text", "image", "document", "tool_use", "tool_result", "thinking", "redacted_thinking")
# What only Anthropic's servers can make sense of: their own tools at work.
_VENDOR_BLOCKS = (
    "server_tool_use",
    "web_search_tool_result",
    "web_fetch_tool_result",
    "code_execution_tool_result",
    "bash_code_execution_tool_result",
    "text_editor_code_execution_tool_result",
    "tool_search_tool_result",
    "container_upload",
    "search_result",
    "mcp_tool_use",
    "mcp_tool_result",
    "compaction",
)


class _Reading:
    """One request's messages as they are read: the calls made so far, and what only Anthropic can serve."""

    def __init__(self) -> None:
        self.calls: set[str] = set()
        self.native_only: str | None = None

    def parts(self, content: str | list[GivenBlock], where: str) -> tuple[Part, ...]:
        if isinstance(content, str):
            return (Text(content),)
        parts: list[Part] = []
        for index, block in enumerate(content):
            path = f"{where}[{index}]"
            if block.type in _VENDOR_BLOCKS:
                self.native_only = f"Anthropic's block type {block.type!r}"
            else:
                parts.append(self._part(block, path))
        return tuple(parts)

    def _part(self, block: GivenBlock, where: str) -> Part:
        if block.type == "text" and block.text is not None:
            return Text(block.text)
        if block.type in ("image", "document") and block.source is not None:
            return self._media(block, block.source, where)
        if block.type == "tool_use" and block.id and block.name:
            self.calls.add(block.id)
            return ToolCall(block.id, block.name, bytes(present(block.input) or b"{}").decode())
        if block.type == "tool_result" and block.tool_use_id:
            return self._result(block, block.tool_use_id, where)
        if block.type == "thinking" and block.thinking is not None:
            return Thinking(block.thinking, block.signature)
        if block.type == "redacted_thinking" and block.data is not None:
            return Thinking("", redacted=block.data)
        if block.type in _BLOCKS:
            raise RequestError(f"{where} is of type {block.type!r} but lacks one of its fields.", param=where)
        raise RequestError(f"{where}.type is {block.type!r}{nearest(block.type, _BLOCKS)}.", param=f"{where}.type")

    def _result(self, block: GivenBlock, call_id: str, where: str) -> ToolResult:
        if call_id not in self.calls:
            raise RequestError(
                f"{where} answers the call {call_id!r}, which no earlier assistant message made.",
                param=f"{where}.tool_use_id",
            )
        inner: tuple[Part, ...] = ()
        if (content := present(block.content)) is not None:
            inner = self.parts(decoded(_CONTENT, content, f"{where}.content"), f"{where}.content")
        held = tuple(part for part in inner if isinstance(part, Text | Media))
        return ToolResult(call_id, held, bool(block.is_error))

    def _media(self, block: GivenBlock, source: GivenSource, where: str) -> Part:
        kind = MediaKind(block.type)
        if source.type == "base64" and source.data is not None:
            return Media(kind, source.media_type, source.data, name=block.title)
        if source.type == "url" and source.url is not None:
            if not source.url.startswith(("https://", "http://")):
                raise RequestError(f"{where}.source.url is no http(s) URL.", param=f"{where}.source.url")
            return Media(kind, url=source.url, name=block.title)
        if source.type == "text" and source.data is not None:
            return Text(source.data)
        if source.type == "file" and source.file_id is not None:
            self.native_only = "a file uploaded to Anthropic"
            return Media(kind, file_id=source.file_id, name=block.title)
        if source.type == "content":
            self.native_only = "Anthropic's document made of content blocks"
            return Text("")
        known = ("base64", "url", "text", "file", "content")
        if source.type in known:
            raise RequestError(f"{where}.source is of type {source.type!r} but lacks its data.", param=where)
        raise RequestError(f"{where}.source.type is {source.type!r}{nearest(source.type, known)}.", param=where)


def parse(body: bytes, headers: Mapping[str, str], *, is_count: bool = False) -> ChatRequest:
    """Raises `RequestError`. `is_count`: the tokens are only to be counted, and no `max_tokens` is needed."""
    wire = fields_of(body)
    options = options_of(wire.pop("onebeat", None), headers)
    given = decoded(_BODY, body)
    if given.max_tokens is None and not is_count:
        raise RequestError("max_tokens is missing; say how long the answer may be.", param="max_tokens")
    reading = _Reading()
    messages = _messages(given, reading, wire)
    tools, vendor_tool = _tools(given.tools)
    if present(given.container) is not None or present(given.mcp_servers) is not None:
        vendor_tool = vendor_tool or "Anthropic's containers and MCP servers"
    output = given.output_config
    kinds = {part.kind for part in _media_of(messages)}
    return ChatRequest(
        face=WireFormat.ANTHROPIC,
        model=given.model,
        messages=messages,
        wire=wire,
        stream=bool(given.stream),
        include_usage=True,
        tools=tools,
        tool_choice=_tool_choice(given, tools, bool(vendor_tool)),
        parallel_tool_calls=_parallel(given),
        answer_format=_answer_format(given),
        max_output_tokens=given.max_tokens,
        stop=tuple(given.stop_sequences or ()),
        temperature=given.temperature,
        top_p=given.top_p,
        top_k=given.top_k,
        reasoning_effort=output.effort if output else None,
        thinking_budget_tokens=_budget(given),
        user=given.metadata.user_id if given.metadata else None,
        native_only=reading.native_only or vendor_tool,
        betas=headers.get("anthropic-beta"),
        options=options,
        has_images=MediaKind.IMAGE in kinds,
        has_documents=MediaKind.DOCUMENT in kinds,
    )


def _messages(given: GivenBody, reading: _Reading, wire: Mapping[str, Raw]) -> tuple[Message, ...]:
    if not given.messages:
        raise RequestError("messages is empty; send at least one message.", param="messages")
    messages: list[Message] = []
    if given.system:
        messages.append(Message(Role.SYSTEM, reading.parts(given.system, "system"), source=wire["system"]))
    for index, raw in enumerate(given.messages):
        where = f"messages[{index}]"
        message = decoded(_MESSAGE, raw, where)
        if message.role not in _ROLES:
            raise RequestError(
                f"{where}.role is {message.role!r}{nearest(message.role, _ROLES)}.", param=f"{where}.role"
            )
        if not message.content and not (message.role == "assistant" and index == len(given.messages) - 1):
            raise RequestError(f"{where}.content is empty; send text or at least one block.", param=where)
        parts = reading.parts(message.content, f"{where}.content")
        messages.append(Message(_ROLES[message.role], parts, source=raw))
    return tuple(messages)


def _media_of(messages: tuple[Message, ...]) -> list[Media]:
    found: list[Media] = []
    for message in messages:
        for part in message.parts:
            inner = part.parts if isinstance(part, ToolResult) else (part,)
            found.extend(each for each in inner if isinstance(each, Media))
    return found


def _tools(given: list[GivenTool] | None) -> tuple[tuple[Tool, ...], str | None]:
    tools: list[Tool] = []
    vendor_tool: str | None = None
    names: set[str] = set()
    for index, tool in enumerate(given or ()):
        if tool.type not in (None, "custom"):
            vendor_tool = f"Anthropic's tool type {tool.type!r}"
            continue
        where = f"tools[{index}]"
        if not tool.name or not TOOL_NAME.match(tool.name):
            raise RequestError(
                f"{where}.name is {tool.name!r}; use 1 to 128 letters, digits, _ or -.", param=f"{where}.name"
            )
        schema = schema_of(tool.input_schema, f"{where}.input_schema")
        if schema is None:
            raise RequestError(f"{where}.input_schema is missing; give a JSON schema.", param=f"{where}.input_schema")
        if tool.name in names:
            raise RequestError(f"{where} repeats the name {tool.name!r}; names are unique.", param="tools")
        names.add(tool.name)
        tools.append(Tool(tool.name, tool.description, schema, tool.strict))
    return tuple(tools), vendor_tool


def _tool_choice(given: GivenBody, tools: tuple[Tool, ...], has_vendor_tools: bool) -> ToolChoice | None:
    choice = given.tool_choice
    if choice is None:
        return None
    if choice.type not in _MODES:
        raise RequestError(f"tool_choice.type is {choice.type!r}{nearest(choice.type, _MODES)}.", param="tool_choice")
    names = [tool.name for tool in tools]
    if choice.type == "tool" and choice.name not in names and not has_vendor_tools:
        raise RequestError(
            f"tool_choice names {choice.name!r}{nearest(choice.name or '', names)}.", param="tool_choice"
        )
    return ToolChoice(_MODES[choice.type], choice.name if choice.type == "tool" else None)


def _answer_format(given: GivenBody) -> AnswerFormat | None:
    form = given.output_config.format if given.output_config else None
    return None if form is None else AnswerFormat(schema_of(form.schema, "output_config.format.schema"))


def _parallel(given: GivenBody) -> bool | None:
    disabled = given.tool_choice.disable_parallel_tool_use if given.tool_choice else None
    return None if disabled is None else not disabled


def _budget(given: GivenBody) -> int | None:
    if given.thinking is None or given.thinking.type == "adaptive":
        return None
    if given.thinking.type == "disabled":
        return 0
    if given.thinking.type != "enabled":
        known = ("enabled", "disabled", "adaptive")
        raise RequestError(
            f"thinking.type is {given.thinking.type!r}{nearest(given.thinking.type, known)}.", param="thinking"
        )
    if given.thinking.budget_tokens is None:
        raise RequestError(
            "thinking.budget_tokens is missing; it is needed where thinking is enabled.", param="thinking"
        )
    return given.thinking.budget_tokens
