"""In int8 a prompt's features have the same bits alone, in any company, in chunks and behind a cached prefix."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onebeat.engine import loading
from onebeat.engine.batch import CHUNK_TOKENS, Part, pack, pack_parts
from onebeat.engine.loading import Quantizer
from onebeat.engine.native_layer import NATIVE_CHUNK_TOKENS, NativeInt8Layer
from onebeat.engine.runner import Runner
from onebeat.kernels.cpu.native import Native
from tests.engine.tiny_models import StateDict, backbone_of, build, prompt

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {"hidden_size": 384, "intermediate_size": 172}),
    "qwen3": ("qwen3", {"head_dim": 128}),
    "llama": ("llama", {"head_dim": 96, "attention_bias": True}),
    "mistral": ("mistral", {"sliding_window": 140}),
    "kept": ("llama", {}),
}
THROUGH_TORCH = "llama through torch"
FAMILIES[THROUGH_TORCH] = FAMILIES["llama"]
KEPT = ("layers.0.qkv", "layers.0.down", "layers.1.gate_up", "layers.2.attention_out")
LENGTHS = st.one_of(
    st.integers(1, 40),
    st.integers(1, 3 * CHUNK_TOKENS),
    st.sampled_from([n + more for n in (NATIVE_CHUNK_TOKENS, CHUNK_TOKENS, 2 * CHUNK_TOKENS) for more in (-1, 0, 1)]),
)


@functools.cache
def runner_of(name: str) -> Runner:
    family, changes = FAMILIES[name]
    model = build(family, **changes)
    matrices = Quantizer(StateDict(model.state_dict()), KEPT) if name == "kept" else None
    with pytest.MonkeyPatch.context() as patch:
        if name == THROUGH_TORCH:
            patch.setattr(loading, "native_kernels", lambda folder: Native(None, "not wanted"))
        return Runner(backbone_of(model, "int8", taps=[1, 3], matrices=matrices), ["mean", "last"])


@dataclass(frozen=True, slots=True)
class Cache:
    chunk_tokens: int
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


def cache_for(runner: Runner, blocks: int) -> Cache:
    """Blocks filled with garbage, as those of an earlier prompt would be."""
    config = runner.backbone.config
    shape = (blocks, runner.chunk_tokens, config.key_heads, config.head_size)

    def filled() -> tuple[Tensor, ...]:
        return tuple(torch.full(shape, 1e4, dtype=runner.cache_dtype) for _ in range(runner.layers))

    return Cache(runner.chunk_tokens, filled(), filled())


def in_chunks(runner: Runner, prompts: list[list[int]], tokens_per_step: int, cached_chunks: int = 0) -> Tensor:
    """The features of `prompts`, computed chunk by chunk through a cache, several prompts beside one another.

    The first `cached_chunks` chunks of each prompt are computed beforehand by a longer prompt that shares them.
    """
    size, most = runner.chunk_tokens, 8 * CHUNK_TOKENS // runner.chunk_tokens
    blocks = [list(range(1 + most * index, 1 + most * (index + 1))) for index in range(len(prompts))]
    cache = cache_for(runner, 1 + most * len(prompts))
    carries: dict[tuple[int, int], Tensor] = {}

    def run(todo: list[tuple[int, int, list[int]]]) -> None:
        parts = [
            Part(ids[chunk * size : (chunk + 1) * size], chunk * size, blocks[index]) for index, chunk, ids in todo
        ]
        for (index, chunk, _), carry in zip(todo, runner.step(pack_parts(parts, cache)), strict=True):
            carries[index, chunk] = carry

    chunks = [-(-len(ids) // size) for ids in prompts]
    for index, ids in enumerate(prompts):
        ready = min(cached_chunks, chunks[index] - 1)
        longer = ids[: ready * size] + prompt(60, 99)
        for chunk in range(ready):
            run([(index, chunk, longer)])
    waiting = [(i, c, ids) for i, ids in enumerate(prompts) for c in range(chunks[i]) if (i, c) not in carries]
    waiting.sort(key=lambda item: (item[1], -item[0]))
    while waiting:
        taken, tokens = [waiting.pop(0)], size
        while waiting and tokens < tokens_per_step:
            taken.append(waiting.pop(0))
            tokens += size
        run(taken)
    whole = []
    for index, count in enumerate(chunks):
        carry = carries[index, 0]
        for chunk in range(1, count):
            carry = runner.combine(carry, carries[index, chunk])
        whole.append(carry)
    return runner.finish(torch.stack(whole), torch.tensor([len(ids) for ids in prompts]))


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(lengths=st.lists(LENGTHS, min_size=1, max_size=5), seed=st.integers(0, 999), step=st.integers(1, 700))
def test_bits_do_not_depend_on_company_chunks_or_cache(name: str, lengths: list[int], seed: int, step: int) -> None:
    runner = runner_of(name)
    prompts = [prompt(tokens, seed + index) for index, tokens in enumerate(lengths)]
    alone = torch.cat([runner.features([ids]) for ids in prompts])
    assert torch.equal(runner.features(prompts), alone)
    assert torch.equal(in_chunks(runner, prompts, step), alone)
    assert torch.equal(in_chunks(runner, prompts, step, cached_chunks=2), alone)


@pytest.mark.parametrize("name", ["qwen2", THROUGH_TORCH])
@pytest.mark.parametrize("threads", [1, 3, 7])
def test_bits_do_not_depend_on_company_for_any_number_of_threads(threads: int, name: str) -> None:
    runner, before = runner_of(name), torch.get_num_threads()
    prompts = [prompt(tokens, tokens) for tokens in (37, 1, 111, 257, 64, 190)]
    torch.set_num_threads(threads)
    try:
        alone = torch.cat([runner.features([ids]) for ids in prompts])
        assert torch.equal(runner.features(prompts), alone)
    finally:
        torch.set_num_threads(before)


def test_a_backbone_is_cut_as_its_layers_allow() -> None:
    """Torch's attention computes tiles of one size from a prompt's beginning on: other chunks would change bits."""
    assert runner_of(THROUGH_TORCH).chunk_tokens == runner_of("kept").chunk_tokens == CHUNK_TOKENS
    native = runner_of("llama")
    whole = all(isinstance(layer, NativeInt8Layer) for layer in native.backbone.layers)
    assert native.chunk_tokens == (NATIVE_CHUNK_TOKENS if whole else CHUNK_TOKENS)


def test_prompts_differ() -> None:
    """The tests above would pass for a runner that returned the same features for every prompt."""
    first, second = runner_of("llama").features([prompt(30, 1), prompt(30, 2)])
    assert float((first - second).abs().max()) > 0.1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_float_paths_agree_within_rounding(precision: Any) -> None:
    runner = Runner(backbone_of(build("mistral", sliding_window=140), precision, taps=[2, 3]), ["last", "mean"])
    prompts = [prompt(tokens, tokens) for tokens in (1, 300, 128, 129, 40)]
    alone = torch.cat([runner.features([ids]) for ids in prompts])
    tolerance = 1e-5 if precision == "float32" else 2e-2
    for other in (runner.features(prompts), in_chunks(runner, prompts, 300), in_chunks(runner, prompts, 1, 2)):
        assert float((other - alone).norm() / alone.norm()) < tolerance


def test_features_are_pooled_states() -> None:
    runner = Runner(backbone_of(build("llama"), "float32", taps=[0, 3]), ["last", "mean"])
    ids = prompt(2 * CHUNK_TOKENS + 9)
    embedded, last = runner.backbone.forward(pack([ids]))
    [features] = runner.features([ids])
    assert torch.allclose(features, torch.cat([embedded[-1], last.mean(0)]), atol=1e-5)
