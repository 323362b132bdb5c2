"""The prefix cache's books: what is found, what is evicted, and that no block is ever in two states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from onebeat.engine.prefix_cache import KEY_BYTES, PrefixCache, block_keys

CHUNK_TOKENS = 4


def keys_of(*token_ids: int, fingerprint: bytes = b"router") -> tuple[bytes, ...]:
    return block_keys(np.array(token_ids, dtype=np.int64), CHUNK_TOKENS, fingerprint)


def filled(cache: PrefixCache, keys: tuple[bytes, ...]) -> list[int]:
    """Writes a chain and leaves it idle."""
    blocks = []
    for key in keys:
        blocks.append(cache.take())
        cache.publish(blocks[-1], key)
    for block in reversed(blocks):
        cache.unpin(block)
    return blocks


@given(st.lists(st.integers(0, 50_000), max_size=40), st.integers(0, 39), st.integers(0, 50_000))
def test_a_key_names_everything_up_to_its_chunk_and_nothing_after(ids: list[int], place: int, other: int) -> None:
    keys = keys_of(*ids)
    assert len(keys) == len(ids) // CHUNK_TOKENS and all(len(key) == KEY_BYTES for key in keys)
    if place < len(ids) and ids[place] != other:
        changed = keys_of(*ids[:place], other, *ids[place + 1 :])
        for index, (before, after) in enumerate(zip(keys, changed, strict=True)):
            assert (before == after) == (index < place // CHUNK_TOKENS)


def test_another_router_shares_no_key() -> None:
    ids = range(12)
    assert not set(keys_of(*ids)) & set(keys_of(*ids, fingerprint=b"other"))


def test_the_dtype_of_the_ids_does_not_change_their_keys() -> None:
    ids = np.arange(8)
    assert block_keys(ids.astype(np.int32), 4, b"r") == block_keys(ids, 4, b"r")  # type: ignore[arg-type]


def test_a_published_chain_is_found_and_pinned() -> None:
    cache = PrefixCache(range(1, 9), keep_blocks=8)
    keys = keys_of(*range(12))
    blocks = filled(cache, keys)
    assert cache.matching(keys) == 3 and cache.matching(keys, 1) == 2
    assert [cache.pin(key) for key in keys] == blocks
    assert cache.pinned_blocks == 3 and cache.idle_blocks == 0


def test_the_least_recently_used_goes_first_and_tails_before_beginnings() -> None:
    cache = PrefixCache(range(1, 5), keep_blocks=4)
    old, new = keys_of(1, 2, 3, 4, 5, 6, 7, 8), keys_of(9, 9, 9, 9, 8, 8, 8, 8)
    filled(cache, old)
    filled(cache, new)
    cache.unpin(cache.pin(old[0]) or 0)
    cache.take()
    assert (cache.matching(old), cache.matching(new)) == (1, 2), "old's tail was the least recently used"
    cache.take()
    assert (cache.matching(old), cache.matching(new)) == (1, 1), "a chain loses its tail before its beginning"
    assert cache.evicted_blocks == 2


def test_a_pinned_block_survives_any_pressure() -> None:
    cache = PrefixCache(range(1, 4), keep_blocks=3)
    key = keys_of(1, 2, 3, 4)
    block = filled(cache, key)[0]
    assert cache.pin(key[0]) == block
    assert block not in {cache.take(), cache.take()}
    with pytest.raises(AssertionError):
        cache.take()
    assert cache.pin(key[0]) == block


def test_nothing_is_kept_where_nothing_may_be_kept() -> None:
    cache = PrefixCache(range(1, 5), keep_blocks=0)
    keys = keys_of(*range(8))
    filled(cache, keys)
    assert cache.matching(keys) == 0 and cache.free_blocks == 4


class Books(RuleBasedStateMachine):
    """Any order of calls: a block is free, pinned or idle, never two of them, and idle ones keep their budget."""

    taken = Bundle("taken")

    def __init__(self) -> None:
        super().__init__()
        self.cache = PrefixCache(range(1, 7), keep_blocks=3)
        self.held: list[int] = []

    @precondition(lambda self: self.cache.free_blocks or self.cache.idle_blocks)
    @rule(target=taken)
    def take(self) -> int:
        block = self.cache.take()
        assert block not in self.held, "a block somebody uses was handed out again"
        self.held.append(block)
        return block

    @rule(block=taken, name=st.integers(0, 5))
    def publish(self, block: int, name: int) -> None:
        if block in self.held and block not in self.cache._key_of:
            self.cache.publish(block, bytes([name]))

    @rule(name=st.integers(0, 5))
    def pin(self, name: int) -> None:
        block = self.cache.pin(bytes([name]))
        if block is not None:
            self.held.append(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        self.cache.unpin(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @rule()
    def clear(self) -> None:
        self.cache.clear()

    @invariant()
    def every_block_is_in_one_state(self) -> None:
        cache = self.cache
        assert cache.free_blocks + cache.pinned_blocks + cache.idle_blocks == 6
        assert cache.pinned_blocks == len(set(self.held))
        assert cache.idle_blocks <= 3
        assert len(cache._block_of) == len(cache._key_of)


TestBooks = Books.TestCase
