"""Overlap of boxes, vectorised."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def overlaps(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return the intersection areas (n, m) of (n, 4) and (m, 4) x1 y1 x2 y2 boxes, and the areas (n,) and (m,)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    size = np.minimum(a[:, None, 2:], b[None, :, 2:])
    size -= low
    np.maximum(size, 0, out=size)
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    return size[:, :, 0] * size[:, :, 1], area_a, area_b


def iou(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Return intersection over union (n, m); 0 where both boxes are empty."""
    inter, area_a, area_b = overlaps(a, b)
    union = area_a[:, None] + area_b
    union -= inter
    np.maximum(union, 1e-9, out=union)
    inter /= union
    return inter


def ios(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Return intersection over the smaller box (n, m): 1 where one box lies inside the other."""
    inter, area_a, area_b = overlaps(a, b)
    inter /= np.maximum(np.minimum(area_a[:, None], area_b), 1e-9)
    return inter
