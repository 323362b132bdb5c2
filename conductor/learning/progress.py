"""One line that says how far a long job is: rewritten in place on a terminal, ten lines elsewhere.

Enters: counts, and a clock. Leaves: text on a stream. Knows nothing of the job.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO


class Progress:
    """`progress(done, total)` as often as you like."""

    def __init__(self, what: str, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._started = clock()
        self._first = 0
        self._shown = -1

    def start(self, done: int) -> None:
        """`done` were there already (a resumed job): the rate counts from here."""
        self._first, self._started = done, self._clock()

    def __call__(self, done: int, total: int) -> None:
        """Shows `done` of `total`."""
        live = self._stream.isatty()
        step = done * (200 if live else 10) // max(total, 1)
        if step == self._shown and done < total:
            return
        self._shown = step
        seconds = self._clock() - self._started
        rate = (done - self._first) / seconds if seconds > 0 else 0.0
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
        text = f"{self._what}: {done:,} of {total:,} ({rate:.1f}/s{left})"
        if live:
            filled = 30 * done // max(total, 1)
            end = "\n" if done >= total else ""
            self._stream.write(f"\r[{'#' * filled}{'.' * (30 - filled)}] {text}\x1b[K{end}")
        else:
            self._stream.write(text + "\n")
        self._stream.flush()
