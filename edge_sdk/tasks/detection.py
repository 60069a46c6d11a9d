"""Grid detectors: YOLOX, YOLOv5, YOLOv8 and later, NanoDet, PicoDet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_sdk.tasks.base import Detections, Float, Geometry, read_params, wrong_outputs
from edge_sdk.tasks.boxes import (
    Candidates,
    DetectionParams,
    Grid,
    best_class,
    bounded,
    cell_count,
    check_strides,
    finish,
    side_from_log,
    strongest,
    xyxy_from_centres,
)
from edge_sdk.tasks.classification import softmax

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class YoloXParams(DetectionParams):
    """`strides` of the levels, in the order of the output's rows."""

    strides: tuple[int, ...] = (8, 16, 32)

    def __post_init__(self) -> None:
        check_strides(self.strides)


@dataclass(frozen=True, slots=True, kw_only=True)
class YoloParams(DetectionParams):
    """`normalized`: boxes are fractions of the input, not pixels."""

    normalized: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GflParams(DetectionParams):
    """`strides` of the levels, `reg_max` of the box distribution, `offset` of a cell's centre in cells."""

    strides: tuple[int, ...] = (8, 16, 32)
    reg_max: int = field(default=7, metadata={"min": 1, "max": 255})
    offset: float = 0.5

    def __post_init__(self) -> None:
        check_strides(self.strides)


@dataclass(frozen=True, slots=True, kw_only=True)
class PicoParams(GflParams):
    strides: tuple[int, ...] = (8, 16, 32, 64)


class YoloX:
    """(1, n, 5 + c): box relative to its cell, objectness, class scores; or the same columns in two or three outputs.

    Split outputs come as (4, 1 + c), (5, c) or (4, 1, c) columns, in this order. Ge et al., arXiv:2107.08430.
    """

    task: ClassVar[str] = "detection"

    def __init__(self, params: Mapping[str, Any], labels: Sequence[str]) -> None:
        self.params = read_params(params, YoloXParams, "yolox")
        self.labels = tuple(labels)
        self._grids: dict[tuple[int, int], Grid] = {}

    def __call__(self, outputs: Outputs, geometry: Geometry) -> Detections:
        params = self.params
        boxes, objectness, classes = _columns("yolox", outputs, params.classes)
        size = (geometry.input_width, geometry.input_height)
        count = cell_count(*size, params.strides)
        if count != len(boxes):
            raise wrong_outputs("yolox", f"{count} rows for {size[0]}x{size[1]}, strides {params.strides}", outputs)
        if size not in self._grids:
            self._grids[size] = Grid.of(*size, params.strides)
        grid = self._grids[size]
        rows = np.flatnonzero(objectness >= params.score)
        if not rows.size:
            return Detections.empty(self.labels)
        kept, score, class_id = best_class(classes[rows], objectness[rows], params.score)
        rows = rows[kept]
        box, stride = bounded(boxes[rows]), grid.stride[rows]
        centre_x, centre_y = (box[:, 0] + grid.x[rows]) * stride, (box[:, 1] + grid.y[rows]) * stride
        width, height = (side_from_log(box[:, column]) * stride for column in (2, 3))
        corners = xyxy_from_centres(centre_x, centre_y, width, height)
        return finish(Candidates(corners, score, class_id), geometry, params, self.labels)


class YoloV5:
    """(1, n, 5 + c) or the split forms of `YoloX`: box as centre and size in input pixels, objectness, class scores."""

    task: ClassVar[str] = "detection"

    def __init__(self, params: Mapping[str, Any], labels: Sequence[str]) -> None:
        self.params = read_params(params, YoloParams, "yolov5")
        self.labels = tuple(labels)

    def __call__(self, outputs: Outputs, geometry: Geometry) -> Detections:
        params = self.params
        boxes, objectness, classes = _columns("yolov5", outputs, params.classes)
        rows = np.flatnonzero(objectness >= params.score)
        if not rows.size:
            return Detections.empty(self.labels)
        kept, score, class_id = best_class(classes[rows], objectness[rows], params.score)
        corners = _corners(boxes[rows[kept]], geometry, params.normalized)
        return finish(Candidates(corners, score, class_id), geometry, params, self.labels)


