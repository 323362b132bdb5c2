"""Packing: what a batch holds, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from onebeat.engine.batch import CHUNK_TOKENS, Part, pack, pack_parts
from onebeat.engine.errors import InputError


@dataclass(frozen=True, slots=True)
class Cache:
    chunk_tokens: int = CHUNK_TOKENS
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()


def test_prompts_are_packed_one_behind_the_other_and_cut_into_chunks() -> None:
    long = CHUNK_TOKENS + 5
    batch = pack([[7, 8, 9], list(range(long)), [1]])
    assert batch.tokens == long + 4
    assert batch.token_ids[:5].tolist() == [7, 8, 9, 0, 1]
    assert batch.positions.tolist() == [0, 1, 2, *range(long), 0]
    assert batch.cu_seqlens.tolist() == [0, 3, 3 + long, 4 + long]
    assert batch.chunk_bounds.tolist() == [0, 3, 3 + CHUNK_TOKENS, 3 + long, 4 + long]
    assert batch.chunk_rows == (3, CHUNK_TOKENS, 5, 1)
    assert batch.max_seqlen == batch.longest == long


@pytest.mark.parametrize("tokens", [CHUNK_TOKENS, 2 * CHUNK_TOKENS])
def test_a_prompt_of_whole_chunks_has_no_empty_one(tokens: int) -> None:
    assert pack([[0] * tokens]).chunk_rows == (CHUNK_TOKENS,) * (tokens // CHUNK_TOKENS)


def test_the_caller_says_how_long_a_chunk_is() -> None:
    assert pack([[0] * 70, [1]], chunk_tokens=32).chunk_rows == (32, 32, 6, 1)
    batch = pack_parts([Part([5], 32, [3, 9])], Cache(32))
    assert batch.slots is not None and batch.slots.tolist() == [9 * 32]
    with pytest.raises(InputError, match="starts at token 48; it must start at a multiple of 32"):
        pack_parts([Part([5], 48, [3, 9])], Cache(32))


def test_parts_find_their_slots_and_blocks() -> None:
    batch = pack_parts([Part([5, 6], CHUNK_TOKENS, [3, 9]), Part([4], 0, [2])], Cache())
    assert batch.positions.tolist() == [CHUNK_TOKENS, CHUNK_TOKENS + 1, 0]
    assert batch.slots is not None and batch.block_table is not None and batch.context_tokens is not None
    assert batch.slots.tolist() == [9 * CHUNK_TOKENS, 9 * CHUNK_TOKENS + 1, 2 * CHUNK_TOKENS]
    assert batch.block_table.tolist() == [[3, 9], [2, 0]]
    assert batch.context_tokens.tolist() == [CHUNK_TOKENS + 2, 1]
    assert torch.equal(batch.chunk_bounds, batch.cu_seqlens)
    assert (batch.max_seqlen, batch.longest) == (2, CHUNK_TOKENS + 2)


def test_prompts_without_tokens_are_refused_by_number() -> None:
    with pytest.raises(InputError, match="prompt 1 has 0 tokens"):
        pack([[1], []])
    with pytest.raises(InputError, match="0 prompts"):
        pack([])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part([], 0, [1]), "has 0 tokens"),
        (Part([1] * (CHUNK_TOKENS + 1), 0, [1, 2]), f"{CHUNK_TOKENS + 1} tokens; it must have 1 to {CHUNK_TOKENS}"),
        (Part([1], 5, [1]), f"starts at token 5; it must start at a multiple of {CHUNK_TOKENS}"),
        (Part([1], -CHUNK_TOKENS, [1]), f"starts at token -{CHUNK_TOKENS}"),
        (Part([1], CHUNK_TOKENS, [1]), "has 1 cache blocks; it needs 2"),
    ],
)
def test_a_part_that_cannot_be_computed_is_refused_with_both_values(part: Part, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pack_parts([part], Cache())


def test_no_parts_are_refused() -> None:
    with pytest.raises(InputError, match="0 chunks"):
        pack_parts([], Cache())
