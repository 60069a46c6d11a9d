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
    counts = np.stack([_counts(t, m, count) for t, m in zip(truth, masks, strict=True)])
    hits, labelled_pixels, unions = counts[:, 0], counts[:, 1], counts[:, 1] + counts[:, 2] - counts[:, 0]
    here = np.flatnonzero(unions.sum(axis=0) > 0)
    images = (labelled_pixels > 0).sum(axis=0)

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

    right, total = float(hits.sum()), float(labelled_pixels.sum())
    return Measured(
        name="mIoU" if labelled else "agreement mIoU",
        value=at_one(of_weights, n),
        n=n,
        more={"pixel_accuracy": right / total} if total else {},
        of_weights=of_weights,
        parts=tuple(of_class(i) for i in range(len(here)) if images[here[i]] >= MIN_SUPPORT),
    )


def _counts(truth: NDArray[Any], mask: NDArray[Any], count: int) -> NDArray[np.float64]:
    """Return (3, count) pixels of one image: right, in the truth, in the mask; ids above the classes count as wrong."""
    seen = (truth != NO_CLASS) & (mask != NO_CLASS) & (truth < count)
    own, theirs = truth[seen].astype(np.int64), mask[seen].astype(np.int64)
    rows = (own[own == theirs], own, np.minimum(theirs, count))
    return np.stack([np.bincount(r, minlength=count + 1)[:count] for r in rows]).astype(np.float64)
