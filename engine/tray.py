"""A queue between threads whose items can be taken back.

Enters: items under keys, from any thread. Leaves: the same items in order, to whoever takes them. A `queue.SimpleQueue`
would keep whatever was put in until its reader comes by, and a reader that is busy for seconds would hold the memory of
every caller who came and left in the meantime.
"""

from __future__ import annotations

import math
import threading
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Tray(Generic[Item]):
    """All methods may be called by any thread."""

    def __init__(self, usual_size: float = math.inf) -> None:
        """Any reader takes items of up to `usual_size`; larger ones may not be for everybody."""
        self._usual_size = usual_size
        self._items: dict[int, tuple[Item, int]] = {}
        self._changed = threading.Condition(threading.Lock())
        self._woken = self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, key: int, item: Item, size: int = 0) -> None:
        """Last in the queue."""
        with self._changed:
            self._items[key] = (item, size)
            if size <= self._usual_size:
                self._changed.notify()
            else:
                self._changed.notify_all()

    def discard(self, key: int) -> bool:
        """Takes an item back; False when it is not there any more."""
        with self._changed:
            return self._items.pop(key, None) is not None

    def take(self, largest: float = math.inf) -> Item | None:
        """The first item of at most `largest`, as soon as there is one; None once closed."""
        with self._changed:
            while not self._closed:
                for key, (item, size) in self._items.items():
                    if size <= largest:
                        del self._items[key]
                        return item
                self._changed.wait()
            return None

    def take_all(self, *, wait: bool) -> list[Item]:
        """Everything; with `wait` not before there is something, or `wake` was called since the last time."""
        with self._changed:
            while wait and not self._items and not self._woken and not self._closed:
                self._changed.wait()
            self._woken = False
            items = [item for item, _ in self._items.values()]
            self._items.clear()
        return items

    def wake(self) -> None:
        """Lets a waiting `take_all` return."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        """Lets every reader return, now and later."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
