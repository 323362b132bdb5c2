"""A thread that has computed gives its OpenMP workers back."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from onebeat.engine import openmp

TASKS = Path("/proc/self/task")


@pytest.mark.skipif(not TASKS.exists() or torch.get_num_threads() < 2, reason="needs Linux and two threads")
def test_resting_ends_the_workers_and_computing_makes_them_again() -> None:
    counts, resting = [], []

    def compute() -> None:
        torch.softmax(torch.randn(8, 400, 1500), -1)
        counts.append(len(list(TASKS.iterdir())))

    def work() -> None:
        compute()
        resting.append(openmp.rest())
        counts.append(len(list(TASKS.iterdir())))
        compute()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    if not resting[0]:
        pytest.skip("this torch does not use GNU OpenMP")
    assert counts[1] < counts[0] and counts[2] > counts[1]
