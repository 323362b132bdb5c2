"""Steps on a real backbone, tiny and random: in int8 the same prompt has the same bits however it is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onebeat.engine.batch import CHUNK_TOKENS, Part, pack_parts
from onebeat.engine.engine import Engine
from onebeat.engine.graphs import BUCKETS, GraphedRunner, buckets_for
from onebeat.engine.loading import Precision
from onebeat.engine.model import Backbone
from onebeat.engine.native_layer import NATIVE_CHUNK_TOKENS
from onebeat.engine.paged_cache import PagedCache
from onebeat.engine.parts import EngineParts
from onebeat.engine.plan import Order, SchedulerLimits
from onebeat.engine.runner import Runner
from onebeat.engine.stepper import Stepper
from tests.engine.fake_model import Prepared
from tests.engine.tiny_models import backbone_of, build, prompt

LONGEST = 6 * CHUNK_TOKENS


@cache
def runner_of(precision: Precision) -> Runner:
    """Two taps, one pooled by the mean and one by the last token, so that both kinds of carry are tested."""
    return Runner(tiny(precision, [1, 2]), ["mean", "last"])


def tiny(precision: Precision, taps: list[int], **options: Any) -> Backbone:
    model = build("qwen2", hidden_size=128, num_attention_heads=2, num_key_value_heads=1)
    return backbone_of(model, precision, taps, **options)


def engine_over(runner: Runner, *, keep_blocks: int = 8, always_in_cache: bool = False, **changes: object) -> Engine:
    """Prompts are lists of token ids; the head gives the features back."""
    settings: dict[str, object] = {"step_tokens": 512, "light_step_tokens": 128, "step_sequences": 6}
    settings |= {"working_blocks": 9 * CHUNK_TOKENS // runner.chunk_tokens, "always_in_cache": always_in_cache}
    limits = SchedulerLimits(runner.chunk_tokens, **(settings | changes))  # type: ignore[arg-type]
    blocks = 1 + limits.working_blocks + limits.step_sequences + keep_blocks
    return Engine(
        EngineParts(
            prepare=lambda ids: Prepared(list(ids), len(ids)),  # type: ignore[arg-type]
            make_stepper=lambda: Stepper(runner, blocks, limits.step_tokens, limits.step_sequences),
            score=lambda features: (features, features),
            models=("all",),
            fingerprint=b"tiny",
            max_prompt_tokens=LONGEST,
            limits=limits,
            keep_blocks=keep_blocks,
        )
    )


def together(engine: Engine, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    futures = [engine.submit(list(ids)) for ids in prompts]  # type: ignore[arg-type]
    return np.concatenate([future.result(60).quality for future in futures])


stems = st.sampled_from([0, 60, CHUNK_TOKENS, CHUNK_TOKENS + 1, 2 * CHUNK_TOKENS, 3 * CHUNK_TOKENS + 40])
lengths = st.one_of(
    st.integers(1, 40), st.sampled_from([63, 64, 65, 127, 128, 129, 255, 256, 257]), st.integers(1, 250)
)
prompt_lists = st.lists(st.tuples(stems, lengths, st.integers(0, 2)), min_size=1, max_size=7)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    prompt_lists,
    st.sampled_from([0, 2, 8]),
    st.booleans(),
    st.sampled_from(list(Order)),
    st.sampled_from([128, 192, 512]),
)
def test_in_int8_no_schedule_no_cache_and_no_company_changes_a_bit(
    drawn: list[tuple[int, int, int]], keep_blocks: int, always_in_cache: bool, order: Order, light_step_tokens: int
) -> None:
    runner = runner_of("int8")
    stem = prompt(LONGEST, seed=1)
    prompts = [stem[:shared] + prompt(own, seed=seed) for shared, own, seed in drawn]
    alone = np.concatenate([runner.features([ids]).numpy() for ids in prompts])
    engine = engine_over(
        runner,
        keep_blocks=keep_blocks,
        always_in_cache=always_in_cache,
        order=order,
        light_step_tokens=light_step_tokens,
    )
    engine.start()
    try:
        first, again = together(engine, prompts), together(engine, prompts)
    finally:
        engine.stop(30)
    assert np.isfinite(alone).all() and np.ptp(alone) > 0
    np.testing.assert_array_equal(first, alone)
    np.testing.assert_array_equal(again, alone)
    np.testing.assert_array_equal(runner.features(prompts).numpy(), alone)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 4e-2)])
def test_in_the_float_types_scores_agree_within_rounding(precision: Precision, tolerance: float) -> None:
    runner = runner_of(precision)
    stem = prompt(LONGEST, seed=1)
    prompts = [stem[:300] + prompt(9, seed=1), prompt(40, seed=2), stem[:300] + prompt(120, seed=3), stem[:256]]
    engine = engine_over(runner)
    engine.start()
    try:
        first, cached = together(engine, prompts), together(engine, prompts)
        assert engine.snapshot().cached_tokens > 0
    finally:
        engine.stop(30)
    alone = np.concatenate([runner.features([ids]).numpy() for ids in prompts])
    spread = np.abs(alone).max()
    np.testing.assert_allclose(first, alone, atol=tolerance * spread)
    np.testing.assert_allclose(cached, alone, atol=tolerance * spread)


def test_a_whole_prompt_in_the_cache_is_answered_without_a_step() -> None:
    engine = engine_over(runner_of("int8"))
    engine.start()
    try:
        first = together(engine, [prompt(2 * CHUNK_TOKENS)])
        computed = engine.snapshot().computed_tokens
        np.testing.assert_array_equal(together(engine, [prompt(2 * CHUNK_TOKENS)]), first)
        assert engine.snapshot().computed_tokens == computed
    finally:
        engine.stop(30)


def captured_at_once(forward: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Stands in for a capture: the static buffers are all that a replay may depend on, so running again is the same."""
    return forward


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.integers(1, NATIVE_CHUNK_TOKENS), st.integers(0, 3)), min_size=1, max_size=6))
def test_a_step_laid_into_a_bucket_has_the_bits_of_an_eager_one(drawn: list[tuple[int, int]]) -> None:
    runner = runner_of("int8")
    cache = PagedCache(runner, 40)
    for tensor in (*cache.keys, *cache.values):
        tensor.normal_(generator=torch.Generator().manual_seed(3))
    parts = [
        Part(prompt(tokens, seed), before * runner.chunk_tokens, [1 + index * 4 + place for place in range(before + 1)])
        for index, (tokens, before) in enumerate(drawn)
        for seed in [index]
    ]
    eager = runner.step(pack_parts(parts, cache)).clone()
    graphed = GraphedRunner(runner, cache, step_tokens=1024, step_sequences=6)
    reports: list[tuple[int, int, str]] = []
    graphed.capture(lambda *report: reports.append(report), captured_at_once)
    assert [done for done, _, _ in reports] == list(range(len(reports))) and "1024 tokens" in reports[0][2]
    np.testing.assert_array_equal(graphed.step(parts).numpy(), eager.numpy())
    np.testing.assert_array_equal(graphed.step(parts[:1]).numpy(), eager[:1].numpy())


