"""Response headers that tell when to come back: retry-after in its forms, rate limits in two vendors' spellings.

Enters: headers with lower-case names, and the time now where a header holds a date. Leaves: seconds from now, `Limit`s.
A header that cannot be read counts as absent: a provider's typing error is no reason to fail a request.
"""

from __future__ import annotations

import email.utils
import math
import re
from collections.abc import Mapping
from datetime import datetime

from onebeat.conductor.answers import Limit

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s|d)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration_s(text: str) -> float | None:
    """`12ms`, `6m0s`, `1h2m3.5s`, `45.8s`, or a bare number of seconds; None for anything else."""
    text = text.strip()
    if bare := _number(text):
        return bare
    pieces = _DURATION.findall(text)
    if not pieces or "".join(number + unit for number, unit in pieces) != text:
        return 0.0 if text in ("0", "0.0") else None
    return sum(float(number) * _UNIT_S[unit] for number, unit in pieces)


def until_s(timestamp: str, now_s: float) -> float | None:
    """Seconds from `now_s` (Unix time) to an RFC 3339 time, 0 for the past; None for anything else."""
    try:
        moment = datetime.fromisoformat(timestamp.strip())
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - now_s) if moment.tzinfo else None


def retry_after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """`retry-after-ms` first, then `retry-after` in seconds or as an HTTP date (RFC 9110, section 10.2.3)."""
    if (milliseconds := _number(headers.get("retry-after-ms", ""))) is not None:
        return milliseconds / 1000.0
    value = headers.get("retry-after", "")
    if (seconds := _number(value)) is not None:
        return seconds
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - now_s)


def should_retry(headers: Mapping[str, str]) -> bool | None:
    """`x-should-retry`, which OpenAI and Anthropic send where the status alone would mislead."""
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").lower())


def limit_of(limit: str | None, remaining: str | None, reset_after_s: float | None) -> Limit | None:
    """None where all three are."""
    if limit is None and remaining is None and reset_after_s is None:
        return None
    return Limit(_count(limit), _count(remaining), reset_after_s)


def _count(text: str | None) -> int | None:
    number = _number(text or "")
    return None if number is None else int(number)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0.0 else None
