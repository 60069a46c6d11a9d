"""Whether the channels that a result is read from still move: class scores, objectness, embeddings, values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.metrics import outputs as raw
from edge_sdk.schemas.manifest import Manifest

MOVES = 0.05
"""A channel moves in the source when it spans more than this share of the widest channel's span."""
DEAD = 0.01
"""A channel is dead in a candidate that spans less than this share of the source's span."""
WATCHED = ("scores", "objectness", "embedding", "values")
"""Groups that are watched; boxes and points may stand still, as on a camera that sees the same door."""
_WORDS = {
    "scores": ("class score", "the scores of {} class(es) stand still"),
    "objectness": ("objectness", "{} objectness channel(s) stand still"),
    "embedding": ("embedding value", "{} embedding value(s) stand still"),
    "values": ("regressed value", "{} regressed value(s) stand still"),
}


class Channels:
    """Smallest and largest value of each channel of each watched group over a set of images."""

    def __init__(self) -> None:
        self.low: dict[str, NDArray[np.float64]] = {}
        self.high: dict[str, NDArray[np.float64]] = {}

    def add(self, groups: Mapping[str, NDArray[Any]]) -> None:
        """Add the groups of one image, (anything, channels) each."""
        for name in WATCHED:
            values = groups.get(name)
            if values is None or values.size == 0:
                continue
            low, high = values.min(axis=0).astype(np.float64), values.max(axis=0).astype(np.float64)
            self.low[name] = np.minimum(self.low[name], low) if name in self.low else low
            self.high[name] = np.maximum(self.high[name], high) if name in self.high else high

    def to_json(self) -> dict[str, dict[str, list[float]]]:
        return {k: {"low": self.low[k].tolist(), "high": self.high[k].tolist()} for k in self.low}


def of(manifest: Manifest, outputs: Mapping[str, NDArray[Any]]) -> raw.Groups:
    """Return the watched groups of one image's raw outputs."""
    found = raw.groups(manifest, raw.real(manifest, outputs))
    return {k: v for k, v in found.items() if k in WATCHED}


def collapse(source: Mapping[str, Any], build: Mapping[str, Any], labels: Sequence[str]) -> str | None:
    """Return why the watched channels of a build have collapsed, or None.

    They have when every channel of a group is one value over the set, or when a channel that moves in the source
    stands still. Of a source itself, given as both, only the first can be told.
    """
    for name, now in build.items():
        why = _collapsed(name, source.get(name), now, labels)
        if why is not None:
            return why
    return None


def _collapsed(
    name: str, before: Mapping[str, Any] | None, now: Mapping[str, Any], labels: Sequence[str]
) -> str | None:
    low, high = np.asarray(now["low"]), np.asarray(now["high"])
    what, still = _WORDS[name]
    if low.size == 0:
        return None
    if float(high.max() - low.min()) <= 1e-9:
        return f"every {what} is {low[0]:g} on every golden image"
    if not (high > low).any():
        return f"no {what} changes from image to image"
    if before is None or before is now or len(before["low"]) != len(low):
        return None
    span = np.asarray(before["high"]) - np.asarray(before["low"])
    moves = span > MOVES * span.max()
    dead = np.flatnonzero(moves & (high - low <= DEAD * span))
    if dead.size == 0:
        return None
    known = labels if name in ("scores", "values") else ()
    words = ", ".join(known[i] if i < len(known) else str(i) for i in dead[:5])
    return f"{still.format(dead.size)} over the golden set: {words}"


def spans(source: Mapping[str, Any], build: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return by watched group the span of each channel of the build over that of the source, 1 where it had none."""
    found = {}
    for name, now in build.items():
        before = source.get(name)
        if before is None or len(before["low"]) != len(now["low"]):
            continue
        old, new = (np.asarray(m["high"], float) - np.asarray(m["low"], float) for m in (before, now))
        ratio = np.divide(new, old, out=np.ones_like(old), where=old > 0)
        found[name] = [round(float(r), 4) for r in ratio]
    return found
