"""A region of interest: the model sees a part of the frame, its answers are in pixels of the whole one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import UsageError
from edge_sdk.rules.geometry import polygon
from edge_sdk.sources.base import Image
from edge_sdk.tasks.results import NO_CLASS, Detections, Geometry, Keypoints, Mask


class RoiModel:
    """A model that looks at a rectangle or polygon; has the same methods as `edge_sdk.model.Model`.

    What lies in the polygon's rectangle but outside the polygon is black to the model. A frame that the region does not
    touch is an error of that frame.

    Raises:
        UsageError: the points are no region.
    """

    def __init__(self, model: Any, points: Sequence[Sequence[float]]) -> None:
        self._rectangle, self._polygon = _region(points)
        self._model = model
        self.manifest = model.manifest
        self.labels: tuple[str, ...] = model.labels
        self.digest: str = model.digest
        self.keeps_outputs = bool(getattr(model, "keeps_outputs", False))
        self.requests = int(getattr(model, "requests", 1))

    @property
    def inner(self) -> Any:
        """The model that sees the region."""
        return self._model

    def prepare(self, frame_bgr: Image) -> tuple[Any, Any]:
        """Return the inner model's feeds, and where they lie.

        Raises:
            UsageError: the region lies outside the frame.
        """
        height, width = frame_bgr.shape[:2]
        x1, y1, x2, y2 = _within(self._rectangle, width, height)
        part = frame_bgr[y1:y2, x1:x2]
        if self._polygon is not None:
            seen = np.zeros(part.shape[:2], np.uint8)
            cv2.fillPoly(seen, [np.round(self._polygon - (x1, y1)).astype(np.int32)], 255)
            part = cv2.bitwise_and(part, part, mask=seen)  # type: ignore[assignment]
        feeds, geometry = self._model.prepare(part)
        return feeds, (geometry, x1, y1, width, height)

    def infer(self, feeds: Any) -> Any:
        return self._model.infer(feeds)

    def start(self, feeds: Any) -> Any:
        return self._model.start(feeds)

    def decode(self, outputs: Any, geometry: Any) -> Any:
        """Return the inner model's result in pixels of the frame."""
        inner, x, y, width, height = geometry
        return in_frame(self._model.decode(outputs, inner), x, y, width, height)

    def warm(self) -> None:
        self._model.warm()

    def close(self) -> None:
        self._model.close()


def check_roi(points: Sequence[Sequence[float]], width: int, height: int) -> None:
    """Refuse points that are no region, or a region outside a frame of that size; raises UsageError."""
    _within(_region(points)[0], width, height)


def _region(points: Sequence[Sequence[float]]) -> tuple[tuple[int, int, int, int], NDArray[np.float64] | None]:
    """Return the rectangle around a region in whole pixels, and its corners where it is a polygon."""
    outline = None
    if len(points) == 2:
        corners = np.asarray(points, np.float64)
        if (corners[0] == corners[1]).any():
            raise UsageError(f"roi: the corners {[list(p) for p in points]} have no area between them")
    else:
        corners = outline = polygon(points, what="roi")
    low, high = np.floor(corners.min(axis=0)).astype(int), np.ceil(corners.max(axis=0)).astype(int)
    return (int(low[0]), int(low[1]), int(high[0]), int(high[1])), outline


def _within(rectangle: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = rectangle
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        raise UsageError(
            f"roi: {list(rectangle)} lies outside the frame of {width} x {height} pixels",
            hint="give it in pixels of the upright frame",
        )
    return max(0, x1), max(0, y1), min(width, x2), min(height, y2)


def in_frame(result: Any, x: int, y: int, width: int, height: int) -> Any:
    """Return the result of a part of a frame that begins at (x, y), in pixels of the whole frame."""
    if isinstance(result, (Detections, Keypoints)):
        return result.moved(x, y)
    if isinstance(result, Mask):
        part = result.upright()
        whole: NDArray[np.uint8] = np.full((height, width), NO_CLASS, np.uint8)
        whole[y : y + part.shape[0], x : x + part.shape[1]] = part
        return replace(result, ids=whole, geometry=Geometry(width, height, width, height, 1.0, 1.0))
    return result
