"""The motion gate: frames in which nothing moved need no inference."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sdk.rules.geometry import polygon
from edge_sdk.sources.base import Image
from edge_sdk.stage_params import MotionParams

ANALYSIS_WIDTH = 160

Gray = NDArray[np.uint8]


def analysis_gray(image: Image, width: int = ANALYSIS_WIDTH) -> Gray:
    """Return a small gray copy (h, `width`) of a BGR frame, its sides in proportion."""
    height = max(2, round(image.shape[0] * width / image.shape[1]))
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)  # type: ignore[return-value]


class MotionGate:
    """Says for each frame of one camera, in order, whether something moves.

    The background is a running average of a 160 pixel wide gray copy; a frame moves when enough of its pixels are far
    from it. The first frame, and one of another size, always passes.

    Raises:
        UsageError: a region is no polygon.
    """

    def __init__(self, params: MotionParams | None = None) -> None:
        self.params = params or MotionParams()
        self._regions = [polygon(r, what=f"motion gate: region {i + 1}") for i, r in enumerate(self.params.regions)]
        self._background: NDArray[np.float32] | None = None
        self._shape: tuple[int, ...] = ()
        self._mask: Gray | None = None
        self._watched = 1
        self._t_s = 0.0
        self._open_until_s = 0.0
        self._passed_s = 0.0
        self.frames = 0
        self.skipped = 0
        self.area = 0.0

    def update(self, image: Image, t_s: float) -> bool:
        """Return True when the frame should be inferred; `area` is the share of watched pixels that differ."""
        gray = analysis_gray(image)
        self.frames += 1
        background = self._background
        if background is None or image.shape != self._shape or t_s < self._t_s:
            self._restart(gray, image, t_s)
            return True
        changed = cv2.absdiff(gray, cv2.convertScaleAbs(background))
        changed = cv2.threshold(changed, self.params.threshold, 255, cv2.THRESH_BINARY)[1]
        if self._mask is not None:
            changed = cv2.bitwise_and(changed, self._mask)
        self.area = cv2.countNonZero(changed) / self._watched
        weight = min(1.0, (t_s - self._t_s) / self.params.background_s)
        cv2.accumulateWeighted(gray, background, weight)
        self._t_s = t_s
        if self.area >= self.params.min_area and self.area > 0:
            self._open_until_s = t_s + self.params.hold_s
        due = 0 < self.params.refresh_s <= t_s - self._passed_s
        if t_s <= self._open_until_s or due:
            self._passed_s = t_s
            return True
        self.skipped += 1
        return False

    def _restart(self, gray: Gray, image: Image, t_s: float) -> None:
        self._background, self._shape = gray.astype(np.float32), image.shape
        self._mask, self._watched = None, gray.size
        if self._regions:
            scale = gray.shape[1] / image.shape[1]
            self._mask = np.zeros_like(gray)
            cv2.fillPoly(self._mask, [np.round(r * scale).astype(np.int32) for r in self._regions], 255)
            self._watched = max(1, cv2.countNonZero(self._mask))
        self.area = 1.0
        self._t_s = self._passed_s = t_s
        self._open_until_s = t_s + self.params.hold_s