def test_a_step_above_the_buckets_or_with_too_many_sequences_runs_eagerly() -> None:
    runner = runner_of("int8")
    cache = PagedCache(runner, 40)
    graphed = GraphedRunner(runner, cache, step_tokens=16, step_sequences=2)
    replayed: list[int] = []

    def counting(forward: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        def replay() -> torch.Tensor:
            replayed.append(1)
            return forward()

        return replay

    graphed.capture(lambda *_: None, counting)
    small = [Part(prompt(5, seed), 0, [1 + seed]) for seed in range(3)]
    graphed.step(small[:2])
    assert len(replayed) == 1
    eager = runner.step(pack_parts(small, cache)).clone()
    np.testing.assert_array_equal(graphed.step(small).numpy(), eager.numpy())
    graphed.step([Part(prompt(17), 0, [1])])
    assert len(replayed) == 1


def test_the_smallest_bucket_that_holds_a_step_is_chosen_and_gaps_are_covered() -> None:
    assert buckets_for(512)[-1] == 512 and buckets_for(500)[-1] == 512
    assert buckets_for(100_000) == BUCKETS and buckets_for(1)[-1] == BUCKETS[0]


def test_the_warm_up_measures_what_a_token_and_its_context_cost() -> None:
    runner = runner_of("int8")
    seen: list[tuple[int, int, str]] = []
    speed = Stepper(runner, 20, 512, 6).warm_up(lambda *report: seen.append(report))
    assert speed.ms_per_token > 0 and speed.context_cost_tokens > 0
    assert speed.step_ms >= 0 and seen[-1] == (4, 4, "ready")


def test_a_router_of_few_positions_warms_up() -> None:
    runner = Runner(tiny("int8", [1], max_positions=50), ["mean"])
    assert Stepper(runner, 8, 128, 4).warm_up(lambda *_: None).ms_per_token > 0