class YoloV8:
    """(1, 4 + c, n) or its transpose, or boxes and class scores apart: centre and size in input pixels, class scores.

    Also the one-to-many heads of YOLOv9, v11 and v12, which export the same tensor.
    """

    task: ClassVar[str] = "detection"

    def __init__(self, params: Mapping[str, Any], labels: Sequence[str]) -> None:
        self.params = read_params(params, YoloParams, "yolov8")
        self.labels = tuple(labels)

    def __call__(self, outputs: Outputs, geometry: Geometry) -> Detections:
        params = self.params
        boxes, classes = self._split(outputs)
        best = classes.max(axis=0)
        columns = np.flatnonzero(best >= params.score)
        class_id = classes[:, columns].argmax(axis=0).astype(np.int32)
        corners = _corners(boxes[:, columns].T, geometry, params.normalized)
        found = Candidates(corners, best[columns].astype(np.float32), class_id)
        return finish(found, geometry, params, self.labels)

    def _split(self, outputs: Outputs) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return boxes (4, n) and classes (c, n)."""
        count = self.params.classes or len(self.labels) or None
        arrays = [value[0] for value in outputs.values() if value.ndim == 3 and value.shape[0] == 1]
        if len(arrays) == len(outputs) == 1:
            rows = arrays[0]
            channels = 4 + count if count else min(rows.shape)
            rows = rows if rows.shape[0] == channels else rows.T
            if rows.shape[0] == channels > 4:
                return rows[:4], rows[4:]
        elif len(arrays) == len(outputs) == 2:
            first, second = ((a if a.shape[0] < a.shape[1] else a.T) for a in arrays)
            if first.shape[0] == 4 and first.shape[1] == second.shape[1] and count in (None, second.shape[0]):
                return first, second
        raise wrong_outputs("yolov8", f"one output [1, {4 + count if count else '4 + c'}, n] or boxes, scores", outputs)


class NanoDet:
    """Class scores (1, n_i, c) and box distributions (1, n_i, 4 * (reg_max + 1)) of each level, or all in one output.

    The one output is (1, n, c + 4 * (reg_max + 1)). Each class of a cell is a candidate of its own. Generalised focal
    loss: Li et al., arXiv:2006.04388.
    """

    task: ClassVar[str] = "detection"
    name: ClassVar[str] = "nanodet"
    params_type: ClassVar[type[GflParams]] = GflParams

    def __init__(self, params: Mapping[str, Any], labels: Sequence[str]) -> None:
        self.params = read_params(params, self.params_type, self.name)
        self.labels = tuple(labels)
        self._bins = np.arange(self.params.reg_max + 1, dtype=np.float32)

    def __call__(self, outputs: Outputs, geometry: Geometry) -> Detections:
        params = self.params
        parts: list[tuple[Float, Float, NDArray[np.int32]]] = []
        for (scores, distances), stride in zip(self._levels(outputs, geometry), params.strides, strict=True):
            count = scores.shape[1]
            found = np.flatnonzero(np.ascontiguousarray(scores).reshape(-1) >= params.score)
            rows, class_id = np.divmod(found, count)
            score = scores[rows, class_id].astype(np.float32)
            top = strongest(score)
            rows, class_id, score = rows[top], class_id[top], score[top]
            boxes = self._boxes(distances[rows], rows, -(-geometry.input_width // stride), stride)
            parts.append((boxes, score, class_id.astype(np.int32)))
        every = Candidates(*(np.concatenate([part[i] for part in parts]) for i in range(3)))
        return finish(every, geometry, params, self.labels)

    def _boxes(self, distances: NDArray[Any], cells: NDArray[np.intp], columns: int, stride: int) -> Float:
        bins = distances.astype(np.float32).reshape(-1, 4, self.params.reg_max + 1)
        sides = (softmax(bins) @ self._bins) * stride
        row, column = np.divmod(cells, columns)
        x, y = ((v + self.params.offset).astype(np.float32) * stride for v in (column, row))
        return np.stack((x - sides[:, 0], y - sides[:, 1], x + sides[:, 2], y + sides[:, 3]), axis=1)

    def _levels(self, outputs: Outputs, geometry: Geometry) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """Return (scores (n_i, c), distances (n_i, d)) level by level."""
        params = self.params
        sizes = [-(-geometry.input_width // s) * -(-geometry.input_height // s) for s in params.strides]
        width = 4 * (params.reg_max + 1)
        arrays = [value[0] for value in outputs.values() if value.ndim == 3 and value.shape[0] == 1]
        expected = f"[1, n, c] and [1, n, {width}] for n in {sizes}, or one output [1, {sum(sizes)}, c + {width}]"
        if len(arrays) == len(outputs) == 1 and arrays[0].shape[0] == sum(sizes) and arrays[0].shape[1] > width:
            blocks = np.split(arrays[0], np.cumsum(sizes)[:-1])
            return [(b[:, :-width], b[:, -width:]) for b in blocks]
        levels = []
        for size in sizes:
            pair = [a for a in arrays if a.shape[0] == size]
            if len(pair) == 2 and pair[1].shape[1] != width:
                pair.reverse()
            if len(pair) != 2 or pair[1].shape[1] != width or params.classes not in (None, pair[0].shape[1]):
                raise wrong_outputs(self.name, expected, outputs)
            levels.append((pair[0], pair[1]))
        return levels


class PicoDet(NanoDet):
    """The tensors of `NanoDet` with four levels. Yu et al., arXiv:2111.00902."""

    name: ClassVar[str] = "picodet"
    params_type: ClassVar[type[GflParams]] = PicoParams


def _columns(decoder: str, outputs: Outputs, count: int | None) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return boxes (n, 4), objectness (n,) and class scores (n, c), wherever the outputs hold them."""
    arrays = [value[0] for value in outputs.values() if value.ndim == 3 and value.shape[0] == 1]
    widths = [a.shape[1] for a in arrays]
    found = None
    if len(arrays) == len(outputs) and len({len(a) for a in arrays}) == 1:
        if len(widths) == 1 and widths[0] > 5:
            found = arrays[0][:, :4], arrays[0][:, 4], arrays[0][:, 5:]
        elif len(widths) == 2 and widths[0] == 5:
            found = arrays[0][:, :4], arrays[0][:, 4], arrays[1]
        elif len(widths) == 2 and widths[0] == 4 and widths[1] > 1:
            found = arrays[0], arrays[1][:, 0], arrays[1][:, 1:]
        elif len(widths) == 3 and widths[:2] == [4, 1]:
            found = arrays[0], arrays[1][:, 0], arrays[2]
    if found is None or count not in (None, found[2].shape[1]):
        raise wrong_outputs(decoder, f"[1, n, {5 + count if count else '5 + c'}] in one output or split", outputs)
    return found


def _corners(boxes: NDArray[Any], geometry: Geometry, normalized: bool) -> Float:
    """Return x1 y1 x2 y2 in input pixels from centre and size."""
    box = bounded(boxes)
    if normalized:
        box = box * np.array([geometry.input_width, geometry.input_height] * 2, np.float32)
    return xyxy_from_centres(box[:, 0], box[:, 1], box[:, 2], box[:, 3])
