"""How a GPU is timed: CUDA graphs of launches over rotated inputs, between events, with median and spread.

Enters: functions that launch. Leaves: microseconds. Many launches go into one graph, so that the host's launch time
is not measured; every launch of a graph has inputs of its own, so that nothing is found in the L2 cache. Without a
GPU (a dry run) the same code calls everything once on the CPU, and its times mean nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

L2_BYTES = 64 << 20
"""More than any L2 cache here (H200: 50 MB)."""
BUDGET_US = 40_000.0
"""Time spent measuring one case."""

Run = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Measured:
    """One case's time."""

    median_us: float
    low_us: float
    """The 10th percentile."""
    high_us: float
    """The 90th percentile."""
    samples: int

    def json(self) -> dict[str, float]:
        """Rounded for the report."""
        values = {"median_us": self.median_us, "low_us": self.low_us, "high_us": self.high_us}
        return {**{name: round(value, 3) for name, value in values.items()}, "samples": self.samples}


def copies_for(case_bytes: int) -> int:
    """How many sets of inputs it takes so that one is evicted from L2 before it is used again."""
    if not torch.cuda.is_available():
        return 1
    return min(max(2 * L2_BYTES // max(case_bytes, 1) + 1, 2), 48)


def measure(runs: Sequence[Run]) -> Measured:
    """Times one launch, given the same launch over several sets of inputs."""
    if not torch.cuda.is_available():
        began = time.perf_counter()
        for run in runs:
            run()
        spent = (time.perf_counter() - began) / len(runs) * 1e6
        return Measured(spent, spent, spent, 1)
    for run in runs:
        run()
    torch.cuda.synchronize()
    replay, launches = _captured(runs)
    once = _elapsed_us(replay)
    samples = int(min(max(BUDGET_US / max(once, 1.0), 5), 60))
    times = sorted(_elapsed_us(replay) / launches for _ in range(samples))
    return Measured(
        statistics.median(times), times[len(times) // 10], times[-1 - len(times) // 10], samples
    )  # fmt: skip


def _captured(runs: Sequence[Run]) -> tuple[Run, int]:
    """A graph of all launches, several times over where they are short; or the launches themselves, where something in
    them cannot be captured, behind a sleep that lets the host run ahead."""
    again = max(1, 32 // len(runs))
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(again):
                for run in runs:
                    run()
    except RuntimeError:
        torch.cuda.synchronize()

        def ahead() -> None:
            for run in runs:
                run()

        return ahead, len(runs)
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay, again * len(runs)


def _elapsed_us(run: Run) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(200_000)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1000


def wall_ms(run: Run, seconds: float = 1.5) -> Measured:
    """Times a call as its caller sees it, by the host's clock: `run` ends with the result on the host. In
    microseconds.
    """
    for _ in range(3):
        run()
    times, began = [], time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - began < seconds and len(times) < 200):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e6)
    times.sort()
    return Measured(statistics.median(times), times[len(times) // 10], times[-1 - len(times) // 10], len(times))


def ceilings(dry: bool) -> dict[str, float]:
    """What the machine can do at best: copy bandwidth, and the vendor library's bf16 and int8 matrix rates."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, side = (1 << 16, 64) if dry else (1 << 30, 8192)
    source = torch.empty(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copy = measure([lambda: target.copy_(source)] * 2)
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    bf16 = measure([lambda: a @ b.t()] * 2)
    x, w = (torch.randint(-127, 128, (side, side), dtype=torch.int8, device=device) for _ in range(2))
    int8 = measure([lambda: torch._int_mm(x, w.t())] * 2)
    return {
        "copy_bytes_per_s": 2 * size / copy.median_us * 1e6,
        "bf16_flops": 2 * side**3 / bf16.median_us * 1e6,
        "int8_ops": 2 * side**3 / int8.median_us * 1e6,
    }
