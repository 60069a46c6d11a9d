"""Small objects: look at overlapping tiles of the frame and join what they found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ConfigError
from edge_sdk.sources.base import Image
from edge_sdk.stage_params import TilesParams
from edge_sdk.tasks.base import Detections
from edge_sdk.tracking.boxes import ios, iou


def tiles(width: int, height: int, params: TilesParams) -> NDArray[np.int64]:
    """Return (n, 4) x1 y1 x2 y2 pixels of tiles of one size that cover the frame, rows first.

    With `full` the whole frame comes last, unless there is only one tile.
    """
    xs, ys = _cuts(width, params.columns, params.overlap), _cuts(height, params.rows, params.overlap)
    boxes = [(x1, y1, x2, y2) for y1, y2 in ys for x1, x2 in xs]
    if params.full and len(boxes) > 1:
        boxes.append((0, 0, width, height))
    return np.array(boxes, np.int64)


def _cuts(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    """Return `count` spans of equal size from 0 to `length`, neighbours sharing `overlap` of their size."""
    size = min(length, int(np.ceil(length / (count - (count - 1) * overlap))))
    starts = np.unique(np.round(np.linspace(0, length - size, count)).astype(int))
    return [(int(s), int(s) + size) for s in starts]


def merge(found: Detections, params: TilesParams) -> Detections:
    """Join boxes of one class that overlap by `limit` or more: the strongest keeps its score.

    With `ios` the kept box grows to the union of what it joins, since a tile border may have cut it; with `iou` the
    weaker box goes. Strongest first.
    """
    order = np.argsort(-found.score, kind="stable")
    found = found[order]
    boxes = found.xyxy.astype(np.float32, copy=True)
    same = found.class_id[:, None] == found.class_id
    alike = (iou if params.merge == "iou" else ios)(boxes, boxes)
    alike = (alike >= params.limit) & same
    left = np.ones(len(found), bool)
    kept = []
    for row in range(len(found)):
        if not left[row]:
            continue
        group = np.flatnonzero(alike[row] & left)
        if params.merge == "ios":
            boxes[row, :2] = boxes[group, :2].min(axis=0)
            boxes[row, 2:] = boxes[group, 2:].max(axis=0)
        left[group] = False
        left[row] = False
        kept.append(row)
    index = np.array(kept, np.intp)
    return replace(found, xyxy=boxes)[index]


class TiledModel:
    """A detector that looks at every tile of a frame; has the same methods as `edge_sdk.model.Model`.

    Raises:
        ConfigError: the model is not for detection.
    """

    def __init__(self, model: Any, params: TilesParams) -> None:
        if model.manifest.task != "detection":
            raise ConfigError(
                f"`tiles` needs a model for detection, `{model.manifest.name}` is for {model.manifest.task}",
                hint="leave `tiles` out",
            )
        self._model = model
        self._params = params
        self.manifest = model.manifest
        self.labels: tuple[str, ...] = model.labels
        self.digest: str = model.digest

    @property
    def inner(self) -> Any:
        """The model that sees one tile."""
        return self._model

    def prepare(self, frame_bgr: Image) -> tuple[list[tuple[int, int, Image]], None]:
        """Return the tiles with their upper left corners."""
        height, width = frame_bgr.shape[:2]
        cut = tiles(width, height, self._params).tolist()
        return [(x1, y1, np.ascontiguousarray(frame_bgr[y1:y2, x1:x2])) for x1, y1, x2, y2 in cut], None

    def infer(self, feeds: list[tuple[int, int, Image]]) -> list[Detections]:
        """Return each tile's detections, in pixels of the frame."""
        found = []
        for x, y, tile in feeds:
            tensors, geometry = self._model.prepare(tile)
            part = self._model.decode(self._model.infer(tensors), geometry)
            found.append(part.moved(x, y))
        return found

    def decode(self, outputs: list[Detections], geometry: None) -> Detections:  # noqa: ARG002
        """Return the joined detections."""
        return merge(_joined(outputs), self._params)

    def warm(self) -> None:
        self._model.warm()

    def close(self) -> None:
        self._model.close()


def _joined(parts: list[Detections]) -> Detections:
    keypoints = None
    if all(p.keypoints is not None for p in parts):
        keypoints = np.concatenate([p.keypoints for p in parts if p.keypoints is not None])
    return replace(
        parts[0],
        xyxy=np.concatenate([p.xyxy for p in parts]),
        score=np.concatenate([p.score for p in parts]),
        class_id=np.concatenate([p.class_id for p in parts]),
        keypoints=keypoints,
    )
