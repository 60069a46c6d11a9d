"""The class-score channels of a model's raw outputs, and whether they still move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.schemas.manifest import Manifest

MOVES = 0.05
"""A channel moves in the source when it spans more than this share of the widest channel's span."""
DEAD = 0.01
"""A channel is dead in a candidate that spans less than this share of the source's span."""


class Channels:
    """Smallest and largest value of each class-score channel over a set of images."""

    def __init__(self) -> None:
        self.low: NDArray[np.float64] | None = None
        self.high: NDArray[np.float64] | None = None

    def add(self, values: NDArray[Any] | None) -> None:
        """Add the scores of one image, (anything, channels); None is skipped."""
        if values is None or values.size == 0:
            return
        low, high = values.min(axis=0).astype(np.float64), values.max(axis=0).astype(np.float64)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)

    def to_json(self) -> dict[str, list[float]]:
        if self.low is None or self.high is None:
            return {"low": [], "high": []}
        return {"low": self.low.tolist(), "high": self.high.tolist()}


def of(manifest: Manifest, outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
    """Return the class scores in a model's outputs as (n, channels); None for a decoder that is not known here."""
    name, params = manifest.decoder.name, manifest.decoder.params
    arrays = [np.asarray(outputs[o.name]) for o in manifest.outputs]
    first = arrays[0]
    if name == "softmax":
        return np.asarray(first.reshape(1, -1))
    if name in ("yolox", "yolov5"):
        if len(arrays) == 1:
            return first.reshape(-1, first.shape[-1])[:, 5:]
        last = arrays[-1].reshape(-1, arrays[-1].shape[-1])
        return last[:, 1:] if len(arrays) == 2 and first.shape[-1] == 4 else last
    if name == "yolov8" and len(arrays) == 1:
        return np.asarray(first[0][4:].T)
    if name in ("nanodet", "picodet"):
        width = 4 * (int(params.get("reg_max", 7)) + 1)
        if len(arrays) == 1:
            return first.reshape(-1, first.shape[-1])[:, :-width]
        parts = [a for a in arrays if a.shape[-1] != width] or arrays[: len(arrays) // 2]
        return np.concatenate([p.reshape(-1, p.shape[-1]) for p in parts])
    if name == "fastestdet":
        return np.asarray(first[0][5:].reshape(first.shape[1] - 5, -1).T)
    if name == "ultraface":
        scores = next((a for a in arrays if a.shape[-1] == 2), None)
        return None if scores is None else scores.reshape(-1, 2)[:, 1:]
    return None


def collapse(
    source: Mapping[str, Sequence[float]], candidate: Mapping[str, Sequence[float]], labels: Sequence[str]
) -> str | None:
    """Return why the candidate's class scores have collapsed, or None.

    They have when every channel is one value over the set, or when a channel that moves in the source stands still.
    """
    if not candidate["low"]:
        return None
    low, high = np.asarray(candidate["low"]), np.asarray(candidate["high"])
    if float(high.max() - low.min()) <= 1e-9:
        return f"every class score is {low[0]:g} on every golden image"
    if not (high > low).any():
        return "no class score changes from image to image"
    if source is candidate or len(source["low"]) != len(low):
        return None
    span = np.asarray(source["high"]) - np.asarray(source["low"])
    moves = span > MOVES * span.max()
    dead = np.flatnonzero(moves & (high - low <= DEAD * span))
    if dead.size == 0:
        return None
    named = ", ".join(labels[i] if i < len(labels) else str(i) for i in dead[:5])
    return f"the scores of {dead.size} class(es) stand still over the golden set: {named}"
