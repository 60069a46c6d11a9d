"""Numbered items out in order, one thread at a time, without holding up those that bring them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class InOrder(Generic[T]):
    """Gives each item to `out` in the order of their numbers, which begin at 0 and leave none out.

    The thread that brings the next one hands on all that are ready, also those that other threads bring meanwhile; the
    others go on with their work. `delivered` counts what was handed on.
    """

    def __init__(self, out: Callable[[T], None]) -> None:
        self._out = out
        self._waiting: dict[int, T] = {}
        self._changed = threading.Condition(threading.Lock())
        self._handing = False
        self.delivered = 0

    def put(self, number: int, item: T) -> None:
        """Bring an item; what `out` raises comes out here."""
        with self._changed:
            self._waiting[number] = item
            if self._handing:
                return
            self._handing = True
        try:
            while True:
                with self._changed:
                    if self.delivered not in self._waiting:
                        self._handing = False
                        return
                    ready = self._waiting.pop(self.delivered)
                    self.delivered += 1
                    self._changed.notify_all()
                self._out(ready)
        except BaseException:
            with self._changed:
                self._handing = False
            raise

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready`, which is asked again after each delivery and each `wake`."""
        with self._changed:
            while not ready():
                self._changed.wait()

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
