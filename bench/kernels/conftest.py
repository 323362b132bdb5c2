"""pytest-benchmark for kernels: what a case is, where its time goes, and the machine's ceilings.

`pytest bench/kernels --benchmark-json=out.json` times whatever the machine has: CUDA by events and graphs, else the
CPU paths.
"""

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gpu_timing


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """The project's tests skip benchmarks; here they are what was asked for."""
    config.option.benchmark_skip = False


class EventClock:
    """Seconds on the GPU's own clock, by events: the host's launch time is not in them."""

    def __init__(self):
        self._start = torch.cuda.Event(enable_timing=True)
        self._start.record()

    def __call__(self):
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        now.synchronize()
        return self._start.elapsed_time(now) / 1000


@pytest.fixture(scope="session")
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def ceilings(device):
    """Bytes a second of a large copy; operations a second of the vendor library in float32, bf16 and int8."""
    if device.type == "cuda":
        return gpu_timing.ceilings(dry=False)
    source = torch.empty(1 << 28, dtype=torch.int8)
    target = torch.empty_like(source)
    side = 1024
    a, b = torch.randn(side, side).bfloat16(), torch.randn(side, side).bfloat16()
    x, w = (torch.randint(-127, 128, (side, side), dtype=torch.int8) for _ in range(2))
    return {
        "copy_bytes_per_s": 2 * source.numel() / best(lambda: target.copy_(source)),
        "bf16_flops": 2 * side**3 / best(lambda: a @ b.t()),
        "int8_ops": 2 * side**3 / best(lambda: torch._int_mm(x, w.t())),
    }


def best(run):
    times = []
    for _ in range(7):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


@pytest.fixture
def timed(benchmark, device, ceilings):
    """Times `make()`, which makes fresh inputs and returns the call over them, and writes what it means to
    extra_info.
    """

    def run(make, *, moved, flops, ceiling, **shape):
        copies = gpu_timing.copies_for(moved) if device.type == "cuda" else 4
        calls = [make() for _ in range(copies)]
        for call in calls:
            call()
        launches = copies
        if device.type == "cuda":
            replay, launches = gpu_timing._captured(calls)
            benchmark._timer = EventClock()
        else:

            def replay():
                for call in calls:
                    call()

        benchmark.pedantic(replay, rounds=15, warmup_rounds=1)
        seconds = benchmark.stats.stats.median / launches
        floor = max(moved / ceilings["copy_bytes_per_s"], flops / ceilings[ceiling])
        benchmark.extra_info.update(
            shape=shape, bytes=moved, flops=flops, launches_a_round=launches, microseconds_a_launch=seconds * 1e6,
            share_of_ceiling=floor / seconds, device=str(device),
        )  # fmt: skip

    return run
