"""The records of a chat request, as every face parses it and every provider sends it.

Enters: nothing. Leaves: frozen structs; what comes back is in `conductor.answers`. Knows no vendor: what
a vendor calls a thing is known to `conductor.providers` and `conductor.faces` alone.

Losslessness: a request keeps the client's own top-level fields (`ChatRequest.wire`) and each message its own JSON
(`Message.source`). A provider of the same `WireFormat` sends those on untouched but for the model's name; only a
provider of another format translates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec
from msgspec import Raw, Struct, field

from onebeat.engine.errors import OnebeatError

ABSENT = Raw()
"""The default of a `Raw` field in a decoded struct: msgspec takes no `Raw | None`."""


def present(raw: Raw) -> Raw | None:
    """None for a field that is absent or null."""
    return raw if raw and bytes(raw) != b"null" else None


class WireFormat(StrEnum):
    """Whose JSON it is. `OPENAI` is also vLLM's, llama.cpp's, Ollama's and every other compatible server's."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GEMINI = "gemini"


class Role(StrEnum):
    SYSTEM = "system"
    DEVELOPER = "developer"
    """OpenAI's newer name for the system's role; the other vendors get it as system."""
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    """Carries `ToolResult` parts only."""


class MediaKind(StrEnum):
    IMAGE = "image"
    AUDIO = "audio"
    DOCUMENT = "document"


class Text(Struct, frozen=True, gc=False):
    text: str
    is_refusal: bool = False
    """True for OpenAI's `refusal` field of an assistant's message."""


class Media(Struct, frozen=True, gc=False):
    """An image, a sound or a document: exactly one of `data` (base64), `url` (http or https) and `file_id` is set."""

    kind: MediaKind
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    file_id: str | None = None
    detail: str | None = None
    name: str | None = None


class ToolCall(Struct, frozen=True, gc=False):
    id: str
    name: str
    arguments: str
    """JSON text, exactly as the model wrote it: it may be malformed."""
    signature: str | None = None
    """Gemini's thought signature, to be given back with the call."""


class ToolResult(Struct, frozen=True):
    """Alone in a `TOOL` message (OpenAI), or among the parts of a `USER` message (Anthropic): look for the part."""

    call_id: str
    parts: tuple[Text | Media, ...]
    is_error: bool = False


class Thinking(Struct, frozen=True, gc=False):
    text: str
    signature: str | None = None
    redacted: str | None = None
    """The opaque data of a redacted block; `text` is empty then."""


Part = Text | Media | ToolCall | ToolResult | Thinking


class Message(Struct, frozen=True):
    role: Role
    parts: tuple[Part, ...]
    name: str | None = None
    source: Raw | None = None
    """The message's JSON in the request's own `face` format; None when onebeat made or changed the message."""

    @property
    def text(self) -> str:
        """Its text parts, joined; what tools returned counts as text, media and thinking do not."""
        if len(self.parts) == 1 and isinstance(only := self.parts[0], Text):
            return only.text
        texts: list[str] = []
        for part in self.parts:
            if isinstance(part, Text):
                texts.append(part.text)
            elif isinstance(part, ToolResult):
                texts.extend(inner.text for inner in part.parts if isinstance(inner, Text))
            elif isinstance(part, ToolCall):
                texts.append(f"{part.name}({part.arguments})")
        return "\n".join(texts)


class Tool(Struct, frozen=True):
    name: str
    description: str | None = None
    parameters: Raw | None = None
    """JSON schema of the arguments."""
    strict: bool | None = None


class ToolChoiceMode(StrEnum):
    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"
    NAMED = "named"


class ToolChoice(Struct, frozen=True, gc=False):
    mode: ToolChoiceMode
    name: str | None = None
    """Set with `NAMED` only."""


class AnswerFormat(Struct, frozen=True):
    """JSON mode. `schema` None means any JSON object."""

    schema: Raw | None = None
    name: str | None = None
    strict: bool | None = None


class Priority(StrEnum):
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class RoutingOptions(Struct, frozen=True):
    """What the client asked of onebeat itself, by `x-onebeat-*` headers or a body's `onebeat` object (which wins)."""

    tradeoff: float | None = None
    min_quality: float | None = None
    max_cost_usd: float | None = None
    deadline_ms: float | None = None
    priority: Priority | None = None
    region: str | None = None
    """Only models that are served there."""
    fallbacks: tuple[str, ...] | None = None
    """Models that a request for a concrete model may fall back to; None leaves it to the fleet."""


class ChatRequest(Struct, frozen=True):
    """One client's request for a chat answer. `with_messages` makes the changed copies; nothing else changes it."""

    face: WireFormat
    model: str
    """As the client wrote it: `auto`, `auto:cheap`, `auto:best` or a model's name."""
    messages: tuple[Message, ...]
    """In order. System messages are among them, Anthropic's top-level `system` first."""
    wire: Mapping[str, Raw] = field(default_factory=dict)
    """The client's top-level fields in the `face`'s format, without `onebeat`."""
    stream: bool = False
    include_usage: bool = False
    """OpenAI's `stream_options.include_usage`; always true on Anthropic's face."""
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    answer_format: AnswerFormat | None = None
    max_output_tokens: int | None = None
    stop: tuple[str, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    reasoning_effort: str | None = None
    """none | minimal | low | medium | high | xhigh | max."""
    thinking_budget_tokens: int | None = None
    """Anthropic's and Gemini's way to say the same; 0 turns thinking off."""
    user: str | None = None
    native_only: str | None = None
    """The feature that only a provider of the `face`'s own format can serve (a vendor's own tool, an uploaded file)."""
    betas: str | None = None
    """Anthropic's `anthropic-beta` header, for its own provider only."""
    options: RoutingOptions = RoutingOptions()
    has_images: bool = False
    has_audio: bool = False
    has_documents: bool = False

    @property
    def needs_tools(self) -> bool:
        return bool(self.tools)

    @property
    def needs_json(self) -> bool:
        return self.answer_format is not None

    def with_messages(self, messages: Sequence[Message]) -> ChatRequest:
        """The same request about other messages (a shortened context, a prefill to continue from)."""
        wire = {name: value for name, value in self.wire.items() if name not in ("messages", "system")}
        return msgspec.structs.replace(self, messages=tuple(messages), wire=wire)

    def as_prompt(self) -> list[dict[str, object]]:
        """The messages as the router reads them: a role and plain text each."""
        return [{"role": message.role.value, "content": message.text} for message in self.messages]


class RequestError(OnebeatError):
    """A client's request that cannot be served as it stands; a face renders it in its vendor's own error shape."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
