"""Who watches a pipeline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from edge_sdk.sinks.base import FrameResult

logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Called from one thread that is not the frame path, results in frame order; must be cheap.

    `kind` of an error is infer, nonfinite, source or sink; `cause` of a drop is latest, broken, infer, nonfinite,
    observer, or the name of a sink.
    """

    def on_result(self, item: FrameResult) -> None: ...

    def on_error(self, kind: str, detail: str) -> None: ...

    def on_drop(self, cause: str, n: int) -> None: ...

    def close(self) -> None: ...


class MetricObserver(Observer, Protocol):
    """An observer that also takes metrics: plain JSON with `name` (`second`, `shadow`), `stage` and `model`."""

    def on_metric(self, metric: dict[str, Any]) -> None: ...


class Observers:
    """Calls each observer; one that raises is logged and the others go on."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)
        self.failures = 0

    def add(self, observer: Observer) -> None:
        self._observers = (*self._observers, observer)

    def __bool__(self) -> bool:
        return bool(self._observers)

    def on_result(self, item: FrameResult) -> None:
        self._each(lambda o: o.on_result(item))

    def on_error(self, kind: str, detail: str) -> None:
        self._each(lambda o: o.on_error(kind, detail))

    def on_drop(self, cause: str, n: int) -> None:
        self._each(lambda o: o.on_drop(cause, n))

    def on_metric(self, metric: dict[str, Any]) -> None:
        self._each(lambda o: o.on_metric(metric) if hasattr(o, "on_metric") else None)

    def close(self) -> None:
        self._each(lambda o: o.close())

    def _each(self, call: Callable[[Any], None]) -> None:
        for observer in self._observers:
            try:
                call(observer)
            except Exception:
                self.failures += 1
                logger.exception("observer %s failed", type(observer).__name__)
