"""What the simulated vendors served and would bill: the other side of a ledger.

Enters: each call as it begins, sends and ends. Leaves: counts per vendor and a log of calls.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

MAX_LOG = 20_000


@dataclass(slots=True)
class Bill:
    """One call. `reported` is what the vendor told the caller of usage before the connection ended."""

    vendor: str
    model: str
    fault: str
    stream: bool
    status: int = 200
    outcome: str = "open"
    """served | refused | broken | left (the caller hung up)."""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reported_input_tokens: int = 0
    reported_output_tokens: int = 0
    began_s: float = 0.0
    ended_s: float = 0.0


@dataclass(slots=True)
class Bills:
    log: deque[Bill] = field(default_factory=lambda: deque(maxlen=MAX_LOG))
    totals: dict[str, dict[str, Any]] = field(default_factory=dict)

    def close(self, bill: Bill) -> None:
        self.log.append(bill)
        empty = {"calls": 0, "served": 0, "refused": 0, "broken": 0, "left": 0, "input_tokens": 0, "output_tokens": 0}
        empty |= {"cached_tokens": 0, "reported_input_tokens": 0, "reported_output_tokens": 0}
        total = self.totals.setdefault(bill.vendor, {**empty, "models": {}})
        total["calls"] += 1
        total[bill.outcome] += 1
        model = total["models"].setdefault(bill.model, {"calls": 0, "input_tokens": 0, "output_tokens": 0})
        model["calls"] += 1
        for name in ("input_tokens", "output_tokens", "cached_tokens"):
            total[name] += getattr(bill, name)
            if name in model:
                model[name] += getattr(bill, name)
        total["reported_input_tokens"] += bill.reported_input_tokens
        total["reported_output_tokens"] += bill.reported_output_tokens

    def calls(self) -> list[dict[str, Any]]:
        return [asdict(bill) for bill in self.log]

    def clear(self) -> None:
        self.log.clear()
        self.totals.clear()
