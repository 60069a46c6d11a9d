"""The frames with their results drawn on, as an MP4 file."""

from __future__ import annotations

import contextlib
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


class AnnotatedVideo:
    """An mp4v file, written beside its final name and renamed when it is complete.

    A live source's frames are repeated or left out so that the video keeps the time; frames of another size than the
    first are scaled to it.
    """

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        options = Options(options, frozenset({"fps", "live", "append"}), "a video sink")
        self.uri = uri
        self.path = Path(place(uri))
        if self.path.suffix.lower() != ".mp4":
            raise UsageError(f"video sink `{self.path}`: only .mp4 can be written", hint="name it something.mp4")
        self._fps = options.number("fps", 25.0, low=0.1, high=1000) or 25.0
        self._live = options.flag("live")
        self._part = self.path.with_name(self.path.name + ".part.mp4")
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
            if self._part.stat().st_size == 0:
                raise SinkError(f"`{self.path}`: nothing could be written", hint="is the disk full?")
            self._part.replace(self.path)
        except OSError as error:
            raise SinkError(f"`{self.path}`: {(error.strerror or str(error)).lower()}") from None

    def _begin(self, image: Image, t_s: float) -> None:
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
