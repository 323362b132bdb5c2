"""The shape of a Messages request, typed: what msgspec checks before anything else looks at it.

Enters: nothing. Leaves: structs for `conductor.faces.anthropic_request`. Fields that onebeat only passes on are absent.
"""

from __future__ import annotations

from msgspec import Raw, Struct

from onebeat.conductor.faces.parsing import Names, Positive, Share
from onebeat.conductor.records import ABSENT


class GivenSource(Struct):
    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    file_id: str | None = None


class GivenBlock(Struct):
    """Every kind of content block."""

    type: str
    text: str | None = None
    source: GivenSource | None = None
    title: str | None = None
    id: str | None = None
    name: str | None = None
    input: Raw = ABSENT
    tool_use_id: str | None = None
    content: Raw = ABSENT
    is_error: bool | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None


class GivenMessage(Struct):
    role: str
    content: str | list[GivenBlock]


class GivenTool(Struct):
    name: str | None = None
    type: str | None = None
    description: str | None = None
    input_schema: Raw = ABSENT
    strict: bool | None = None


class GivenChoice(Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class GivenThinking(Struct):
    type: str
    budget_tokens: Positive | None = None


class GivenFormat(Struct):
    type: str
    schema: Raw = ABSENT


class GivenOutput(Struct):
    effort: str | None = None
    format: GivenFormat | None = None


class GivenMetadata(Struct):
    user_id: str | None = None


class GivenBody(Struct):
    model: Names
    messages: list[Raw]
    max_tokens: Positive | None = None
    system: str | list[GivenBlock] | None = None
    stream: bool | None = None
    tools: list[GivenTool] | None = None
    tool_choice: GivenChoice | None = None
    stop_sequences: list[str] | None = None
    temperature: Share | None = None
    top_p: Share | None = None
    top_k: int | None = None
    thinking: GivenThinking | None = None
    output_config: GivenOutput | None = None
    metadata: GivenMetadata | None = None
    container: Raw = ABSENT
    mcp_servers: Raw = ABSENT
