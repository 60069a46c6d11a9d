"""What the tests of pipelines share: coloured frames, an observer that remembers, waiting for a condition."""

from __future__ import annotations

import threading

from support import until as eventually

from edge_sdk.testing import color_frame

__all__ = ["COLORS", "Watcher", "eventually", "frames"]

COLORS = ("blue", "green", "red")


def frames(n: int) -> list:
    """Return n plain frames, blue, green, red and again."""
    return [color_frame(COLORS[i % 3]) for i in range(n)]


class Watcher:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.results: list[int] = []
        self.errors: list[tuple[str, str]] = []
        self.drops: list[tuple[str, int]] = []
        self.threads: set[str] = set()
        self.metrics: list[dict] = []
        self.closed = False

    def on_result(self, item) -> None:
        self.threads.add(threading.current_thread().name)
        self.results.append(item.frame.index)

    def on_error(self, kind, detail) -> None:
        self.errors.append((kind, detail))

    def on_drop(self, cause, n) -> None:
        self.drops.append((cause, n))

    def on_metric(self, metric) -> None:
        self.metrics.append(metric)

    def close(self) -> None:
        self.closed = True
