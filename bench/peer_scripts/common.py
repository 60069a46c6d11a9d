"""What every script reports: CPU a frame, peak memory, CPU of the imports. Standard library only."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

WARM_FRAMES = 20


class Meter:
    """Counts frames; CPU is taken from the 20th frame on, so that loading and warming up do not count."""

    def __init__(self) -> None:
        self.frames = self.found = 0
        self._begin = 0.0

    def frame(self, found: int) -> int:
        """Count a frame in which `found` things were found and return how many frames there were."""
        self.frames += 1
        self.found += found
        if self.frames == WARM_FRAMES:
            self._begin = time.process_time()
        return self.frames

    def report(self, imported_s: float) -> None:
        """Print CPU ms a frame, peak memory in MB, CPU s of the imports."""
        spent = time.process_time() - self._begin
        counted = self.frames - WARM_FRAMES
        facts = {"cpu_ms": spent * 1000 / counted, "frames": self.frames, "found": self.found, "rss_mb": peak_mb()}
        print(json.dumps(facts | {"import_s": imported_s}))


def peak_mb() -> float:
    """Return this process's peak memory; `ru_maxrss` would count the process that started it too."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) / 1024


def words() -> tuple[str, str, int]:
    """Return video, model and number of frames."""
    return sys.argv[1], sys.argv[2], int(sys.argv[3])


def frames_of(video: str, n: int) -> Iterator[Any]:
    """Yield the first `n` frames as cv2 reads them by default."""
    import cv2

    capture = cv2.VideoCapture(video)
    for _ in range(n):
        ok, frame = capture.read()
        if not ok:
            return
        yield frame


def yolox_letterbox(frame: Any, size: int) -> tuple[Any, float]:
    """Return the padded float picture (1, 3, size, size) and the scale, as YOLOX's own demo makes it."""
    import cv2
    import numpy as np

    ratio = min(size / frame.shape[0], size / frame.shape[1])
    small = cv2.resize(frame, (int(frame.shape[1] * ratio), int(frame.shape[0] * ratio)))
    image = np.full((size, size, 3), 114, np.uint8)
    image[: small.shape[0], : small.shape[1]] = small
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32), ratio


def yolox_boxes(output: Any, size: int, ratio: float, score: float = 0.25) -> tuple[Any, Any, Any]:
    """Return boxes, scores and classes above `score` of a raw YOLOX output, as YOLOX's own demo decodes it."""
    import numpy as np

    grids, strides = [], []
    for stride in (8, 16, 32):
        side = size // stride
        x, y = np.meshgrid(np.arange(side), np.arange(side))
        grids.append(np.stack((x, y), 2).reshape(-1, 2))
        strides.append(np.full((side * side, 1), stride))
    grid, stride_of = np.concatenate(grids), np.concatenate(strides)
    rows = output[0]
    centre = (rows[:, :2] + grid) * stride_of
    extent = np.exp(rows[:, 2:4]) * stride_of
    boxes = np.concatenate([centre - extent / 2, centre + extent / 2], axis=1) / ratio
    scores = rows[:, 4:5] * rows[:, 5:]
    classes = scores.argmax(1)
    best = scores[np.arange(len(scores)), classes]
    keep = best > score
    return boxes[keep], best[keep], classes[keep]


def yolox_kept(boxes: Any, scores: Any, classes: Any) -> int:
    """Return how many boxes non-maximum suppression at 0.45 leaves."""
    import cv2

    xywh = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes.tolist()]
    return len(cv2.dnn.NMSBoxesBatched(xywh, scores.tolist(), classes.tolist(), 0.25, 0.45)) if xywh else 0
