"""Counts and histograms in the text format that Prometheus reads (version 0.0.4)."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LOST_S = 5.0


class Histogram:
    """Seconds in cumulative buckets; thread-safe."""

    def __init__(self, bounds: Sequence[float] = _BOUNDS_S) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        i = next((i for i, bound in enumerate(self._bounds) if seconds <= bound), len(self._bounds))
        with self._lock:
            self._counts[i] += 1
            self._sum += seconds

    @property
    def n(self) -> int:
        return sum(self._counts)

    def lines(self, name: str, labels: Mapping[str, str]) -> list[str]:
        """Return the series of one histogram."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        out, seen = [], 0
        for bound, count in zip([*map(str, self._bounds), "+Inf"], counts, strict=True):
            seen += count
            out.append(sample(f"{name}_bucket", seen, {**labels, "le": bound}))
        return [*out, sample(f"{name}_sum", round(total, 6), labels), sample(f"{name}_count", seen, labels)]


class Watch:
    """Sees a pipeline's results from the observers' thread: latency, rate, and when the last frame came."""

    def __init__(self) -> None:
        self.latency = Histogram()
        self._times: deque[float] = deque(maxlen=100)

    def on_result(self, item: Any) -> None:
        self._times.append(time.monotonic())
        if item.inferred:
            self.latency.add(item.latency_ms / 1000.0)

    def on_error(self, kind: str, detail: str) -> None:
        pass

    def on_drop(self, cause: str, n: int) -> None:
        pass

    def close(self) -> None:
        pass

    def fps(self, now: float) -> float:
        """Return results a second over the last 10 seconds, or the last hundred results."""
        times = [t for t in list(self._times) if now - t <= 10.0]
        return len(times) / (now - times[0]) if times and now > times[0] else 0.0

    def age_s(self, now: float) -> float | None:
        """Return the seconds since the last result; None before the first."""
        return now - self._times[-1] if self._times else None

    def source_up(self, now: float) -> bool:
        """Say whether the source gave a frame in the last seconds."""
        age = self.age_s(now)
        return age is not None and age < _LOST_S


def sample(name: str, value: float, labels: Mapping[str, str] | None = None) -> str:
    """Return one line."""
    pairs = ",".join(f'{k}="{_escape(v)}"' for k, v in (labels or {}).items())
    return f"{name}{{{pairs}}} {value}" if pairs else f"{name} {value}"


def family(name: str, kind: str, text: str, lines: Iterable[str]) -> list[str]:
    """Return the lines of one metric under its help and type."""
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *lines]


def counter(name: str, text: str, label: str, values: Mapping[str, float] | Counter[str]) -> list[str]:
    """Return a counter with one line for each value of one label."""
    return family(name, "counter", text, [sample(name, n, {label: key}) for key, n in sorted(values.items())])


def _escape(value: str) -> str:
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
