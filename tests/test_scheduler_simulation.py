"""The simulated day, an hour of it: everybody is answered, and short prompts wait less than they would in a queue."""

import random

import pytest

from bench.scheduler_simulation import Speed, arrivals, percentile, simulate
from onebeat.engine.plan import Order


@pytest.mark.parametrize("seed", [1, 2])
def test_short_prompts_wait_less_than_in_a_queue_and_nobody_starves(seed):
    speed = Speed(2.0, 0.22, 1250.0)
    day = list(arrivals(4.0, speed.prompts_per_ms() * 3.0, random.Random(seed)))[:12_000]
    ours_short, ours_long, ours_load = simulate(day, Order.SHORTEST, speed)
    theirs_short, theirs_long, theirs_load = simulate(day, Order.ARRIVAL, speed)
    assert len(ours_short) + len(ours_long) == len(theirs_short) + len(theirs_long) == len(day)
    assert ours_load == pytest.approx(theirs_load, rel=0.05) and ours_load > 0.3
    assert percentile(theirs_short, 0.99) > 2.5 * percentile(ours_short, 0.99)
    assert max(ours_long) < 60_000.0
