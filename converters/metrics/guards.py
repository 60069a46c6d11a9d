"""Why a build may not be used, from what was measured of it and of the source: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from converters.metrics import scores
from converters.metrics.measured import Measured, Part, interval

Kind = Literal["collapsed", "drop", "min-metric", "macro", "class", "rare class", "point", "value", "output"]
CLASS_FACTOR = 5.0
"""One class, point or value may fall this many times as far as the whole metric may."""
CLASS_CEILING = 0.5
"""But by no more than half, unless the metric itself may fall further."""
FOLLOWS = 0.5
"""Below this correlation with the source's, a group of output channels no longer follows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`max_drop` of the metric, `min_metric` of the build."""

    max_drop: float
    min_metric: float | None = None

    @property
    def class_drop(self) -> float:
        return max(self.max_drop, min(CLASS_FACTOR * self.max_drop, CLASS_CEILING))


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    kind: Kind
    message: str


def guards(
    source: Measured,
    build: Measured,
    limits: Limits,
    *,
    source_channels: Mapping[str, Any],
    channels: Mapping[str, Any],
    outputs: Sequence[Mapping[str, Any]] = (),
    labels: Sequence[str] = (),
) -> list[Refusal]:
    """Return every reason to refuse the build, the gravest first; none lets it pass.

    Args:
        source_channels, channels: how the channels of source and build moved (`converters.metrics.scores.Channels`).
        outputs: the errors of the build's outputs and channel groups (`converters.metrics.outputs.Errors`).
        labels: names of the score channels.
    """
    found = []
    dead = scores.collapse(source_channels, channels, labels)
    if dead is not None:
        found.append(Refusal(kind="collapsed", message=f"collapsed: {dead}"))
    found += _metric(source, build, limits)
    found += _parts(source, build, limits)
    found += _outputs(outputs)
    return found


def _metric(source: Measured, build: Measured, limits: Limits) -> list[Refusal]:
    found = []
    drop = source.value - build.value
    if drop > limits.max_drop + 1e-9:
        low, high = interval(source, build, source.images or source.n)
        message = (
            f"{build.name} fell by {drop:.4f} ({source.value:.4f} -> {build.value:.4f}, 95 % interval "
            f"{low:.4f} to {high:.4f}), the limit is {limits.max_drop:g}"
        )
        found.append(Refusal(kind="drop", message=message))
    if limits.min_metric is not None and build.value < limits.min_metric:
        message = f"{build.name} is {build.value:.4f}, --min-metric asks for {limits.min_metric:g}"
        found.append(Refusal(kind="min-metric", message=message))
    return found


def _parts(source: Measured, build: Measured, limits: Limits) -> list[Refusal]:
    """Refuse a part that has surely fallen below its limit.

    Sure: the whole interval of its drop lies above. With m parts the tail of the interval is 0.025 / m (Bonferroni),
    so that a set of a hundred classes refuses no more by chance than a set of one.
    """
    before = {p.key: p for p in source.parts}
    pairs = [(before[p.key], p) for p in build.parts if p.key in before]
    tail = 0.025 / max(1, len(pairs))
    found = []
    for old, new in pairs:
        limit = limits.max_drop if new.kind == "macro" else limits.class_drop
        drop = old.value - new.value
        if drop <= limit + 1e-9:
            continue
        low, high = interval(old, new, source.images or source.n, tail)
        if low > limit:
            found.append((drop, Refusal(kind=new.kind, message=_fell(old, new, low, high, limit))))
    return [refusal for _, refusal in sorted(found, key=lambda pair: -pair[0])]


def _fell(old: Part, new: Part, low: float, high: float, limit: float) -> str:
    what = new.measure if new.kind == "macro" else f"{new.measure} of the {new.kind} `{new.name}` ({new.n} labels)"
    return (
        f"{what} fell by {old.value - new.value:.4f} ({old.value:.4f} -> {new.value:.4f}, surely {low:.4f} to "
        f"{high:.4f}), the limit is {limit:g}"
    )


def _outputs(rows: Sequence[Mapping[str, Any]]) -> list[Refusal]:
    found = []
    for row in rows:
        follows = row.get("correlation")
        if row.get("group") and follows is not None and follows < FOLLOWS:
            message = (
                f"the {row['name']} of the build no longer follow the source's: correlation {follows:.3f}, "
                f"signal to noise {row['sqnr_db']:.1f} dB over {row['images']} images"
            )
            found.append(Refusal(kind="output", message=message))
    return found
