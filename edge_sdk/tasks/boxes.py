"""What the detection decoders share: params, grids, suppression, the way back to the frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sdk.tasks.base import Detections, Float, Geometry

MAX_CANDIDATES = 3000
LIMIT = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionParams:
    """Params of every detection decoder.

    `score`: smallest score that counts; `iou`: overlap above which the weaker box of a class goes;
    `max_detections`: how many of the strongest are kept; `classes`: how many there are (default: as in the outputs);
    `class_agnostic`: boxes of different classes suppress each other too.
    """

    score: float = field(default=0.25, metadata={"min": 0, "max": 1})
    iou: float = field(default=0.45, metadata={"min": 0, "max": 1})
    max_detections: int = field(default=100, metadata={"min": 1})
    classes: int | None = field(default=None, metadata={"min": 1})
    class_agnostic: bool = False


@dataclass(frozen=True, slots=True)
class Candidates:
    """Boxes (n, 4) float32 x1 y1 x2 y2 in input pixels, score (n,), class_id (n,), keypoints (n, k, 2) or None."""

    boxes: Float
    score: Float
    class_id: NDArray[np.int32]
    points: Float | None = None


@dataclass(frozen=True, slots=True)
class Grid:
    """Cell columns, rows and strides of all levels, one after another, rows first; (n,) float32 each."""

    x: Float
    y: Float
    stride: Float

    @classmethod
    def of(cls, width: int, height: int, strides: tuple[int, ...], per_cell: int = 1) -> Grid:
        """Return the grid of an input of `width` x `height` pixels; a level has ceil(size / stride) cells a side."""
        xs, ys, ss = [], [], []
        for stride in strides:
            columns, rows = -(-width // stride), -(-height // stride)
            y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
            xs.append(np.repeat(x.ravel(), per_cell))
            ys.append(np.repeat(y.ravel(), per_cell))
            ss.append(np.full(rows * columns * per_cell, stride, np.float32))
        return cls(np.concatenate(xs), np.concatenate(ys), np.concatenate(ss))

    def __len__(self) -> int:
        return len(self.x)


def cell_count(width: int, height: int, strides: tuple[int, ...], per_cell: int = 1) -> int:
    """Return the length that `Grid.of` has for the same arguments."""
    return sum(-(-width // stride) * -(-height // stride) for stride in strides) * per_cell


def check_strides(strides: tuple[int, ...]) -> None:
    """Refuse levels that cannot be.

    Raises:
        ValueError: there is none, or a stride is below 1.
    """
    if not strides or min(strides) < 1:
        raise ValueError(f"strides {list(strides)} are not positive")


def bounded(values: NDArray[Any]) -> Float:
    """Return `values` as float32 within a million: far outside any picture, far inside what arithmetic overflows."""
    return np.asarray(np.minimum(np.maximum(values, -LIMIT), LIMIT), np.float32)


def side_from_log(values: NDArray[Any]) -> Float:
    """Return exp(values), at most e^20."""
    return np.asarray(np.exp(np.clip(values, -20, 20)), np.float32)


def xyxy_from_centres(cx: Float, cy: Float, width: Float, height: Float) -> Float:
    """Return (n, 4) x1 y1 x2 y2 boxes from centres and sizes."""
    out = np.empty((len(cx), 4), np.float32)
    half_width, half_height = width / 2, height / 2
    np.subtract(cx, half_width, out=out[:, 0], casting="same_kind")
    np.subtract(cy, half_height, out=out[:, 1], casting="same_kind")
    np.add(cx, half_width, out=out[:, 2], casting="same_kind")
    np.add(cy, half_height, out=out[:, 3], casting="same_kind")
    return out


def strongest(score: Float, limit: int = MAX_CANDIDATES) -> NDArray[np.intp] | slice:
    """Return an index of the `limit` highest scores, everything when there are no more."""
    return slice(None) if len(score) <= limit else np.argpartition(-score, limit)[:limit]


def best_class(
    class_score: Float, factor: Float, threshold: float
) -> tuple[NDArray[np.intp], Float, NDArray[np.int32]]:
    """Return (rows, score, class_id) of the rows of `class_score * factor` whose best class reaches `threshold`."""
    class_id = class_score.argmax(axis=1)
    score = bounded(class_score[np.arange(len(class_score)), class_id]) * bounded(factor)
    rows = np.flatnonzero(score >= threshold)
    return rows, score[rows], class_id[rows].astype(np.int32)


def finish(found: Candidates, geometry: Geometry, params: DetectionParams, labels: tuple[str, ...]) -> Detections:
    """Return the candidates that survive suppression, in frame pixels, strongest first; boxes outside the frame go."""
    # Boxes far outside would take the precision from the offsets that keep classes apart in batched suppression.
    reach = 4.0 * max(geometry.input_width, geometry.input_height)
    boxes = np.minimum(np.maximum(found.boxes, -reach), reach)
    order = suppress(Candidates(boxes, found.score, found.class_id), params)
    framed = geometry.boxes_to_frame(boxes[order])
    seen = (framed[:, 2] > framed[:, 0]) & (framed[:, 3] > framed[:, 1])
    if not seen.all():
        order, framed = order[seen], framed[seen]
    keypoints = None
    if found.points is not None:
        chosen = found.points[order]
        keypoints = geometry.points_to_frame(chosen.reshape(-1, 2)).reshape(chosen.shape)
    score = np.minimum(found.score[order], 1.0).astype(np.float32)
    return Detections(framed, score, found.class_id[order], labels, keypoints=keypoints)


def suppress(found: Candidates, params: DetectionParams) -> NDArray[np.intp]:
    """Return the rows that greedy non-maximum suppression keeps, strongest first."""
    boxes, score, class_id = found.boxes, found.score, found.class_id
    if len(score) == 0:
        return np.zeros(0, np.intp)
    if len(score) == 1:
        return np.zeros(1, np.intp)
    candidates = strongest(score)
    xywh = boxes[candidates].astype(np.float64)
    xywh[:, 2:] -= xywh[:, :2]
    limits: Any = {"score_threshold": 0.0, "nms_threshold": params.iou}
    if params.class_agnostic:
        kept = cv2.dnn.NMSBoxes(xywh, score[candidates], **limits)  # type: ignore[arg-type]
    else:
        kept = cv2.dnn.NMSBoxesBatched(xywh, score[candidates], class_id[candidates], **limits)  # type: ignore[arg-type]
    rows = np.asarray(kept, np.intp).reshape(-1)[: params.max_detections]
    return rows if isinstance(candidates, slice) else candidates[rows]
