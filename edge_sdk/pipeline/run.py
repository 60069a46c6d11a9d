"""One execution of a pipeline: frame threads that pull, infer and hand results on in frame order."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edge_sdk.errors import BackendError, EdgeError
from edge_sdk.pipeline.beside import Beside
from edge_sdk.pipeline.burst import Burst, Taken, answer, begin
from edge_sdk.pipeline.cascade import Cascade
from edge_sdk.pipeline.delivery import Delivery, soon
from edge_sdk.pipeline.feeds import Feed, LiveFeed
from edge_sdk.pipeline.ledger import Ledger
from edge_sdk.pipeline.models import ModelSet, ModelSlot
from edge_sdk.pipeline.observe import Observer
from edge_sdk.pipeline.order import InOrder
from edge_sdk.pipeline.outlet import Mailbag
from edge_sdk.pipeline.pull import Puller
from edge_sdk.pipeline.report import Report
from edge_sdk.pipeline.shadow import Shadow
from edge_sdk.pipeline.steps import Steps
from edge_sdk.sinks.base import FrameResult, Origin, Sink
from edge_sdk.sources.base import BrokenFrame, Frame

logger = logging.getLogger(__name__)
_FINISH_S = 120.0
_STOP_S = 6.0
_INFERRED = Origin.INFERRED


class Run:
    """The threads and counts of a running pipeline.

    Args:
        make_feed: builds the feed; the run is its events.
        lossless: outlets make the frame threads wait instead of dropping results.
        hand_out: keep results for `results()`.
        frames: stop after this many.
        single: take one frame at a time, whatever it costs.
        shadow: sees what the model answered, before the steps do.
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
        shadow: Shadow | None = None,
    ) -> None:
        self.slot = slot
        self.steps = steps
        self._handing = 0
        self._last: FrameResult | None = None
        self.stage, self.kind, self.policy = stage, kind, policy
        self.finished = threading.Event()
        self.swaps = 0
        self._warnings = warnings
        self._warnings_found: tuple[str, ...] = ()
        self._lock = threading.Lock()
        self._order: InOrder[tuple[int, Taken]] = InOrder(self._hand_on)
        self._ledger = Ledger()
        self._fatal: Exception | None = None
        self._activity: list[tuple[str, float]] = [("idle", 0.0)] * workers
        self._delivery = Delivery(
            sinks, observers, lossless=lossless, hand_out=hand_out, ledger=self._ledger, fail=self._fail
        )
        self._beside = Beside(
            shadow,
            steps.seconds,
            beat=lambda: self._note(self._handing, "infer"),
            failed=self._second_failed,
            metric=self.tell_metric,
        )
        self._feed = make_feed(self)
        self._puller = Puller(
            self._feed,
            slot,
            self._order,
            origin=self._origin,
            note=self._note,
            workers=workers,
            frames=frames,
            lossless=lossless,
            single=single,
        )
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"frames-{i}", daemon=True) for i in range(workers)
        ]
        self._closer = threading.Thread(target=self._close, name="pipeline-close", daemon=True)
        self._changes: deque[Callable[[FrameResult], None]] = deque()
        self.control: Callable[[], Mapping[str, Any]] = dict

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open sinks and source and start the threads; what cannot be opened closes what was.

        Raises:
            EdgeError: the source or a sink cannot be opened.
        """
        try:
            self._delivery.open()
            self._beside.start()
            self._ledger.begin()
            self._feed.start()
        except BaseException:
            self._feed.close()
            self._delivery.abandon()
            self._beside.finish(soon(_STOP_S))
            self._unload()
            raise
        for thread in self._threads:
            thread.start()
        self._closer.start()

    def stop(self) -> None:
        """Take no more frames; what was taken is finished and delivered."""
        self._puller.stop()
        self._feed.stop()

    def between_frames(self, change: Callable[[FrameResult], None]) -> None:
        """Call `change` once, before the next result goes through the steps, in the thread that hands results on."""
        self._changes.append(change)

    def use(self, steps: Steps) -> None:
        """Let other steps see the results from this one on; called by what `between_frames` calls."""
        self.steps = steps

    def limit_rate(self, fps: float | None) -> None:
        """Take at most so many frames a second from a live source; None ends the limit."""
        if isinstance(self._feed, LiveFeed):
            self._feed.limit(fps)

    def observe(self, observer: Observer) -> None:
        """Let one more observer see what comes from now on; it is closed with the others."""
        self._delivery.observe(observer)

    def tell_metric(self, metric: dict[str, Any]) -> None:
        """Hand a metric to the observers."""
        self._delivery.tell("metric", metric)

    @property
    def seconds(self) -> tuple[Cascade, ...]:
        """The second models."""
        return self._beside.seconds

    @property
    def sinks(self) -> tuple[Sink, ...]:
        return self._delivery.sinks

    def results(self) -> Mailbag[FrameResult]:
        assert self._delivery.results is not None
        return self._delivery.results

    def discard_results(self) -> None:
        """Nobody reads `results` any more."""
        self._delivery.discard_results()

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
            ahead, more = None, True
            while more:
                ahead, more = self._some(i, ahead)
        except Exception as error:
            self._fail(error)

    def _some(self, i: int, ahead: Burst | None) -> tuple[Burst | None, bool]:
        """Pull, answer and deliver frames; holds none afterwards, so that the next ones get their memory.

        Frames whose inference runs by itself are returned and answered after the next ones have been begun.
        """
        try:
            taken, models = self._puller.pull(i, wait=ahead is None)
            burst = None if models is None else self._begin(i, taken, models)
        finally:
            if ahead is not None:
                self._finish(i, ahead)
        if burst is None:
            return None, ahead is not None
        if burst.under_way:
            return burst, True
        self._finish(i, burst)
        return None, True

    def _begin(self, i: int, taken: list[Taken], models: ModelSet) -> Burst:
        """Begin to answer; models that go on by themselves are given back at once, closing them waits for the answers.

        A thread that waits for its reader must not hold up a swap that the reader asked for.
        """
        start, under_way = time.perf_counter(), True
        try:
            under_way = begin(taken, models, i, lambda: self._note(i, "infer"))
        finally:
            self._note(i, "idle")
            if under_way:
                self.slot.release(models)
        return Burst(taken, models, under_way, time.perf_counter() - start)

    def _finish(self, i: int, burst: Burst) -> None:
        taken, start = burst.taken, time.perf_counter()
        try:
            answer(taken, burst.models, i, lambda: self._note(i, "infer"))
        finally:
            self._note(i, "idle")
            if not burst.under_way:
                self.slot.release(burst.models)
        self._puller.served(taken, burst.seconds + time.perf_counter() - start)
        for one in taken:
            if one.failure:
                self._frame_failed(one.frame, *one.failure)
            self._order.put(one.seq, (i, one))

    def _origin(self, frame: Frame) -> Origin:
        pace = self.steps.pace
        return _INFERRED if pace is None else pace(frame)

    def _note(self, i: int, what: str) -> None:
        self._activity[i] = (what, time.monotonic())

    def _hand_on(self, ready: tuple[int, Taken]) -> None:
        """Give a frame that has its turn to steps, sinks and readers, in thread `i`; a full blocking outlet waits."""
        self._handing, taken = ready
        item = taken.item
        if item is None or not self._finished(item):
            return
        self._ledger.answered(item, taken.times)
        self._ledger.found(item)
        missed = self._delivery.give(item)
        if missed and not self._puller.stopping:
            self._delivery.drop("reader", missed)

    def _finished(self, item: FrameResult) -> bool:
        """Let the steps see the result, in frame order; a result that a step fails on goes no further."""
        try:
            while self._changes:
                self._changes.popleft()(item)
            if not item.inferred:
                if self._last is None:
                    raise BackendError("the frame needs no inference, and none has been answered yet")
                last = self._last
                item.result, item.model, item.latency_ms = last.result, last.model, last.latency_ms
            else:
                if self.steps.pace is not None:
                    self._last = replace(item, events=[], counts={})
                self._beside.see(item)
            self.steps.apply(item)
        except Exception as error:
            self._frame_failed(item.frame, "step", error)
            return False
        finally:
            if self._beside.seconds:
                self._note(self._handing, "idle")
        return True

    def _frame_failed(self, frame: Frame, kind: str, error: Exception) -> None:
        detail = f"frame {frame.index}: {error}"
        known = isinstance(error, EdgeError)
        named = error if isinstance(error, EdgeError) else BackendError(f"the model failed: {error}")
        if self._ledger.error(kind, named):
            logger.warning("%s", detail, exc_info=None if known else error)
        self._delivery.tell("error", kind, detail)
        self._delivery.drop(kind, 1)

    def _second_failed(self, kind: str, detail: str) -> None:
        """A box that a second model cannot answer goes on without its answer."""
        if self._ledger.error(kind):
            logger.warning("%s", detail)
        self._delivery.tell("error", kind, detail)

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
        self._delivery.drop(cause, 1)

    def broken(self, error: BrokenFrame) -> None:
        logger.warning("skipped: %s", error.message)
        self._ledger.broken(error)
        # A long row of broken images is progress, not a decoder that hangs.
        now = time.monotonic()
        self._activity = [(what, now if what == "decode" else since) for what, since in self._activity]
        self._delivery.tell("error", "source", error.message)
        self._delivery.drop("broken", 1)

    def source_lost(self, error: EdgeError) -> None:
        logger.warning("%s: trying again", error.message)
        self._ledger.error("source")
        self._delivery.tell("error", "source", error.message)

    def source_back(self) -> None:
        logger.warning("the source gives frames again")
        self._ledger.reconnected()

    # -- the end -------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        try:
            for thread in self._threads:
                thread.join()
            self._ledger.end()
            self._warnings_found = self._warnings()
            self._feed.close()
            deadline = soon(_STOP_S if self._puller.stopping else _FINISH_S)
            for error in self._delivery.finish_sinks(deadline):
                self._keep_failure(error)
            self._judge()
            self._beside.finish(deadline)
            self._delivery.finish_observers(deadline)
            self._unload()
        except Exception as error:
            self._keep_failure(error)
        finally:
            self._delivery.end_results()
            self.finished.set()

    def _unload(self) -> None:
        self.slot.close()
        self._beside.close()

    def _keep_failure(self, error: Exception) -> None:
        if self._fatal is None:
            self._fatal = error

    def _judge(self) -> None:
        """A run that ended by itself without one answer is a failure, named by the first thing that went wrong."""
        if self._fatal is None and not self._puller.stopping:
            self._fatal = self._ledger.no_answer()

    def stats(self) -> dict[str, Any]:
        """Return the counts so far, in the form of the worker's `stats`."""
        control = self.control()
        head = {"model": self.slot.current.digest, "t": time.time()}
        return self._ledger.stats() | head | ({"control": control} if control else {})

    def _describe(self) -> dict[str, Any]:
        """Return what there is to say about the first model."""
        out = {"name": self.stage, "kind": self.kind} | self.slot.current.describe()
        pace = self.steps.pace
        if pace is not None:
            out |= {"every": pace.every, "inferred": pace.inferred}
        return out | self._beside.describe()

    def report(self) -> Report:
        """Return what the run cost so far."""
        return Report(
            **self._ledger.totals(),
            stage=self._describe(),
            steps=tuple(self.steps.describe()),
            model=self.slot.current.digest,
            workers=len(self._threads),
            policy=self.policy,
            sinks=self._delivery.describe(),
            warnings=self._warnings_found,
            swaps=self.swaps,
            control=self.control(),
        )
