"""Who may ask for what: client keys, their budgets and rates, limits on bodies, and the one place that redacts.

Enters: headers and bodies as they came, the fleet's `[keys]`, the time. Leaves: a `Client`, or a `RequestError` with a
vendor's status. Keys are known by their SHA-256 only; provider keys live in memory, never in a log, an
error, a row or a trace.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from bisect import insort
from collections.abc import Iterable, Mapping

import msgspec

from onebeat.conductor.answers import ProviderProblem
from onebeat.conductor.config import Key
from onebeat.conductor.records import Priority, RequestError

DAY_S = 86_400.0
HOUR_S = 3_600.0
HIDDEN = "[redacted]"
LEAST_TAIL = 8
"""Characters of a known secret that a sentence, cut at its longest, may end in before they are hidden too."""
_PRIORITIES = (Priority.LOW, Priority.NORMAL, Priority.HIGH)

# Shapes of secrets: vendors' keys, bearer tokens, key headers and query parameters, keys in JSON.
_SECRETS = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|hf|pplx)[-_][A-Za-z0-9_\-]{12,}"
    r"|\bAIza[A-Za-z0-9_\-]{20,}"
    r"|(?i:\bbearer\s+)[A-Za-z0-9._~+/=\-]{8,}"
    r"|(?i:(?:x-api-key|x-goog-api-key|api[-_]?key|authorization)[\"']?\s*[:=]\s*[\"']?(?:bearer\s+|basic\s+)?)[^\s\"',;&]{6,}"
    r"|(?i:[?&]key=)[^\s\"'&]{6,}"
)


class Redactor(logging.Filter):
    """Takes secrets out of text: known values exactly, unknown ones by their shape. Also a filter for log handlers."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._known: tuple[str, ...] = ()
        self.learn(secrets)

    def learn(self, secrets: Iterable[str]) -> None:
        """Longest first, so that a key which holds another leaves no rest of it."""
        merged = {*self._known, *(secret for secret in secrets if len(secret) >= 4)}
        self._known = tuple(sorted(merged, key=len, reverse=True))

    def text(self, text: str) -> str:
        for secret in self._known:
            text = _without_tail(text.replace(secret, HIDDEN), secret)
        return _SECRETS.sub(HIDDEN, text)

    def problem(self, problem: ProviderProblem) -> ProviderProblem:
        """A vendor's words without secrets: some echo the key that they refuse, in a body, in a stream, in a code."""
        message, code, param = self.text(problem.message), self._word(problem.code), self._word(problem.param)
        if (message, code, param) == (problem.message, problem.code, problem.param):
            return problem
        return msgspec.structs.replace(problem, message=message, code=code, param=param)

    def _word(self, word: str | None) -> str | None:
        return None if word is None else self.text(word)

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        record.msg, record.args = self.text(message), ()
        if record.exc_info:
            record.exc_text = self.text(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        return True


def _without_tail(text: str, secret: str) -> str:
    """`text` without the beginning of `secret` that it ends in: where a long sentence was cut inside a key."""
    for size in range(min(len(secret) - 1, len(text)), LEAST_TAIL - 1, -1):
        if text.endswith(secret[:size]):
            return text[:-size] + HIDDEN
    return text


class Client:
    """One client key's standing. Used from the event loop only."""

    __slots__ = ("_day", "_expensive", "_requests", "_reserved_usd", "_spent_usd", "_updated_at", "key", "name")

    def __init__(self, name: str | None, key: Key | None) -> None:
        self.name = name
        self.key = key
        self._requests = float(key.requests_per_minute or 0) if key else 0.0
        self._updated_at: float | None = None
        self._expensive: list[float] = []
        self._day = 0
        self._spent_usd = 0.0
        self._reserved_usd = 0.0

    def admit(self, now_unix: float) -> None:
        """Counts a request. Raises `RequestError` 429 where the key is over its rate or its budget."""
        key = self.key
        if key is None:
            return
        rate = key.requests_per_minute
        if rate is not None:
            last = now_unix if self._updated_at is None else self._updated_at
            self._requests = min(float(rate), self._requests + max(0.0, now_unix - last) * rate / 60.0)
            self._updated_at = now_unix
            if self._requests < 1.0:
                wait_s = (1.0 - self._requests) * 60.0 / rate
                raise RequestError(
                    f"This key may send {rate} requests a minute; try again in {wait_s:.1f} s.",
                    status=429,
                    code="rate_limit_exceeded",
                    retry_after_s=wait_s,
                )
        self._check_budget(now_unix)
        if rate is not None:
            self._requests -= 1.0

    def _check_budget(self, now_unix: float) -> None:
        budget = self.key.budget_usd_per_day if self.key is not None else None
        if budget is None or self.spent_today(now_unix) + self._reserved_usd < budget:
            return
        under_way = f" or set it aside for requests under way ({self._reserved_usd:.6f} USD)"
        raise RequestError(
            f"This key has spent its {budget:g} USD for today (UTC){under_way if self._reserved_usd else ''}; "
            "the budget is whole again at midnight.",
            status=429,
            code="insufficient_quota",
            retry_after_s=DAY_S - now_unix % DAY_S,
        )

    def reserve(self, expected_usd: float, now_unix: float) -> None:
        """Sets aside what a request is expected to cost before its first call: of requests that come at once only those
        are let through that the budget still holds. Raises `RequestError` 429; `settle` ends it."""
        self._check_budget(now_unix)
        self._reserved_usd += expected_usd

    def settle(self, reserved_usd: float, usd: float, now_unix: float) -> None:
        """A request has ended: what was set aside is free again, what it cost is charged."""
        self._reserved_usd = max(0.0, self._reserved_usd - reserved_usd)
        self.charge(usd, now_unix)

    def spent_today(self, now_unix: float) -> float:
        day = int(now_unix // DAY_S)
        if day != self._day:
            self._day, self._spent_usd = day, 0.0
        return self._spent_usd

    def charge(self, usd: float, now_unix: float) -> None:
        self._spent_usd = self.spent_today(now_unix) + usd

    def expensive_allowed(self, now_unix: float) -> bool:
        """Whether a route marked expensive may be chosen for this key now."""
        most = self.key.expensive_calls_per_hour if self.key else None
        if most is None:
            return True
        while self._expensive and self._expensive[0] <= now_unix - HOUR_S:
            del self._expensive[0]
        return len(self._expensive) < most

    def take_expensive(self, now_unix: float) -> bool:
        """Whether an expensive call may start; it is counted then, before it is made, so that of two at once only one
        gets the last place."""
        if not self.expensive_allowed(now_unix):
            return False
        if self.key is not None and self.key.expensive_calls_per_hour is not None:
            insort(self._expensive, now_unix)
        return True

    def give_back_expensive(self, taken_at: float) -> None:
        """The call that was counted at `taken_at` came to no answer that a vendor could bill."""
        if taken_at in self._expensive:
            self._expensive.remove(taken_at)

    def expensive_free_in_s(self, now_unix: float) -> float:
        """Seconds until the oldest expensive call of the hour is forgotten."""
        return max(0.0, self._expensive[0] + HOUR_S - now_unix) if self._expensive else 0.0

    def priority(self, asked: Priority | None) -> Priority:
        """What was asked for, no higher than the key allows."""
        wanted = asked or Priority.NORMAL
        if self.key is None:
            return wanted
        return min(wanted, Priority(self.key.max_priority), key=_PRIORITIES.index)


class KeyRing:
    """All clients. Without keys there is one nameless client: the config lets that listen on the loopback only."""

    def __init__(self, keys: Mapping[str, Key], previous: KeyRing | None = None) -> None:
        """`previous`: after a reload, a key that stays keeps its counters."""
        self._by_digest: dict[str, Client] = {}
        self.open = Client(None, None) if not keys else None
        known = {client.name: client for client in previous.clients()} if previous else {}
        for name, key in keys.items():
            client = known.get(name)
            if client is None or client.key is None or client.key.sha256 != key.sha256:
                client = Client(name, key)
            client.key = key
            self._by_digest[key.sha256] = client

    def clients(self) -> list[Client]:
        return list(self._by_digest.values())

    def identify(self, headers: Mapping[str, str]) -> Client:
        """The client whose key `authorization: Bearer` or `x-api-key` carries. Raises `RequestError` 401."""
        if self.open is not None:
            return self.open
        given = headers.get("authorization", "")
        secret = given[7:].strip() if given[:7].lower() == "bearer " else headers.get("x-api-key", "")
        if not secret:
            raise RequestError(
                "No API key was given; send it as `Authorization: Bearer KEY` or `x-api-key: KEY`.",
                status=401,
                code="missing_api_key",
            )
        digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
        client = self._by_digest.get(digest)
        # The table is looked up by digest, which tells an attacker nothing about a key; the comparison that counts
        # takes the same time wherever two digests differ.
        if client is None or client.key is None or not hmac.compare_digest(digest, client.key.sha256):
            raise RequestError("This API key is not known here.", status=401, code="invalid_api_key")
        if client.key.revoked:
            raise RequestError("This API key was revoked; ask for a new one.", status=401, code="invalid_api_key")
        return client


_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def check_depth(body: bytes, most: int) -> None:
    """Raises `RequestError` where JSON nests deeper than `most`, before any parser recurses into it."""
    if body.count(b"[") + body.count(b"{") <= most:
        return
    brackets = _STRING.sub(b"", body).translate(None, _NO_BRACKETS)
    for _ in range(most):  # Every pass takes the innermost level away, at C speed.
        shorter = brackets.replace(b"{}", b"").replace(b"[]", b"")
        if len(shorter) == len(brackets):
            break
        brackets = shorter
    if brackets:
        raise RequestError(f"The body nests deeper than {most} levels, or its brackets do not match.", status=400)
