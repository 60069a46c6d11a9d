"""Embeddings (recall at 1, cosine to the source) and regressed values (error as a share of their range)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from converters.metrics.measured import MIN_SUPPORT, RARE, Measured, Part, at_one, mean_of
from edge_sdk.errors import CalibrationError

Floats = NDArray[np.floating]
_BLOCK = 1024


def cosine(vectors: Floats, source: Floats) -> NDArray[np.float64]:
    """Return the cosine of each row to the same row of the source; 0 where one has no length."""
    length = np.linalg.norm(vectors, axis=1) * np.linalg.norm(source, axis=1)
    dot = (vectors.astype(np.float64) * source).sum(axis=1)
    return np.asarray(np.divide(dot, length, out=np.zeros(len(dot)), where=length > 0))


def neighbours(vectors: Floats) -> NDArray[np.int64]:
    """Return for each row the other row that is nearest by cosine."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, length, out=np.zeros_like(vectors, np.float64), where=length > 0)
    found = np.zeros(len(unit), np.int64)
    for at in range(0, len(unit), _BLOCK):
        near = unit[at : at + _BLOCK] @ unit.T
        near[np.arange(len(near)), at + np.arange(len(near))] = -np.inf
        found[at : at + _BLOCK] = near.argmax(axis=1)
    return found


def recall_at_1(vectors: Floats, classes: NDArray[np.int64], names: Sequence[str], source: Floats | None) -> Measured:
    """Return the share of images whose nearest other image is of their class; images alone in theirs are left out."""
    n = len(classes)
    support = np.bincount(classes)
    hits = (classes[neighbours(vectors)] == classes).astype(np.float64)
    hits[support[classes] < 2] = np.nan
    parts = []
    for c in np.flatnonzero(support >= MIN_SUPPORT).tolist():
        own = mean_of(np.where(classes == c, hits, np.nan))
        name = names[c] if c < len(names) else str(c)
        kind = "rare class" if support[c] < RARE * n else "class"
        parts.append(
            Part(
                kind=kind,  # type: ignore[arg-type]
                name=name,
                measure="recall@1",
                value=at_one(own, n),
                n=int(support[c]),
                of_weights=own,
            )
        )
    figure = mean_of(hits)
    more = {} if source is None else {"cosine": float(cosine(vectors, source).mean())}
    return Measured(
        name="recall@1",
        value=at_one(figure, n),
        n=int(np.isfinite(hits).sum()),
        images=n,
        more=more,
        of_weights=figure,
        parts=tuple(parts),
    )


def agreement_cosine(vectors: Floats, source: Floats) -> Measured:
    """Return the mean cosine to the source's vectors (negative ones count as 0)."""
    each = np.clip(cosine(vectors, source), 0.0, 1.0)
    same = float((neighbours(vectors) == neighbours(source)).mean()) if len(vectors) > 2 else 1.0
    return Measured(
        name="agreement cosine",
        value=float(each.mean()),
        n=len(each),
        more={"same_neighbour": same},
        of_weights=mean_of(each),
    )


def spread(truth: Floats) -> NDArray[np.float64]:
    """Return the range of each value over the golden set, 0 where it stands still."""
    return np.asarray(np.ptp(truth.astype(np.float64), axis=0)) if len(truth) else np.zeros(0)


def one_minus_error(values: Floats, truth: Floats, names: Sequence[str], *, labelled: bool) -> Measured:
    """Return 1 - mean(|error| / range of the value in the truth), an error above the range counts as the whole range.

    Values that stand still in the truth have no range and are left out.

    Raises:
        CalibrationError: the labels are of another number of values.
    """
    n = len(truth)
    if values.shape != truth.shape:
        raise CalibrationError(
            f"the golden set labels {truth.shape[1]} value(s) an image, the model gives {values.shape[1]}",
            hint="one column of labels.csv for each of the model's values, in its order",
        )
    ranges = spread(truth)
    error = np.abs(values.astype(np.float64) - truth)
    score = np.where(ranges > 0, 1 - np.minimum(error / np.where(ranges > 0, ranges, 1), 1), np.nan)
    columns = [k for k in range(truth.shape[1]) if ranges[k] > 0]
    whole = mean_of(score[:, columns].mean(axis=1))
    parts, more = [], {"MAE": float(error.mean())}
    for k in columns:
        name = names[k] if k < len(names) else str(k)
        own = mean_of(score[:, k])
        parts.append(Part(kind="value", name=name, measure="1-MAE/range", value=at_one(own, n), n=n, of_weights=own))
        if truth.shape[1] <= 8:
            more[f"MAE {name}"] = float(error[:, k].mean())
    return Measured(
        name="1-MAE/range" if labelled else "agreement 1-MAE/range",
        value=at_one(whole, n),
        n=n,
        more=more,
        of_weights=whole,
        parts=tuple(parts),
    )
