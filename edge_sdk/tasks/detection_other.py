"""Detectors with their own heads: FastestDet, and SSD with its post-processing inside the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_sdk.tasks.base import Detections, Float, Geometry, read_params, wrong_outputs
from edge_sdk.tasks.boxes import Candidates, DetectionParams, best_class, bounded, finish, xyxy_from_centres
from edge_sdk.tasks.classification import sigmoid

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SsdParams(DetectionParams):
    """`label_offset` is added to the graph's class numbers; `scores_first`: the scores come before the classes."""

    label_offset: int = 0
    scores_first: bool = False


class FastestDet:
    """(1, 5 + c, rows, columns): objectness, offsets (tanh) and sizes (sigmoid) of the whole picture, class scores.

    The score is objectness^0.6 x class^0.4. https://github.com/dog-qiuqiu/FastestDet, `utils/tool.py`.
    """

    task: ClassVar[str] = "detection"

    def __init__(self, params: Mapping[str, Any], labels: Sequence[str]) -> None:
        self.params = read_params(params, DetectionParams, "fastestdet")
        self.labels = tuple(labels)

    def __call__(self, outputs: Outputs, geometry: Geometry) -> Detections:
        params = self.params
        grid = next(iter(outputs.values())) if len(outputs) == 1 else None
        if grid is None or grid.ndim != 4 or grid.shape[1] <= 5 or params.classes not in (None, grid.shape[1] - 5):
            raise wrong_outputs("fastestdet", "one output [1, 5 + c, rows, columns]", outputs)
        channels, rows, columns = grid.shape[1:]
        cells = grid[0].reshape(channels, rows * columns)
        # A class score is at most 1, so objectness^0.6 bounds the score.
        found = np.flatnonzero(cells[0] >= params.score ** (1 / 0.6))
        if not found.size:
            return Detections.empty(self.labels)
        picked = cells[:, found].astype(np.float32)
        objectness, classes = np.clip(picked[0], 0, None) ** 0.6, np.clip(picked[5:].T, 0, None) ** 0.4
        kept, score, class_id = best_class(classes, objectness, params.score)
        cell, box = found[kept], picked[1:5, kept]
        row, column = np.divmod(cell, columns)
        centre_x = (column + np.tanh(box[0])) / columns * geometry.input_width
        centre_y = (row + np.tanh(box[1])) / rows * geometry.input_height
        width, height = sigmoid(box[2]) * geometry.input_width, sigmoid(box[3]) * geometry.input_height
        corners = xyxy_from_centres(centre_x, centre_y, width, height)
        return finish(Candidates(corners, score, class_id), geometry, params, self.labels)


class SsdPostProcessed:
    """Boxes that the graph has already suppressed, as fractions of the input.

    Either TFLite_Detection_PostProcess: boxes (1, n, 4) y1 x1 y2 x2, classes (1, n), scores (1, n), count (1,); or
    OpenVINO and Caffe's DetectionOutput: (1, 1, n, 7) image, class, score, x1 y1 x2 y2, a negative image ends the list.
    """

    task: ClassVar[str] = "detection"

    def __init__(self, params: Mapping[str, Any], labels: Sequence[str]) -> None:
        self.params = read_params(params, SsdParams, "ssd_pp")
        self._passing = replace(self.params, iou=1.0)
        self.labels = tuple(labels)

    def __call__(self, outputs: Outputs, geometry: Geometry) -> Detections:
        params = self.params
        corners, score, class_id = _detection_output(outputs) or self._tflite(outputs)
        rows = np.flatnonzero(score >= params.score)
        sizes = np.array([geometry.input_width, geometry.input_height] * 2, np.float32)
        found = Candidates(
            bounded(corners[rows]) * sizes,
            score[rows].astype(np.float32),
            bounded(class_id[rows]).astype(np.int32) + np.int32(params.label_offset),
        )
        return finish(found, geometry, self._passing, self.labels)

    def _tflite(self, outputs: Outputs) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        boxes = [v[0] for v in outputs.values() if v.ndim == 3 and v.shape[-1] == 4]
        flat = [v[0] for v in outputs.values() if v.ndim == 2]
        count = [v for v in outputs.values() if v.ndim < 2]
        if len(boxes) != 1 or len(flat) != 2 or len(count) > 1 or any(len(f) != len(boxes[0]) for f in flat):
            raise wrong_outputs("ssd_pp", "[1, n, 4], [1, n], [1, n], [1], or [1, 1, n, 7]", outputs)
        classes, scores = reversed(flat) if self.params.scores_first else flat
        n = int(np.clip(count[0].reshape(-1)[0], 0, len(scores))) if count else len(scores)
        return boxes[0][:n, [1, 0, 3, 2]], scores[:n], classes[:n]


def _detection_output(outputs: Outputs) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None:
    rows = next(iter(outputs.values())) if len(outputs) == 1 else None
    if rows is None or rows.ndim != 4 or rows.shape[:2] != (1, 1) or rows.shape[3] != 7:
        return None
    table: Float = rows[0, 0]
    ended = np.flatnonzero(table[:, 0] < 0)
    table = table[: ended[0]] if len(ended) else table
    return table[:, 3:7], table[:, 2], table[:, 1]
