"""Telemetry events and the summaries in a window event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edge_sdk.schemas import document

KINDS = ("window", "result", "alarm", "metric")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureGroup:
    """Mergeable moments of one group of features over a window of n samples.

    Every feature lies in [0, 1]. `mean` has p values, `m2` the p(p+1)/2 upper triangle, row by row, of
    sum((x - mean)(x - mean)^T); `hist` has p rows of 32 counts over equal bins of [0, 1]; `missing` counts samples
    left out because a feature could not be computed.
    """

    names: tuple[str, ...]
    n: int = field(metadata={"min": 0})
    mean: tuple[float, ...]
    m2: tuple[float, ...]
    hist: tuple[tuple[int, ...], ...] = ()
    missing: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        p = len(self.names)
        if len(self.mean) != p or len(self.m2) != p * (p + 1) // 2:
            raise ValueError(
                f"{p} names need {p} means and {p * (p + 1) // 2} m2, found {len(self.mean)} and {len(self.m2)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Counts since the last window: frames read, processed and dropped, failures, slow inferences.

    `errors` counts frames whose inference or decoding failed, `nonfinite` those of them whose outputs held NaN or
    infinity, `slow` inferences slower than twice the baseline p95, `restarts` worker restarts.
    """

    frames: int = 0
    processed: int = 0
    dropped: int = 0
    errors: int = 0
    nonfinite: int = 0
    slow: int = 0
    restarts: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One telemetry window of one pipeline: what camera and model did between t0 and t1 (seconds since the epoch).

    `confidence` is the mean top score in [0, 1] over samples that had one; `labels` counts results by label;
    `groups` maps `image`, `output` and, where a model gives one, `embedding` to their features.
    """

    kind: Literal["window"] = "window"
    t: float
    t0: float
    t1: float
    pipeline: str
    model: str
    n: int = field(metadata={"min": 0})
    counters: Counters = field(default_factory=Counters)
    latency_ms: dict[str, float] = field(default_factory=dict)
    confidence: float | None = None
    labels: dict[str, int] = field(default_factory=dict)
    groups: dict[str, FeatureGroup] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> Window:
        """Read a window out of an event object.

        Raises:
            SchemaError: it has not the form.
        """
        return document.read(event, cls, where="window")

    def to_event(self) -> dict[str, Any]:
        return document.write(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Something that a person should hear of now; `name` says what, in snake case.

    Names that the device sends: `source_failed`, `sink_failed`, `inference_failed`, `output_not_finite`, `worker_died`,
    `update_failed`, `update_rolled_back`, `safe_mode`, `outbox_damaged`, `pipeline_refused`, `degraded`, `alert`,
    `camera_black` and the other camera problems. `count` is how often it happened since the last alarm of that name.
    """

    kind: Literal["alarm"] = "alarm"
    t: float
    name: str
    message: str
    pipeline: str | None = None
    model: str | None = None
    count: int = field(default=1, metadata={"min": 1})
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> Alarm:
        """Read an alarm out of an event object.

        Raises:
            SchemaError: it has not the form.
        """
        return document.read(event, cls, where="alarm")

    def to_event(self) -> dict[str, Any]:
        return document.write(self)
