"""Which prompts, and which parts of them, the next step computes.

Enters: prompts as counts of tokens, block keys, arrival and deadline; the time, given by the caller. Leaves: a `Plan`
per step. Pure: knows no torch, no thread, no clock and no text, so that properties and simulated days run through it.

The order is shortest remaining uncached work first, less a credit for waiting; a deadline lowers a prompt's place to
its laxity, the work that may still go before it. Work is counted in *cost tokens*: a token late in a long prompt
attends to more and costs more. A prompt is done with here when its last chunk is planned: blocks written by one step
are read by later ones in the same order on the same device, so nothing waits for a step's result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from onebeat.engine.errors import OverloadedError
from onebeat.engine.pace import Pace
from onebeat.engine.plan import Chunk, DropReason, Order, Plan, SchedulerLimits
from onebeat.engine.prefix_cache import PrefixCache


@dataclass(slots=True, eq=False)
class _Waiting:
    """A prompt that has been offered and is not yet wholly planned."""

    prompt_id: int
    tokens: int
    keys: Sequence[bytes]
    arrival_ms: float
    deadline_ms: float | None
    done_tokens: int = 0
    """Planned or found in the cache, and pinned."""
    cached_tokens: int = 0
    blocks: list[int] = field(default_factory=list)
    reserved_blocks: int = 0
    remaining: float = 0.0
    """Cost tokens still to compute, as of the last look."""
    looked_at: int = -1
    """The cache's count of changes at that look."""


class Door:
    """Counts the prompts inside, from the moment a caller is accepted until it is answered. The caller locks."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.inside = 0

    def enter(self, count: int = 1) -> None:
        """Raises `OverloadedError` when fewer than `count` places are left: at once, and nobody's place is touched."""
        if self.inside + count > self.places:
            raise OverloadedError(
                f"the queue holds {self.inside} prompts of at most {self.places}; try again shortly, raise "
                "queue_prompts, or add a replica."
            )
        self.inside += count

    def leave(self) -> None:
        """One prompt was answered."""
        assert self.inside > 0
        self.inside -= 1


