"""A short video around each event, with the seconds before it, a snapshot and the events as JSON."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import cv2

from edge_sdk.errors import SinkError, UsageError
from edge_sdk.sinks.avi import MjpegAvi
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sinks.draw import draw
from edge_sdk.sinks.uri import place
from edge_sdk.sources.uri import Options

logger = logging.getLogger(__name__)
_PATTERN = "clip_*"
_LONGEST_S = 120.0


class Clips:
    """Writes `clip_TIME_FRAME.avi`, `.jpg` and `.json` into a folder for each event of zones, lines, alerts, cameras.

    `clips:DIR?pre_s=3&post_s=5&max_mb=1000&quality=80`: seconds before and after the event (further events make the
    clip longer, up to two minutes), how much the clips of the folder may take (the oldest go first) and the JPEG
    quality. The AVI can be read at every moment: a killed process leaves what it had written. A full disk costs clips,
    counted and raised at the end; it stops no pipeline.
    """

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        self.uri = uri
        path, _, query = place(uri).partition("?")
        own = dict(options) | dict(parse_qsl(query, keep_blank_values=True))
        known = frozenset({"fps", "live", "append", "pre_s", "post_s", "max_mb", "quality"})
        own = Options(own, known, "a clips sink")
        if not path:
            raise UsageError(f"sink `{uri}` names no folder", hint="for example clips:events?pre_s=3")
        self.folder = Path(path)
        self._fps = own.number("fps", 25.0, low=0.1, high=1000) or 25.0
        self._pre_s = own.number("pre_s", 3.0, low=0, high=60) or 0.0
        self._post_s = own.number("post_s", 5.0, low=0, high=60) or 0.0
        self._max_bytes = int((own.number("max_mb", 1000.0, low=1, high=1e9) or 1.0) * 1e6)
        self._quality = int(own.number("quality", 80, low=1, high=100) or 80)
        self._before: deque[tuple[float, bytes]] = deque()
        self._clip: MjpegAvi | None = None
        self._size = (0, 0)
        self._events: list[dict[str, Any]] = []
        self._start_t = self._until_t = 0.0
        self.clips = self.lost = 0
        self._why = ""

    def open(self) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
            probe = self.folder / ".clips"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise SinkError(
                f"`{self.folder}` cannot be written: {(error.strerror or str(error)).lower()}",
                hint="check that the folder exists and may be written to",
            ) from None

    def write(self, item: FrameResult) -> None:
        t_s, image = item.frame.t_s, item.frame.image
        if (image.shape[1], image.shape[0]) != self._size:
            self._finish()
            self._before.clear()
            self._size = (image.shape[1], image.shape[0])
        ok, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self._quality])
        if not ok:
            raise SinkError(f"`{self.folder}`: a frame cannot be written as JPEG")
        jpeg = data.tobytes()
        self._before.append((t_s, jpeg))
        while self._before[0][0] < t_s - self._pre_s:
            self._before.popleft()
        try:
            if self._clip is not None and (t_s > self._until_t or self._clip.full):
                self._finish()
            if self._clip is not None:
                self._add(t_s, jpeg)
            if item.events:
                self._note(item)
        except OSError as error:
            self._lose(error)

    def close(self) -> None:
        self._finish()
        if self.lost:
            raise SinkError(f"`{self.folder}`: {self.lost} clips could not be written: {self._why}")

    def _note(self, item: FrameResult) -> None:
        """Start a clip at the frame's events, or make the one that runs longer."""
        t_s = item.frame.t_s
        if self._clip is None:
            self._begin(item)
        self._until_t = min(t_s + self._post_s, self._start_t + _LONGEST_S)
        self._events += item.events
        assert self._clip is not None
        text = json.dumps(
            {"t_s": round(self._start_t, 3), "fps": self._fps, "events": self._events}, ensure_ascii=False
        )
        self._put(self._clip.path.with_suffix(".json"), text.encode() + b"\n")

    def _begin(self, item: FrameResult) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path = self.folder / f"clip_{stamp}_{item.frame.index:08d}.avi"
        self._make_room(0)
        self._clip = MjpegAvi(path, fps=self._fps, width=self._size[0], height=self._size[1])
        self._start_t = self._before[0][0]
        self.clips += 1
        _, picture = cv2.imencode(".jpg", draw(item))
        self._put(path.with_suffix(".jpg"), picture.tobytes())
        for t_s, jpeg in self._before:
            self._add(t_s, jpeg)

    def _add(self, t_s: float, jpeg: bytes) -> None:
        """Append a frame, repeated or left out so that the clip keeps the time."""
        clip = self._clip
        assert clip is not None
        due = round((t_s - self._start_t) * self._fps) + 1 - clip.frames
        for _ in range(max(0, min(due, int(self._fps * 10) + 1))):
            self._make_room(len(jpeg))
            clip.add(jpeg)

    def _put(self, path: Path, data: bytes) -> None:
        part = path.with_name("." + path.name + ".part")
        try:
            part.write_bytes(data)
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def _make_room(self, more: int) -> None:
        """Delete the oldest clips, all their files, while the folder holds more than it may."""
        if more and self._clip is not None and self._clip.frames % 50:
            return
        files = sorted(p for p in self.folder.glob(_PATTERN) if p.is_file())
        sizes = {p: p.stat().st_size for p in files}
        running = self._clip.path.stem if self._clip is not None else None
        total = sum(sizes.values())
        for path in files:
            if total + more <= self._max_bytes:
                return
            if path.stem != running:
                path.unlink(missing_ok=True)
                total -= sizes[path]

    def _finish(self) -> None:
        if self._clip is not None:
            self._clip.close()
        self._clip, self._events = None, []

    def _lose(self, error: OSError) -> None:
        self.lost += 1
        self._why = (error.strerror or str(error)).lower()
        if self.lost == 1:
            logger.warning("%s: a clip is cut short: %s", self.folder, self._why)
        self._finish()
