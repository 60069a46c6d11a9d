"""The loop around a detector that its own repository publishes: each step of the ONNX Runtime demo, drawing left out.

Written anew after the sources that each function names, with their defaults; `session` is `InferenceSession(model)`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[Any]


def yolox(session: Any, frame: NDArray[np.uint8]) -> Boxes:
    """Return boxes as YOLOX's demo does: (n, 6) x1 y1 x2 y2 in pixels of the frame, score, class.

    Source: https://github.com/Megvii-BaseDetection/YOLOX, `demo/ONNXRuntime/onnx_inference.py` with `preproc` of
    `yolox/data/data_augment.py`, `demo_postprocess` and `multiclass_nms` of `yolox/utils/demo_utils.py`. The grid is
    made for every frame, every row is decoded and given a score for each class, suppression (0.45) from a score of 0.1
    on ignores the class.
    """
    height, width = session.get_inputs()[0].shape[2:]
    tensor, ratio = _yolox_tensor(frame, height, width)
    output = session.run(None, {session.get_inputs()[0].name: tensor[np.newaxis]})[0]
    rows = _yolox_rows(output, height, width)[0]
    centres, sizes = rows[:, :2], rows[:, 2:4]
    scores = rows[:, 4:5] * rows[:, 5:]
    corners = np.concatenate([centres - sizes / 2.0, centres + sizes / 2.0], axis=1) / ratio
    classes = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), classes]
    likely = best > 0.1
    if not likely.any():
        return np.zeros((0, 6))
    found = np.column_stack([corners[likely], best[likely], classes[likely]])
    return found[_suppress(found, 0.45)]


def _yolox_tensor(frame: NDArray[np.uint8], height: int, width: int) -> tuple[NDArray[np.float32], float]:
    """Return the frame in the upper left corner of grey 114 as float planes, and its scale."""
    import cv2

    canvas = np.ones((height, width, 3), dtype=np.uint8) * 114
    ratio = min(height / frame.shape[0], width / frame.shape[1])
    small_h, small_w = int(frame.shape[0] * ratio), int(frame.shape[1] * ratio)
    small = cv2.resize(frame, (small_w, small_h), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    canvas[:small_h, :small_w] = small
    return np.ascontiguousarray(canvas.transpose(2, 0, 1), dtype=np.float32), ratio


def _yolox_rows(output: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Turn offsets into centres and logarithms into sizes, in input pixels, in place."""
    cells, strides = [], []
    for stride in (8, 16, 32):
        columns, rows = np.meshgrid(np.arange(width // stride), np.arange(height // stride))
        cells.append(np.stack((columns, rows), axis=2).reshape(1, -1, 2))
        strides.append(np.full((1, cells[-1].shape[1], 1), stride))
    cell, stride_of = np.concatenate(cells, axis=1), np.concatenate(strides, axis=1)
    output[..., :2] = (output[..., :2] + cell) * stride_of
    output[..., 2:4] = np.exp(output[..., 2:4]) * stride_of
    return output


def fastestdet(session: Any, frame: NDArray[np.uint8], threshold: float = 0.8) -> Boxes:
    """Return boxes as FastestDet's demo does: (n, 6) whole pixels of the frame, objectness x class score, class.

    Source: https://github.com/dog-qiuqiu/FastestDet, `example/onnx-runtime/runtime.py`. Every cell of the output is
    visited in Python; suppression (0.35) ignores the class. The demo fails on a picture without a box, this does not.
    """
    import cv2

    feed = session.get_inputs()[0]
    frame_h, frame_w = frame.shape[:2]
    input_h, input_w = feed.shape[2:]
    small = cv2.resize(frame, (input_w, input_h), interpolation=cv2.INTER_AREA)
    tensor = (small.transpose(2, 0, 1).reshape(1, 3, input_h, input_w) / 255).astype("float32")
    cells = session.run([], {feed.name: tensor})[0][0].transpose(1, 2, 0)
    rows, columns = cells.shape[:2]
    found = []
    for row in range(rows):
        for column in range(columns):
            cell = cells[row][column]
            score = cell[0] * cell[5:].max()
            if score <= threshold:
                continue
            centre_x = (column + _tanh(cell[1])) / columns
            centre_y = (row + _tanh(cell[2])) / rows
            half_w, half_h = 0.5 * _sigmoid(cell[3]), 0.5 * _sigmoid(cell[4])
            left, top = int((centre_x - half_w) * frame_w), int((centre_y - half_h) * frame_h)
            right, bottom = int((centre_x + half_w) * frame_w), int((centre_y + half_h) * frame_h)
            found.append([left, top, right, bottom, score, np.argmax(cell[5:])])
    if not found:
        return np.zeros((0, 6))
    boxes = np.array(found, dtype=float)
    return boxes[_suppress(boxes, 0.35)]


def _tanh(value: float) -> float:
    return float(2.0 / (1.0 + np.exp(-2.0 * value)) - 1.0)


def _sigmoid(value: float) -> float:
    return float(1.0 / (1.0 + np.exp(-value)))


def _suppress(found: Boxes, limit: float) -> list[int]:
    """Return the rows that greedy suppression keeps, box after box in numpy; sides count both their end pixels."""
    left, top, right, bottom = found[:, 0], found[:, 1], found[:, 2], found[:, 3]
    area = (right - left + 1) * (bottom - top + 1)
    waiting = found[:, 4].argsort()[::-1]
    kept = []
    while len(waiting):
        first, others = waiting[0], waiting[1:]
        kept.append(int(first))
        width = np.minimum(right[first], right[others]) - np.maximum(left[first], left[others]) + 1
        height = np.minimum(bottom[first], bottom[others]) - np.maximum(top[first], top[others]) + 1
        shared = np.maximum(0.0, width) * np.maximum(0.0, height)
        waiting = others[shared / (area[first] + area[others] - shared) <= limit]
    return kept


DEMOS = {"FastestDet": fastestdet, "YOLOX-nano": yolox}
