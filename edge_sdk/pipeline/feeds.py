"""How frames get from a source to the frame threads: every one of a file, the latest one of a camera."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from edge_sdk.backoff import Backoff
from edge_sdk.errors import EdgeError, SourceError
from edge_sdk.sources.base import BrokenFrame, Frame, Source

logger = logging.getLogger(__name__)
_KEEP_ALL_DEPTH = 8
_MAX_STUCK = 3
_LOOK_S = 0.5


class FeedEvents(Protocol):
    """What a feed tells the run."""

    def grabbed(self) -> None: ...

    def dropped(self, cause: str) -> None: ...

    def broken(self, error: BrokenFrame) -> None: ...

    def source_lost(self, error: EdgeError) -> None: ...

    def source_back(self) -> None: ...


class Feed(Protocol):
    """Gives frames; `next` is called by one frame thread at a time and raises what ends the run."""

    def start(self) -> None: ...

    def next(self) -> Frame | None: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...


class PullFeed:
    """Every frame of a finite source, read by the thread that wants it."""

    def __init__(self, source: Source, events: FeedEvents) -> None:
        self._source = source
        self._events = events
        self._stopped = False

    def start(self) -> None:
        self._source.open()

    def next(self) -> Frame | None:
        while not self._stopped and self._source.grab():
            self._events.grabbed()
            try:
                return self._source.retrieve()
            except BrokenFrame as error:
                self._events.broken(error)
        return None

    def stop(self) -> None:
        self._stopped = True
        _interrupt(self._source)

    def close(self) -> None:
        self._source.close()


class LiveFeed:
    """A source that gives frames whether or not they are wanted, read by a thread of its own and watched by another.

    A one-slot mailbox holds the latest frame (or, with `keep_all`, a short queue holds the reader back). A frame that
    no thread will be free for before the next one comes is grabbed and never decoded. A source that fails, or gives
    nothing for `stall_s`, is opened again in a fresh thread after a pause, at once when it comes within reach again.
    A reader that hangs is interrupted; where that is not possible the next ones get a source that decodes in a process
    of its own (`make_isolated`), which can be. Without one the feed gives up after three that hang.
    Numbers and times of frames go on after a loss, by the clock.
    """

    def __init__(
        self,
        make: Callable[[], Source],
        events: FeedEvents,
        *,
        make_isolated: Callable[[], Source] | None = None,
        keep_all: bool = False,
        stall_s: float = 5.0,
        open_s: float = 20.0,
        backoff: Backoff | None = None,
        retry_first: bool = False,
    ) -> None:
        self._make, self._make_isolated = make, make_isolated
        self._events = events
        self._keep_all = keep_all
        self._stall_s, self._open_s = stall_s, open_s
        self._backoff = backoff or Backoff()
        self._retry_first = retry_first
        self._changed = threading.Condition()
        self._slot: deque[Frame] = deque()
        self._pace = _Pace()
        self._rate = RateLimit()
        self._stopped = self._ended = False
        self._error: EdgeError | None = None
        self._seen_frame = False
        self._last: tuple[int, float, float] | None = None
        self._lost = False
        self._keeper = threading.Thread(target=self._keep, name="source-watch", daemon=True)
        self._readers: list[_Reader] = []

    def start(self) -> None:
        """Open the source; returns once the first frame came, or with `retry_first` at once.

        Raises:
            SourceError: it cannot be opened.
        """
        self._keeper.start()
        if self._retry_first:
            return
        with self._changed:
            self._changed.wait_for(lambda: self._seen_frame or self._ended or self._stopped)
            if self._error:
                raise self._error

    def next(self) -> Frame | None:
        with self._changed:
            self._pace.idle(time.monotonic())
            self._changed.wait_for(lambda: self._slot or self._ended or self._stopped)
            if self._stopped or not self._slot:
                if self._error and not self._stopped:
                    raise self._error
                return None
            frame = self._slot.popleft()
            self._pace.busy(time.monotonic())
            self._changed.notify_all()
            return frame

    def limit(self, fps: float | None) -> None:
        """Let at most so many frames a second through, from the next one on; None ends the limit."""
        with self._changed:
            self._rate.every_s = None if fps is None else 1.0 / fps

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def close(self) -> None:
        self.stop()
        for reader in self._readers:
            reader.abandon()
        deadline = time.monotonic() + 2.0
        for thread in [r.thread for r in self._readers] + [self._keeper]:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            left = len(self._slot)
            self._slot.clear()
        for _ in range(left):
            self._events.dropped("latest")

    def _keep(self) -> None:
        """Start readers one after the other and notice when one fails or hangs."""
        attempt = 0
        while True:
            self._readers = [r for r in self._readers if r.thread.is_alive()]
            isolated = bool(self._readers) and self._make_isolated is not None
            reader = _Reader(self, self._make_isolated if isolated and self._make_isolated else self._make)
            self._readers.append(reader)
            reader.thread.start()
            error = self._watch(reader)
            reader.abandon()
            if error is None:
                return
            attempt = 0 if reader.frames or reader.silent else attempt + 1
            hanging = sum(r.thread.is_alive() for r in self._readers)
            if hanging >= _MAX_STUCK and self._make_isolated is None:
                self._end(SourceError(f"{error.message}; {hanging} readers hang", hint="start a fresh process"))
                return
            if not (self._seen_frame or self._retry_first):
                self._end(error)
                return
            if not self._lost:
                self._lost = True
                self._events.source_lost(error)
            if not self._pause(reader, attempt):
                return

    def _pause(self, reader: _Reader, attempt: int) -> bool:
        """Wait before the next attempt, less long when the source comes within reach; False when it was stopped."""
        look: Callable[[], bool | None] = getattr(reader.source, "reachable", lambda: None)
        deadline = time.monotonic() + self._backoff.delay_s(attempt, random.random)
        looking, away = True, False
        while (left := deadline - time.monotonic()) > 0:
            with self._changed:
                if self._changed.wait_for(lambda: self._stopped, timeout=min(left, _LOOK_S) if looking else left):
                    return False
            if looking:
                there = look()
                if there and away:
                    return True
                # One that answers and fails all the same, a wrong password for instance, is left in peace.
                looking = away = away or there is False
        return not self._stopped

    def _watch(self, reader: _Reader) -> EdgeError | None:
        """Wait until `reader` is done for; None when the source ended or the feed was stopped."""
        with self._changed:
            while True:
                if self._stopped or reader.ended:
                    self._ended = True
                    self._changed.notify_all()
                    return None
                if reader.error is not None:
                    return reader.error
                limit = self._stall_s if reader.frames else self._open_s
                left = reader.beat + limit - time.monotonic()
                if left <= 0 and not (reader.held_back or getattr(reader.source, "patient", False)):
                    reader.silent = True
                    what = "gave no frame" if reader.frames else "did not open"
                    return SourceError(f"`{reader.uri}` {what} for {limit:g} s", hint="check cable, power and network")
                self._changed.wait(timeout=max(0.05, left))

    def _end(self, error: EdgeError) -> None:
        with self._changed:
            self._error, self._ended = error, True
            self._changed.notify_all()

    def _arrived(self, reader: _Reader) -> bool:
        """Note a grabbed frame and say whether it is worth decoding."""
        now = time.monotonic()
        with self._changed:
            reader.beat = now
            reader.frames += 1
            self._pace.arrival(now)
            cause = None if self._keep_all or self._pace.wants(now) else "latest"
            if cause is None and not self._rate.take(now):
                cause = "rate"
        self._events.grabbed()
        if self._lost:
            self._lost = False
            self._events.source_back()
        if cause is not None:
            self._events.dropped(cause)
        return cause is None

    def _put(self, reader: _Reader, frame: Frame) -> None:
        with self._changed:
            self._seen_frame = True
            if reader.shift is None:
                reader.shift = _shift(self._last, frame)
            frame.index += reader.shift[0]
            frame.t_s += reader.shift[1]
            self._last = (frame.index, frame.t_s, frame.captured_s)
            if self._keep_all:
                reader.held_back = True
                self._changed.wait_for(lambda: len(self._slot) < _KEEP_ALL_DEPTH or self._stopped or reader.stale)
                reader.held_back, reader.beat = False, time.monotonic()
            elif self._slot:
                self._slot.clear()
                self._events.dropped("latest")
            self._slot.append(frame)
            self._changed.notify_all()


class _Reader:
    """One thread with one opened source; `silent` says that it gave nothing for too long."""

    def __init__(self, feed: LiveFeed, make: Callable[[], Source]) -> None:
        self._feed, self._make = feed, make
        self.uri = "source"
        self.source: Source | None = None
        self.beat = time.monotonic()
        self.frames = 0
        self.shift: tuple[int, float] | None = None
        self.stale = self.silent = self.ended = self.held_back = False
        self.error: EdgeError | None = None
        self.thread = threading.Thread(target=self._run, name="source-read", daemon=True)

    def abandon(self) -> None:
        """Want no more of it, and end what it waits for where its source can do that."""
        self.stale = True
        if self.source is not None and self.thread.is_alive():
            _interrupt(self.source)

    def _run(self) -> None:
        source: Source | None = None
        try:
            source = self.source = self._make()
            self.uri = source.uri
            if not self._unwanted():
                source.open()
                self._read(source)
        except EdgeError as error:
            self.error = error
        except Exception as error:
            logger.exception("source `%s` failed", self.uri)
            self.error = SourceError(f"`{self.uri}` failed: {error}")
        finally:
            with self._feed._changed:
                self._feed._changed.notify_all()
            if source is not None:
                source.close()

    def _unwanted(self) -> bool:
        return self.stale or self._feed._stopped

    def _read(self, source: Source) -> None:
        feed = self._feed
        while not self._unwanted():
            if not source.grab():
                self.ended = True
                return
            if self._unwanted() or not feed._arrived(self):
                continue
            try:
                frame = source.retrieve()
            except BrokenFrame as error:
                feed._events.broken(error)
                continue
            feed._put(self, frame)


def _shift(last: tuple[int, float, float] | None, frame: Frame) -> tuple[int, float]:
    """Return what to add to number and time of a reader's frames so that they follow the `last` one of another."""
    if last is None:
        return 0, 0.0
    index, t_s, captured_s = last
    return index + 1 - frame.index, t_s + max(0.001, frame.captured_s - captured_s) - frame.t_s


