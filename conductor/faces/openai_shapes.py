"""The shape of a chat completions request, typed: what msgspec checks before anything else looks at it.

Enters: nothing. Leaves: structs for `conductor.faces.openai_request`. Fields that onebeat only passes on are absent.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Raw, Struct

from onebeat.conductor.faces.parsing import Names, Penalty, Positive, Share
from onebeat.conductor.records import ABSENT


class GivenUrl(Struct):
    url: str
    detail: str | None = None


class GivenAudio(Struct):
    data: str
    format: str


class GivenFile(Struct):
    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class GivenPart(Struct):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: GivenUrl | None = None
    input_audio: GivenAudio | None = None
    file: GivenFile | None = None


class GivenFunction(Struct):
    name: str
    arguments: str = ""


class GivenGoogle(Struct):
    thought_signature: str | None = None


class GivenExtra(Struct):
    google: GivenGoogle | None = None


class GivenCall(Struct):
    id: str
    function: GivenFunction | None = None
    type: str = "function"
    extra_content: GivenExtra | None = None


class GivenMessage(Struct):
    role: str
    content: str | list[GivenPart] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[GivenCall] | None = None
    tool_call_id: str | None = None
    function_call: GivenFunction | None = None


class GivenToolFunction(Struct):
    name: str
    description: str | None = None
    parameters: Raw = ABSENT
    strict: bool | None = None


class GivenTool(Struct):
    type: str
    function: GivenToolFunction | None = None


class GivenNamed(Struct):
    name: str | None = None


class GivenChoice(Struct):
    type: str
    function: GivenNamed | None = None


class GivenSchema(Struct):
    name: str | None = None
    schema: Raw = ABSENT
    strict: bool | None = None


class GivenFormat(Struct):
    type: str
    json_schema: GivenSchema | None = None


class GivenStreamOptions(Struct):
    include_usage: bool | None = None


class GivenBody(Struct):
    model: Names
    messages: list[Raw]
    stream: bool | None = None
    stream_options: GivenStreamOptions | None = None
    n: int | None = None
    tools: list[GivenTool] | None = None
    tool_choice: str | GivenChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: GivenFormat | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    stop: str | list[str] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_k: int | None = None
    seed: int | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    reasoning_effort: str | None = None
    user: str | None = None
    functions: Raw = ABSENT
    web_search_options: Raw = ABSENT
    modalities: list[str] | None = None
