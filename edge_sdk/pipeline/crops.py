"""Boxes cut out of a frame for a second model."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.stage_params import CropParams

Rectangle = tuple[int, int, int, int]


class Skip(Enum):
    """Why a box was not cut out."""

    OUTSIDE = "outside"
    SMALL = "small"
    LIMIT = "limit"


def crop_of(box: NDArray[Any], params: CropParams, width: int, height: int) -> Rectangle | Skip:
    """Return the whole pixels x1, y1, x2, y2 to cut out for a box of a frame, or why there are none.

    The box is grown, to a square first where that is wanted, then by `pad` on each side, rounded outwards and ended at
    the frame's border. What counts as small is the visible part of the box itself.
    """
    x1, y1, x2, y2 = (float(v) for v in box)
    if not np.isfinite((x1, y1, x2, y2)).all():
        return Skip.OUTSIDE
    seen_w, seen_h = min(x2, width) - max(x1, 0.0), min(y2, height) - max(y1, 0.0)
    if seen_w <= 0 or seen_h <= 0:
        return Skip.OUTSIDE
    if min(seen_w, seen_h) < params.min_size:
        return Skip.SMALL
    box_w, box_h = x2 - x1, y2 - y1
    side = max(box_w, box_h)
    more_w, more_h = ((side - box_w) / 2, (side - box_h) / 2) if params.square else (0.0, 0.0)
    more_w += params.pad * (side if params.square else box_w)
    more_h += params.pad * (side if params.square else box_h)
    left, top = max(0, _down(x1 - more_w)), max(0, _down(y1 - more_h))
    right, bottom = min(width, -_down(-x2 - more_w)), min(height, -_down(-y2 - more_h))
    return left, top, right, bottom


def _down(value: float) -> int:
    """Round down, but not by a whole pixel for what is one but for the rounding of floats."""
    return int(np.floor(value + 1e-4))
