"""Where answered frames go: sinks, observers and whoever iterates, each behind a bounded queue."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from edge_sdk.errors import EdgeError, SinkError
from edge_sdk.pipeline.ledger import Ledger
from edge_sdk.pipeline.observe import Observer, Observers
from edge_sdk.pipeline.outlet import Mailbag, Outlet
from edge_sdk.sinks.base import FrameResult, Sink

logger = logging.getLogger(__name__)


class Delivery:
    """The outlets of one run.

    Args:
        lossless: outlets make who gives wait instead of dropping results, and a sink that fails ends the run.
        hand_out: keep results for `results`.
        ledger: counts errors and drops.
        fail: called with the error of a sink that ends the run.
    """

    def __init__(
        self,
        sinks: Sequence[tuple[str, Sink]],
        observers: Sequence[Observer],
        *,
        lossless: bool,
        hand_out: bool,
        ledger: Ledger,
        fail: Callable[[Exception], None],
    ) -> None:
        self._sinks = list(sinks)
        self._opened: list[Sink] = []
        self._observers = Observers(observers)
        self._lossless = lossless
        self._ledger = ledger
        self._fail = fail
        self._watch = self._outlet("observers", self._observe, depth=64 if lossless else 8)
        self._outlets = [self._outlet(name, sink.write) for name, sink in sinks]
        self.results: Mailbag[FrameResult] | None = Mailbag(4, block=lossless) if hand_out else None

    @property
    def sinks(self) -> tuple[Sink, ...]:
        return tuple(sink for _, sink in self._sinks)

    def observe(self, observer: Observer) -> None:
        """Let one more observer see what comes from now on."""
        self._observers.add(observer)

    def open(self) -> None:
        """Open the sinks, and then let results in.

        Raises:
            EdgeError: a sink cannot be opened.
        """
        for _, sink in self._sinks:
            sink.open()
            self._opened.append(sink)
        for outlet in (self._watch, *self._outlets):
            outlet.start()

    def abandon(self) -> None:
        """Close what has been opened: the run does not start."""
        for outlet in (self._watch, *self._outlets):
            outlet.abandon()
        for sink in self._opened:
            try:
                sink.close()
            except EdgeError as error:
                logger.info("%s", error.message)
        self._observers.close()

    def give(self, item: FrameResult) -> int:
        """Hand a result to everyone; return how many results the reader missed for it. A full outlet may wait."""
        self.tell("result", item)
        for outlet in self._outlets:
            outlet.put(item)
        return self.results.put(item) if self.results is not None else 0

    def tell(self, *event: Any) -> None:
        """Hand an event to the observers' thread; waking it costs as much as a small model's postprocessing."""
        if self._observers:
            self._watch.put(event)

    def drop(self, cause: str, n: int) -> None:
        """Count results or frames that were dropped, and tell."""
        self._ledger.drop(cause, n)
        self.tell("drop", cause, n)

    def discard_results(self) -> None:
        """Nobody reads `results` any more."""
        if self.results is not None:
            self.results.close(discard=True)

    def finish_sinks(self, deadline: float) -> list[EdgeError]:
        """Let the sinks write what waits, close them, and return what ends a file job."""
        found: list[EdgeError] = []
        for outlet, (name, sink) in zip(self._outlets, self._sinks, strict=True):
            if not outlet.finish(deadline) and self._lossless:
                found.append(SinkError(f"sink `{name}` hangs: {outlet.dropped} results are lost"))
            try:
                sink.close()
            except EdgeError as error:
                outlet.error = outlet.error or error.message
                self._ledger.error("sink")
                if self._lossless:
                    found.append(error)
                else:
                    logger.warning("%s", error.message)
        return found

    def finish_observers(self, deadline: float) -> None:
        self._watch.finish(deadline)
        self._observers.close()

    def end_results(self) -> None:
        if self.results is not None:
            self.results.close()

    def describe(self) -> tuple[dict[str, Any], ...]:
        """Return what each sink got."""
        return tuple(
            {"uri": name, "written": o.taken, "dropped": o.dropped, "error": o.error}
            for o, (name, _) in zip(self._outlets, self._sinks, strict=True)
        )

    def _outlet(self, name: str, consume: Callable[[Any], None], *, depth: int = 8) -> Outlet:
        return Outlet(
            name, consume, depth=depth, block=self._lossless, on_failure=self._sink_failed, on_drop=self._sink_dropped
        )

    def _observe(self, event: tuple[Any, ...]) -> None:
        kind, *args = event
        getattr(self._observers, f"on_{kind}")(*args)

    def _sink_failed(self, name: str, error: Exception) -> bool:
        """A sink of a file job that fails ends the job; for a live source it is tried again with the next result."""
        self._ledger.error("sink")
        if name != "observers":
            self.tell("error", "sink", f"{name}: {error}")
        if self._lossless:
            self._fail(error if isinstance(error, EdgeError) else SinkError(f"sink `{name}` failed: {error}"))
        return self._lossless

    def _sink_dropped(self, name: str, n: int) -> None:
        if name != "observers":
            self.tell("drop", name, n)


def soon(seconds: float) -> float:
    """Return the monotonic time in so many seconds."""
    return time.monotonic() + seconds
