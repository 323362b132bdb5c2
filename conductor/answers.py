"""The records of what comes back: the events of a streamed answer, whole answers, usage, rate limits, problems.

Enters: nothing. Leaves: frozen structs that every provider decodes into and every face renders. Knows no vendor: what
a vendor calls a thing is known to `conductor.providers` and `conductor.faces` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Raw, Struct, field

from onebeat.conductor.records import Text, Thinking, ToolCall, WireFormat
from onebeat.engine.errors import OnebeatError


class Usage(Struct, frozen=True, gc=False):
    """Tokens billed. The subsets are inside the totals, whatever the vendor's own convention is."""

    input_tokens: int = 0
    """The whole prompt, cached and newly cached tokens included."""
    output_tokens: int = 0
    """Everything the model wrote, reasoning included."""
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    audio_input_tokens: int = 0


class FinishReason(StrEnum):
    STOP = "stop"
    STOP_SEQUENCE = "stop_sequence"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    """The vendor's filter cut or blocked the answer."""
    REFUSAL = "refusal"
    """The model itself declined (Anthropic says so apart)."""
    PAUSE = "pause"
    """Anthropic's `pause_turn`: a server tool's turn was paused and may be sent back to go on."""
    CONTEXT_FULL = "context_full"
    MALFORMED_TOOL_CALL = "malformed_tool_call"
    UNKNOWN = "unknown"
    """A reason that this version does not know: `raw` names it."""


class Started(Struct, frozen=True, tag=True, gc=False):
    """The vendor began to answer: no content yet."""

    id: str
    model: str
    """The model that the vendor names: what the price goes by."""


class TextDelta(Struct, frozen=True, tag=True):
    text: str
    logprobs: Raw | None = None
    is_refusal: bool = False


class ReasoningDelta(Struct, frozen=True, tag=True, gc=False):
    text: str
    signature: str | None = None
    redacted: str | None = None


class ToolCallDelta(Struct, frozen=True, tag=True, gc=False):
    """A piece of one tool call: `id` and `name` come with the first piece of each `index`, `arguments` in any."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    signature: str | None = None


class Finished(Struct, frozen=True, tag=True, gc=False):
    """The model stopped. A stream that ends without one was cut."""

    reason: FinishReason
    raw: str
    """The vendor's own word."""
    stop_sequence: str | None = None


class UsageReport(Struct, frozen=True, tag=True, gc=False):
    """The tokens so far, cumulative: the last report of a stream counts."""

    usage: Usage


class Ping(Struct, frozen=True, tag=True, gc=False):
    """A keep-alive, or an event with no content that onebeat does not know. Feeds no stall clock."""


class Native(Struct, frozen=True, tag=True):
    """A piece of content that only the vendor's own format can say (a vendor's own tool at work, a citation).

    A face of the same `format` sends it on; another cannot and drops it. It counts as content to the stall clock.
    """

    format: WireFormat
    kind: str
    fields: Mapping[str, Raw]


class ProblemKind(StrEnum):
    """What went wrong upstream."""

    RATE_LIMITED = "rate_limited"
    """Too many requests or tokens: wait for the reset."""
    QUOTA_EXHAUSTED = "quota_exhausted"
    """No credit left, or a per-day quota is spent: this route is out for long."""
    OVERLOADED = "overloaded"
    SERVER_ERROR = "server_error"
    CONNECTION = "connection"
    TIMEOUT = "timeout"
    DEADLINE = "deadline"
    """The caller's own deadline passed: it says nothing about the route."""
    STALLED = "stalled"
    CUT = "cut"
    """The stream ended without a finish reason."""
    MALFORMED = "malformed"
    """Bytes that are not the vendor's format."""
    CONTEXT_OVERFLOW = "context_overflow"
    CONTENT_POLICY = "content_policy"
    AUTH = "auth"
    INVALID_REQUEST = "invalid_request"
    NOT_FOUND = "not_found"
    PREFILL_REFUSED = "prefill_refused"
    UNSUPPORTED = "unsupported"
    """The vendor's format cannot express the request (a sound for a vendor without ears): another model may."""

    @property
    def is_retryable(self) -> bool:
        """Whether the same request may succeed on the same route later."""
        return self in _RETRYABLE


_RETRYABLE = frozenset(
    {
        ProblemKind.RATE_LIMITED,
        ProblemKind.OVERLOADED,
        ProblemKind.SERVER_ERROR,
        ProblemKind.CONNECTION,
        ProblemKind.TIMEOUT,
        ProblemKind.STALLED,
        ProblemKind.CUT,
        ProblemKind.MALFORMED,
    }
)


class Limit(Struct, frozen=True, gc=False):
    """One counter of a rate limit. Any of the three may be unknown."""

    limit: int | None = None
    remaining: int | None = None
    reset_after_s: float | None = None
    """Seconds from the moment the headers were parsed."""


class RateLimits(Struct, frozen=True, gc=False):
    requests: Limit | None = None
    tokens: Limit | None = None
    input_tokens: Limit | None = None
    output_tokens: Limit | None = None


class ProviderProblem(Struct, frozen=True, tag=True):
    """An upstream failure: the answer to a request (`status` set) or an event inside a stream (`status` None)."""

    kind: ProblemKind
    message: str
    """The vendor's sentence. The dispatcher takes secrets out of it before anything reads it."""
    status: int | None = None
    code: str | None = None
    """The vendor's own word for it."""
    param: str | None = None
    retry_after_s: float | None = None
    """The provider's own reset, where it named one."""
    should_retry: bool | None = None
    """The provider's own advice (`x-should-retry`), where it gave one."""
    limits: RateLimits | None = None

    @property
    def is_retryable(self) -> bool:
        """The provider's advice where it gave one, else the kind's."""
        return self.kind.is_retryable if self.should_retry is None else self.should_retry


StreamEvent = (
    Started | TextDelta | ReasoningDelta | ToolCallDelta | Native | Finished | UsageReport | Ping | ProviderProblem
)


class Answer(Struct, frozen=True):
    """A whole answer, not streamed or put together from its events (`conductor.assemble`)."""

    id: str
    model: str
    parts: tuple[Text | ToolCall | Thinking, ...]
    finish: FinishReason
    raw_finish: str
    usage: Usage
    stop_sequence: str | None = None
    format: WireFormat | None = None
    wire: Mapping[str, Raw] = field(default_factory=dict)
    """The vendor's top-level fields in `format`: a face of that format sends them on."""

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(part for part in self.parts if isinstance(part, ToolCall))


class Report(Struct, frozen=True):
    """What onebeat tells the client about its answer: rendered into headers and the final usage block."""

    model: str
    """The fleet's name of the model that answered."""
    reason: str
    attempts: int
    cost_usd: float | None = None
    request_id: str | None = None
    dropped_messages: int = 0
    notes: tuple[str, ...] = ()
    """What else the client should know: a replaced model, a detector's report."""
    durable: bool | None = None
    """Whether the answer's rows are on disk; None where the fleet does not ask for that, or before the end."""


class ProviderError(OnebeatError):
    """An upstream failure, raised; the record says everything."""

    def __init__(self, problem: ProviderProblem) -> None:
        super().__init__(problem.message)
        self.problem = problem
