"""A second model that answers some of the frames beside the pipeline, and how its answers differ."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from edge_sdk.errors import EdgeError, NonFiniteError, WorkerError
from edge_sdk.pipeline.compare import Pairs, compare
from edge_sdk.pipeline.contained import ContainedRuntime
from edge_sdk.pipeline.models import innermost
from edge_sdk.pipeline.report import Quantiles
from edge_sdk.sources.base import Image

logger = logging.getLogger(__name__)
WINDOW_PAIRS = 50
_DEPTH = 2
_LOAD_S = 10.0
_NICE = 10
_PAIRINGS_KEPT = 8


class Shadow:
    """Compares a model with the one that runs, on one picture in `every`, in a thread of low priority.

    Two pictures wait at most; one that comes while they do is dropped and counted. What the model raises is counted,
    and a model that cannot be loaded or that dies is named in `describe`: nothing of it reaches the pipeline.

    Args:
        load: opens the model; called in the shadow's thread.
        on_window: gets a metric (plain JSON) after every 50 pairs, when the model that runs changes, and at the end;
            the run sets it.
    """

    def __init__(
        self,
        stage: str,
        load: Callable[[], Any],
        *,
        every: int,
        on_window: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self.stage = stage
        self._load = load
        self._every = every
        self.on_window = on_window
        self._seen = 0
        self._waiting: deque[tuple[Image, Any, str, int]] = deque()
        self._wake = threading.Condition()
        self._ready = threading.Event()
        self._closing = False
        self._error: str | None = None
        self._engine: ContainedRuntime | None = None
        self._digest = ""
        self._dropped = 0
        self._failed: Counter[str] = Counter()
        self._latency = Quantiles()
        self._totals: dict[str, Pairs] = {}
        self._window: tuple[str, Pairs] = ("", Pairs())
        self._thread = threading.Thread(target=self._work, name=f"shadow-{stage}", daemon=True)

    def start(self) -> None:
        """Load the model; comes back when that is done, failed, or takes longer than 10 s."""
        self._thread.start()
        self._ready.wait(_LOAD_S)

    def see(self, image: Image, result: Any, model: str, frame: int) -> None:
        """Take a picture and what the model `model` (a digest) answered, if it is the turn of one and there is room."""
        turn = self._seen % self._every == 0
        self._seen += 1
        if not turn or self._error is not None:
            return
        with self._wake:
            if len(self._waiting) >= _DEPTH or self._closing:
                self._dropped += 1
                return
        # Copied outside the lock: the pipeline may hide parts of the picture or use its memory again.
        copy = image.copy()
        with self._wake:
            self._waiting.append((copy, result, model, frame))
            self._wake.notify()

    def finish(self, deadline: float) -> None:
        """Compare what waits until the monotonic time `deadline`, then leave the thread to itself."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._error = self._error or "it did not finish in time"
            if self._engine is not None:
                self._engine.interrupt()

    def describe(self) -> dict[str, Any]:
        """Return its digest, counts, latencies, and for each model that ran the differences to it."""
        return self._head() | {
            "pid": self._engine.pid if self._engine is not None else None,
            "latency_ms": self._latency.to_json(),
            "compared": [{"model": model} | pairs.to_json() for model, pairs in list(self._totals.items())],
        }

    def _head(self) -> dict[str, Any]:
        return {
            "shadow": self._digest,
            "every": self._every,
            "dropped": self._dropped,
            "failed": dict(self._failed),
            "error": self._error,
        }

    # -- its thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        if sys.platform == "linux":  # elsewhere a thread has no priority of its own
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        try:
            model = self._load()
            self._digest = model.digest
            engine = getattr(innermost(model), "runtime", None)
            self._engine = engine if isinstance(engine, ContainedRuntime) else None
        except Exception as error:
            known = isinstance(error, EdgeError)
            self._error = error.message if isinstance(error, EdgeError) else repr(error)
            logger.warning("shadow of `%s`: %s", self.stage, self._error, exc_info=None if known else error)
            return
        finally:
            self._ready.set()
        try:
            while self._error is None and (taken := self._next()) is not None:
                self._one(model, *taken)
            self._close_window("")
        finally:
            model.close()

    def _next(self) -> tuple[Image, Any, str, int] | None:
        with self._wake:
            while not self._waiting and not self._closing:
                self._wake.wait()
            return self._waiting.popleft() if self._waiting else None

    def _one(self, model: Any, image: Image, result: Any, digest: str, frame: int) -> None:
        if digest != self._window[0]:
            self._close_window(digest)
        begin = time.perf_counter()
        try:
            feeds, geometry = model.prepare(image)
            answer = model.decode(model.infer(feeds), geometry)
            self._latency.add((time.perf_counter() - begin) * 1000.0)
            pair = compare(result, answer)
        except NonFiniteError as error:
            self._failure("nonfinite", error)
            return
        except WorkerError as error:
            self._error = error.message
            self._failure("died", error)
            return
        except Exception as error:
            self._failure("infer", error)
            return
        if digest not in self._totals and len(self._totals) >= _PAIRINGS_KEPT:
            del self._totals[next(iter(self._totals))]
        for pairs in (self._totals.setdefault(digest, Pairs()), self._window[1]):
            pairs.add(pair, frame)
        if self._window[1].n >= WINDOW_PAIRS:
            self._close_window(digest)

    def _failure(self, kind: str, error: Exception) -> None:
        self._failed[kind] += 1
        if self._failed[kind] == 1:
            known = isinstance(error, EdgeError)
            logger.warning("shadow of `%s`: %s", self.stage, error, exc_info=None if known else error)
        if self._failed.total() % WINDOW_PAIRS == 0:
            self._close_window(self._window[0])

    def _close_window(self, digest: str) -> None:
        """Send what the window holds and open one for the model `digest`."""
        model, pairs = self._window
        self._window = (digest, Pairs())
        if pairs.n or self._failed:
            head = {"name": "shadow", "stage": self.stage, "model": model} | self._head()
            self.on_window(head | pairs.to_json())
