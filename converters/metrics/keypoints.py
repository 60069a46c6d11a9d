"""Object keypoint similarity (COCO) and the share of correct points, of one pose an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converters.metrics.measured import MIN_SUPPORT, Arrays, Measured, Part, at_one, mean_of
from edge_sdk.errors import CalibrationError

COCO_SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
"""Per-point standard deviations of COCO's 17 points, https://cocodataset.org/#keypoints-eval."""
GENERIC_SIGMA = 0.05
"""Where the points are not COCO's 17: about the mean of COCO's face and arm points."""
SEEN_SCORE = 0.3
"""A point of a model counts as seen from this score on."""
PCK_SHARE = 0.1
"""A point is correct within this share of the longer side of the pose's box."""


@dataclass(frozen=True, slots=True)
class Pose:
    """Points (k, 2) in frame pixels, which of them are labelled (k,), and the area of the person in square pixels."""

    points: NDArray[np.float64]
    seen: NDArray[np.bool_]
    area: float


def pose_of(points: NDArray[np.float64], seen: NDArray[np.bool_], area: float | None = None) -> Pose:
    """Return a pose; without an area, that of the box around its seen points."""
    if area is None:
        sides = np.ptp(points[seen], axis=0) if seen.any() else np.zeros(2)
        area = float(sides[0] * sides[1])
    return Pose(points, seen, area)


def poses_of_model(arrays: Arrays) -> tuple[Pose, ...]:
    """Return a model's own poses as truths: points with a score of 0.3 or more are seen."""
    scores = arrays["point_score"]
    return tuple(pose_of(p.astype(np.float64), s >= SEEN_SCORE) for p, s in zip(arrays["points"], scores, strict=True))


def measure(arrays: Arrays, truths: Sequence[Pose], names: Sequence[str], *, labelled: bool) -> Measured:
    """Return the mean OKS of points (n, k, 2) in frame pixels; images without a seen point are left out."""
    found = arrays["points"].astype(np.float64)
    n, count = found.shape[:2]
    sigmas = COCO_SIGMAS if count == len(COCO_SIGMAS) else np.full(count, GENERIC_SIGMA)
    similarity = np.full((n, count), np.nan)
    correct = np.full((n, count), np.nan)
    for row, (points, truth) in enumerate(zip(found, truths, strict=True)):
        if not truth.seen.any():
            continue
        if len(truth.points) != count:
            raise CalibrationError(
                f"the golden set labels {len(truth.points)} points of a pose, the model finds {count}",
                hint="give labels of the model's own points, in its order",
            )
        seen = truth.seen
        away = ((points - truth.points)[seen] ** 2).sum(axis=1)
        area = max(truth.area, 1.0)
        similarity[row, seen] = np.exp(-away / (2 * area * (2 * sigmas[seen]) ** 2))
        side = max(float(np.ptp(truth.points[seen], axis=0).max()), np.sqrt(area), 1.0)
        correct[row, seen] = np.sqrt(away) <= PCK_SHARE * side
    any_seen = np.isfinite(similarity).any(axis=1)
    oks = np.where(any_seen, np.nansum(similarity, axis=1) / np.maximum(np.isfinite(similarity).sum(axis=1), 1), np.nan)
    figure = mean_of(oks)
    parts = []
    for k in range(count):
        own = mean_of(similarity[:, k])
        labels = int(np.isfinite(similarity[:, k]).sum())
        if labels >= MIN_SUPPORT:
            name = names[k] if k < len(names) else str(k)
            parts.append(Part(kind="point", name=name, measure="OKS", value=at_one(own, n), n=labels, of_weights=own))
    known = oks[any_seen]
    more = {"OKS50": float((known >= 0.5).mean()), "PCK10": float(np.nanmean(correct))} if known.size else {}
    return Measured(
        name="OKS" if labelled else "agreement OKS",
        value=at_one(figure, n),
        n=int(any_seen.sum()),
        images=n,
        more=more,
        of_weights=figure,
        parts=tuple(parts),
    )
