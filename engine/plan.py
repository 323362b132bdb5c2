"""What the scheduler promises per step, and within which limits.

Enters: settings. Leaves: frozen records: chunks to compute, prompts that need nothing more, prompts that were dropped.
Knows no policy (`scheduler.py`) and no tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Order(Enum):
    """Who goes first."""

    SHORTEST = "shortest"
    """Shortest remaining uncached work, less the credit for waiting."""
    ARRIVAL = "arrival"
    """First come, first served: what the benches run beside it."""


class DropReason(Enum):
    """Why a prompt left without scores."""

    PAST = "past"
    """Its deadline had passed."""
    DOOMED = "doomed"
    """Its deadline lay ahead, but nearer than its own work takes."""


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """What a step may hold, and how waiting counts."""

    chunk_tokens: int
    step_tokens: int = 512
    """Never exceeded in one step."""
    light_step_tokens: int = 128
    """A step's budget while little waits: what an arrival then has to wait for. At least one chunk."""
    light_prompts: int = 3
    """Up to this many waiting prompts are little. From there the budget grows with their number: a long queue is
    drained in large, efficient steps, of which each is a small part of what anybody waits."""
    step_sequences: int = 32
    working_blocks: int = 256
    """Blocks that unfinished prompts of several chunks may hold together; at least the longest prompt's."""
    credit_tokens_per_s: float = 50.0
    """A second of waiting counts as this much less work: a prompt of 1,500 tokens outranks every prompt that comes
    more than half a minute after it."""
    context_cost_tokens: float = 1e9
    """At this many tokens of context a token costs twice what the first one does; measured per model and device."""
    always_in_cache: bool = False
    """Gives every chunk a block, so that one kind of step (on a GPU: one family of graphs) serves all."""
    order: Order = Order.SHORTEST

    def __post_init__(self) -> None:
        assert self.chunk_tokens <= self.light_step_tokens <= self.step_tokens
        assert self.step_sequences >= 1 and self.working_blocks >= 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk to compute."""

    prompt_id: int
    start: int
    stop: int
    blocks: tuple[int, ...]
    """Blocks of the prompt from its beginning; the last one is this chunk's. Empty in a step without a cache."""
    is_last: bool
    cached_tokens: int
    """Tokens of the prompt that the cache has saved so far."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One step."""

    chunks: tuple[Chunk, ...]
    """In the order of their place in the prompts, so that a chunk comes after every one that it builds upon. Either all
    of them have blocks or none has; where prompts are ready, all have."""
    ready: tuple[Chunk, ...]
    """Prompts whose last chunk the cache holds: nothing is left to compute, the answer lies with the last block."""
    dropped: tuple[tuple[int, DropReason], ...]

    @property
    def tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(chunk.stop - chunk.start for chunk in self.chunks)
