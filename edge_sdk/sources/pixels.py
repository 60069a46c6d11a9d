"""Whatever a camera or a file gives becomes BGR uint8."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import SourceError
from edge_sdk.sources.base import Image

MAX_PIXELS = 100_000_000


def to_bgr8(image: NDArray[Any]) -> Image:
    """Return an image of 1, 2 (gray and alpha), 3 or 4 channels and 8 or 16 bits or float in [0, 1] as (h, w, 3) uint8.

    Sixteen bits keep their upper eight, alpha is dropped, as the usual training loaders do.

    Raises:
        SourceError: the array is no image.
    """
    if image.ndim == 2:
        image = image[:, :, np.newaxis]
    if image.ndim != 3 or image.shape[2] not in (1, 2, 3, 4) or 0 in image.shape:
        raise SourceError(f"a frame has the shape {image.shape}, expected height, width and 1 to 4 channels")
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    elif image.dtype.kind == "f":
        image = (np.nan_to_num(image).clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise SourceError(f"a frame has pixels of type {image.dtype}, expected uint8, uint16 or float")
    if image.shape[2] == 3:
        return image
    if image.shape[2] == 4:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGRA2BGR), np.uint8)
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(image[:, :, 0]), cv2.COLOR_GRAY2BGR), np.uint8)
