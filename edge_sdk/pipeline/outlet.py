"""A bounded queue and a thread between the frame path and one consumer."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from edge_sdk.errors import EdgeError

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Mailbag(Generic[T]):
    """A queue of at most `depth` items: a full one makes `put` wait (`block`) or drops its oldest."""

    def __init__(self, depth: int, *, block: bool) -> None:
        self._items: deque[T] = deque()
        self._depth = depth
        self._block = block
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: T) -> int:
        """Add an item; return how many were dropped for it."""
        with self._changed:
            while self._block and len(self._items) >= self._depth and not self._closed:
                self._changed.wait()
            if self._closed:
                return 1
            dropped = 0
            while len(self._items) >= self._depth:
                self._items.popleft()
                dropped += 1
            self._items.append(item)
            self._changed.notify_all()
            return dropped

    def get(self) -> T | None:
        """Return the oldest item, waiting for one; None once closed and empty."""
        with self._changed:
            while not self._items and not self._closed:
                self._changed.wait()
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self, *, discard: bool = False) -> int:
        """Let nothing more in; return how many items were thrown away."""
        with self._changed:
            self._closed = True
            thrown = len(self._items) if discard else 0
            if discard:
                self._items.clear()
            self._changed.notify_all()
            return thrown


class Outlet:
    """Feeds one consumer from its own thread.

    `consume` gets every item in order. What it raises goes to `on_failure(name, error)`; when that says stop, later
    items are counted as dropped.
    """

    def __init__(
        self,
        name: str,
        consume: Callable[[Any], None],
        *,
        block: bool,
        on_failure: Callable[[str, Exception], bool],
        on_drop: Callable[[str, int], None],
        depth: int = 8,
    ) -> None:
        self.name = name
        self.taken = 0
        self.dropped = 0
        self.error: str | None = None
        self._consume = consume
        self._on_failure = on_failure
        self._on_drop = on_drop
        self._bag: Mailbag[Any] = Mailbag(depth, block=block)
        self._dead = False
        self._thread = threading.Thread(target=self._work, name=f"outlet-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, item: Any) -> None:
        dropped = 1 if self._dead else self._bag.put(item)
        if dropped:
            self._drop(dropped)

    def finish(self, deadline_s: float) -> bool:
        """Let the consumer work off what waits; after `deadline_s` throw the rest away and return False."""
        self._bag.close()
        self._thread.join(max(0.0, deadline_s - time.monotonic()))
        if not self._thread.is_alive():
            return True
        self._drop(self._bag.close(discard=True))
        self.error = self.error or "did not finish in time"
        return False

    def abandon(self) -> None:
        """Throw away what waits and end the thread."""
        self._bag.close(discard=True)

    def _work(self) -> None:
        while (item := self._bag.get()) is not None:
            if self._dead:
                self._drop(1)
                continue
            try:
                self._consume(item)
                self.taken += 1
            except Exception as error:
                self._failed(error)

    def _failed(self, error: Exception) -> None:
        if self.error is None or not isinstance(error, EdgeError):
            logger.warning("%s: %s", self.name, error, exc_info=not isinstance(error, EdgeError))
        self.error = str(error)
        self._drop(1)
        self._dead = self._on_failure(self.name, error)

    def _drop(self, n: int) -> None:
        if n:
            self.dropped += n
            self._on_drop(self.name, n)
