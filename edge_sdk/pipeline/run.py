"""One execution of a pipeline: frame threads that pull, infer and hand results on in frame order."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from edge_sdk.errors import BackendError, EdgeError, SinkError
from edge_sdk.pipeline.burst import Taken, answer, burst_size
from edge_sdk.pipeline.feeds import Feed
from edge_sdk.pipeline.ledger import Ledger
from edge_sdk.pipeline.models import ModelSet, ModelSlot
from edge_sdk.pipeline.observe import Observer, Observers
from edge_sdk.pipeline.outlet import Mailbag, Outlet
from edge_sdk.pipeline.report import Report
from edge_sdk.pipeline.steps import Steps
from edge_sdk.sinks.base import FrameResult, Sink
from edge_sdk.sources.base import BrokenFrame, Frame

logger = logging.getLogger(__name__)
_FINISH_S = 120.0
_STOP_S = 10.0


class Run:
    """The threads and counts of a running pipeline.

    Args:
        make_feed: builds the feed; the run is its events.
        lossless: outlets make the frame threads wait instead of dropping results.
        hand_out: keep results for `results()`.
        frames: stop after this many.
        single: take one frame at a time, whatever it costs.
    """

    def __init__(
        self,
        make_feed: Callable[[Run], Feed],
        slot: ModelSlot,
        *,
        steps: Steps,
        stage: str,
        kind: str,
        workers: int,
        sinks: Sequence[tuple[str, Sink]],
        observers: Sequence[Observer],
        lossless: bool,
        policy: str,
        hand_out: bool,
        frames: int | None,
        single: bool = False,
        warnings: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        self.slot = slot
        self.steps = steps
        self._last: FrameResult | None = None
        self.stage, self.kind, self.policy = stage, kind, policy
        self.finished = threading.Event()
        self.swaps = 0
        self._lossless = lossless
        self._limit = frames
        self._warnings = warnings
        self._warnings_found: tuple[str, ...] = ()
        self._lock = threading.Lock()
        self._pull_lock = threading.Lock()
        self._hand_over = threading.Lock()
        self._ordered = threading.Condition(self._lock)
        self._ledger = Ledger()
        self._pulled = self._delivered = 0
        self._waiting: dict[int, FrameResult | None] = {}
        self._stopping = False
        self._fatal: Exception | None = None
        self._activity: list[tuple[str, float]] = [("idle", 0.0)] * workers
        self._observers = Observers(observers)
        self._sinks = list(sinks)
        self._watch = self._outlet("observers", self._observe, depth=64 if lossless else 8)
        self._outlets = [self._outlet(name, sink.write) for name, sink in sinks]
        self._bag: Mailbag[FrameResult] | None = Mailbag(4, block=lossless) if hand_out else None
        self._feed = make_feed(self)
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"frames-{i}", daemon=True) for i in range(workers)
        ]
        self._closer = threading.Thread(target=self._close, name="pipeline-close", daemon=True)
        self._window, self._burst = 2 * workers + 2, 1
        self._single = single
        self._at_end = False
        self._feed_error: Exception | None = None

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open sinks and source and start the threads; what cannot be opened closes what was.

        Raises:
            EdgeError: the source or a sink cannot be opened.
        """
        opened: list[Sink] = []
        try:
            for _, sink in self._sinks:
                sink.open()
                opened.append(sink)
            self._ledger.begin()
            for outlet in [self._watch, *self._outlets]:
                outlet.start()
            self._feed.start()
        except BaseException:
            self._feed.close()
            for outlet in [self._watch, *self._outlets]:
                outlet.abandon()
            for sink in opened:
                _quietly(sink.close)
            self._observers.close()
            self.slot.close()
            raise
        for thread in self._threads:
            thread.start()
        self._closer.start()

    def stop(self) -> None:
        """Take no more frames; what was taken is finished and delivered."""
        self._stopping = True
        self._feed.stop()
        with self._lock:
            self._ordered.notify_all()

    @property
    def sinks(self) -> tuple[Sink, ...]:
        return tuple(sink for _, sink in self._sinks)

    def results(self) -> Mailbag[FrameResult]:
        assert self._bag is not None
        return self._bag

    def discard_results(self) -> None:
        """Nobody reads `results` any more."""
        if self._bag is not None:
            self._bag.close(discard=True)

    def raise_if_failed(self) -> None:
        if self._fatal is not None:
            raise self._fatal

    def busy(self, now: float) -> tuple[str, float]:
        """Return what the frame thread that is longest in one native call does, and for how many seconds."""
        states = [(now - since, what) for what, since in self._activity if what != "idle"]
        seconds, what = max(states, default=(0.0, "idle"))
        return what, seconds

    # -- frame threads -------------------------------------------------------------------------------------------

    def _work(self, i: int) -> None:
        try:
            while self._some(i):
                pass
        except Exception as error:
            self._fail(error)

    def _some(self, i: int) -> bool:
        """Pull, answer and deliver frames; holds none afterwards, so that the next ones get their memory."""
        taken, models = self._pull(i)
        if models is None:
            return False
        start = time.perf_counter()
        try:
            answer(taken, models, i, lambda: self._note(i, "infer"))
        finally:
            self._note(i, "idle")
            self.slot.release(models)
        if self._lossless:
            service_s = (time.perf_counter() - start) / len(taken)
            self._burst = 1 if self._single else burst_size(taken[0].frame, service_s)
            self._window = 2 * len(self._threads) + 2 + (len(self._threads) + 1) * (self._burst - 1)
        for one in taken:
            if one.failure:
                self._frame_failed(one.frame, *one.failure)
            self._deliver(one.seq, one.item, one.times)
        return True

    def _note(self, i: int, what: str) -> None:
        self._activity[i] = (what, time.monotonic())

    def _pull(self, i: int) -> tuple[list[Taken], ModelSet | None]:
        """Take the next frames in order; what ends the source is raised once those before it are on their way."""
        taken: list[Taken] = []
        with self._pull_lock:
            with self._lock:
                while self._pulled - self._delivered >= self._window and not self._stopping:
                    self._ordered.wait()
            if self._feed_error is not None:
                raise self._feed_error
            try:
                while len(taken) < self._burst and (one := self._take(i)) is not None:
                    taken.append(one)
            except Exception as error:
                self._feed_error = error
                if not taken:
                    raise
            return taken, self.slot.acquire() if taken else None

    def _take(self, i: int) -> Taken | None:
        if self._stopping or self._at_end or (self._limit is not None and self._pulled >= self._limit):
            return None
        start = time.perf_counter()
        if self._lossless:
            self._note(i, "decode")
        try:
            frame = self._feed.next()
        finally:
            self._note(i, "idle")
        if frame is None:
            self._at_end = True
            return None
        seq, self._pulled = self._pulled, self._pulled + 1
        decode_s = time.perf_counter() - start
        moved = self.steps.gate is None or self.steps.gate.open_for(frame)
        return Taken(seq, frame, decode_s, moved)

    def _deliver(self, seq: int, item: FrameResult | None, times: dict[str, float]) -> None:
        """Hand on what is next in order; a full blocking outlet holds the frame threads back here."""
        if item is not None:
            self._ledger.answered(item, times)
        with self._lock:
            self._waiting[seq] = item
        with self._hand_over:
            while True:
                with self._lock:
                    if self._delivered not in self._waiting:
                        return
                    ready = self._waiting.pop(self._delivered)
                    self._delivered += 1
                    self._ordered.notify_all()
                if ready is not None and self._finished(ready):
                    self._emit(ready)

    def _finished(self, item: FrameResult) -> bool:
        """Let the steps see the result, in frame order; a result that a step fails on goes no further."""
        try:
            if item.gated:
                if self._last is None:
                    raise BackendError("nothing moved, and no frame has been answered yet")
                last = self._last
                item.result, item.model, item.latency_ms = last.result, last.model, last.latency_ms
            elif self.steps.gate is not None:
                self._last = replace(item, events=[], counts={})
            self.steps.apply(item)
        except Exception as error:
            self._ledger.withdrawn()
            self._frame_failed(item.frame, "step", error)
            return False
        return True

    def _emit(self, item: FrameResult) -> None:
        self._ledger.found(item)
        self._tell("result", item)
        for outlet in self._outlets:
            outlet.put(item)
        if self._bag is not None:
            dropped = self._bag.put(item)
            if dropped and not self._stopping:
                self._count_drop("reader", dropped)

    def _frame_failed(self, frame: Frame, kind: str, error: Exception) -> None:
        detail = f"frame {frame.index}: {error}"
        known = isinstance(error, EdgeError)
        named = error if isinstance(error, EdgeError) else BackendError(f"the model failed: {error}")
        if self._ledger.error(kind, named):
            logger.warning("%s", detail, exc_info=None if known else error)
        self._tell("error", kind, detail)
        self._count_drop(kind, 1)

    def _fail(self, error: Exception) -> None:
        """Let the first error that ends the run be the one that is raised."""
        with self._lock:
            if self._fatal is None:
                self._fatal = error
        self.stop()

    # -- events of the feed (FeedEvents) ---------------------------------------------------------------------------

    def grabbed(self) -> None:
        self._ledger.grabbed()

    def dropped(self, cause: str) -> None:
        self._count_drop(cause, 1)

    def broken(self, error: BrokenFrame) -> None:
        logger.warning("skipped: %s", error.message)
        self._ledger.broken(error)
        # A long row of broken images is progress, not a decoder that hangs.
        now = time.monotonic()
        self._activity = [(what, now if what == "decode" else since) for what, since in self._activity]
        self._tell("error", "source", error.message)
        self._count_drop("broken", 1)

    def source_lost(self, error: EdgeError) -> None:
        logger.warning("%s: trying again", error.message)
        self._ledger.error("source")
        self._tell("error", "source", error.message)

    def source_back(self) -> None:
        logger.warning("the source gives frames again")
        self._ledger.reconnected()

    # -- delivery ------------------------------------------------------------------------------------------------

    def _outlet(self, name: str, consume: Callable[[Any], None], *, depth: int = 8) -> Outlet:
        return Outlet(
            name, consume, depth=depth, block=self._lossless, on_failure=self._sink_failed, on_drop=self._sink_dropped
        )

    def _tell(self, *event: Any) -> None:
        """Hand an event to the observers' thread; waking it costs as much as a small model's postprocessing."""
        if self._observers:
            self._watch.put(event)

    def _observe(self, event: tuple[Any, ...]) -> None:
        kind, *args = event
        if kind == "result":
            self._observers.on_result(args[0])
        elif kind == "error":
            self._observers.on_error(*args)
        else:
            self._observers.on_drop(*args)

    def _sink_failed(self, name: str, error: Exception) -> bool:
        """A sink of a file job that fails ends the job; for a live source it is tried again with the next result."""
        self._ledger.error("sink")
        if name != "observers":
            self._tell("error", "sink", f"{name}: {error}")
        if self._lossless:
            self._fail(error if isinstance(error, EdgeError) else SinkError(f"sink `{name}` failed: {error}"))
        return self._lossless

    def _sink_dropped(self, name: str, n: int) -> None:
        if name != "observers":
            self._tell("drop", name, n)

    def _count_drop(self, cause: str, n: int) -> None:
        self._ledger.drop(cause, n)
        self._tell("drop", cause, n)

    # -- the end -------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        try:
            for thread in self._threads:
                thread.join()
            self._ledger.end()
            self._warnings_found = self._warnings()
            self._feed.close()
            deadline = time.monotonic() + (_STOP_S if self._stopping else _FINISH_S)
            for outlet, (name, sink) in zip(self._outlets, self._sinks, strict=True):
                done = outlet.finish(deadline)
                if not done and self._lossless:
                    self._keep_failure(SinkError(f"sink `{name}` hangs: {outlet.dropped} results are lost"))
                self._close_sink(outlet, sink)
            self._judge()
            self._watch.finish(deadline)
            self._observers.close()
            self.slot.close()
        except Exception as error:
            self._keep_failure(error)
        finally:
            if self._bag is not None:
                self._bag.close()
            self.finished.set()

    def _close_sink(self, outlet: Outlet, sink: Sink) -> None:
        try:
            sink.close()
        except EdgeError as error:
            outlet.error = outlet.error or error.message
            self._ledger.error("sink")
            if self._lossless:
                self._keep_failure(error)
            else:
                logger.warning("%s", error.message)

    def _keep_failure(self, error: Exception) -> None:
        if self._fatal is None:
            self._fatal = error

    def _judge(self) -> None:
        """A run that ended by itself without one answer is a failure, named by the first thing that went wrong."""
        if self._fatal is None and not self._stopping:
            self._fatal = self._ledger.no_answer()

    def stats(self) -> dict[str, Any]:
        """Return the counts so far, in the form of the worker's `stats`."""
        return self._ledger.stats() | {"model": self.slot.current.digest, "t": time.time()}

    def report(self) -> Report:
        """Return what the run cost so far."""
        return Report(
            **self._ledger.totals(),
            stage={"name": self.stage, "kind": self.kind} | self.slot.current.describe(),
            steps=tuple(self.steps.describe()),
            model=self.slot.current.digest,
            workers=len(self._threads),
            policy=self.policy,
            sinks=tuple(
                {"uri": name, "written": o.taken, "dropped": o.dropped, "error": o.error}
                for o, (name, _) in zip(self._outlets, self._sinks, strict=True)
            ),
            warnings=self._warnings_found,
            swaps=self.swaps,
        )


def _quietly(call: Callable[[], None]) -> None:
    try:
        call()
    except EdgeError as error:
        logger.info("%s", error.message)
