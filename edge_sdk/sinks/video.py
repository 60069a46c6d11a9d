"""The frames with their results drawn on, as an MP4 file."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2

from edge_sdk.errors import SinkError, UsageError
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sinks.draw import draw
from edge_sdk.sinks.uri import place
from edge_sdk.sources.base import Image
from edge_sdk.sources.uri import Options

_INDEX_BYTES = 32


class AnnotatedVideo:
    """An mp4v file, written beside its final name and renamed when it is complete.

    A live source's frames are repeated or left out so that the video keeps the time; frames of another size than the
    first are scaled to it. An MP4 cannot be read before its index is written, at its end: when fewer than `min_free_mb`
    (20) are free on the disk the video ends there, complete as far as it goes, and further frames are SinkErrors.
    """

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        options = Options(options, frozenset({"fps", "live", "append", "min_free_mb"}), "a video sink")
        self.uri = uri
        self.path = Path(place(uri))
        if self.path.suffix.lower() != ".mp4":
            raise UsageError(f"video sink `{self.path}`: only .mp4 can be written", hint="name it something.mp4")
        self._fps = options.number("fps", 25.0, low=0.1, high=1000) or 25.0
        self._live = options.flag("live")
        self._part = self.path.with_name(self.path.name + ".part.mp4")
        self._min_free = int((options.number("min_free_mb", 20.0, low=0, high=1e9) or 0.0) * 1e6)
        self._full: str | None = None
        self._writer: Any = None
        self._size = (0, 0)
        self._written = 0
        self._start_t = 0.0

    def open(self) -> None:
        if not self.path.parent.is_dir():
            raise SinkError(f"`{self.path}` cannot be written: no such folder", hint="make the folder first")
        try:
            self._part.open("wb").close()
        except OSError as error:
            raise SinkError(f"`{self.path}` cannot be written: {(error.strerror or str(error)).lower()}") from None

    def write(self, item: FrameResult) -> None:
        if self._full is None and self._writer is not None:
            self._look_for_room()
        if self._full is not None:
            raise SinkError(self._full, hint="make room, and start again; `min_free_mb` is what the video leaves free")
        image = draw(item)
        if self._writer is None:
            self._begin(image, item.frame.t_s)
        if (image.shape[1], image.shape[0]) != self._size:
            image = cv2.resize(image, self._size)  # type: ignore[assignment]
        for _ in range(self._copies(item.frame.t_s)):
            self._writer.write(image)
            self._written += 1

    def close(self) -> None:
        if self._writer is None:
            with contextlib.suppress(OSError):
                self._part.unlink()
            return
        self._writer.release()
        self._writer = None
        try:
            # The writer says nothing of what the disk did not take.
            if self._part.stat().st_size == 0 or not cv2.VideoCapture(str(self._part), cv2.CAP_FFMPEG).isOpened():
                raise SinkError(f"`{self._part}` is not complete and cannot be read", hint="is the disk full?")
            self._part.replace(self.path)
        except OSError as error:
            raise SinkError(f"`{self.path}`: {(error.strerror or str(error)).lower()}") from None

    def _look_for_room(self) -> None:
        """End the video while there is room for its index."""
        if self._free() >= self._min_free + _INDEX_BYTES * self._written:
            return
        self._full = f"`{self.path}` ends after {self._written} frames: the disk is full"
        try:
            self.close()
        except SinkError as error:
            self._full = error.message

    def _free(self) -> int:
        try:
            return shutil.disk_usage(self.path.parent).free
        except OSError:
            return 0

    def _begin(self, image: Image, t_s: float) -> None:
        if self._free() < self._min_free:
            free_mb, least_mb = self._free() / 1e6, self._min_free / 1e6
            message = f"`{self.path}`: {free_mb:.1f} MB are free on the disk, a video begins with {least_mb:g}"
            raise SinkError(message, hint="make room, or lower `min_free_mb`")
        self._size = (image.shape[1], image.shape[0])
        self._start_t = t_s
        self._writer = cv2.VideoWriter(
            str(self._part), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), self._fps, self._size
        )
        if not self._writer.isOpened():
            self._writer = None
            raise SinkError(f"`{self.path}`: this OpenCV cannot write mp4v", hint="`edge doctor` says which it is")

    def _copies(self, t_s: float) -> int:
        if not self._live:
            return 1
        due = int((t_s - self._start_t) * self._fps) + 1 - self._written
        return max(0, min(due, int(self._fps * 60)))
