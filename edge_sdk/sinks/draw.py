"""Results, second models' answers, zones and lines drawn onto a copy of the frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sdk.sinks.base import FrameResult, Overlay
from edge_sdk.sources.base import Image
from edge_sdk.tasks.results import NO_CLASS, Classes, Detections, Keypoints, Mask, Second, Values

_PALETTE = ((66, 133, 244), (52, 168, 83), (5, 188, 251), (53, 67, 234), (188, 66, 171), (189, 174, 0), (0, 112, 255))
_BACKGROUND = ("background", "bg", "__background__", "_background_")
_ZONE = (255, 200, 0)
_LEAST_SCORE = 0.2
_FAR = 30_000.0
# COCO's 17 points: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles.
_BONES = (
    *((0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
    *((5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16)),
)
_SEVENTEEN = 17


def draw(item: FrameResult) -> Image:
    """Return a copy of a frame's BGR image with everything that its result says on it."""
    out = item.frame.image.copy()
    scale = max(0.4, min(out.shape[:2]) / 900)
    _result(out, item.result, scale)
    for overlay in item.overlays:
        _overlay(out, overlay, item.counts.get(overlay.name) or {}, scale)
    return out


def _result(image: Image, result: Any, scale: float) -> None:
    if isinstance(result, Mask):
        _mask(image, result, scale)
    elif isinstance(result, Detections):
        for row in range(len(result)):
            _detection(image, result, row, scale)
    elif isinstance(result, Classes):
        order = np.argsort(-result.probs, kind="stable")[:3]
        lines = [f"{result.label(int(i))} {result.probs[i]:.2f}" for i in order]
        _lines(image, lines, (0, 0), _PALETTE[0], scale)
    elif isinstance(result, Keypoints):
        _figure(image, result.points, result.score, _PALETTE[0], scale)
    elif isinstance(result, Values):
        lines = [f"{name} {value:.2f}" for name, value in result.to_json()["values"].items()]
        _lines(image, lines[:8], (0, 0), _PALETTE[0], scale)


def _detection(image: Image, found: Detections, row: int, scale: float) -> None:
    box = found.xyxy[row]
    if not np.isfinite(box).all():
        return
    class_id = int(found.class_id[row])
    color = _PALETTE[class_id % len(_PALETTE)]
    x1, y1, x2, y2 = (_pixel(v) for v in box)
    seconds = [(name, rows[row]) for name, rows in (found.then or {}).items()]
    for _, second in seconds:
        if second is not None:
            _within(image, second, scale)
    cv2.rectangle(image, (x1, y1), (x2, y2), color, max(1, round(2 * scale)))
    if found.keypoints is not None:
        _figure(image, found.keypoints[row], np.ones(len(found.keypoints[row])), color, scale)
    track = f" #{int(found.track_id[row])}" if found.track_id is not None and found.track_id[row] >= 0 else ""
    lines = [f"{found.label(class_id)}{track} {float(found.score[row]):.2f}"]
    lines += [text for name, second in seconds if second is not None and (text := _said(name, second))]
    _lines(image, lines, (x1, y1), color, scale, above=True)


def _said(name: str, second: Second) -> str:
    """Return a second model's answer as one line; nothing for what is drawn in the picture."""
    if isinstance(second.result, Classes):
        return " ".join(f"{name}: {label} {score:.2f}" for label, score in second.found())
    if isinstance(second.result, Values):
        return f"{name}: " + " ".join(f"{v:.0f}" for v in second.result.values[:4])
    return ""


def _within(image: Image, second: Second, scale: float) -> None:
    """Draw what a second model found inside a box."""
    result = second.result
    if isinstance(result, Detections):
        for row in range(len(result)):
            _detection(image, result, row, 0.75 * scale)
    elif isinstance(result, Keypoints):
        _figure(image, result.points, result.score, _PALETTE[2], scale)
    elif isinstance(result, Mask):
        x1, y1, x2, y2 = second.crop
        _mask(image[y1:y2, x1:x2], result, scale, names=False)


