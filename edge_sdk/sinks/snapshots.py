"""One picture and one JSON document for each event: smaller than clips, readable at every moment."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import cv2

from edge_sdk.errors import SinkError
from edge_sdk.sinks.base import FrameResult, rule_events
from edge_sdk.sinks.draw import draw
from edge_sdk.sinks.folder import folder_of

logger = logging.getLogger(__name__)


class Snapshots:
    """Writes `snapshot_TIME_FRAME.jpg` and `.json` for each frame with events of zones, lines, alerts or cameras.

    `snapshots:DIR?max_mb=1000&min_free_mb=20&quality=80&every_s=0&plain=0`: the oldest go when the folder holds
    `max_mb`, when fewer than `min_free_mb` are free, and when the disk is full; `every_s` is the least media time
    between two; `plain` leaves the results out of the picture. The JSON is the line of `--out` with `image`, the name
    of the picture; it is written last, so that one that is there has its picture. A disk that takes nothing costs
    snapshots, counted and raised at the end; it stops no pipeline.
    """

    changeable: ClassVar[frozenset[str]] = frozenset({"max_mb", "min_free_mb", "quality", "every_s", "plain"})

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        self.uri = uri
        self._folder, own = folder_of(uri, dict(options), prefix="snapshot", known=self.changeable)
        self._quality = int(own.number("quality", 80, low=1, high=100) or 80)
        self._every_s = own.number("every_s", 0.0, low=0, high=86400) or 0.0
        self._plain = own.flag("plain")
        self._last_t: float | None = None
        self.written = self.lost = 0
        self._why = ""

    def adopt(self, other: Snapshots) -> None:
        """Take over the options of another that was made for the same folder."""
        self._folder.most, self._folder.min_free = other._folder.most, other._folder.min_free
        self._quality, self._every_s, self._plain = other._quality, other._every_s, other._plain

    def open(self) -> None:
        self._folder.open()

    def write(self, item: FrameResult) -> None:
        if not rule_events(item):
            return
        t_s = item.frame.t_s
        if self._last_t is not None and 0 <= t_s - self._last_t < self._every_s:
            return
        self._last_t = t_s
        image = item.frame.image if self._plain else draw(item)
        done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self._quality])
        if not done:
            raise SinkError(f"`{self._folder.folder}`: a frame cannot be written as JPEG")
        stem = self._folder.stem(item.frame.index)
        picture = self._folder.folder / f"{stem}.jpg"
        text = json.dumps(item.to_json() | {"image": picture.name}, ensure_ascii=False, allow_nan=False)
        try:
            self._folder.make_room(but=stem)
            self._folder.put(picture, data.tobytes(), but=stem)
            self._folder.put(picture.with_suffix(".json"), text.encode() + b"\n", but=stem)
            self.written += 1
        except OSError as error:
            picture.unlink(missing_ok=True)
            self.lost += 1
            self._why = (error.strerror or str(error)).lower()
            if self.lost == 1:
                logger.warning("%s: a snapshot is lost: %s", self._folder.folder, self._why)

    def close(self) -> None:
        if self.lost:
            raise SinkError(f"`{self._folder.folder}`: {self.lost} snapshots could not be written: {self._why}")
