"""The gateway's configuration: what `fleet.toml` may say, as frozen records with their defaults.

Enters: nothing (`conductor.fleet_file` reads the file into these). Leaves: `Fleet`. Knows no file, no environment, no
network. Every key of the file is a field here and every unknown key is an error; keys of providers are never values of
the file but names of environment variables.
"""

from __future__ import annotations

import datetime
from typing import Literal

from msgspec import Struct

Capability = Literal["tools", "images", "audio", "documents", "json", "prefill", "reasoning", "transcription"]
Kind = Literal["openai", "anthropic", "gemini", "openai_compatible"]
Mode = Literal["off", "report", "act"]


class _Section(Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file: frozen, deaf to no key."""


class Server(_Section, frozen=True):
    """Where the gateway listens and what it refuses to read."""

    host: str = "127.0.0.1"
    port: int = 8400
    max_body_bytes: int = 20_000_000
    max_audio_bytes: int = 26_214_400
    max_header_bytes: int = 16_384
    max_depth: int = 64
    """Nesting of a JSON body."""
    read_timeout_ms: int = 30_000
    """For the whole of a request's head and body: what a slow-loris client gets."""
    drain_ms: int = 30_000
    """On stop: how long answers under way may still take."""
    admin_token_env: str | None = None
    """Names the variable that guards /metrics and admin routes; without it they answer loopback clients only."""


class RouterSection(_Section, frozen=True):
    """The learned router: where it is, how long it may take, what its machine costs."""

    source: str | None = "default"
    """A name, a folder, or "hf:org/name"; "none" decides on priors alone."""
    precision: Literal["auto", "int8", "bfloat16", "float32"] = "auto"
    device: str = "auto"
    deadline_ms: float = 50.0
    machine_usd_per_hour: float = 0.10
    reference_cost_usd: float | None = None
    """Dollars that weigh as much as quality 0 -> 1 at tradeoff 0.5. None takes the router's own, so that a tradeoff
    means the same here and there; where it scores no model that `auto` may choose, 500 prompt and 500 answer tokens of
    the dearest model."""
    exploration_share: float = 0.0
    """Share of `auto` requests decided at random, in proportion to utility, and logged with their propensity."""
    guard: Mode = "act"
    """What becomes of text around a prompt that makes its route dearer without belonging to it: see `guard`."""
    guard_deadline_ms: float = 50.0
    """For scoring a prompt again without such text; later than that, the decision on the whole prompt stands."""
    drift_share: float = 0.0
    """Share of `auto` requests whose pooled features are handed to the drift watch."""


class PolicySection(_Section, frozen=True):
    """The dials of a decision where the request does not set them."""

    tradeoff: float = 0.5
    target: str | None = None
    """Instead of a tradeoff: "95%" of the best model's quality, or "0.40 usd" per thousand requests: see `targets`."""
    cheap_tradeoff: float = 0.1
    best_tradeoff: float = 1.0
    nearly_as_good: float = 0.05
    """A fallback within this much quality of the choice is taken at once rather than waited for."""
    low_headroom: float = 0.1
    """Below this share of a route's limit left, its utility falls by `headroom_weight` times what is missing."""
    headroom_weight: float = 0.3
    always_best: str | None = None
    """The model that savings are measured against; None takes the dearest."""


class ContextSection(_Section, frozen=True):
    """What happens when a conversation is too long."""

    on_overflow: Literal["error", "drop_oldest"] = "error"
    answer_tokens: int = 1024
    """Room kept for the answer where neither the request nor the router says how long it will be."""

    @property
    def drops_oldest(self) -> bool:
        return self.on_overflow == "drop_oldest"


class ResilienceSection(_Section, frozen=True):
    """Clocks, retries, breakers, hedges."""

    connect_ms: float = 3_000.0
    first_token_ms: float = 60_000.0
    between_tokens_ms: float = 20_000.0
    total_ms: float = 600_000.0
    """For a stream, from its request to its end."""
    whole_ms: float = 180_000.0
    """For an answer that is not streamed, where silence and work look the same."""
    max_attempts: int = 4
    """Upstream calls for one request, hedges included."""
    retry_share: float = 0.2
    """Retries that live traffic earns: one for every 1 / retry_share first attempts."""
    retry_burst: float = 20.0
    backoff_base_ms: float = 100.0
    backoff_cap_ms: float = 5_000.0
    short_reset_ms: float = 2_000.0
    """A concrete model whose reset is nearer than this is waited for on the spot."""
    breaker_failures: int = 5
    breaker_open_ms: float = 10_000.0
    max_concurrency: int = 1_000
    hedge: bool = False
    hedge_percentile: float = 0.95
    hedge_share: float = 0.05
    """At most this share of requests may call a second route while the first is still silent."""


class WatchSection(_Section, frozen=True):
    """Each detector's mode, and how much of a stream is held back for them."""

    hold_tokens: int = 1
    """Held until so many tokens have come; 1 waits for the first that is no white space, and delays nothing."""
    hold_ms: float = 250.0
    """And no longer than this after the first of them."""
    empty: Mode = "act"
    repetition: Mode = "act"
    refusal: Mode = "report"
    truncated_answer: Mode = "act"
    truncated_json: Mode = "act"
    unclosed_tool_call: Mode = "act"
    wrong_finish: Mode = "report"
    stall: Mode = "act"
    garbage: Mode = "act"


class ContingencySection(_Section, frozen=True):
    """What happens when no route can answer now."""

    deadline_ms: float = 30_000.0
    """How long a request waits for its answer to begin where it does not say."""
    queue_requests: int = 1_000
    local_model: str | None = None
    """Answers when nothing else can before the deadline."""
    retry_after_ms: float = 5_000.0
    """Told with a 503 when no reset is known."""


class LedgerSection(_Section, frozen=True):
    """Where every attempt is written down."""

    path: str = "onebeat-ledger.sqlite"
    store_prompts: bool = False
    durable: bool = False
    """Whether the end of an answer waits until its rows are on disk (a few milliseconds): then `kill -9` loses none.
    Where the disk fails, answers go out all the same and say so (`x-onebeat-durable: false`)."""
    queue_rows: int = 100_000
    """Rows that may wait for the disk; beyond them rows are dropped, counted and reported."""


class Provider(_Section, frozen=True):
    """One upstream: its wire format, its address, the variable that holds its key."""

    kind: Kind
    base_url: str
    api_key_env: str | None = None
    region: str | None = None
    local: bool = False
    """On our own machines: costs nothing per token unless priced, and may serve as the local model."""


class Tier(_Section, frozen=True):
    """Prices that hold for prompts above a length."""

    above_prompt_tokens: int
    input_usd_per_million: float
    output_usd_per_million: float
    cached_input_usd_per_million: float | None = None


class Model(_Section, frozen=True):
    """One model of the fleet as one provider serves it."""

    provider: str
    context_tokens: int
    input_usd_per_million: float
    output_usd_per_million: float
    upstream: str | None = None
    """Its name at the provider, where that differs from its name here."""
    scored_as: str | None = None
    """The router's column that scores it, where that differs from its name here."""
    prior_quality: float | None = None
    """Mean quality to decide on where no column or no answer of the router is at hand."""
    prior_output_tokens: float | None = None
    max_output_tokens: int | None = None
    bytes_per_token: float = 3.8
    """Of English text; the first estimate, corrected by what the provider's usage says."""
    capabilities: tuple[Capability, ...] = ()
    cached_input_usd_per_million: float | None = None
    cache_write_usd_per_million: float | None = None
    usd_per_minute: float = 0.0
    """Of audio, for transcription."""
    priced_at: datetime.date | None = None
    tiers: tuple[Tier, ...] = ()
    shutdown_date: datetime.date | None = None
    successor: str | None = None
    fallbacks: tuple[str, ...] = ()
    sampling: bool | None = None
    """Whether it takes temperature and the like; None leaves it to the vendor module, by name."""
    thinking_by_budget: bool = False
    """Thinking is set in tokens (older Claude, Gemini 2.5) rather than by an effort."""
    json_schema: bool = True
    """Takes a JSON schema for its answer; where not, the schema goes into the system message."""
    regions: tuple[str, ...] = ()
    """Where it is served; empty takes the provider's."""
    expensive: bool = False
    """Counts against a key's `expensive_calls_per_hour`."""
    auto: bool = True
    """Whether `auto` may choose it."""


class Key(_Section, frozen=True):
    """One client key, known by its SHA-256 only, and what it may spend."""

    sha256: str
    budget_usd_per_day: float | None = None
    requests_per_minute: int | None = None
    expensive_calls_per_hour: int | None = None
    max_priority: Literal["low", "normal", "high"] = "high"
    """A request may ask for less than its key allows, never for more."""
    revoked: bool = False


class Fleet(_Section, frozen=True):
    """The whole file, checked."""

    server: Server = Server()
    router: RouterSection = RouterSection()
    policy: PolicySection = PolicySection()
    context: ContextSection = ContextSection()
    resilience: ResilienceSection = ResilienceSection()
    watch: WatchSection = WatchSection()
    contingency: ContingencySection = ContingencySection()
    ledger: LedgerSection = LedgerSection()
    providers: dict[str, Provider] = {}
    models: dict[str, Model] = {}
    keys: dict[str, Key] = {}
    source: str = "fleet.toml"
    """Where it was read from, for messages."""