class Scheduler:
    """Holds the waiting prompts. Not thread-safe: one thread offers, cancels and plans."""

    def __init__(self, limits: SchedulerLimits, cache: PrefixCache, pace: Pace | None = None) -> None:
        """`pace` is what is known of the speed so far; each step observed refines it."""
        self._limits = limits
        self._cache = cache
        self._waiting: dict[int, _Waiting] = {}
        self._reserved_blocks = 0
        self._pace = pace or Pace()
        self._waiting_tokens = 0
        self._to_unpin: list[int] = []
        self._to_unreserve = 0
        self._plan_sequences = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def waiting_tokens(self) -> int:
        """Tokens not yet planned; those that the cache holds count until their prompt's turn. Any thread may read."""
        return self._waiting_tokens

    @property
    def ms_per_token(self) -> float | None:
        """Recent milliseconds per cost token, beside a step's fixed part; None before anything is known."""
        return self._pace.ms_per_token

    def offer(
        self,
        prompt_id: int,
        tokens: int,
        keys: Sequence[bytes],
        arrival_ms: float,
        deadline_ms: float | None = None,
    ) -> None:
        """Adds a prompt. `keys` name its whole chunks (none: it shares nothing); times are on the caller's clock."""
        assert tokens >= 1 and prompt_id not in self._waiting
        assert self._chunks(tokens) <= self._limits.working_blocks, "the engine checks the longest prompt at start"
        shared = keys if tokens > self._limits.chunk_tokens else ()
        prompt = _Waiting(prompt_id, tokens, shared, arrival_ms, deadline_ms)
        prompt.remaining = self._remaining_cost(prompt)
        self._waiting[prompt_id] = prompt
        self._waiting_tokens += tokens

    def cancel(self, prompt_id: int) -> bool:
        """Forgets a prompt whose caller is gone; False when it is not waiting any more."""
        prompt = self._waiting.get(prompt_id)
        if prompt is None:
            return False
        self._remove(prompt)
        self._release_blocks()
        return True

    def observe(self, plan: Plan, elapsed_ms: float, now_ms: float) -> None:
        """Learns the speed from a step that took `elapsed_ms` and ended at `now_ms`."""
        self._pace.observe(sum(self._cost(chunk.start, chunk.stop) for chunk in plan.chunks), elapsed_ms, now_ms)

    def plan(self, now_ms: float) -> Plan:
        """The next step; empty of chunks when nothing waits."""
        dropped = self._drop_late(now_ms)
        order = self._in_order(now_ms)
        budget = self._budget()
        ready, picked = list[Chunk](), list[tuple[_Waiting, Chunk]]()
        may_start = True
        self._plan_sequences = 0
        for prompt in order:
            if budget <= 0 or self._plan_sequences >= self._limits.step_sequences:
                break
            if not prompt.keys and min(self._limits.chunk_tokens, prompt.tokens - prompt.done_tokens) > budget:
                continue  # The common case in a long queue, before anything costlier is tried.
            if not self._reserve(prompt, may_start):
                may_start = False  # Whoever is first keeps the next free blocks; smaller ones do not slip past.
                continue
            for chunk in self._take_chunks(prompt, budget):
                budget -= chunk.stop - chunk.start
                picked.append((prompt, chunk))
            if prompt.done_tokens == prompt.tokens:
                if not picked or picked[-1][0] is not prompt or not picked[-1][1].is_last:
                    ready.append(self._chunk(prompt, prompt.tokens, prompt.tokens))
                self._remove(prompt)
        chunks_planned = self._settle(picked, in_cache=bool(ready) or self._limits.always_in_cache)
        self._release_blocks()
        return Plan(chunks_planned, tuple(ready), dropped)

    def _drop_late(self, now_ms: float) -> tuple[tuple[int, DropReason], ...]:
        dropped = list[tuple[int, DropReason]]()
        for prompt in list(self._waiting.values()):
            if prompt.keys and prompt.looked_at != self._cache.changes:
                prompt.remaining = self._remaining_cost(prompt)
            if prompt.deadline_ms is None:
                continue
            if prompt.deadline_ms <= now_ms:
                dropped.append((prompt.prompt_id, DropReason.PAST))
            elif now_ms + self._least_ms(prompt, now_ms) > prompt.deadline_ms:
                dropped.append((prompt.prompt_id, DropReason.DOOMED))
            else:
                continue
            self._remove(prompt)
        return tuple(dropped)

    def _least_ms(self, prompt: _Waiting, now_ms: float) -> float:
        steps = -(-(prompt.tokens - prompt.done_tokens) // self._limits.step_tokens)
        return self._pace.least_ms(steps, prompt.remaining, now_ms)

    def _in_order(self, now_ms: float) -> list[_Waiting]:
        if self._limits.order is Order.ARRIVAL:
            return sorted(self._waiting.values(), key=lambda p: (p.arrival_ms, p.prompt_id))
        credit_per_ms = self._limits.credit_tokens_per_s / 1000.0
        tokens_per_ms = 1.0 / self._pace.ms_per_token if self._pace.ms_per_token else None

        def place(prompt: _Waiting) -> tuple[float, int]:
            work = prompt.remaining
            if prompt.deadline_ms is not None and tokens_per_ms is not None:
                work = min(work, (prompt.deadline_ms - now_ms) * tokens_per_ms - prompt.remaining)
            return work + credit_per_ms * prompt.arrival_ms, prompt.prompt_id

        return sorted(self._waiting.values(), key=place)

    def _budget(self) -> int:
        limits = self._limits
        grown = limits.light_step_tokens * len(self._waiting) // limits.light_prompts
        return max(limits.light_step_tokens, min(limits.step_tokens, grown))

    def _reserve(self, prompt: _Waiting, may_start: bool) -> bool:
        """Makes sure that a prompt of several chunks can have all its blocks before it takes the first."""
        if prompt.reserved_blocks or prompt.tokens <= self._limits.chunk_tokens:
            return True
        blocks = self._chunks(prompt.tokens)
        if not may_start or self._reserved_blocks + blocks > self._limits.working_blocks:
            return False
        prompt.reserved_blocks = blocks
        self._reserved_blocks += blocks
        return True

    def _take_chunks(self, prompt: _Waiting, budget: int) -> list[Chunk]:
        """Chunks of `prompt` that fit: those that the cache holds are adopted, the others are to be computed."""
        chunks = list[Chunk]()
        size = self._limits.chunk_tokens
        while True:
            self._adopt(prompt)
            start, stop = prompt.done_tokens, min(prompt.done_tokens + size, prompt.tokens)
            full = self._plan_sequences + len(chunks) >= self._limits.step_sequences
            if start == stop or stop - start > budget or full:
                break
            if prompt.tokens > size:
                prompt.blocks.append(self._cache.take())
                if stop // size <= len(prompt.keys) and stop % size == 0:
                    self._cache.publish(prompt.blocks[-1], prompt.keys[stop // size - 1])
            self._waiting_tokens -= stop - start
            prompt.done_tokens = stop
            chunks.append(self._chunk(prompt, start, stop))
            budget -= stop - start
        self._plan_sequences += len(chunks)
        prompt.remaining = self._remaining_cost(prompt)
        return chunks

    def _adopt(self, prompt: _Waiting) -> None:
        """Pins what the cache holds next, blocks planned a moment ago for another prompt of this same step included."""
        size = self._limits.chunk_tokens
        while prompt.done_tokens // size < len(prompt.keys) and prompt.done_tokens % size == 0:
            block = self._cache.pin(prompt.keys[prompt.done_tokens // size])
            if block is None:
                return
            prompt.blocks.append(block)
            self._waiting_tokens -= size
            prompt.done_tokens += size
            prompt.cached_tokens += size

    def _settle(self, picked: list[tuple[_Waiting, Chunk]], in_cache: bool) -> tuple[Chunk, ...]:
        """Orders the step's chunks; where any of them needs the cache, the one-chunk prompts get a block in passing."""
        size = self._limits.chunk_tokens
        chunks = [chunk for _, chunk in picked]
        if in_cache or any(prompt.tokens > size for prompt, _ in picked):
            for index, (prompt, chunk) in enumerate(picked):
                if prompt.tokens <= size:
                    block = self._cache.take()
                    self._to_unpin.append(block)
                    chunks[index] = Chunk(chunk.prompt_id, chunk.start, chunk.stop, (block,), True, 0)
        return tuple(sorted(chunks, key=lambda chunk: chunk.start))

    def _chunk(self, prompt: _Waiting, start: int, stop: int) -> Chunk:
        is_last = stop == prompt.tokens
        return Chunk(prompt.prompt_id, start, stop, tuple(prompt.blocks), is_last, prompt.cached_tokens)

    def _remove(self, prompt: _Waiting) -> None:
        del self._waiting[prompt.prompt_id]
        self._waiting_tokens -= prompt.tokens - prompt.done_tokens
        self._to_unreserve += prompt.reserved_blocks
        # The tail first, so that among idle blocks the beginning of a chain outlives its tail.
        self._to_unpin.extend(reversed(prompt.blocks))

    def _release_blocks(self) -> None:
        """Only between steps: a step must never be given a block to write that it also reads for a finished prompt."""
        for block in self._to_unpin:
            self._cache.unpin(block)
        self._to_unpin.clear()
        self._reserved_blocks -= self._to_unreserve
        self._to_unreserve = 0

    def _chunks(self, tokens: int) -> int:
        return -(-tokens // self._limits.chunk_tokens)

    def _remaining_cost(self, prompt: _Waiting) -> float:
        size = self._limits.chunk_tokens
        done = prompt.done_tokens
        prompt.looked_at = self._cache.changes
        if prompt.keys and done % size == 0:
            done += self._cache.matching(prompt.keys, done // size) * size
        return self._cost(done, prompt.tokens)

    def _cost(self, start: int, stop: int) -> float:
        return (stop - start) * (1.0 + 0.5 * (start + stop) / self._limits.context_cost_tokens)
