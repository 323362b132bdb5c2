"""The memory behind block numbers: keys and values of every layer, and what a prompt's pooling has gathered so far.

Enters: chunks that the scheduler placed in blocks. Leaves: tensors that paged attention reads, and the pooled carry of
every prompt that has ended. Knows no order of prompts and no hash: `prefix_cache.py` says which block means what.

Beside its keys and values a block holds the carry of the whole beginning up to its end (sums for mean taps, the last
row for last taps), so that a prompt whose beginning is found here goes on from exactly the bits it would have computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from onebeat.engine.plan import Chunk
from onebeat.engine.runner import Runner

SCRATCH_BLOCK = 0
"""Never handed out: padding in a CUDA graph writes here."""


class PagedCache:
    """`blocks` blocks of `chunk_tokens` tokens on the runner's device; block 0 is scratch."""

    def __init__(self, runner: Runner, blocks: int) -> None:
        config = runner.backbone.config
        self.chunk_tokens = runner.chunk_tokens
        shape = (blocks, self.chunk_tokens, config.key_heads, config.head_size)
        make = torch.zeros if runner.device.type == "cuda" else torch.empty
        self._runner = runner
        self.keys = tuple(make(shape, dtype=runner.cache_dtype, device=runner.device) for _ in range(runner.layers))
        self.values = tuple(make(shape, dtype=runner.cache_dtype, device=runner.device) for _ in range(runner.layers))
        self._carries = torch.zeros(blocks, runner.mean_mask.shape[0], device=runner.device)

    def __len__(self) -> int:
        return self._carries.shape[0]

    @staticmethod
    def block_bytes(runner: Runner) -> int:
        """What one block takes: keys, values and the carry."""
        config = runner.backbone.config
        element_bytes = torch.empty((), dtype=runner.cache_dtype).element_size()
        row = 2 * runner.layers * config.key_heads * config.head_size * element_bytes
        return runner.chunk_tokens * row + runner.mean_mask.shape[0] * 4

    def carry_on(self, chunks: Sequence[Chunk], carries: Tensor) -> None:
        """Adds each chunk's carry, a row of `carries` [C, taps*H], to that of the block before it, in chunk order."""
        rows = 0
        for start, group in groupby(chunks, key=lambda chunk: chunk.start):
            blocks = [chunk.blocks for chunk in group]
            own = carries[rows : rows + len(blocks)]
            rows += len(blocks)
            if start:
                before = self._index([chain[-2] for chain in blocks])
                own = self._runner.combine(self._carries.index_select(0, before), own)
            self._carries.index_copy_(0, self._index([chain[-1] for chain in blocks]), own)

    def carries_of(self, ended: Sequence[Chunk]) -> Tensor:
        """[n, taps*H]: what the prompts that end with these chunks have gathered."""
        return self._carries.index_select(0, self._index([chunk.blocks[-1] for chunk in ended]))

    def _index(self, blocks: list[int]) -> Tensor:
        return torch.tensor(blocks, dtype=torch.int64).to(self._carries.device, non_blocking=True)
