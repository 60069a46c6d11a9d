"""May a build be used, by what was measured of it on the golden set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from converters.metrics import guards, scores, task
from converters.metrics.measured import compare
from converters.reasons import Reason
from converters.search.job import Job

_KINDS = {"collapsed": Reason.COLLAPSED, "drop": Reason.DROP, "min-metric": Reason.MIN_METRIC}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a golden set showed of a model: metric, how its channels moved, errors of its outputs (of builds)."""

    measured: task.Measured
    channels: Mapping[str, Any]
    outputs: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


def metric_row(source: task.Measured, measured: task.Measured) -> dict[str, Any]:
    """Return what the manifest says of the metric; values in [0, 1], the drop with its 95 % interval."""
    low, high = task.interval(source, measured)
    row = {
        "name": measured.name,
        "source": round(source.value, 6),
        "value": round(measured.value, 6),
        "drop": round(source.value - measured.value, 6),
        "n": measured.n,
        "drop_interval": [round(low, 6), round(high, 6)],
    }
    return row | {k: round(v, 6) for k, v in measured.more.items()}


def verdict(job: Job, source: Seen, build: Seen) -> tuple[Reason, str] | None:
    """Return why the build may not be used, or None; further reasons stand behind the gravest."""
    found = guards.guards(
        source.measured,
        build.measured,
        guards.Limits(max_drop=job.recipe.max_drop, min_metric=job.recipe.min_metric),
        source_channels=source.channels,
        channels=build.channels,
        outputs=build.outputs,
        labels=job.plan.labels,
    )
    if not found:
        return None
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return _KINDS.get(found[0].kind, Reason.GUARD), found[0].message + more


def deltas(source: Seen, build: Seen) -> dict[str, Any]:
    """Return how far the build is from the source: by output and group of channels, by channel, by class.

    `spans` are of the watched channels over the golden set, of the build over of the source: 1 is the same. `parts` are
    the figures of classes, points and values beside the metric.
    """
    out: dict[str, Any] = {"outputs": [dict(row) for row in build.outputs]} if build.outputs else {}
    spans = scores.spans(source.channels, build.channels)
    parts = compare(source.measured, build.measured)
    return out | ({"spans": spans} if spans else {}) | ({"parts": parts} if parts else {})
