"""What keeps a route usable: retry budget, backoff, breaker, adaptive concurrency, headroom, learned percentiles.

Enters: outcomes, rate limits, the time (monotonic seconds) and randomness, both given by the caller. Leaves: whether
to try, how long to wait, how near a limit is. Knows no socket, no provider and no clock of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from onebeat.conductor.answers import Limit, RateLimits

MIN_CONCURRENCY = 1.0
SHRINK = 0.7
"""What a 429 or 529 leaves of a route's concurrency."""
SHRINK_EVERY_S = 1.0
"""A burst of 429s answers one overload: it counts once."""


class Budget:
    """Spends are earned by live traffic: `share` of one for every deposit, at most `burst` saved up."""

    __slots__ = ("burst", "saved", "share")

    def __init__(self, share: float, burst: float, previous: Budget | None = None) -> None:
        """`previous`: what a reload takes over the savings of."""
        self.share = share
        self.burst = burst
        self.saved: float = burst if previous is None else min(burst, previous.saved)

    def deposit(self) -> None:
        saved = self.saved + self.share
        self.saved = saved if saved < self.burst else self.burst

    def spend(self) -> bool:
        """Whether one could be afforded; it is taken then."""
        if self.saved < 1.0:
            return False
        self.saved -= 1.0
        return True


def backoff_s(failures: int, base_s: float, cap_s: float, random: Callable[[], float]) -> float:
    """Full jitter: uniform in 0..min(cap, base * 2^failures). Source: AWS, "Exponential Backoff And Jitter" (2015)."""
    return random() * min(cap_s, base_s * 2.0 ** min(failures, 30))


class Breaker:
    """Opens after `failures` in a row; after `open_s` lets one probe through, which closes or re-opens it."""

    __slots__ = ("_limit", "_open_s", "failures", "opened_at", "probing")

    def __init__(self, failures: int, open_s: float) -> None:
        self._limit = failures
        self._open_s = open_s
        self.failures = 0
        self.opened_at: float | None = None
        self.probing = False

    def closed_again_at(self, now: float) -> float | None:
        """When the next call may go through: None for now, infinity while a probe is out."""
        if self.opened_at is None:
            return None
        if self.probing:
            return math.inf
        at = self.opened_at + self._open_s
        return None if at <= now else at

    def acquire(self, now: float) -> bool:
        """Whether a call may start; where the breaker is half open, it is the probe."""
        if self.opened_at is None:
            return True
        if self.closed_again_at(now) is not None:
            return False
        self.probing = True
        return True

    def succeeded(self) -> None:
        self.failures = 0
        self.opened_at = None
        self.probing = False

    def failed(self, now: float, *, fatal: bool = False) -> None:
        """`fatal` opens at once: a wrong key does not mend itself between two calls."""
        self.failures += 1
        if fatal or self.probing or self.failures >= self._limit:
            self.opened_at = now
        self.probing = False

    def abandoned(self) -> None:
        """The call ended without saying anything about the route (the client left): another may probe."""
        self.probing = False


class Concurrency:
    """Additive increase, multiplicative decrease: learns how many calls at once a route bears, up to `most`."""

    __slots__ = ("_shrunk_at", "in_flight", "limit", "most")

    def __init__(self, most: int) -> None:
        self.most = float(most)
        self.limit = float(most)
        self.in_flight = 0
        self._shrunk_at = -math.inf

    @property
    def is_full(self) -> bool:
        return self.in_flight >= self.limit

    def succeeded(self) -> None:
        if self.limit < self.most and self.in_flight >= self.limit / 2:
            self.limit = min(self.most, self.limit + 1.0 / self.limit)

    def refused(self, now: float) -> None:
        """The route said 429 or 529 with `in_flight` calls out: fewer, once per burst."""
        if now - self._shrunk_at >= SHRINK_EVERY_S:
            self._shrunk_at = now
            self.limit = max(MIN_CONCURRENCY, SHRINK * min(self.limit, max(1.0, self.in_flight)))


