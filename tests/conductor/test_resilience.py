"""Budgets, breakers and headroom, with time and chance given by the test."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebeat.conductor.answers import Limit, ProblemKind, ProviderProblem, RateLimits
from onebeat.conductor.config import ResilienceSection
from onebeat.conductor.resilience import Breaker, Budget, Concurrency, Headroom, Percentile, backoff_s
from onebeat.conductor.route_state import RouteState


def problem(kind: ProblemKind, **fields: object) -> ProviderProblem:
    return ProviderProblem(kind=kind, message="m", **fields)  # type: ignore[arg-type]


@given(st.lists(st.booleans(), max_size=400))
def test_spends_never_exceed_burst_and_share(operations: list[bool]) -> None:
    budget, deposits, spends = Budget(0.2, 3.0), 0, 0
    for deposit in operations:
        if deposit:
            budget.deposit()
            deposits += 1
        else:
            spends += budget.spend()
    assert spends <= 3.0 + 0.2 * deposits + 1e-9


def test_backoff_is_full_jitter_under_its_cap() -> None:
    assert backoff_s(0, 0.1, 5.0, lambda: 1.0) == pytest.approx(0.1)
    assert backoff_s(3, 0.1, 5.0, lambda: 1.0) == pytest.approx(0.8)
    assert backoff_s(5000, 0.1, 5.0, lambda: 0.5) == pytest.approx(2.5)
    assert backoff_s(3, 0.1, 5.0, lambda: 0.0) == 0.0


def test_breaker_lets_one_probe_through() -> None:
    breaker = Breaker(3, 10.0)
    for _ in range(3):
        assert breaker.acquire(0.0)
        breaker.failed(0.0)
    assert not breaker.acquire(9.9) and breaker.closed_again_at(5.0) == 10.0
    assert breaker.acquire(10.0)
    assert not breaker.acquire(10.0) and breaker.closed_again_at(10.0) == math.inf
    breaker.failed(11.0)
    assert not breaker.acquire(20.9)
    assert breaker.acquire(21.0)
    breaker.abandoned()
    assert breaker.acquire(21.0)
    breaker.succeeded()
    assert breaker.acquire(21.0) and breaker.acquire(21.0)


def test_failures_must_be_in_a_row() -> None:
    breaker = Breaker(2, 10.0)
    for _ in range(10):
        breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.acquire(0.0)


def test_concurrency_shrinks_once_per_burst_and_grows_again() -> None:
    concurrency = Concurrency(100)
    concurrency.in_flight = 50
    for _ in range(20):
        concurrency.refused(1.0)
    assert concurrency.limit == pytest.approx(35.0) and concurrency.is_full
    concurrency.in_flight = 30
    for _ in range(2000):
        concurrency.succeeded()
    assert 50 < concurrency.limit <= 100
    for second in range(60):
        concurrency.refused(10.0 + 2 * second)
    assert concurrency.limit >= 1.0


def test_headroom_counts_what_was_sent_until_the_reset() -> None:
    room = Headroom()
    assert room.share(0.0) == 1.0 and room.free_at(0.0, 10**9) is None
    limits = RateLimits(requests=Limit(100, 2, 30.0), tokens=Limit(1000, 900, 60.0))
    room.learn(limits, 0.0)
    assert room.share(0.0) == pytest.approx(0.02)
    room.sent(100)
    room.sent(100)
    assert room.share(1.0) == 0.0
    assert room.free_at(1.0, 100) == 30.0
    assert room.free_at(31.0, 100) is None
    assert room.free_at(31.0, 800) == 60.0
    assert room.share(61.0) == 1.0
    room.learn(RateLimits(tokens=Limit(1000, 1000, 5.0)), 70.0)
    assert room.free_at(70.0, 5000) is None  # more than the whole limit: waiting would not help


def test_percentile_follows_what_is_new() -> None:
    percentile = Percentile()
    assert percentile.at(0.5) is None
    chance = random.Random(0)
    for _ in range(5000):
        percentile.observe(chance.uniform(0, 100))
    assert percentile.at(0.95) == pytest.approx(95, rel=0.11)
    for _ in range(5000):
        percentile.observe(1000.0)
    assert percentile.at(0.5) == pytest.approx(1000, rel=0.11)
    for _ in range(300_000):
        percentile.observe(10.0)
    assert percentile.at(0.5) == pytest.approx(10, rel=0.11)


def state() -> RouteState:
    return RouteState(ResilienceSection(breaker_failures=2, breaker_open_ms=1000.0, max_concurrency=2))


def test_a_429_cools_until_the_providers_own_reset() -> None:
    route = state()
    assert route.acquire(0.0, 10)
    route.failed(problem(ProblemKind.RATE_LIMITED, retry_after_s=7.0), 0.0)
    assert route.blocked_until(0.0) == 7.0 and not route.acquire(6.9, 10)
    assert "rate_limited, free in 5.0 s" in route.why_blocked(2.0)
    assert route.acquire(7.0, 10)
    limits = RateLimits(tokens=Limit(100, 0, 3.0), requests=Limit(100, 50, 60.0))
    route.failed(problem(ProblemKind.RATE_LIMITED, limits=limits), 10.0)
    assert route.blocked_until(10.0) == 13.0


def test_without_a_reset_cooling_doubles_and_a_success_forgets() -> None:
    route, now, waits = state(), 0.0, []
    for _ in range(9):
        assert route.acquire(now, 0)
        route.failed(problem(ProblemKind.OVERLOADED), now)
        until = route.blocked_until(now)
        assert until is not None
        waits.append(until - now)
        now = until
    assert waits[:4] == [1, 2, 4, 8] and waits[-1] == 60
    assert route.acquire(now, 0)
    route.succeeded(5.0)
    assert route.acquire(now, 0)
    route.failed(problem(ProblemKind.OVERLOADED), now)
    assert route.blocked_until(now) == now + 1


def test_a_spent_quota_cools_for_long_and_a_wrong_key_opens_at_once() -> None:
    route = state()
    assert route.acquire(0.0, 0)
    route.failed(problem(ProblemKind.QUOTA_EXHAUSTED), 0.0)
    assert route.blocked_until(600.0) == 900.0
    route = state()
    assert route.acquire(0.0, 0)
    route.failed(problem(ProblemKind.AUTH, status=401), 0.0)
    assert route.blocked_until(0.5) == 1.0 and "auth" in route.why_blocked(0.5)


def test_the_requests_own_fault_is_not_the_routes() -> None:
    route = state()
    for kind in (ProblemKind.CONTENT_POLICY, ProblemKind.INVALID_REQUEST, ProblemKind.CONTEXT_OVERFLOW):
        for _ in range(5):
            assert route.acquire(0.0, 0)
            route.failed(problem(kind, status=400), 0.0)
    assert route.blocked_until(0.0) is None and route.concurrency.in_flight == 0


def test_full_concurrency_blocks_until_a_call_ends() -> None:
    route = state()
    assert route.acquire(0.0, 0) and route.acquire(0.0, 0)
    assert route.blocked_until(0.0) == math.inf and not route.acquire(0.0, 0)
    route.left()
    assert route.acquire(0.0, 0)


def test_refusals_of_one_burst_cool_once_and_refusals_after_a_wait_cool_longer() -> None:
    route = RouteState(ResilienceSection(max_concurrency=100))
    assert all(route.acquire(0.0, 0) for _ in range(20))
    for _ in range(20):
        route.failed(problem(ProblemKind.OVERLOADED), 0.0)
    assert route.cooling_until == 1.0, "twenty calls under way together were refused once"
    for expected in (2.0, 4.0):
        now = route.cooling_until
        assert route.acquire(now, 0)
        route.failed(problem(ProblemKind.OVERLOADED), now)
        assert route.cooling_until - now == expected
