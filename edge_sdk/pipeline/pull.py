"""Frame threads taking frames from the feed, in order and no more than may be on their way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from edge_sdk.pipeline.burst import Taken, burst_size, prepare
from edge_sdk.pipeline.feeds import Feed
from edge_sdk.pipeline.models import ModelSet, ModelSlot
from edge_sdk.pipeline.order import InOrder
from edge_sdk.sinks.base import Origin
from edge_sdk.sources.base import Frame


class Puller:
    """Numbers the frames of a feed and hands them to the frame threads, one or several at a time.

    Args:
        order: where the frames end up; how many it delivered bounds how many may be on their way.
        origin: says whether a frame needs inference.
        note: called with a frame thread and what it does.
        frames: take no more than so many.
        lossless: the feed is read by the thread that wants a frame.
        single: take one frame at a time, whatever it costs.
    """

    def __init__(
        self,
        feed: Feed,
        slot: ModelSlot,
        order: InOrder[Any],
        *,
        origin: Callable[[Frame], Origin],
        note: Callable[[int, str], None],
        workers: int,
        frames: int | None,
        lossless: bool,
        single: bool,
    ) -> None:
        self._feed, self._slot, self._order = feed, slot, order
        self._origin, self._note = origin, note
        self._workers, self._limit = workers, frames
        self._lossless = lossless
        self._several = lossless and not single
        self.stopping = False
        self._lock = threading.Lock()
        self._window, self._burst = 2 * workers + 2, 1
        self._pulled = 0
        self._at_end = False
        self._error: Exception | None = None

    def stop(self) -> None:
        """Take no more."""
        self.stopping = True
        self._order.wake()

    def served(self, taken: list[Taken], seconds: float) -> None:
        """Learn how long a thread was busy with what it took; an engine gets as many frames as it runs at once."""
        if self._several:
            least = getattr(self._slot.current.models[0], "requests", 1)
            self._burst = max(least, burst_size(taken[0].frame, seconds / len(taken)))
            self._window = 2 * self._workers + 2 + (self._workers + 1) * (self._burst - 1)

    def pull(self, i: int, *, wait: bool) -> tuple[list[Taken], ModelSet | None]:
        """Take the next frames in order and the models to answer them; none at the end.

        Without `wait` also none when too many are on their way, or while another thread takes some: who holds frames
        back must not wait for their delivery. Of several frames each is prepared as soon as it is taken.

        Raises:
            EdgeError: what ends the source, once those before it are on their way.
        """
        taken: list[Taken] = []
        models: ModelSet | None = None
        if not self._lock.acquire(blocking=wait):
            return taken, None
        try:
            if wait:
                self._order.wait_until(lambda: self._room() or self.stopping)
            elif not self._room():
                return taken, None
            if self._error is not None:
                raise self._error
            burst = self._burst  # another thread may change it meanwhile
            try:
                while len(taken) < burst and (one := self._take(i)) is not None:
                    taken.append(one)
                    models = models or self._slot.acquire()
                    if burst > 1:
                        self._note(i, "infer")
                        prepare(one, models, i)
            except Exception as error:
                self._error = error
                if not taken:
                    raise
            finally:
                self._note(i, "idle")
            return taken, models
        finally:
            self._lock.release()

    def _room(self) -> bool:
        return self._pulled - self._order.delivered < self._window

    def _take(self, i: int) -> Taken | None:
        if self.stopping or self._at_end or (self._limit is not None and self._pulled >= self._limit):
            return None
        start = time.perf_counter()
        if self._lossless:
            self._note(i, "decode")
        frame = self._feed.next()
        if frame is None:
            self._at_end = True
            return None
        seq, self._pulled = self._pulled, self._pulled + 1
        return Taken(seq, frame, time.perf_counter() - start, self._origin(frame))