class _Counter:
    """One rate limit as last told, less what was sent since."""

    __slots__ = ("limit", "remaining", "resets_at")

    def __init__(self) -> None:
        self.limit: float | None = None
        self.remaining = 0.0
        self.resets_at = -math.inf

    def learn(self, told: Limit, now: float) -> None:
        if told.limit is not None:
            self.limit = float(told.limit)
        if told.remaining is not None:
            self.remaining = float(told.remaining)
            # Without a reset the number is believed for a second: the next answer brings a newer one.
            self.resets_at = now + (1.0 if told.reset_after_s is None else told.reset_after_s)

    def share(self, now: float) -> float:
        if not self.limit or now >= self.resets_at:
            return 1.0
        return min(1.0, max(0.0, self.remaining / self.limit))


class Headroom:
    """What is left of a route's rate limits, learned from every answer: 1 with nothing used, 0 at the limit."""

    __slots__ = ("input_tokens", "is_known", "output_tokens", "requests", "tokens")

    def __init__(self) -> None:
        self.requests = _Counter()
        self.tokens = _Counter()
        self.input_tokens = _Counter()
        self.output_tokens = _Counter()
        self.is_known = False

    def learn(self, limits: RateLimits, now: float) -> None:
        for counter, told in (
            (self.requests, limits.requests),
            (self.tokens, limits.tokens),
            (self.input_tokens, limits.input_tokens),
            (self.output_tokens, limits.output_tokens),
        ):
            if told is not None:
                counter.learn(told, now)
                self.is_known = True

    def sent(self, prompt_tokens: int) -> None:
        """A call goes out: count it before the provider does."""
        if self.is_known:
            self.requests.remaining -= 1
            self.tokens.remaining -= prompt_tokens
            self.input_tokens.remaining -= prompt_tokens

    def share(self, now: float) -> float:
        if not self.is_known:
            return 1.0
        return min(
            self.requests.share(now),
            self.tokens.share(now),
            self.input_tokens.share(now),
            self.output_tokens.share(now),
        )

    def free_at(self, now: float, prompt_tokens: int) -> float | None:
        """When a call of `prompt_tokens` fits again; None where it fits now."""
        if not self.is_known:
            return None
        latest: float | None = None
        for counter, need in ((self.requests, 1), (self.tokens, prompt_tokens), (self.input_tokens, prompt_tokens)):
            if counter.limit and now < counter.resets_at and counter.remaining < min(need, counter.limit):
                latest = counter.resets_at if latest is None else max(latest, counter.resets_at)
        return latest


class Percentile:
    """A decaying histogram of milliseconds on a logarithmic scale: percentiles within 10 %, in constant memory."""

    __slots__ = ("_buckets", "_step", "_total")

    HALF_LIFE = 500
    """Observations after which an old one weighs half: enough for a p95, soon enough to follow a bad hour."""

    def __init__(self) -> None:
        self._buckets = [0.0] * 160  # 1 ms * 1.1^159 = 63 minutes
        self._step = 1.0
        self._total = 0.0

    def observe(self, ms: float) -> None:
        bucket = 0 if ms <= 1.0 else min(159, int(math.log(ms) / math.log(1.1)) + 1)
        # Newer observations weigh more instead of older ones less: one addition rather than 160 multiplications.
        self._step *= 2.0 ** (1.0 / self.HALF_LIFE)
        self._buckets[bucket] += self._step
        self._total += self._step
        if self._step > 1e100:
            self._buckets = [weight / self._step for weight in self._buckets]
            self._total /= self._step
            self._step = 1.0

    @property
    def observations(self) -> float:
        """Their weight, the newest counting one."""
        return self._total / self._step

    def at(self, share: float) -> float | None:
        """The upper edge of the bucket that holds the percentile; None before 20 observations."""
        if self.observations < 20:
            return None
        target, seen = share * self._total, 0.0
        for bucket, weight in enumerate(self._buckets):
            seen += weight
            if seen >= target:
                return 1.1**bucket
        return 1.1**159
