"""What a run cost and found."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_sdk.sinks.base import FrameResult
from edge_sdk.tasks.results import Detections, Second
from edge_sdk.tasks.summary import found

_GROWTH = math.log(1.01)


class Quantiles:
    """Quantiles of many positive values in bounded memory: buckets one per cent wide."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.n = 0

    def add(self, value: float) -> None:
        self._counts[round(math.log(max(value, 1e-6)) / _GROWTH)] += 1
        self.n += 1

    def at(self, q: float) -> float | None:
        """Return the value at `q` in [0, 1], within one per cent; None when there is none."""
        rank, seen = max(1, math.ceil(q * self.n)), 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= rank:
                return math.exp(bucket * _GROWTH)
        return None

    def to_json(self) -> dict[str, float | None]:
        values = {f"p{p}": self.at(p / 100) for p in (50, 95, 99)}
        return {k: None if v is None else round(v, 3) for k, v in values.items()}


@dataclass(slots=True)
class Tally:
    """Counts and times of the frames that were answered."""

    processed: int = 0
    latency: Quantiles = field(default_factory=Quantiles)
    model: str = ""
    model_latency: Quantiles = field(default_factory=Quantiles)
    age: Quantiles = field(default_factory=Quantiles)
    stage_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add_latency(self, model: str, latency_ms: float) -> None:
        """Count a frame's latency over the run, and over the time that `model` has been the one that runs."""
        if model != self.model:
            self.model, self.model_latency = model, Quantiles()
        self.latency.add(latency_ms)
        self.model_latency.add(latency_ms)


class Findings:
    """What the models said over the run: per label in how many frames, how often, and the best score.

    What a second model said stands under `name: label`.
    """

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {}

    def add(self, item: FrameResult) -> None:
        said = found(item.result)
        if isinstance(item.result, Detections) and item.result.then:
            said |= _of_seconds(item.result.then)
        for label, (count, best) in said.items():
            row = self._rows.setdefault(label, {"frames": 0, "count": 0, "best": 0.0})
            row["frames"] += 1
            row["count"] += count
            row["best"] = max(row["best"], best)

    def to_json(self, *, limit: int = 50) -> dict[str, dict[str, Any]]:
        order = sorted(self._rows.items(), key=lambda kv: (-kv[1]["frames"], kv[0]))
        return {label: row | {"best": round(row["best"], 4)} for label, row in order[:limit]}


def _of_seconds(then: Mapping[str, Sequence[Second | None]]) -> dict[str, tuple[int, float]]:
    out: dict[str, tuple[int, float]] = {}
    for name, rows in then.items():
        for row in rows:
            for label, score in row.found() if row is not None else ():
                count, best = out.get(f"{name}: {label}", (0, 0.0))
                out[f"{name}: {label}"] = (count + 1, max(best, score))
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Frames, rates, latencies in ms and memory of one run; `to_json` has the keys of `edge run --json`."""

    frames_in: int
    processed: int
    dropped: Mapping[str, int]
    errors: Mapping[str, int]
    seconds: float
    cpu_ms_per_frame: float | None
    latency_ms: Mapping[str, float | None]
    frame_age_ms: Mapping[str, float | None]
    stage_ms: Mapping[str, float]
    stage: Mapping[str, Any]
    steps: tuple[Mapping[str, Any], ...]
    model: str
    rss_mb: float | None
    workers: int
    policy: str
    results: Mapping[str, Mapping[str, Any]]
    sinks: tuple[Mapping[str, Any], ...]
    broken: tuple[str, ...]
    warnings: tuple[str, ...]
    reconnects: int
    swaps: int
    control: Mapping[str, Any] = field(default_factory=dict)
    recording: Mapping[str, Any] | None = None

    @property
    def fps(self) -> float:
        return self.processed / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "frames": {"in": self.frames_in, "processed": self.processed, "dropped": dict(self.dropped)},
            "fps": round(self.fps, 2),
            "seconds": round(self.seconds, 3),
            "cpu_ms_per_frame": None if self.cpu_ms_per_frame is None else round(self.cpu_ms_per_frame, 3),
            "latency_ms": dict(self.latency_ms),
            "frame_age_ms": dict(self.frame_age_ms),
            "rss_mb": self.rss_mb,
            "stages": [
                dict(self.stage) | {"ms": {k: round(v, 3) for k, v in self.stage_ms.items()}},
                *(dict(step) for step in self.steps),
            ],
            "model": self.model,
            "errors": dict(self.errors),
            "results": dict(self.results),
            "sinks": [dict(s) for s in self.sinks],
            "broken": list(self.broken),
            "warnings": list(self.warnings),
            "reconnects": self.reconnects,
            "swaps": self.swaps,
            "workers": self.workers,
            "policy": self.policy,
            **({"control": dict(self.control)} if self.control else {}),
            **({} if self.recording is None else {"recording": dict(self.recording)}),
        }


def memory_mb() -> tuple[float | None, float | None]:
    """Return this process's resident memory now and its peak, in MB; None where /proc is missing."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None, None
    values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    now, peak = (values.get(k, "").split() for k in ("VmRSS", "VmHWM"))
    return tuple(round(int(v[0]) / 1024, 1) if v else None for v in (now, peak))  # type: ignore[return-value]
