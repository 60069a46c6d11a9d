"""Mean intersection over union of class masks, per class and for rows of image weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.metrics.measured import MIN_SUPPORT, Measured, Part, Weights, at_one
from edge_sdk.tasks.results import NO_CLASS


def measure(masks: NDArray[Any], truth: NDArray[Any], count: int, names: Sequence[str], *, labelled: bool) -> Measured:
    """Return mIoU of class ids (n, h, w) against the truth (n, h, w) over `count` classes.

    Pixels that are NO_CLASS in either are left out (VOC's border, what a crop does not see). The mean is over the
    classes that occur in the truth or in the masks.
    """
    n = len(truth)
    tables = np.stack([_table(t, m, count) for t, m in zip(truth, masks, strict=True)])
    hits = np.einsum("nii->ni", tables)
    unions = tables.sum(axis=1) + tables.sum(axis=2) - hits
    here = np.flatnonzero(unions.sum(axis=0) > 0)
    images = (tables.sum(axis=2) > 0).sum(axis=0)

    def by_class(weights: Weights) -> NDArray[np.float64]:
        hit, union = weights @ hits[:, here], weights @ unions[:, here]
        return np.asarray(np.divide(hit, union, out=np.full_like(hit, np.nan), where=union > 0))

    def of_weights(weights: Weights) -> NDArray[np.float64]:
        share = by_class(weights)
        known = np.isfinite(share)
        total = np.where(known, share, 0.0).sum(axis=1)
        return np.asarray(np.divide(total, known.sum(axis=1), out=np.full(len(share), np.nan), where=known.any(axis=1)))

    def of_class(column: int) -> Part:
        class_id = int(here[column])

        def figure(weights: Weights) -> NDArray[np.float64]:
            return np.asarray(by_class(weights)[:, column])

        name = names[class_id] if class_id < len(names) else str(class_id)
        return Part(
            kind="class",
            name=name,
            measure="IoU",
            value=at_one(figure, n),
            n=int(images[class_id]),
            of_weights=figure,
        )

    right, total = float(hits.sum()), float(tables.sum())
    return Measured(
        name="mIoU" if labelled else "agreement mIoU",
        value=at_one(of_weights, n),
        n=n,
        more={"pixel_accuracy": right / total} if total else {},
        of_weights=of_weights,
        parts=tuple(of_class(i) for i in range(len(here)) if images[here[i]] >= MIN_SUPPORT),
    )


def _table(truth: NDArray[Any], mask: NDArray[Any], count: int) -> NDArray[np.float64]:
    """Return the confusion table (truth, mask) of one image; ids of the mask above the classes count as wrong."""
    seen = (truth != NO_CLASS) & (mask != NO_CLASS) & (truth < count)
    joined = truth[seen].astype(np.int64) * count + np.minimum(mask[seen].astype(np.int64), count - 1)
    return np.bincount(joined, minlength=count * count).reshape(count, count).astype(np.float64)
