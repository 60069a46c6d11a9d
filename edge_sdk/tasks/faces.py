"""Face detectors: UltraFace, YuNet, BlazeFace. The class is always 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_sdk.tasks.base import Detections, Float, Geometry, read_params, wrong_outputs
from edge_sdk.tasks.boxes import (
    Candidates,
    DetectionParams,
    Grid,
    bounded,
    cell_count,
    check_strides,
    finish,
    side_from_log,
    xyxy_from_centres,
)
from edge_sdk.tasks.classification import sigmoid

Outputs = Mapping[str, NDArray[Any]]
_ULTRAFACE = {8: (10.0, 16.0, 24.0), 16: (32.0, 48.0), 32: (64.0, 96.0), 64: (128.0, 192.0, 256.0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class UltraFaceParams(DetectionParams):
    """`decoded`: the graph makes boxes; if not, they are raw deltas from the priors."""

    decoded: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class YuNetParams(DetectionParams):
    """`strides` of the levels."""

    strides: tuple[int, ...] = (8, 16, 32)

    def __post_init__(self) -> None:
        check_strides(self.strides)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlazeFaceParams(DetectionParams):
    """`strides` of the levels and `anchors` per cell of each; the defaults are the short range model's."""

    strides: tuple[int, ...] = (8, 16)
    anchors: tuple[int, ...] = (2, 6)

    def __post_init__(self) -> None:
        check_strides(self.strides)
        check_strides(self.anchors)
        if len(self.strides) != len(self.anchors):
            raise ValueError(f"{len(self.anchors)} anchors for {len(self.strides)} strides")


class UltraFace:
    """Scores (1, n, 2) of background and face, boxes (1, n, 4) x1 y1 x2 y2 as fractions of the input.

    https://github.com/Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB (priors, variances 0.1 and 0.2).
    """

    task: ClassVar[str] = "detection"

    def __init__(self, params: Mapping[str, Any], labels: Sequence[str]) -> None:
        self.params = read_params(params, UltraFaceParams, "ultraface")
        self.labels = tuple(labels) or ("face",)

    def __call__(self, outputs: Outputs, geometry: Geometry) -> Detections:
        by_width = {v.shape[2]: v[0] for v in outputs.values() if v.ndim == 3}
        if set(by_width) != {2, 4} or len(by_width[2]) != len(by_width[4]):
            raise wrong_outputs("ultraface", "[1, n, 2] and [1, n, 4]", outputs)
        rows = np.flatnonzero(by_width[2][:, 1] >= self.params.score)
        size = np.array([geometry.input_width, geometry.input_height], np.float32)
        boxes = bounded(by_width[4][rows])
        if not self.params.decoded:
            centre, side = _ultraface_priors(geometry.input_width, geometry.input_height)
            if len(centre) != len(by_width[2]):
                raise wrong_outputs("ultraface", f"{len(centre)} rows for this input size", outputs)
            centre, side = centre[rows], side[rows]
            middle = centre + boxes[:, :2] * 0.1 * side
            half = side_from_log(boxes[:, 2:] * 0.2) * side / 2
            boxes = np.concatenate((middle - half, middle + half), axis=1)
        corners = (boxes * np.tile(size, 2)).astype(np.float32)
        score = by_width[2][rows, 1].astype(np.float32)
        found = Candidates(corners, score, np.zeros(len(rows), np.int32))
        return finish(found, geometry, self.params, self.labels)