def _interrupt(source: Source) -> None:
    """End a read that waits, for sources that can."""
    interrupt = getattr(source, "interrupt", None)
    if interrupt is not None:
        interrupt()


class _Pace:
    """Foresees whether a frame thread will be free before the next frame comes."""

    def __init__(self) -> None:
        self._interval_s: float | None = None
        self._service_s: float | None = None
        self._last_arrival: float | None = None
        self._taken: deque[float] = deque()
        self._idle = True

    def arrival(self, now: float) -> None:
        if self._last_arrival is not None:
            self._interval_s = _smooth(self._interval_s, now - self._last_arrival)
        self._last_arrival = now

    def idle(self, now: float) -> None:
        """A frame thread asks for a frame."""
        if self._taken:
            self._service_s = _smooth(self._service_s, now - self._taken.popleft())
        self._idle = True

    def busy(self, now: float) -> None:
        """A frame thread got one."""
        self._taken.append(now)
        self._idle = False

    def wants(self, now: float) -> bool:
        if self._idle or self._interval_s is None or self._service_s is None or not self._taken:
            return True
        return self._taken[0] + self._service_s <= now + self._interval_s


class RateLimit:
    """Lets through frames at least `every_s` apart on average, None all of them; a frame a little early is let through.

    The times are those at which the frames arrive, so that the jitter of a camera does not halve the rate.
    """

    def __init__(self) -> None:
        self.every_s: float | None = None
        self._due = 0.0

    def take(self, now: float) -> bool:
        """Say whether the frame that arrived at `now` is one of them."""
        if self.every_s is None:
            return True
        if now < self._due - 0.1 * self.every_s:
            return False
        self._due = max(self._due, now - self.every_s) + self.every_s
        return True


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else 0.8 * old + 0.2 * new
