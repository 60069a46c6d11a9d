"""Hide people, faces or plates in the frame itself, before anything that sees the frame gets it."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sdk.rules.base import Filter
from edge_sdk.sources.base import Image
from edge_sdk.stage_params import BlurParams
from edge_sdk.tasks.base import Detections, Mask


class Privacy:
    """Hides the boxes of one camera's results, in order; a box stays hidden a while after it is lost."""

    kind = "blur"

    def __init__(self, name: str = "blur", params: BlurParams | None = None) -> None:
        self.name = name
        self.params = params or BlurParams()
        self.filter = Filter(classes=self.params.classes, min_score=self.params.min_score)
        self._kept: list[tuple[float, NDArray[np.float32]]] = []

    def adopt(self, old: Privacy) -> None:
        """Keep hidden what another one hides still."""
        self._kept = old._kept

    def hide(self, image: Image, result: Detections | Mask, t_s: float) -> int:
        """Make what was found unreadable in `image`, in place; return how many boxes, or pixels of a mask, that was.

        Boxes of the last `keep_s` seconds stay hidden; a mask hides the pixels of `classes`.
        """
        if isinstance(result, Mask):
            return self._hide_mask(image, result)
        detections = result
        boxes = detections.xyxy[self.filter.mask(detections)]
        self._kept = [(at, b) for at, b in self._kept if 0 <= t_s - at <= self.params.keep_s]
        if len(boxes):
            self._kept.append((t_s, boxes))
        if not self._kept:
            return 0
        together = np.concatenate([b for _, b in self._kept])
        return hide_boxes(image, together, self.params)

    def _hide_mask(self, image: Image, mask: Mask) -> int:
        ids = mask.upright()
        chosen = np.isin(ids, self.filter.ids(mask.labels)) if self.params.classes else ids > 0
        hidden = image.copy()
        _hide(hidden, replace(self.params, blocks=4 * self.params.blocks))
        np.copyto(image, hidden, where=chosen[:, :, None])
        return int(np.count_nonzero(chosen))


def hide_boxes(image: Image, boxes: NDArray[np.float32], params: BlurParams) -> int:
    """Make (n, 4) x1 y1 x2 y2 boxes unreadable in a BGR image, in place; return how many touched it.

    A box with a coordinate that is not a number hides the whole image: what cannot be placed must not be shown.
    """
    height, width = image.shape[:2]
    if not np.isfinite(boxes).all():
        boxes = np.array([[0, 0, width, height]], np.float32)
    grow = params.grow * (boxes[:, 2:] - boxes[:, :2])
    low = np.floor(boxes[:, :2] - grow).clip(0, (width, height)).astype(int)
    high = np.ceil(boxes[:, 2:] + grow).clip(0, (width, height)).astype(int)
    hidden = 0
    for (x1, y1), (x2, y2) in zip(low.tolist(), high.tolist(), strict=True):
        if x2 > x1 and y2 > y1:
            _hide(image[y1:y2, x1:x2], params)
            hidden += 1
    return hidden


def _hide(part: Image, params: BlurParams) -> None:
    height, width = part.shape[:2]
    if params.mode == "fill":
        part[:] = 0
        return
    block = max(height, width) / params.blocks
    size = max(1, round(width / block)), max(1, round(height / block))
    few = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    how = cv2.INTER_NEAREST if params.mode == "pixelate" else cv2.INTER_CUBIC
    part[:] = cv2.resize(few, (width, height), interpolation=how).reshape(part.shape)
