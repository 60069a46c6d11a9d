"""What telemetry measures on one analysed frame and its result; every feature lies in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sdk.tasks.results import Classes, Detections, Embedding, Keypoints, Mask

Vector = NDArray[np.float64]
Features = Mapping[str, float]

WORK_WIDTH = 256
CROP = 256
EMBEDDING_DIMENSIONS = 8
IMAGE_NAMES = (
    "brightness",
    "contrast",
    "saturation",
    "red_share",
    "blue_share",
    "sharpness",
    "detail",
    "noise",
    "entropy",
    "edges",
    "dark",
    "bright",
)
_LOG_LAPLACIAN_MAX = math.log1p(1e5)
_NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


def image_features(frame: NDArray[np.uint8]) -> Vector:
    """Return the 12 `IMAGE_NAMES` of a BGR frame (h, w, 3) uint8, h and w at least 8 pixels.

    Ten come from the frame shrunk to 256 pixels in width (every k-th pixel down to at least 512, then area averaging);
    `detail` and `noise` from the central 256 x 256 pixels at full resolution, because shrinking hides a soft lens and
    sensor noise.

    - brightness: mean grey / 255; contrast: standard deviation of grey / 127.5; saturation: mean (max - min) / max.
    - red_share, blue_share: the channel's part of the sum of the three channel means, 1/3 when neutral.
    - sharpness, detail: ln(1 + variance of the Laplacian) / ln(1 + 1e5) (Pech-Pacheco et al. 2000).
    - noise: s / (s + 8), s the standard deviation that Immerkaer's mask finds (J. Immerkaer 1996), in grey levels.
    - entropy: Shannon entropy of the grey histogram of 64 bins / 6 bit.
    - edges: part of the pixels whose Sobel gradient |gx| + |gy| exceeds 100 grey levels.
    - dark, bright: part of the pixels with grey < 16 and > 239.

    Raises:
        ValueError: the frame is not BGR uint8 or smaller than 8 x 8.
    """
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or min(frame.shape[:2]) < 8:
        raise ValueError(f"expected a BGR uint8 frame of at least 8 x 8, found {frame.dtype} {frame.shape}")
    height, width = frame.shape[:2]
    scale = min(1.0, WORK_WIDTH / width)
    stride = max(1, width // (2 * WORK_WIDTH))
    small: NDArray[Any] = frame[::stride, ::stride]
    if scale < 1.0:
        small = cv2.resize(small, (WORK_WIDTH, max(8, round(height * scale))), interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
    counts = cv2.calcHist([gray], [0], None, [256], [0, 256]).ravel().astype(np.float64) / gray.size
    levels = np.arange(256)
    mean = float(counts @ levels)
    deviation = math.sqrt(max(0.0, float(counts @ (levels - mean) ** 2)))
    blue, green, red = cv2.mean(small)[:3]
    total = blue + green + red
    top, left = max(0, (height - CROP) // 2), max(0, (width - CROP) // 2)
    crop = cv2.cvtColor(frame[top : top + CROP, left : left + CROP], cv2.COLOR_BGR2GRAY)
    gx = cv2.Sobel(gray, cv2.CV_16S, 1, 0)
    gy = cv2.Sobel(gray, cv2.CV_16S, 0, 1)
    edges = cv2.add(cv2.convertScaleAbs(gx), cv2.convertScaleAbs(gy))
    sigma = _immerkaer(crop)
    return _unit(
        np.array(
            [
                mean / 255,
                deviation / 127.5,
                _saturation(small),
                red / total if total > 0 else 1 / 3,
                blue / total if total > 0 else 1 / 3,
                _sharpness(gray),
                _sharpness(crop),
                sigma / (sigma + 8),
                _entropy(counts.reshape(64, 4).sum(1)) / 6,
                float(np.count_nonzero(np.asarray(edges) > 100)) / gray.size,
                float(counts[:16].sum()),
                float(counts[240:].sum()),
            ]
        )
    )


def output_features(result: Any, frame_shape: tuple[int, ...]) -> tuple[tuple[str, ...], Vector] | None:
    """Return (names, values) of what a result says of the model's certainty, or None for a task without such.

    - Classification: `top` score, `margin` to the second, `entropy` / ln(classes).
    - Detection: `count` n / (n + 8), `top` and `mean` score, `box_area` sqrt(mean part of the frame that a box covers),
      `label_entropy` of the boxes' classes / ln(8), cut at 1; all 0 when nothing is found.
    - Segmentation: `top` largest part of the frame with one class, `entropy` of the parts / ln(8), cut at 1.
    - Keypoints: `top` and `mean` score, 0 when there are none.
    """
    if isinstance(result, Classes):
        return ("top", "margin", "entropy"), _classes(result.probs)
    if isinstance(result, Detections):
        return ("count", "top", "mean", "box_area", "label_entropy"), _detections(result, frame_shape)
    if isinstance(result, Mask):
        return ("top", "entropy"), _mask(result.ids)
    if isinstance(result, Keypoints):
        score = result.score if result.score.size else np.zeros(1)
        return ("top", "mean"), _unit(np.array([score.max(), score.mean()], np.float64))
    return None


def top_score(result: Any) -> float | None:
    """Return the highest score in [0, 1] of a result, None when it has none."""
    if isinstance(result, Detections):
        return float(result.score.max()) if len(result) else None
    if isinstance(result, Classes):
        return result.score if result.probs.size else None
    if isinstance(result, Keypoints):
        return float(result.score.max()) if result.score.size else None
    return None


def embedding_features(result: Any) -> tuple[tuple[str, ...], Vector] | None:
    """Return 8 random projections of a result's embedding, or None when it has none.

    The vector is scaled to length 1 and projected on fixed random directions (the same for every device and version);
    the normal distribution function spreads each value over [0, 1].
    """
    if not isinstance(result, Embedding):
        return None
    vector = np.asarray(result.vector, np.float64).ravel()
    length = float(np.linalg.norm(vector))
    if not vector.size or not math.isfinite(length) or length == 0.0:
        return None
    directions = np.random.Generator(np.random.PCG64(vector.size)).standard_normal((EMBEDDING_DIMENSIONS, vector.size))
    z = directions @ (vector / length)
    values = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in z])
    return tuple(f"e{i}" for i in range(EMBEDDING_DIMENSIONS)), values


def _saturation(small: NDArray[Any]) -> float:
    blue, green, red = cv2.split(small)
    high = cv2.max(cv2.max(blue, green), red)
    low = cv2.min(cv2.min(blue, green), red)
    return float(cv2.mean(cv2.divide(cv2.subtract(high, low), high, scale=255.0))[0]) / 255


def _sharpness(gray: NDArray[Any]) -> float:
    _, deviation = cv2.meanStdDev(cv2.Laplacian(gray, cv2.CV_16S))
    return math.log1p(float(deviation[0, 0]) ** 2) / _LOG_LAPLACIAN_MAX


def _immerkaer(gray: NDArray[Any]) -> float:
    filtered = cv2.filter2D(gray, cv2.CV_16S, _NOISE_KERNEL)[1:-1, 1:-1]
    return math.sqrt(math.pi / 2) / 6 * float(cv2.norm(filtered, cv2.NORM_L1)) / filtered.size


def _entropy(parts: NDArray[Any]) -> float:
    present = parts[parts > 0]
    return float(-(present * np.log2(present)).sum())


def _unit(values: NDArray[Any]) -> Vector:
    return np.asarray(np.clip(values, 0.0, 1.0), np.float64)


def _classes(probs: NDArray[Any]) -> Vector:
    values = np.clip(np.asarray(probs, np.float64).ravel(), 0, None)
    if values.size < 2:
        top = float(values[0]) if values.size else 0.0
        return _unit(np.array([top, top, 0.0]))
    second, top = np.partition(values, -2)[-2:]
    total = values.sum()
    entropy = _entropy(values / total) / math.log2(values.size) if total > 0 else 1.0
    return _unit(np.array([top, top - second, entropy]))


def _detections(found: Detections, frame_shape: tuple[int, ...]) -> Vector:
    n = len(found)
    if n == 0:
        return np.zeros(5)
    height, width = frame_shape[:2]
    boxes = found.xyxy.astype(np.float64)
    area = np.clip(boxes[:, 2] - boxes[:, 0], 0, None) * np.clip(boxes[:, 3] - boxes[:, 1], 0, None) / (height * width)
    parts = np.unique(found.class_id, return_counts=True)[1] / n
    values = [n / (n + 8), found.score.max(), found.score.mean(), math.sqrt(float(area.mean())), _entropy(parts) / 3]
    return _unit(np.array(values, np.float64))


def _mask(classes: NDArray[Any]) -> Vector:
    parts = np.unique(classes, return_counts=True)[1] / max(1, classes.size)
    return _unit(np.array([parts.max() if parts.size else 0.0, _entropy(parts) / 3]))
