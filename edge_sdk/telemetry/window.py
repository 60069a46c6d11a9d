"""Mergeable summaries of a telemetry window: moments and histograms of features, latencies, counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_sdk.schemas.telemetry import Counters, FeatureGroup, Window

BINS = 32
Vector = NDArray[np.float64]


class Moments:
    """Running mean, scatter matrix and histograms of p features in [0, 1] (Welford; Chan et al. 1979 to merge)."""

    def __init__(self, names: Sequence[str]) -> None:
        p = len(names)
        self.names = tuple(names)
        self.n = 0
        self.missing = 0
        self.mean: Vector = np.zeros(p)
        self.scatter: Vector = np.zeros((p, p))
        self.hist: NDArray[np.int64] = np.zeros((p, BINS), np.int64)

    def add(self, values: Vector) -> None:
        """Add one sample; one with a value that is not finite only counts as missing."""
        if values.shape != self.mean.shape or not np.isfinite(values).all():
            self.missing += 1
            return
        self.n += 1
        delta = values - self.mean
        self.mean = self.mean + delta / self.n
        self.scatter = self.scatter + np.outer(delta, values - self.mean)
        bins = np.clip((values * BINS).astype(np.int64), 0, BINS - 1)
        self.hist[np.arange(len(bins)), bins] += 1

    def group(self) -> FeatureGroup:
        """Return the summary as it travels; values keep six significant digits."""
        upper = np.triu_indices(len(self.names))
        symmetric = (self.scatter + self.scatter.T) / 2
        return FeatureGroup(
            names=self.names,
            n=self.n,
            mean=tuple(_short(v) for v in self.mean),
            m2=tuple(_short(v) for v in symmetric[upper]),
            hist=tuple(tuple(int(c) for c in row) for row in self.hist),
            missing=self.missing,
        )


def scatter_matrix(group: FeatureGroup) -> Vector:
    """Return sum((x - mean)(x - mean)^T) of a group as a symmetric (p, p) matrix."""
    p = len(group.names)
    out = np.zeros((p, p))
    upper = np.triu_indices(p)
    out[upper] = group.m2
    out.T[upper] = group.m2
    return out


def merge_groups(first: FeatureGroup, second: FeatureGroup) -> FeatureGroup:
    """Return the summary of both groups' samples together.

    Raises:
        ValueError: the groups have other names.
    """
    if first.names != second.names:
        raise ValueError(f"groups of other features: {first.names} and {second.names}")
    n = first.n + second.n
    if n == 0:
        return first
    delta = np.array(second.mean) - np.array(first.mean)
    mean = np.array(first.mean) + delta * (second.n / n)
    scatter = scatter_matrix(first) + scatter_matrix(second) + np.outer(delta, delta) * (first.n * second.n / n)
    hist: tuple[tuple[int, ...], ...] = ()
    if first.hist and second.hist:
        hist = tuple(
            tuple(a + b for a, b in zip(x, y, strict=True)) for x, y in zip(first.hist, second.hist, strict=True)
        )
    return FeatureGroup(
        names=first.names,
        n=n,
        mean=tuple(float(v) for v in mean),
        m2=tuple(float(v) for v in scatter[np.triu_indices(len(mean))]),
        hist=hist,
        missing=first.missing + second.missing,
    )


class Latency:
    """Counts of latencies in bins that grow by 5 %, from 0.01 ms to 1000 s; quantiles are right within 2.5 %."""

    _BASE = math.log(1.05)
    _FIRST_MS = 0.01
    _BINS = 378

    def __init__(self) -> None:
        self.n = 0
        self._counts = [0] * self._BINS

    def add(self, value_ms: float) -> None:
        index = int(math.log(value_ms / self._FIRST_MS) / self._BASE) if value_ms > self._FIRST_MS else 0
        self._counts[min(index, self._BINS - 1)] += 1
        self.n += 1

    def quantile(self, q: float) -> float:
        """Return the value in ms below which a part `q` lies, 0 when nothing was added."""
        need, seen = q * self.n, 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= need:
                return float(f"{self._FIRST_MS * math.exp((index + 0.5) * self._BASE):.4g}")
        return 0.0

    def summary(self) -> dict[str, float]:
        """Return `{p50, p95, p99}` in ms, empty when nothing was added."""
        return {f"p{p}": self.quantile(p / 100) for p in (50, 95, 99)} if self.n else {}


@dataclass(slots=True)
class Count:
    """The counters of an open window."""

    processed: int = 0
    dropped: int = 0
    errors: int = 0
    nonfinite: int = 0
    slow: int = 0
    restarts: int = 0

    def counters(self) -> Counters:
        return Counters(
            frames=self.processed + self.dropped + self.errors,
            processed=self.processed,
            dropped=self.dropped,
            errors=self.errors,
            nonfinite=self.nonfinite,
            slow=self.slow,
            restarts=self.restarts,
        )


@dataclass(slots=True)
class OpenWindow:
    """A window that still takes samples; all of them are of one model."""

    model: str
    t0: float
    opened_s: float
    n: int = 0
    count: Count = field(default_factory=Count)
    latency: Latency = field(default_factory=Latency)
    labels: dict[str, int] = field(default_factory=dict)
    groups: dict[str, Moments] = field(default_factory=dict)
    confidence_sum: float = 0.0
    confidence_n: int = 0

    def add(
        self,
        features: Mapping[str, tuple[Sequence[str], Vector]],
        *,
        labels: Mapping[str, int],
        confidence: float | None,
    ) -> None:
        """Add one analysed sample: its features by group, the labels it shows and its top score."""
        self.n += 1
        for name, (names, values) in features.items():
            self.groups.setdefault(name, Moments(names)).add(values)
        for label, count in labels.items():
            if label in self.labels or len(self.labels) < 256:
                self.labels[label] = self.labels.get(label, 0) + count
        if confidence is not None and math.isfinite(confidence):
            self.confidence_sum += min(1.0, max(0.0, confidence))
            self.confidence_n += 1

    def close(self, pipeline: str, t1: float) -> Window:
        """Return the window as it travels."""
        return Window(
            t=t1,
            t0=self.t0,
            t1=t1,
            pipeline=pipeline,
            model=self.model,
            n=self.n,
            counters=self.count.counters(),
            latency_ms=self.latency.summary(),
            confidence=_short(self.confidence_sum / self.confidence_n) if self.confidence_n else None,
            labels=dict(sorted(self.labels.items())),
            groups={name: moments.group() for name, moments in self.groups.items()},
        )


def _short(value: float) -> float:
    return float(f"{value:.6g}")
