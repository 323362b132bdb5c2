"""Which blocks of computed keys and values hold which beginning of which prompt.

Enters: chains of block keys. Leaves: block numbers to read and to write. Knows no tensor: `paged_cache.py` holds what
the numbers stand for. A block is one whole chunk at an absolute multiple of the chunk size, so that reusing it changes
no bit.

A block is *free*, *pinned* (some prompt is using it) or *idle* (kept for a prompt that begins the same). Idle blocks
are given up least recently used first, and within one chain the tail before the beginning, since a tail without its
beginning cannot be found.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 16
"""Of sha256's 32: at 2**40 blocks a collision still has a chance under 1e-14."""


def block_keys(token_ids: NDArray[np.int64], chunk_tokens: int, fingerprint: bytes) -> tuple[bytes, ...]:
    """One key per whole chunk of `token_ids` [T]: sha256 over the key before (first: the router's) and the chunk's ids.

    A key therefore names the whole beginning up to its chunk's end, and the router that computed it.
    """
    link = hashlib.sha256(fingerprint).digest()
    raw = np.ascontiguousarray(token_ids, dtype="<i8").tobytes()
    keys = []
    for end in range(chunk_tokens * 8, len(raw) + 1, chunk_tokens * 8):
        link = hashlib.sha256(link + raw[end - chunk_tokens * 8 : end]).digest()
        keys.append(link[:KEY_BYTES])
    return tuple(keys)


class PrefixCache:
    """Book-keeping of a pool of numbered blocks. One thread uses it; every call is O(1) or O(keys given)."""

    def __init__(self, blocks: Sequence[int], keep_blocks: int) -> None:
        """`blocks` are the numbers to hand out; at most `keep_blocks` of them stay idle."""
        self._free = list(reversed(blocks))
        self._keep_blocks = keep_blocks
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._pins: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self.evicted_blocks = 0
        self.changes = 0
        """Grows with everything published or evicted: an earlier `matching` holds while this stands still."""

    @property
    def idle_blocks(self) -> int:
        """Blocks kept for prompts to come."""
        return len(self._idle)

    @property
    def pinned_blocks(self) -> int:
        """Blocks that prompts are using."""
        return len(self._pins)

    @property
    def free_blocks(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    def matching(self, keys: Sequence[bytes], start: int = 0) -> int:
        """How many keys from `keys[start]` on are held without a gap. Pins nothing: an estimate until pinned."""
        count = 0
        while start + count < len(keys) and keys[start + count] in self._block_of:
            count += 1
        return count

    def pin(self, key: bytes) -> int | None:
        """The block that holds `key`, safe from eviction until unpinned; None when it is not held."""
        block = self._block_of.get(key)
        if block is not None:
            self._idle.pop(block, None)
            self._pins[block] = self._pins.get(block, 0) + 1
        return block

    def take(self) -> int:
        """A pinned block to write, evicting the least recently used idle one if no block is free."""
        if not self._free:
            assert self._idle, "the scheduler reserves blocks before it takes them"
            self._evict()
        block = self._free.pop()
        self._pins[block] = 1
        return block

    def publish(self, block: int, key: bytes) -> None:
        """From now on `block` can be found as `key`. A key that is held already stays where it is."""
        assert block in self._pins, "a block is published by the prompt that wrote it"
        if key not in self._block_of:
            self._block_of[key] = block
            self._key_of[block] = key
            self.changes += 1

    def unpin(self, block: int) -> None:
        """One prompt fewer uses `block`. The last one leaves it idle if it can be found, and free otherwise."""
        self._pins[block] -= 1
        if self._pins[block]:
            return
        del self._pins[block]
        if block not in self._key_of:
            self._free.append(block)
            return
        self._idle[block] = None
        while len(self._idle) > self._keep_blocks:
            self._evict()

    def clear(self) -> None:
        """Forgets every idle block, for the contents are no longer to be trusted or wanted. Pinned ones stay pinned."""
        while self._idle:
            self._evict()
        self.evicted_blocks = 0

    def _evict(self) -> None:
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._key_of.pop(block)]
        self._free.append(block)
        self.evicted_blocks += 1
        self.changes += 1