def _mask(image: Image, mask: Mask, scale: float, *, names: bool = True) -> None:
    """Tint the pixels of each class but the background, in place."""
    ids = mask.upright()[: image.shape[0], : image.shape[1]]
    table = np.zeros((256, 1, 3), np.uint8)
    shown = [c for c in np.unique(ids).tolist() if c != NO_CLASS and not _is_background(mask, c)]
    for class_id in shown:
        table[class_id] = _PALETTE[class_id % len(_PALETTE)]
    tint = cv2.LUT(cv2.merge([ids, ids, ids]), table)
    seen = np.isin(ids, shown)
    mixed = cv2.addWeighted(image, 0.5, tint, 0.5, 0)
    np.copyto(image, mixed, where=seen[:, :, None])
    if names:
        for i, class_id in enumerate(shown[:8]):
            share = np.count_nonzero(ids == class_id) / ids.size
            text = f"{mask.label(class_id)} {100 * share:.0f} %"
            _text(image, text, (0, round((i + 1) * 34 * scale)), _PALETTE[class_id % len(_PALETTE)], scale)


def _is_background(mask: Mask, class_id: int) -> bool:
    return class_id == 0 and mask.label(0).lower() in (*_BACKGROUND, "0")


def _figure(image: Image, points: NDArray[Any], score: NDArray[Any], color: Sequence[int], scale: float) -> None:
    sure = (score >= _LEAST_SCORE) & np.isfinite(points).all(axis=1)
    places = [_place((x, y)) if ok else None for (x, y), ok in zip(points, sure, strict=True)]
    if len(places) == _SEVENTEEN:
        for a, b in _BONES:
            start, end = places[a], places[b]
            if start is not None and end is not None:
                cv2.line(image, start, end, color, max(1, round(2 * scale)), cv2.LINE_AA)
    for place in places:
        if place is not None:
            cv2.circle(image, place, max(2, round(4 * scale)), color, -1, cv2.LINE_AA)


def _overlay(image: Image, overlay: Overlay, counts: Any, scale: float) -> None:
    """Draw a zone or a line with what it counts."""
    points = np.array([_place(point) for point in overlay.points], np.int32)
    width = max(1, round(2 * scale))
    cv2.polylines(image, [points.reshape(-1, 1, 2)], len(points) > 2, _ZONE, width, cv2.LINE_AA)
    if overlay.kind == "line":
        # Towards `in`: the right of someone who walks from start to end.
        middle, (dx, dy) = points.mean(axis=0), points[1] - points[0]
        length = max(1.0, float(np.hypot(dx, dy)))
        tip = middle + np.array([-dy, dx]) / length * 24 * scale
        cv2.arrowedLine(image, _place(middle), _place(tip), _ZONE, width, cv2.LINE_AA, tipLength=0.4)
    shown = ("inside", "in", "out", "matching")
    text = " ".join([overlay.name, *(f"{key} {counts[key]}" for key in shown if key in counts)])
    top = points[int(np.argmin(points[:, 1]))]
    _text(image, text, (int(top[0]), int(top[1])), _ZONE, 0.8 * scale, ink=(0, 0, 0))


def _place(point: Any) -> tuple[int, int]:
    return _pixel(point[0]), _pixel(point[1])


def _pixel(value: float) -> int:
    """Return a whole coordinate that OpenCV can draw with, however far outside the frame it lies."""
    return round(min(max(float(value), -_FAR), _FAR))


def _lines(
    image: Image, lines: Sequence[str], at: tuple[int, int], color: Sequence[int], scale: float, *, above: bool = False
) -> None:
    """Write lines one below the other; `above` ends them at `at`."""
    step = round(34 * scale)
    first = at[1] - (len(lines) - 1) * step if above else at[1] + step
    first = max(first, step)
    for i, text in enumerate(lines):
        _text(image, text, (at[0], first + i * step), color, scale)


def _text(
    image: Image,
    text: str,
    at: tuple[int, int],
    color: Sequence[int],
    scale: float,
    *,
    ink: tuple[int, int, int] = (255, 255, 255),
) -> None:
    font = cv2.FONT_HERSHEY_SIMPLEX
    (width, height), base = cv2.getTextSize(text, font, scale, 1)
    x = max(0, min(at[0], image.shape[1] - width))
    y = max(height + base, min(at[1], image.shape[0] - 1))
    cv2.rectangle(image, (x, y - height - base), (x + width, y), color, -1)
    cv2.putText(image, text, (x, y - base // 2), font, scale, ink, 1, cv2.LINE_AA)
