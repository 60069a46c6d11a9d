"""What a sink of results is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from edge_sdk.sources.base import Frame
from edge_sdk.tasks.base import Result


class Origin(Enum):
    """Where the answer of a frame comes from: the model, the last inferred frame since nothing moved, or that frame
    since only each n-th one is inferred (the tracker moves its boxes on)."""

    INFERRED = "inferred"
    GATED = "gated"
    CARRIED = "carried"


_INFERRED = Origin.INFERRED


@dataclass(frozen=True, slots=True)
class Overlay:
    """A zone (corners) or a line (two ends) of a pipeline, in pixels of the upright frame."""

    kind: str
    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(slots=True)
class FrameResult:
    """What a pipeline yields for one frame: the answer, the model's digest, the frame's age and its latency.

    `events` are what zones, lines, alerts and camera checks noticed in this frame, `counts` what they count, by stage
    name; `overlays` are the zones and lines themselves.
    """

    frame: Frame
    result: Result
    model: str
    age_ms: float
    latency_ms: float
    events: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    origin: Origin = _INFERRED
    overlays: tuple[Overlay, ...] = ()

    @property
    def inferred(self) -> bool:
        """Whether the model saw this frame."""
        return self.origin is _INFERRED

    @property
    def gated(self) -> bool:
        """Whether nothing moved and the answer is that of the last inferred frame."""
        return self.origin is Origin.GATED

    @property
    def detections(self) -> Any:
        """The result itself, by the name that detection pipelines use."""
        return self.result

    def to_json(self) -> dict[str, Any]:
        """Return a line of `--out F.jsonl`."""
        head = {
            "v": 1,
            "frame": self.frame.index,
            "t_s": round(self.frame.t_s, 6),
            "source": self.frame.source,
            "model": self.model,
        }
        line = head | self.result.to_json()
        if self.events:
            line["events"] = self.events
        if self.counts:
            line["counts"] = self.counts
        if self.origin is not _INFERRED:
            line[self.origin.value] = True
        return line


CONTROL_EVENTS = frozenset({"override", "degraded", "recovered"})


def rule_events(item: FrameResult) -> list[dict[str, Any]]:
    """Return the events of zones, lines, alerts and camera checks: not those about the pipeline itself."""
    return [event for event in item.events if event.get("kind") not in CONTROL_EVENTS]


class Sink(Protocol):
    """Takes results; `write` is called from one thread and may block, the pipeline puts a bounded queue before it.

    A constructor takes `(uri: str, options: Mapping[str, Any])` and raises UsageError on wrong ones. The pipeline sets
    the options `fps` and `live` from the source and `append` (a restarted worker goes on with its files) where the user
    did not. The rest raise SinkError or SyncError.

    A sink whose options can be changed while it runs names them in `changeable` and has `adopt(other)`, which takes
    over those of another sink of its kind that was made for the same address and never opened.
    """

    uri: str

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None: ...

    def open(self) -> None: ...

    def write(self, item: FrameResult) -> None: ...

    def close(self) -> None:
        """Finish what was written; raises when results that `write` took did not arrive."""
        ...
