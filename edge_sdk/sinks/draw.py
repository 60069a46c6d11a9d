"""Results drawn onto a copy of the frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2

from edge_sdk.sources.base import Image

_PALETTE = ((66, 133, 244), (52, 168, 83), (5, 188, 251), (53, 67, 234), (188, 66, 171), (189, 174, 0), (0, 112, 255))


def draw(image: Image, result: Mapping[str, Any]) -> Image:
    """Return a copy of a BGR image with the detections, classes and keypoints of a result's JSON on it."""
    out = image.copy()
    scale = max(0.4, min(out.shape[:2]) / 900)
    for row in result.get("detections", ()):
        color = _PALETTE[row["class_id"] % len(_PALETTE)]
        x1, y1, x2, y2 = (round(v) for v in row["box"])
        cv2.rectangle(out, (x1, y1), (x2, y2), color, max(1, round(2 * scale)))
        track = f" #{row['track']}" if "track" in row else ""
        _text(out, f"{row['label']}{track} {row['score']:.2f}", (x1, y1), color, scale)
    for i, row in enumerate(result.get("classes", ())[:3]):
        at = (0, round((i + 1) * 34 * scale))
        _text(out, f"{row['label']} {row['score']:.2f}", at, _PALETTE[i], scale)
    return out


def _text(image: Image, text: str, at: tuple[int, int], color: tuple[int, int, int], scale: float) -> None:
    font = cv2.FONT_HERSHEY_SIMPLEX
    (width, height), base = cv2.getTextSize(text, font, scale, 1)
    x = max(0, min(at[0], image.shape[1] - width))
    y = max(height + base, min(at[1], image.shape[0] - 1))
    cv2.rectangle(image, (x, y - height - base), (x + width, y), color, -1)
    cv2.putText(image, text, (x, y - base // 2), font, scale, (255, 255, 255), 1, cv2.LINE_AA)
