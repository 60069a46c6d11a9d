"""A metric of one model, its parts by class, and the interval of a drop between two models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from converters.metrics import bootstrap

Weights = NDArray[np.float64]
OfWeights = Callable[[Weights], NDArray[np.float64]]
Arrays = Mapping[str, NDArray[Any]]
PartKind = Literal["class", "rare class", "point", "value", "macro"]
MIN_SUPPORT = 5
"""Labels a class needs before a figure of its own is a figure: with fewer, one image is more than a fifth of it."""
RARE = 0.05
"""A class is rare when it has less than this share of the golden set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A figure in [0, 1] beside the metric: of a class (recall, average precision, IoU), of a point, of a value.

    `n` counts the labels it stands on, `measure` names the figure, `name` what it is of.
    """

    kind: PartKind
    name: str
    measure: str
    value: float
    n: int
    of_weights: OfWeights

    @property
    def key(self) -> str:
        """Return what tells the same part of another model."""
        return f"{self.kind} {self.name} {self.measure}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One model's metric in [0, 1]; `of_weights` gives it for rows of image weights, for the paired bootstrap.

    `n` counts the images it stands on, `images` those of the golden set where some have no label (0: the same).
    """

    name: str
    value: float
    n: int
    images: int = 0
    more: Mapping[str, float] = field(default_factory=dict)
    of_weights: OfWeights
    parts: tuple[Part, ...] = ()


def interval(source: Measured | Part, build: Measured | Part, images: int, tail: float = 0.025) -> tuple[float, float]:
    """Return the two-sided interval of the drop from source to build, with `tail` of the draws on each side of it.

    `images` is how many the weights count.
    """
    return bootstrap.interval(source.of_weights, build.of_weights, images, tail)


def mean_of(values: NDArray[np.float64]) -> OfWeights:
    """Return the weighted mean of one value an image; NaN where an image has none."""
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)

    def of_weights(weights: Weights) -> NDArray[np.float64]:
        total = weights @ known.astype(np.float64)
        return np.asarray(np.divide(weights @ filled, total, out=np.full(len(weights), np.nan), where=total > 0))

    return of_weights


def at_one(of_weights: OfWeights, images: int) -> float:
    """Return the figure with every image counted once; 0 where it has no value."""
    value = float(of_weights(np.ones((1, images)))[0])
    return value if np.isfinite(value) else 0.0


def compare(source: Measured, build: Measured) -> dict[str, dict[str, Any]]:
    """Return what evidence holds of the parts: {"class cat": {measure, source, value, drop, n}}."""
    before = {p.key: p for p in source.parts}
    rows = {}
    for part in build.parts:
        old = before.get(part.key)
        if old is not None:
            rows[f"{part.kind} {part.name}"] = {
                "measure": part.measure,
                "source": round(old.value, 6),
                "value": round(part.value, 6),
                "drop": round(old.value - part.value, 6),
                "n": part.n,
            }
    return rows
