"""What a source of frames is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import SourceError

Image = NDArray[np.uint8]


@dataclass(slots=True)
class Frame:
    """One upright BGR image (h, w, 3) uint8; `t_s` is the media time, `captured_s` the monotonic clock at capture."""

    image: Image
    index: int
    t_s: float
    captured_s: float
    source: str


class BrokenFrame(SourceError):
    """One frame could not be decoded; the next may be good. `name` is what the frame is called."""

    def __init__(self, message: str, *, hint: str | None = None, name: str = "") -> None:
        super().__init__(message, hint=hint)
        self.name = name


class Source(Protocol):
    """Frames from one place, used by one thread at a time.

    A constructor takes `(uri: str, options: Mapping[str, Any])` and raises UsageError on a wrong URI or option. `live`
    says whether frames come and go whether or not they are read, `fps` is the nominal rate or None.

    A source may also have `interrupt()` (from any thread: end a read that waits, for good), `reachable()` (True, False,
    or None when that cannot be told without opening it), `warnings()` (lines for the report) and `patient = True` (no
    frame for a long time is no failure).
    """

    uri: str
    live: bool
    fps: float | None

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None: ...

    def open(self) -> None:
        """Open it; may block.

        Raises:
            SourceError: it cannot be opened; the message names it without credentials.
        """
        ...

    def grab(self) -> bool:
        """Advance to the next frame without decoding it to BGR; False at the end of a finite source.

        Raises:
            SourceError: the source failed.
        """
        ...

    def retrieve(self) -> Frame:
        """Return the grabbed frame.

        Raises:
            BrokenFrame: this one frame cannot be decoded.
            SourceError: the source failed.
        """
        ...

    def close(self) -> None:
        """Release it; allowed in every state."""
        ...


def read(source: Source) -> Frame | None:
    """Return the next frame, or None at the end."""
    return source.retrieve() if source.grab() else None
