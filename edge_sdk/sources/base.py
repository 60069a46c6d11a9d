"""What a source of frames is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


@dataclass(slots=True)
class Frame:
    """One upright BGR image (h, w, 3) uint8; `t_s` is the media time, `captured_s` the monotonic clock at capture."""

    image: Image
    index: int
    t_s: float
    captured_s: float
    source: str


class Source(Protocol):
    """Frames from one place, read by one thread.

    A constructor takes `(uri: str, options: Mapping[str, Any])`; `open` may block and raises SourceError. `live` says
    whether frames arrive whether or not they are read.
    """

    uri: str
    live: bool

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None: ...

    def open(self) -> None: ...

    def read(self) -> Frame | None:
        """Return the next frame, or None at the end of a finite source.

        Raises:
            SourceError: the source failed; the message names it without credentials.
        """
        ...

    def skip(self) -> bool:
        """Advance by one frame without decoding it to BGR; False at the end."""
        ...

    def close(self) -> None: ...
