"""Top-1, top-5, macro-F1, recall and average precision by class, each for rows of image weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from converters.metrics.measured import MIN_SUPPORT, RARE, Measured, OfWeights, Part, Weights, at_one, mean_of

Probs = NDArray[np.floating]


def measure(probs: Probs, classes: NDArray[np.int64], names: Sequence[str], *, labelled: bool) -> Measured:
    """Return top-1 of probabilities (n, c) against the classes (n,), with the parts that a mean hides.

    Where a class has less than 5 % of the images: macro-F1, and the area under the precision-recall curve of each rare
    class with at least 5 images. The other classes have their recall.
    """
    n, count = len(classes), probs.shape[1]
    guess = probs.argmax(axis=1)
    right = (guess == classes).astype(np.float64)
    support = np.bincount(classes, minlength=count)
    rare = (support > 0) & (support < RARE * n)
    more: dict[str, float] = {}
    parts: list[Part] = []
    if count > 5:
        top5 = np.argpartition(-probs, 5, axis=1)[:, :5]
        more["top5"] = float((top5 == classes[:, None]).any(axis=1).mean())
    if rare.any():
        f1 = macro_f1(guess, classes, count)
        more["macro_f1"] = at_one(f1, n)
        parts.append(Part(kind="macro", name="F1", measure="macro-F1", value=more["macro_f1"], n=n, of_weights=f1))
    for c in np.flatnonzero(support >= MIN_SUPPORT).tolist():
        name = names[c] if c < len(names) else str(c)
        if rare[c]:
            figure, what = average_precision(probs[:, c].astype(np.float64), classes == c), "PR-AUC"
        else:
            figure, what = mean_of(np.where(classes == c, right, np.nan)), "recall"
        kind = "rare class" if rare[c] else "class"
        parts.append(
            Part(
                kind=kind,  # type: ignore[arg-type]
                name=name,
                measure=what,
                value=at_one(figure, n),
                n=int(support[c]),
                of_weights=figure,
            )
        )
    return Measured(
        name="top1" if labelled else "agreement top1",
        value=float(right.mean()),
        n=n,
        more=more,
        of_weights=mean_of(right),
        parts=tuple(parts),
    )


def macro_f1(guess: NDArray[np.int64], classes: NDArray[np.int64], count: int) -> OfWeights:
    """Return the unweighted mean of F1 over the classes that occur in the truth or in the guesses."""
    right = guess == classes

    def by_class(of: NDArray[np.int64], weights: Weights) -> NDArray[np.float64]:
        return np.stack([np.bincount(of, row, minlength=count)[:count] for row in weights])

    def of_weights(weights: Weights) -> NDArray[np.float64]:
        hits = by_class(classes, weights * right)
        both = by_class(classes, weights) + by_class(guess, weights)
        f1 = np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)
        seen = (both > 0).sum(axis=1)
        return np.asarray(f1.sum(axis=1) / np.maximum(seen, 1))

    return of_weights


def average_precision(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> OfWeights:
    """Return the area under the precision-recall curve, sum of (R_k - R_k-1) P_k over the distinct scores.

    Equal scores are one threshold, as in scikit-learn's `average_precision_score`. NaN where no positive was drawn.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))

    def of_weights(weights: Weights) -> NDArray[np.float64]:
        each = weights[:, order]
        hits = np.cumsum(each * positive[order], axis=1)[:, ends]
        seen = np.cumsum(each, axis=1)[:, ends]
        precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
        total = hits[:, -1]
        area = (np.diff(hits, axis=1, prepend=0.0) * precision).sum(axis=1)
        return np.asarray(np.divide(area, total, out=np.full(len(weights), np.nan), where=total > 0))

    return of_weights
