"""A queue between threads whose items can be taken back.

Enters: items under keys, from any thread. Leaves: the same items in order, to whoever takes them. A queue alone would
keep whatever was put in until its reader comes by, and a reader that is busy for seconds would hold the memory of every
caller who came and left in the meantime; here only the number of one that left stays until then.
"""

from __future__ import annotations

import queue
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Tray(Generic[Item]):
    """All methods may be called by any thread."""

    def __init__(self) -> None:
        self._items: dict[int, Item] = {}
        self._keys: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        """In order; None only wakes a reader."""
        self._is_woken = self._is_closed = False

    def put(self, key: int, item: Item) -> None:
        """Last in the queue."""
        self._items[key] = item
        self._keys.put(key)

    def discard(self, key: int) -> bool:
        """Takes an item back; False when it is not there any more."""
        return self._items.pop(key, None) is not None

    def take(self) -> Item | None:
        """The first item, as soon as there is one; None once closed. For any number of readers."""
        while not self._is_closed:
            key = self._keys.get()
            item = None if key is None else self._items.pop(key, None)
            if item is not None and not self._is_closed:
                return item
        self._keys.put(None)  # For the next reader.
        return None

    def take_all(self, *, wait: bool) -> list[Item]:
        """Everything; with `wait` not before something was put in, or `wake` was called. For one reader."""
        keys = [self._keys.get()] if wait else []
        # Before the queue is emptied: whoever still finds it set has left a None that is read below.
        self._is_woken = False
        while not self._keys.empty():
            keys.append(self._keys.get())
        items = [self._items.pop(key, None) for key in keys if key is not None]
        return [item for item in items if item is not None]

    def wake(self) -> None:
        """Lets a waiting `take_all` return."""
        if not self._is_woken:
            self._is_woken = True
            self._keys.put(None)

    def close(self) -> None:
        """Lets every `take` return None, now and later."""
        self._is_closed = True
        self._keys.put(None)