class YuNet:
    """`cls`, `obj` (1, n_i, 1), `bbox` (1, n_i, 4) and `kps` (1, n_i, 10) of each level, in any order.

    Five landmarks: right eye, left eye, nose, right and left corner of the mouth (of the person). Wu et al., 2023; the
    decoding is that of OpenCV's FaceDetectorYN.
    """

    task: ClassVar[str] = "detection"

    def __init__(self, params: Mapping[str, Any], labels: Sequence[str]) -> None:
        self.params = read_params(params, YuNetParams, "yunet")
        self.labels = tuple(labels) or ("face",)
        self._grids: dict[tuple[int, int], Grid] = {}

    def __call__(self, outputs: Outputs, geometry: Geometry) -> Detections:
        params = self.params
        size = (geometry.input_width, geometry.input_height)
        products, boxes, points = self._levels(outputs, [cell_count(*size, (s,)) for s in params.strides])
        if size not in self._grids:
            self._grids[size] = Grid.of(*size, params.strides)
        grid = self._grids[size]
        score = np.sqrt(products)
        rows = np.flatnonzero(score >= params.score)
        stride = grid.stride[rows, None]
        cell = np.stack((grid.x[rows], grid.y[rows]), axis=1)
        box = bounded(boxes[rows])
        centre, side = (cell + box[:, :2]) * stride, side_from_log(box[:, 2:]) * stride
        corners = xyxy_from_centres(centre[:, 0], centre[:, 1], side[:, 0], side[:, 1])
        landmarks = (bounded(points[rows]).reshape(-1, 5, 2) + cell[:, None]) * stride[:, None]
        found = Candidates(
            corners, score[rows].astype(np.float32), np.zeros(len(rows), np.int32), landmarks.astype(np.float32)
        )
        return finish(found, geometry, params, self.labels)

    def _levels(self, outputs: Outputs, counts: list[int]) -> tuple[Float, Float, Float]:
        """Return cls x obj (n,), bbox (n, 4), kps (n, 10), level after level."""
        arrays = [v[0] for v in outputs.values() if v.ndim == 3]
        products, boxes, points = [], [], []
        for count in counts:
            level = sorted((a for a in arrays if len(a) == count), key=lambda a: a.shape[1])
            if [a.shape[1] for a in level] != [1, 1, 4, 10] or len(outputs) != 4 * len(counts):
                raise wrong_outputs("yunet", f"[1, n, 1] twice, [1, n, 4] and [1, n, 10] for n in {counts}", outputs)
            products.append(np.clip(level[0][:, 0], 0, 1) * np.clip(level[1][:, 0], 0, 1))
            boxes.append(level[2])
            points.append(level[3])
        return np.concatenate(products), np.concatenate(boxes), np.concatenate(points)


class BlazeFace:
    """Box and six landmarks (1, n, 16) in input pixels from the anchor, score logits (1, n, 1).

    Landmarks: eyes, nose, mouth, ears. Bazarevsky et al., arXiv:1907.05047; anchors of MediaPipe's short range model.
    """

    task: ClassVar[str] = "detection"

    def __init__(self, params: Mapping[str, Any], labels: Sequence[str]) -> None:
        self.params = read_params(params, BlazeFaceParams, "blazeface")
        self.labels = tuple(labels) or ("face",)

    def __call__(self, outputs: Outputs, geometry: Geometry) -> Detections:
        params = self.params
        by_width = {v.shape[2]: v[0] for v in outputs.values() if v.ndim == 3}
        levels = list(zip(params.strides, params.anchors, strict=True))
        size = (geometry.input_width, geometry.input_height)
        total = sum(cell_count(*size, (stride,), per_cell) for stride, per_cell in levels)
        if set(by_width) != {16, 1} or {len(v) for v in by_width.values()} != {total}:
            raise wrong_outputs("blazeface", f"[1, {total}, 16] and [1, {total}, 1]", outputs)
        parts = [Grid.of(*size, (stride,), per_cell) for stride, per_cell in levels]
        score = sigmoid(by_width[1][:, 0])
        rows = np.flatnonzero(score >= params.score)
        anchor_x = np.concatenate([(p.x + 0.5) * p.stride for p in parts])[rows]
        anchor_y = np.concatenate([(p.y + 0.5) * p.stride for p in parts])[rows]
        box = bounded(by_width[16][rows])
        corners = xyxy_from_centres(box[:, 0] + anchor_x, box[:, 1] + anchor_y, box[:, 2], box[:, 3])
        landmarks = box[:, 4:].reshape(-1, 6, 2) + np.stack((anchor_x, anchor_y), axis=1)[:, None]
        found = Candidates(corners, score[rows], np.zeros(len(rows), np.int32), landmarks)
        return finish(found, geometry, params, self.labels)


def _ultraface_priors(width: int, height: int) -> tuple[Float, Float]:
    """Return centres and sides (n, 2) of the priors, as fractions of the input."""
    centres, sides = [], []
    for stride, boxes in _ULTRAFACE.items():
        grid = Grid.of(width, height, (stride,), len(boxes))
        centre = np.stack(((grid.x + 0.5) * stride / width, (grid.y + 0.5) * stride / height), axis=1)
        side = np.tile(np.array([[b / width, b / height] for b in boxes], np.float32), (len(grid) // len(boxes), 1))
        centres.append(np.clip(centre, 0, 1))
        sides.append(np.clip(side, 0, 1))
    return np.concatenate(centres).astype(np.float32), np.concatenate(sides).astype(np.float32)
