"""A finite source played at a fixed rate, as a camera would give it."""

from __future__ import annotations

import time
from dataclasses import replace

from edge_sdk.errors import SourceError
from edge_sdk.sources.base import Frame, Source


class Paced:
    """Plays `source` at `fps` (default: its own rate), again and again with `loop`; time and index never step back."""

    live = True

    def __init__(self, source: Source, *, fps: float | None = None, loop: bool = False) -> None:
        self._source = source
        self.uri = source.uri
        self.fps = fps
        self._loop = loop
        self._index = -1
        self._start: float | None = None

    def open(self) -> None:
        self._source.open()
        self.fps = self.fps or self._source.fps or 25.0
        self._index = -1
        self._start = None

    def grab(self) -> bool:
        if not self._source.grab():
            if not self._loop:
                return False
            self._source.close()
            self._source.open()
            if not self._source.grab():
                raise SourceError(f"`{self.uri}` gave no frame when it was played again")
        self._index += 1
        now = time.monotonic()
        if self._start is None:
            self._start = now
        time.sleep(max(0.0, self._start + self._index / (self.fps or 25.0) - now))
        return True

    def retrieve(self) -> Frame:
        frame = self._source.retrieve()
        return replace(frame, index=self._index, t_s=self._index / (self.fps or 25.0), captured_s=time.monotonic())

    def close(self) -> None:
        self._source.close()

    def interrupt(self) -> None:
        """End a read that waits, where the source that is played can do that."""
        getattr(self._source, "interrupt", lambda: None)()

    def warnings(self) -> tuple[str, ...]:
        """Return those of the source that is played."""
        found: tuple[str, ...] = getattr(self._source, "warnings", tuple)()
        return found
