"""The scheduler by property: budgets, one ending each, sound use of blocks, no starvation; its order by example."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebeat.engine.errors import OverloadedError
from onebeat.engine.plan import DropReason, Order, Plan, SchedulerLimits
from onebeat.engine.prefix_cache import PrefixCache, block_keys
from onebeat.engine.scheduler import Door, Scheduler

CHUNK = 4


def limits(**changes: object) -> SchedulerLimits:
    settings: dict[str, object] = {
        "chunk_tokens": CHUNK,
        "step_tokens": 16,
        "light_step_tokens": 4,
        "step_sequences": 6,
        "working_blocks": 12,
    }
    return SchedulerLimits(**{**settings, **changes})  # type: ignore[arg-type]


def make(keep_blocks: int = 6, **changes: object) -> tuple[Scheduler, PrefixCache]:
    limit = limits(**changes)
    cache = PrefixCache(range(1, 1 + limit.working_blocks + limit.step_sequences + keep_blocks), keep_blocks)
    return Scheduler(limit, cache), cache


@dataclass
class World:
    """Carries plans out on pretend memory: a block remembers which beginning was written to it."""

    scheduler: Scheduler
    cache: PrefixCache
    limit: SchedulerLimits
    now_ms: float = 0.0
    prompts: dict[int, tuple[int, ...]] = field(default_factory=dict)
    due: dict[int, float | None] = field(default_factory=dict)
    endings: dict[int, str] = field(default_factory=dict)
    memory: dict[int, tuple[int, ...]] = field(default_factory=dict)
    computed_tokens: int = 0
    steps: int = 0

    def offer(self, prompt_id: int, ids: tuple[int, ...], deadline_ms: float | None = None) -> None:
        self.prompts[prompt_id] = ids
        self.due[prompt_id] = deadline_ms
        keys = block_keys(np.array(ids, dtype=np.int64), CHUNK, b"router")
        self.scheduler.offer(prompt_id, len(ids), keys, self.now_ms, deadline_ms)

    def end(self, prompt_id: int, how: str) -> None:
        assert prompt_id not in self.endings, f"prompt {prompt_id} ended twice: {self.endings[prompt_id]}, {how}"
        self.endings[prompt_id] = how

    def cancel(self, prompt_id: int) -> None:
        if self.scheduler.cancel(prompt_id):
            self.end(prompt_id, "cancelled")

    def step(self) -> Plan:
        plan = self.scheduler.plan(self.now_ms)
        assert plan.tokens <= self.limit.step_tokens and len(plan.chunks) <= self.limit.step_sequences
        with_cache = any(chunk.blocks for chunk in plan.chunks)
        assert with_cache or not (plan.ready and plan.chunks), "a step that reads the cache is wholly with it"
        written = set[int]()
        for chunk in plan.chunks:
            ids = self.prompts[chunk.prompt_id]
            assert chunk.start % CHUNK == 0 and chunk.stop == min(chunk.start + CHUNK, len(ids))
            assert bool(chunk.blocks) == with_cache, "a step is wholly with the cache or wholly without"
            if with_cache:
                assert len(chunk.blocks) == chunk.start // CHUNK + 1 and chunk.blocks[-1] not in written
                written.add(chunk.blocks[-1])
                self.memory[chunk.blocks[-1]] = ids[: chunk.stop]
            else:
                assert chunk.is_last and chunk.start == 0
            self.check_blocks(ids, chunk.blocks, chunk.stop)
        for chunk in plan.ready:
            assert chunk.is_last and chunk.cached_tokens > 0
            self.check_blocks(self.prompts[chunk.prompt_id], chunk.blocks, chunk.stop)
        for chunk in (*plan.chunks, *plan.ready):
            if chunk.is_last:
                self.end(chunk.prompt_id, "answered")
        for prompt_id, reason in plan.dropped:
            due = self.due[prompt_id]
            assert due is not None and (due <= self.now_ms) == (reason is DropReason.PAST)
            self.end(prompt_id, reason.value)
        elapsed_ms = 1.0 + 0.5 * plan.tokens
        self.now_ms += elapsed_ms
        self.scheduler.observe(plan, elapsed_ms, self.now_ms)
        self.computed_tokens += plan.tokens
        self.steps += 1
        return plan

    def check_blocks(self, ids: tuple[int, ...], blocks: tuple[int, ...], stop: int) -> None:
        for index, block in enumerate(blocks):
            beginning = ids[: min(stop, (index + 1) * CHUNK)]
            assert self.memory[block] == beginning, f"block {block} does not hold the beginning it is read as"

    def drain(self) -> None:
        while len(self.scheduler):
            self.step()


# Few distinct tokens and a shared stock of beginnings, so that prompts often begin alike.
prompts_strategy = st.sampled_from([(1,) * 8, (1,) * 12, (5, 5)]) | st.builds(
    lambda stem, cut, tail: tuple(([1] * 9 if stem else [2, 1, 2, 2, 1, 1, 2, 1, 1])[:cut] + tail) or (1,),
    st.booleans(),
    st.integers(0, 9),
    st.lists(st.integers(1, 2), max_size=30),
)
events_strategy = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), prompts_strategy, st.none() | st.floats(-5.0, 120.0)),
        st.tuples(st.just("cancel"), st.integers(0, 40), st.none()),
        st.tuples(st.just("step"), st.none(), st.none()),
    ),
    max_size=60,
)


@settings(max_examples=250, deadline=None)
@given(events_strategy, st.integers(0, 8), st.sampled_from(list(Order)), st.sampled_from([1, 2, 6]))
def test_every_prompt_ends_exactly_once_within_budget_and_reads_only_its_own_beginning(
    events: list[tuple[str, object, object]], keep_blocks: int, order: Order, step_sequences: int
) -> None:
    limit = limits(order=order, step_sequences=step_sequences)
    scheduler, cache = make(keep_blocks, order=order, step_sequences=step_sequences)
    world = World(scheduler, cache, limit)
    for kind, what, deadline in events:
        if kind == "offer":
            assert isinstance(what, tuple)
            due = None if deadline is None else world.now_ms + deadline  # type: ignore[operator]
            world.offer(len(world.prompts), what, due)
        elif kind == "cancel":
            assert isinstance(what, int)
            world.cancel(what)
        else:
            world.step()
    world.drain()
    assert set(world.endings) == set(world.prompts)
    assert cache.pinned_blocks == 0 and cache.idle_blocks <= keep_blocks
    assert scheduler._reserved_blocks == 0
    answered = sum(len(world.prompts[p]) for p, how in world.endings.items() if how == "answered")
    assert world.computed_tokens <= sum(map(len, world.prompts.values())), "a token was computed twice"
    assert keep_blocks or world.computed_tokens >= min(answered, 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(1, 3), st.integers(5, 40))
def test_no_stream_of_short_prompts_starves_a_long_one(chunks: int, shorts_a_step: int, credit: int) -> None:
    scheduler, cache = make(credit_tokens_per_s=1000.0 * credit / 10.0)
    world = World(scheduler, cache, limits())
    tokens = chunks * CHUNK
    world.offer(0, tuple([7] * tokens))
    # After `overtaken_ms` no newcomer outranks it; those that came before are served first, then it is alone in front.
    overtaken_ms = tokens / (credit / 10.0)
    offered = 1
    while 0 not in world.endings:
        for _ in range(shorts_a_step):
            world.offer(offered, (3, 3, 3))
            offered += 1
        world.step()
        ahead = shorts_a_step * (overtaken_ms / 2.5 + 1)
        assert world.steps <= overtaken_ms / 1.0 + ahead + chunks + 1, "a long prompt waits forever"


def test_a_short_prompt_goes_before_a_long_one_that_came_earlier_and_is_under_way() -> None:
    scheduler, cache = make()
    world = World(scheduler, cache, limits())
    world.offer(0, tuple(range(40)))
    world.step()
    world.offer(1, (1, 2, 3))
    assert [chunk.prompt_id for chunk in world.step().chunks] == [1]


def test_first_come_first_served_lets_it_wait() -> None:
    scheduler, cache = make(order=Order.ARRIVAL)
    world = World(scheduler, cache, limits(order=Order.ARRIVAL))
    world.offer(0, tuple(range(40)))
    world.step()
    world.offer(1, (1, 2, 3))
    assert [chunk.prompt_id for chunk in world.step().chunks] == [0]


def test_a_deadline_moves_a_prompt_up() -> None:
    scheduler, cache = make()
    world = World(scheduler, cache, limits())
    world.offer(9, (5,))
    world.step()  # Teaches the speed: 1.5 ms for one token.
    world.offer(0, tuple(range(12)), deadline_ms=world.now_ms + 20.0)  # Laxity of one token: 20 / 1.5 - 12.
    world.offer(1, (1, 2, 3))
    assert [chunk.prompt_id for chunk in world.step().chunks] == [0]


def test_a_deadline_that_is_past_or_cannot_be_met_is_dropped_before_it_is_computed() -> None:
    scheduler, cache = make()
    world = World(scheduler, cache, limits())
    world.offer(9, (5,))
    world.step()
    world.offer(0, (1, 2), deadline_ms=world.now_ms)
    world.offer(1, tuple(range(20)), deadline_ms=world.now_ms + 5.0)
    world.offer(2, (1, 2, 3), deadline_ms=world.now_ms + 50.0)
    plan = world.step()
    assert plan.dropped == ((0, DropReason.PAST), (1, DropReason.DOOMED))
    assert [chunk.prompt_id for chunk in plan.chunks] == [2]


def test_prompts_that_arrive_together_compute_a_common_beginning_once() -> None:
    scheduler, cache = make(working_blocks=64, step_sequences=16, step_tokens=64, light_step_tokens=64)
    world = World(scheduler, cache, limits(working_blocks=64, step_sequences=16, step_tokens=64, light_step_tokens=64))
    stem = tuple(range(100, 120))
    for prompt_id in range(6):
        world.offer(prompt_id, (*stem, prompt_id))
    plan = world.step()
    assert plan.tokens == len(stem) + 6 and len(world.endings) == 6
    assert sum(chunk.is_last for chunk in plan.chunks) == 6


def test_a_prompt_that_the_cache_holds_whole_costs_nothing() -> None:
    scheduler, cache = make()
    world = World(scheduler, cache, limits())
    world.offer(0, tuple(range(12)))
    world.drain()
    world.offer(1, tuple(range(12)))
    plan = world.step()
    assert plan.chunks == () and [chunk.prompt_id for chunk in plan.ready] == [1]
    assert plan.ready[0].cached_tokens == 12


def test_a_ready_prompt_brings_the_cache_to_a_step_of_one_chunk_prompts() -> None:
    scheduler, cache = make(light_step_tokens=16)
    world = World(scheduler, cache, limits(light_step_tokens=16))
    world.offer(0, tuple(range(12)))
    world.drain()
    world.offer(1, tuple(range(12)))
    world.offer(2, (1, 2, 3))
    plan = world.step()
    assert [chunk.prompt_id for chunk in plan.ready] == [1]
    assert [(chunk.prompt_id, len(chunk.blocks)) for chunk in plan.chunks] == [(2, 1)]
    assert cache.pinned_blocks == 0


def test_an_evicted_beginning_is_computed_again_and_the_kept_rest_adopted() -> None:
    scheduler, cache = make()
    world = World(scheduler, cache, limits())
    ids = tuple(range(12))
    world.offer(0, ids)
    world.drain()
    keys = block_keys(np.array(ids, dtype=np.int64), CHUNK, b"router")
    tail = [cache.pin(key) for key in keys[1:]]
    cache.clear()
    for block in tail:
        cache.unpin(block or 0)
    world.offer(1, ids)
    plan = world.step()
    assert [(chunk.start, chunk.is_last) for chunk in plan.chunks] == [(0, False)]
    assert [chunk.prompt_id for chunk in plan.ready] == [1] and plan.ready[0].cached_tokens == 8


def test_a_deep_queue_is_drained_in_full_steps_and_a_shallow_one_in_light_ones() -> None:
    scheduler, cache = make(light_prompts=2, step_sequences=16)
    world = World(scheduler, cache, limits(light_prompts=2, step_sequences=16))
    for prompt_id in range(42):
        world.offer(prompt_id, (1, 2))
    sizes = []
    while len(scheduler) > 2:
        sizes.append(world.step().tokens)
    assert sizes[0] == 16 and sizes == sorted(sizes, reverse=True)
    assert len(scheduler) == 2 and world.step().tokens == 4
    world.offer(42, (1, 2))
    world.offer(43, (1, 2, 3, 4))
    assert world.step().tokens == 2


def test_a_blocked_start_is_not_overtaken_by_later_ones_that_would_fit() -> None:
    scheduler, cache = make(working_blocks=6)
    world = World(scheduler, cache, limits(working_blocks=6))
    world.offer(0, tuple(range(16)))
    world.step()  # Holds 4 of 6 blocks.
    world.offer(1, tuple(range(50, 62)))  # 3 blocks: does not fit beside it.
    world.offer(2, tuple(range(70, 86)))  # 4 blocks.
    world.drain()
    assert set(world.endings.values()) == {"answered"}


def test_the_door_refuses_at_once_and_exactly_above_its_bound() -> None:
    door = Door(2)
    door.enter()
    door.enter()
    with pytest.raises(OverloadedError, match="2 prompts of at most 2"):
        door.enter()
    door.leave()
    door.enter()
    assert door.inside == 2
