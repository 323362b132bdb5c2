"""One step of the live engine on the device: a plan in, the features of the prompts that end with it out.

Enters: a `Plan` and the token ids of its prompts. Leaves: a `Step`, whose features are there at once on the CPU and
after an asynchronous copy on a GPU. Knows no caller, no queue and no head.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onebeat.engine.batch import Part, pack, pack_parts
from onebeat.engine.graphs import GraphedRunner
from onebeat.engine.paged_cache import PagedCache
from onebeat.engine.parts import Array, Report, Speed, Step
from onebeat.engine.plan import Chunk, Plan
from onebeat.engine.runner import Runner

LONGEST_TRIAL_TOKENS = 2048
"""Of the prompt whose last chunk a warm-up times."""


@dataclass(frozen=True, slots=True, eq=False)
class DoneStep:
    """What a CPU gives."""

    ended: Array
    is_done: bool = True

    def wait(self) -> None:
        """Nothing to wait for."""

    def features(self) -> Array:
        """[n, taps*H]"""
        return self.ended


class CudaStep:
    """Array on their way to pinned memory. The copy runs on a stream of its own beside the next step's kernels."""

    is_done = False

    def __init__(self, ended: Tensor, copies: torch.cuda.Stream) -> None:
        self._computed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._computed.record()
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(copies):
            copies.wait_event(self._computed)
            self._ended = torch.empty(ended.shape, dtype=ended.dtype, pin_memory=True)
            self._ended.copy_(ended, non_blocking=True)
            ended.record_stream(copies)
            self._copied.record()

    def wait(self) -> None:
        """Blocks until the step's kernels are through."""
        self._computed.synchronize()

    def features(self) -> Array:
        """[n, taps*H]"""
        self._copied.synchronize()
        return self._ended.numpy()


class Stepper:
    """A runner and its paged cache. One thread uses it."""

    def __init__(self, runner: Runner, blocks: int, step_tokens: int, step_sequences: int) -> None:
        self._runner = runner
        self._chunk_tokens = runner.chunk_tokens
        self._cache = PagedCache(runner, blocks)
        self._is_cuda = runner.device.type == "cuda"
        self._graphs = GraphedRunner(runner, self._cache, step_tokens, step_sequences) if self._is_cuda else None
        self._copies = torch.cuda.Stream(runner.device) if self._is_cuda else None  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def launch(self, plan: Plan, token_ids: Mapping[int, Sequence[int]]) -> Step:
        """Computes the plan's chunks; `token_ids` holds the whole prompt of each."""
        ended = [chunk for chunk in plan.chunks if chunk.is_last]
        if any(chunk.blocks for chunk in plan.chunks) or plan.ready:
            self._compute_in_cache(plan.chunks, token_ids)
            ended.extend(plan.ready)
            carries = self._cache.carries_of(ended)
        else:
            whole = [token_ids[chunk.prompt_id] for chunk in ended]
            carries = self._runner.step(pack(whole, self._runner.device, self._chunk_tokens))
        lengths = torch.tensor([chunk.stop for chunk in ended]).to(self._runner.device, non_blocking=True)
        features = self._runner.finish(carries, lengths)
        return CudaStep(features, self._copies) if self._copies is not None else DoneStep(features.numpy())

    def warm_up(self, report: Report) -> Speed:
        """Captures CUDA graphs where there is a GPU, computes every kind of step once, and measures the speed."""
        if self._graphs is not None:
            self._graphs.capture(report)
        chunks = self._most_chunks()
        size = min(self._chunk_tokens, self._runner.backbone.max_positions)
        kinds = [
            ("a prompt of one token", 1, 1),
            ("a whole prompt", 1, size),
            ("a chunk without context", 2, size),
            ("a chunk after a long context", chunks, size),
        ]
        took_ms = []
        for done, (what, count, tokens) in enumerate(kinds):
            report(done, len(kinds), what)
            took_ms.append(self._time_chunk(count, tokens))
        report(len(kinds), len(kinds), "ready")
        one_ms, _, near_ms, far_ms = took_ms
        context_tokens = (chunks - 2) * self._chunk_tokens
        slowdown = max(far_ms / near_ms - 1.0, 1e-6) if context_tokens else 1e-6
        if near_ms <= one_ms or size == 1:  # Too alike to tell a fixed part from the tokens'.
            return Speed(near_ms / size, max(context_tokens, 1) / slowdown)
        ms_per_token = (near_ms - one_ms) / (size - 1)
        # Context slows the tokens down, not the fixed part.
        slowdown *= near_ms / (ms_per_token * size)
        return Speed(ms_per_token, max(context_tokens, 1) / slowdown, max(near_ms - ms_per_token * size, 0.0))

    def _most_chunks(self) -> int:
        """Chunks of the longest prompt that a warm-up may lay into the cache."""
        fitting = min(LONGEST_TRIAL_TOKENS, self._runner.backbone.max_positions) // self._chunk_tokens
        return max(2, min(fitting, len(self._cache) - 1))

    def _time_chunk(self, chunks: int, tokens: int) -> float:
        """Median milliseconds of `tokens` tokens, the last chunk of `chunks`, over whatever is in memory."""
        blocks = tuple(range(1, chunks + 1)) if chunks > 1 else ()
        start = (chunks - 1) * self._chunk_tokens if chunks > 2 else 0
        chunk = Chunk(0, start, start + tokens, blocks[: start // self._chunk_tokens + 1], True, 0)
        token_ids = {0: [0] * chunk.stop}
        times = []
        for _ in range(5):
            began = time.perf_counter()
            step = self.launch(Plan((chunk,), (), ()), token_ids)
            step.wait()
            step.features()
            times.append((time.perf_counter() - began) * 1000.0)
        return statistics.median(times[1:])

    def _compute_in_cache(self, chunks: Sequence[Chunk], token_ids: Mapping[int, Sequence[int]]) -> None:
        if not chunks:
            return
        parts = [Part(token_ids[c.prompt_id][c.start : c.stop], c.start, c.blocks) for c in chunks]
        if self._graphs is not None:
            carries = self._graphs.step(parts)
        else:
            carries = self._runner.step(pack_parts(parts, self._cache, self._runner.device))
        self._cache.carry_on(chunks, carries)
