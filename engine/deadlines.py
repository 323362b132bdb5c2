"""Tells callers that their deadline has passed, whatever the model is doing.

Enters: the times at which somebody is due. Leaves: calls of `expire` soon after each. Knows no prompt and no future.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

LONGEST_WAIT_S = 3600.0
"""Locks take no waits of centuries, which a deadline may mean."""


class DeadlineWatch:
    """A thread that sleeps until the earliest deadline inside. It starts with the first one."""

    def __init__(self, expire: Callable[[], float | None], now_ms: Callable[[], float]) -> None:
        """`expire` ends whoever is late and returns the next time at which somebody will be, None for nobody."""
        self._expire = expire
        self._now_ms = now_ms
        self._changed = threading.Condition(threading.Lock())
        self._next_ms: float | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, due_ms: float) -> None:
        """Somebody is due then."""
        with self._changed:
            if self._closed:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="onebeat-deadlines", daemon=True)
                self._thread.start()
            if self._next_ms is None or due_ms < self._next_ms:
                self._next_ms = due_ms
                self._changed.notify()

    def close(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _watch(self) -> None:
        while True:
            with self._changed:
                while not self._closed:
                    wait_s = LONGEST_WAIT_S if self._next_ms is None else (self._next_ms - self._now_ms()) / 1e3
                    if wait_s <= 0.0:
                        break
                    self._changed.wait(min(wait_s, LONGEST_WAIT_S))
                if self._closed:
                    return
                self._next_ms = None
            next_ms = self._expire()
            if next_ms is not None:
                self.add(next_ms)
