"""CUDA graphs for the live engine's steps: one captured forward per bucket of tokens, fed through static buffers.

Enters: the chunks of a step. Leaves: their carries, the same as an eager forward gives. Knows no prompts, no schedule.

A graph replays fixed shapes, so a step is laid into the smallest bucket that holds it. The bucket has a fixed number
of sequence slots; those not in use have length zero. Rows left over belong to filler sequences that read and write the
scratch block alone: valid to every kernel, and of no consequence to any other row, since no op mixes sequences. Steps
above the largest bucket run eagerly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from onebeat.engine.batch import Batch, Part, pack_parts
from onebeat.engine.paged_cache import SCRATCH_BLOCK, PagedCache
from onebeat.engine.runner import Runner

BUCKETS = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
WIDEST_GAP_TOKENS = 512
"""Between two neighbouring buckets: what fillers may have to cover."""

Forward = Callable[[], Tensor]
Capture = Callable[[Forward], Forward]
"""Runs a forward for good: returns what replays it and gives its (static) output."""


class CudaCapture:
    """Captures into one shared memory pool, largest bucket first so that the smaller ones fit in its memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, forward: Forward) -> Forward:
        """Two eager runs on a side stream compile and tune the kernels; the third is captured."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            forward()
            forward()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = forward()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


class GraphedRunner:
    """A runner whose paged steps of up to the largest bucket's tokens are replayed. `capture` before the first step."""

    def __init__(self, runner: Runner, cache: PagedCache, step_tokens: int, step_sequences: int) -> None:
        self._runner = runner
        self._cache = cache
        self._buckets = buckets_for(step_tokens)
        self._sequences = step_sequences
        self._chunk_tokens = runner.chunk_tokens
        # As many fillers as the widest gap takes, and at capture enough of them for a whole bucket.
        self._slots = max(step_sequences, BUCKETS[-1] // self._chunk_tokens)
        self._slots += WIDEST_GAP_TOKENS // self._chunk_tokens
        self._table_width = -(-runner.backbone.max_positions // self._chunk_tokens)
        rows = self._buckets[-1]
        # One flat buffer, so that all metadata of a step goes over in one copy: per row the token, its position and its
        # slot; per sequence its end and its context; and the block table.
        self._sizes = (rows, rows, rows, self._slots + 1, self._slots, self._slots * self._table_width)
        self._staging = torch.zeros(sum(self._sizes), dtype=torch.int64, pin_memory=runner.device.type == "cuda")
        self._wide = torch.zeros(sum(self._sizes), dtype=torch.int64, device=runner.device)
        self._narrow = torch.zeros(sum(self._sizes), dtype=torch.int32, device=runner.device)
        self._forwards: dict[int, Forward] = {}

    def capture(self, report: Callable[[int, int, str], None], capture: Capture | None = None) -> None:
        """Captures every bucket, reporting (done, total, what)."""
        capture = capture or CudaCapture()
        for done, bucket in enumerate(reversed(self._buckets)):
            report(done, len(self._buckets), f"CUDA graph of {bucket} tokens")
            batch = self._batch(bucket)
            self._fill([], bucket)
            self._forwards[bucket] = capture(lambda batch=batch: self._step(batch))  # type: ignore[misc]

    def step(self, parts: Sequence[Part]) -> Tensor:
        """Carries float32 [C, taps*H] of the chunks, valid until the next step."""
        tokens = sum(len(part.token_ids) for part in parts)
        bucket = next((size for size in self._buckets if size >= tokens), None)
        if bucket is None or len(parts) > self._sequences:
            return self._runner.step(pack_parts(parts, self._cache, self._runner.device))
        self._fill(parts, bucket)
        return self._forwards[bucket]()[: len(parts)]

    def _step(self, batch: Batch) -> Tensor:
        self._narrow.copy_(self._wide)
        return self._runner.step(batch)

    def _batch(self, bucket: int) -> Batch:
        """Views of the static buffers that a forward of `bucket` rows reads."""
        token_ids, positions, _, bounds, context, table = self._narrow.split_with_sizes(self._sizes)
        slots = self._wide.split_with_sizes(self._sizes)[2]
        return Batch(
            token_ids=token_ids[:bucket],
            positions=positions[:bucket],
            cu_seqlens=bounds,
            max_seqlen=self._chunk_tokens,
            chunk_bounds=bounds,
            cache=self._cache,
            slots=slots[:bucket],
            block_table=table.view(self._slots, self._table_width),
            context_tokens=context,
        )

    def _fill(self, parts: Sequence[Part], bucket: int) -> None:
        """Lays `parts` and fillers into the static buffers."""
        parts = [*parts, *self._fillers(bucket - sum(len(part.token_ids) for part in parts))]
        token_ids, positions, slots, ends, context = list[int](), list[int](), list[int](), [0], list[int]()
        size = self._chunk_tokens
        table = self._staging.split_with_sizes(self._sizes)[5].view(self._slots, self._table_width).zero_()
        for index, part in enumerate(parts):
            tokens, first_slot = len(part.token_ids), part.block_ids[part.start // size] * size
            token_ids += part.token_ids
            positions += range(part.start, part.start + tokens)
            slots += range(first_slot, first_slot + tokens)
            ends.append(ends[-1] + tokens)
            context.append(part.start + tokens)
            table[index, : len(part.block_ids)] = torch.tensor(part.block_ids)
        unused = self._slots - len(parts)
        columns = (token_ids, positions, slots, ends + [ends[-1]] * unused, context + [0] * unused)
        for buffer, column in zip(self._staging.split_with_sizes(self._sizes), columns, strict=False):
            buffer[: len(column)] = torch.tensor(column)
        self._wide.copy_(self._staging, non_blocking=True)

    def _fillers(self, rows: int) -> list[Part]:
        whole, rest = divmod(rows, self._chunk_tokens)
        sizes = [self._chunk_tokens] * whole + [rest] * (rest > 0)
        return [Part([0] * size, 0, [SCRATCH_BLOCK]) for size in sizes]


def buckets_for(step_tokens: int) -> tuple[int, ...]:
    """Buckets up to the first that holds a step of `step_tokens`, or all of them."""
    enough = [bucket for bucket in BUCKETS if bucket >= step_tokens]
    return BUCKETS if not enough else BUCKETS[: BUCKETS.index(enough[0]) + 1]
