"""What a run has counted: frames, drops, errors, times; safe to use from all its threads."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from edge_sdk.errors import EdgeError, SourceError
from edge_sdk.pipeline.report import Findings, Tally, memory_mb
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sources.base import BrokenFrame

_NAMES_KEPT = 100


class Ledger:
    """The counts of one run from `begin` to `end`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tally = Tally()
        self._findings = Findings()
        self._frames_in = self._reconnects = 0
        self._dropped: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._first_error: EdgeError | None = None
        self._broken: list[str] = []
        self._began = self._ended = 0.0
        self._cpu_began = self._cpu_ended = 0.0

    def begin(self) -> None:
        self._began, self._cpu_began = time.monotonic(), time.process_time()

    def end(self) -> None:
        self._ended, self._cpu_ended = time.monotonic(), time.process_time()

    def grabbed(self) -> None:
        with self._lock:
            self._frames_in += 1

    def answered(self, item: FrameResult, times: Mapping[str, float]) -> None:
        """Count a frame that has its answer and what its phases took, in seconds."""
        with self._lock:
            self._tally.processed += 1
            if item.inferred:
                self._tally.add_latency(item.model, item.latency_ms)
            self._tally.age.add(item.age_ms)
            for name, seconds in times.items():
                self._tally.stage_s[name] += seconds

    def found(self, item: FrameResult) -> None:
        """Note what an answer says; called by one thread at a time."""
        self._findings.add(item)

    def drop(self, cause: str, n: int) -> None:
        with self._lock:
            self._dropped[cause] += n

    def error(self, kind: str, error: EdgeError | None = None) -> bool:
        """Count an error, remember the first one that is given, and say whether it is the first of its kind."""
        with self._lock:
            self._errors[kind] += 1
            if self._first_error is None:
                self._first_error = error
            return self._errors[kind] == 1

    def broken(self, error: BrokenFrame) -> None:
        with self._lock:
            if len(self._broken) < _NAMES_KEPT:
                self._broken.append(error.name or error.message)
            if self._first_error is None:
                self._first_error = error

    def reconnected(self) -> None:
        with self._lock:
            self._reconnects += 1

    def no_answer(self) -> EdgeError | None:
        """Return the first thing that went wrong when not one frame has been answered."""
        with self._lock:
            first, n = self._first_error, sum(self._dropped.values())
            if self._tally.processed or first is None:
                return None
        if isinstance(first, BrokenFrame) and n > 1:
            return SourceError(f"none of {n} images can be decoded; the first: {first.message}", hint=first.hint)
        return first

    def stats(self) -> dict[str, Any]:
        """Return the counts so far, as in the worker's `stats`."""
        with self._lock:
            return {
                "frames": self._frames_in,
                "processed": self._tally.processed,
                "dropped": dict(self._dropped),
                "errors": {k: v for k, v in self._errors.items() if k != "nonfinite"},
                "nonfinite": self._errors["nonfinite"],
                "latency_ms": self._tally.latency.to_json(),
                "model_latency_ms": self._tally.model_latency.to_json(),
            }

    def totals(self) -> dict[str, Any]:
        """Return the fields of a `Report` that are counts and times."""
        ended = self._ended or time.monotonic()
        cpu_s = (self._cpu_ended or time.process_time()) - self._cpu_began
        with self._lock:
            n = self._tally.processed
            return {
                "frames_in": self._frames_in,
                "processed": n,
                "dropped": dict(self._dropped),
                "errors": dict(self._errors),
                "seconds": ended - self._began,
                "cpu_ms_per_frame": cpu_s * 1000 / n if n else None,
                "latency_ms": self._tally.latency.to_json(),
                "frame_age_ms": self._tally.age.to_json(),
                "stage_ms": {k: s * 1000 / n for k, s in self._tally.stage_s.items()} if n else {},
                "rss_mb": memory_mb()[1],
                "results": self._findings.to_json(),
                "broken": tuple(self._broken),
                "reconnects": self._reconnects,
            }
