"""Results from other threads, delivered to an event loop with one wake-up for as many as have come.

Enters: futures that a thread resolves. Leaves: awaitables on one loop. Waking a loop is a system call and a hand-over
of the interpreter's lock; a step that answers thirty prompts makes one of it, not thirty.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import CancelledError, Future
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Mailbox(Generic[Result]):
    """Made and read on one loop; written by any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._mail: deque[tuple[Future[Result], asyncio.Future[Result]]] = deque()
        self._has_knocked = False

    def expect(self, future: Future[Result]) -> asyncio.Future[Result]:
        """What to await for `future`'s outcome. Cancelling it cancels `future`."""
        waiter: asyncio.Future[Result] = self._loop.create_future()
        waiter.add_done_callback(lambda done: future.cancel() if done.cancelled() else None)
        future.add_done_callback(lambda done: self._drop_in(done, waiter))
        return waiter

    def _drop_in(self, future: Future[Result], waiter: asyncio.Future[Result]) -> None:
        """In whatever thread resolved it. The mail goes in before the knock is looked at: none is ever left behind."""
        self._mail.append((future, waiter))
        if not self._has_knocked and not self._loop.is_closed():
            self._has_knocked = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._has_knocked = False
        while self._mail:
            future, waiter = self._mail.popleft()
            if waiter.done():
                continue
            try:
                waiter.set_result(future.result())
            except CancelledError:
                waiter.cancel()
            except BaseException as error:  # noqa: BLE001 - it is the caller's, passed on as it is
                waiter.set_exception(error)
