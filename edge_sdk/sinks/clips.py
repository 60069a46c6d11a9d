"""A short video around each event, with the seconds before it, a snapshot and the events as JSON."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import cv2

from edge_sdk.errors import SinkError
from edge_sdk.sinks.avi import MjpegAvi
from edge_sdk.sinks.base import FrameResult, rule_events
from edge_sdk.sinks.cut import Cutter, Job
from edge_sdk.sinks.draw import draw
from edge_sdk.sinks.folder import folder_of

logger = logging.getLogger(__name__)
_LONGEST_S = 120.0


class Clips:
    """Writes `clip_TIME_FRAME.avi`, `.jpg` and `.json` into a folder for each event of zones, lines, alerts, cameras.

    `clips:DIR?pre_s=3&post_s=5&max_mb=1000&min_free_mb=20&quality=80`: seconds before and after the event (further
    events make the clip longer, up to two minutes), how much the clips of the folder may take, how much must stay free
    on the disk, and the JPEG quality. The oldest clips go first, also when the disk is full. The AVI can be read at
    every moment: a killed process leaves what it had written. A disk that takes nothing although no older clip is left
    costs clips, counted and raised at the end; it stops no pipeline.

    After `cut_from` the AVI is replaced by an `.mkv` cut from that recording, once its end is on the disk; where that
    does not work the AVI stays.
    """

    changeable: ClassVar[frozenset[str]] = frozenset({"pre_s", "post_s", "max_mb", "min_free_mb", "quality"})

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        self.uri = uri
        self._store, own = folder_of(uri, dict(options), prefix="clip", known=self.changeable)
        self.folder = self._store.folder
        self._fps = own.number("fps", 25.0, low=0.1, high=1000) or 25.0
        self._pre_s = own.number("pre_s", 3.0, low=0, high=60) or 0.0
        self._post_s = own.number("post_s", 5.0, low=0, high=60) or 0.0
        self._quality = int(own.number("quality", 80, low=1, high=100) or 80)
        self._before: deque[tuple[float, bytes]] = deque()
        self._clip: MjpegAvi | None = None
        self._size = (0, 0)
        self._events: list[dict[str, Any]] = []
        self._start_t = self._until_t = 0.0
        self._wall_s = self._event_t = 0.0
        self._cutter: Cutter | None = None
        self.clips = self.lost = 0
        self._why = ""

    def adopt(self, other: Clips) -> None:
        """Take over the options of another that was made for the same folder."""
        self._pre_s, self._post_s, self._quality = other._pre_s, other._post_s, other._quality
        self._store.most, self._store.min_free = other._store.most, other._store.min_free

    def cut_from(self, folder: Path) -> None:
        """Cut clips from the recording in `folder`, that of the main stream whose sub-stream the pipeline sees."""
        self._cutter = Cutter(folder)

    def open(self) -> None:
        self._store.open()

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
            if rule_events(item):
                self._note(item)
        except OSError as error:
            self._lose(error)

    def close(self) -> None:
        self._finish()
        if self._cutter is not None:
            self._cutter.close()
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
        self._put_facts(self._clip.path, self._facts())

    def _facts(self) -> dict[str, Any]:
        return {"t_s": round(self._start_t, 3), "fps": self._fps, "events": self._events}

    def _put_facts(self, video: Path, facts: dict[str, Any]) -> None:
        text = json.dumps(facts | {"video": video.name}, ensure_ascii=False)
        self._put(video.with_suffix(".json"), text.encode() + b"\n")

    def _begin(self, item: FrameResult) -> None:
        path = self.folder / f"{self._store.stem(item.frame.index)}.avi"
        self._store.make_room()
        self._clip = self._store.write(lambda: self._new(path), but=path.stem)
        self._start_t, self._event_t = self._before[0][0], item.frame.t_s
        self._wall_s = time.time() - max(0.0, time.monotonic() - item.frame.captured_s)
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
            if clip.frames % 50 == 0:
                self._store.make_room(but=clip.path.stem)
            self._store.write(lambda: clip.add(jpeg), but=clip.path.stem)

    def _new(self, path: Path) -> MjpegAvi:
        try:
            return MjpegAvi(path, fps=self._fps, width=self._size[0], height=self._size[1])
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def _put(self, path: Path, data: bytes) -> None:
        self._store.put(path, data, but=path.stem)

    def _finish(self) -> None:
        clip, facts = self._clip, self._facts()
        self._clip, self._events = None, []
        if clip is None:
            return
        clip.close()
        if self._cutter is not None:
            end_s = min(self._wall_s + self._until_t - self._event_t, time.time())
            video = clip.path.with_suffix(".mkv")

            def done(why: str | None) -> None:
                if why is None:
                    self._put_facts(video, facts)
                    clip.path.unlink(missing_ok=True)

            self._cutter.add(Job(self._wall_s - self._pre_s, end_s, video, done))

    def _lose(self, error: OSError) -> None:
        self.lost += 1
        self._why = (error.strerror or str(error)).lower()
        if self.lost == 1:
            logger.warning("%s: a clip is cut short: %s", self.folder, self._why)
        self._finish()
