"""A deterministic test pattern: a gradient with moving, coloured rectangles."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_sdk.errors import UsageError
from edge_sdk.sources.base import Frame
from edge_sdk.sources.uri import Options, query_options


class Synthetic:
    """`synthetic:WxH?n=100&fps=30&seed=0&live=1`: frame i of a seed is the same on every machine.

    With `live` the frames come at `fps` whether or not they are read; without `n` it never ends.
    """

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        body, query = query_options(uri.partition(":")[2])
        merged: dict[str, Any] = {**query, **options}
        merged = Options(merged, frozenset({"n", "fps", "seed", "live"}), "the synthetic source")
        match = re.fullmatch(r"(?:(\d{1,5})x(\d{1,5}))?", body)
        if not match:
            raise UsageError(f"`{uri}`: expected synthetic:WIDTHxHEIGHT", hint="for example synthetic:640x480?n=100")
        self.width, self.height = int(match.group(1) or 640), int(match.group(2) or 480)
        if not (8 <= self.width <= 8192 and 8 <= self.height <= 8192):
            raise UsageError(f"`{uri}`: the size must be 8 to 8192 pixels a side")
        self.uri = uri
        n = merged.number("n", None, low=1, high=1e9)
        self.n = None if n is None else int(n)
        self.fps: float | None = merged.number("fps", 30.0, low=0.01, high=10_000)
        self.seed = int(merged.number("seed", 0, low=0, high=2**31) or 0)
        self.live = merged.flag("live")
        self._index = -1
        self._start = 0.0

    def open(self) -> None:
        rng = np.random.default_rng(self.seed)
        x = np.linspace(0, 255, self.width, dtype=np.float32)[np.newaxis, :]
        y = np.linspace(0, 255, self.height, dtype=np.float32)[:, np.newaxis]
        mix = rng.uniform(0.2, 0.8, 3)
        planes = [(x * m + y * (1 - m)) * 0.6 + 40 for m in mix]
        self._background = np.stack(planes, axis=-1).astype(np.uint8)
        self._colors = rng.integers(0, 256, (4, 3), dtype=np.uint8)
        self._boxes = rng.uniform(0.1, 0.3, (4, 2)) * (self.width, self.height)
        self._at = rng.uniform(0, 1, (4, 2))
        self._speed = rng.uniform(0.002, 0.02, (4, 2))
        self._index = -1
        self._start = time.monotonic()

    def grab(self) -> bool:
        self._index += 1
        if self.n is not None and self._index >= self.n:
            return False
        if self.live:
            time.sleep(max(0.0, self._start + self._index / self._rate - time.monotonic()))
        return True

    def retrieve(self) -> Frame:
        image = self._background.copy()
        at = (self._at + self._speed * self._index) % 1.0
        for (u, v), (w, h), color in zip(at, self._boxes, self._colors, strict=True):
            left, top = int(u * (self.width - w)), int(v * (self.height - h))
            image[top : top + int(h), left : left + int(w)] = color
        return Frame(image, self._index, self._index / self._rate, time.monotonic(), self.uri)

    def close(self) -> None:
        self._index = -1

    @property
    def _rate(self) -> float:
        return self.fps or 30.0
