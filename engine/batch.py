"""A packed batch: what one forward pass reads.

Enters: token ids of prompts, or of chunks of prompts whose earlier keys and values lie in a paged cache. Leaves: a
frozen `Batch` of tensors. Knows no weights, no scheduling and no text.

Bit identity rests on one rule kept here: every prompt is computed in chunks that begin at absolute multiples of the
backbone's `chunk_tokens`, whatever the schedule. Attention for a chunk is one computation over (rows of the chunk, keys
up to the chunk's end) and pooling keeps one float32 sum per chunk, so neither depends on what else is in the batch, on
whether the prompt came whole, in chunks or behind a cached prefix.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from onebeat.engine.errors import InputError
from onebeat.kernels.cpu.attention import TILE_ROWS

CHUNK_TOKENS = TILE_ROWS
"""Tokens of a chunk and of a cache block, but for backbones whose layers are all native (`native_layer.py`): torch's
int8 products are at their peak rate from 128 rows on; 256 was no faster."""


class KeyValueCache(Protocol):
    """Blocks of keys and values for every layer: what paged attention reads and `rope_` writes."""

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a block."""

    @property
    def keys(self) -> Sequence[Tensor]:
        """Per layer [B, chunk_tokens, NKV, D]."""

    @property
    def values(self) -> Sequence[Tensor]:
        """Per layer [B, chunk_tokens, NKV, D]."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """S sequences, packed without padding into T tokens.

    Without a cache every sequence is a whole prompt. With one, every sequence is a chunk of a prompt: it begins at a
    multiple of `chunk_tokens` and its keys before that lie in the cache.
    """

    token_ids: Tensor
    """[T] int32"""
    positions: Tensor
    """[T] int32, absolute within the prompt."""
    cu_seqlens: Tensor
    """[S+1] int32: sequence s is rows cu_seqlens[s] to cu_seqlens[s+1]."""
    max_seqlen: int
    chunk_bounds: Tensor
    """[C+1] int32: chunk c is rows chunk_bounds[c] to chunk_bounds[c+1]. Without a cache a long prompt is several
    chunks; with one, every sequence is a chunk and this is `cu_seqlens` itself."""
    cache: KeyValueCache | None = None
    slots: Tensor | None = None
    """[T] int64 flat places in the cache: block * chunk_tokens + offset."""
    block_table: Tensor | None = None
    """[S, maxB] int32 block ids; entries past the sequence's last block are never read."""
    context_tokens: Tensor | None = None
    """[S] int32 tokens of the prompt up to and including this chunk."""
    chunk_rows: tuple[int, ...] = ()
    """[C] rows of each chunk, on the host; empty where only the device knows them (a captured graph)."""
    longest: int = 0
    """Tokens of the longest prompt up to the end of this batch's part of it; 0 where only the device knows."""

    @property
    def tokens(self) -> int:
        """T."""
        return self.token_ids.shape[0]


@dataclass(frozen=True, slots=True)
class Part:
    """One chunk of a prompt, to be computed against the cache."""

    token_ids: Sequence[int]
    """At most `chunk_tokens` ids: those at absolute positions `start` and after."""
    start: int
    """A multiple of `chunk_tokens`."""
    block_ids: Sequence[int]
    """Blocks of the prompt from its beginning; the last one is written by this chunk."""


def pack(
    prompts: Sequence[Sequence[int]], device: torch.device | str = "cpu", chunk_tokens: int = CHUNK_TOKENS
) -> Batch:
    """Whole prompts, one behind the other. Raises `InputError` for no prompts, or an empty one."""
    if not prompts:
        raise InputError("a batch of 0 prompts cannot be computed; give at least 1.")
    bounds, chunk_bounds, token_ids, positions = [0], [0], list[int](), list[int]()
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompt {index} has 0 tokens; a prompt needs at least 1.")
        begin = bounds[-1]
        token_ids += prompt
        positions += range(len(prompt))
        bounds.append(begin + len(prompt))
        chunk_bounds += range(begin + chunk_tokens, bounds[-1], chunk_tokens)
        chunk_bounds.append(bounds[-1])
    cu_seqlens = _int32(bounds, device)
    longest = max(len(prompt) for prompt in prompts)
    return Batch(
        _int32(token_ids, device),
        _int32(positions, device),
        cu_seqlens,
        longest,
        cu_seqlens if len(chunk_bounds) == len(bounds) else _int32(chunk_bounds, device),
        chunk_rows=tuple(end - begin for begin, end in itertools.pairwise(chunk_bounds)),
        longest=longest,
    )


def pack_parts(parts: Sequence[Part], cache: KeyValueCache, device: torch.device | str = "cpu") -> Batch:
    """Chunks of prompts against `cache`. Consecutive chunks of one prompt may come together, in order.

    Raises `InputError` for a chunk that does not begin at a multiple of the cache's `chunk_tokens`, is too long or
    empty, or whose blocks do not reach its end.
    """
    if not parts:
        raise InputError("a batch of 0 chunks cannot be computed; give at least 1.")
    bounds, token_ids, positions, slots, context = [0], list[int](), list[int](), list[int](), list[int]()
    widest = max(len(part.block_ids) for part in parts)
    table, size = [], cache.chunk_tokens
    for part in parts:
        tokens = len(part.token_ids)
        _check_part(part, tokens, size)
        first_slot = part.block_ids[part.start // size] * size
        token_ids += part.token_ids
        positions += range(part.start, part.start + tokens)
        slots += range(first_slot, first_slot + tokens)
        context.append(part.start + tokens)
        bounds.append(bounds[-1] + tokens)
        table.append([*part.block_ids, *[0] * (widest - len(part.block_ids))])
    cu_seqlens = _int32(bounds, device)
    return Batch(
        _int32(token_ids, device),
        _int32(positions, device),
        cu_seqlens,
        max(len(part.token_ids) for part in parts),
        cu_seqlens,
        cache,
        torch.tensor(slots, dtype=torch.int64, device=device),
        torch.tensor(table, dtype=torch.int32, device=device),
        _int32(context, device),
        tuple(len(part.token_ids) for part in parts),
        max(context),
    )


def _check_part(part: Part, tokens: int, chunk_tokens: int) -> None:
    if not 0 < tokens <= chunk_tokens:
        raise InputError(f"a chunk has {tokens} tokens; it must have 1 to {chunk_tokens}.")
    if part.start < 0 or part.start % chunk_tokens:
        raise InputError(f"a chunk starts at token {part.start}; it must start at a multiple of {chunk_tokens}.")
    needed = part.start // chunk_tokens + 1
    if len(part.block_ids) < needed:
        raise InputError(f"a chunk at token {part.start} has {len(part.block_ids)} cache blocks; it needs {needed}.")


def _int32(values: list[int], device: torch.device | str) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)
