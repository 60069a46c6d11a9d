"""Frames from standard input: `-` for images one after the other, `stdin:WxH?pixels=bgr24` for raw ones."""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import SourceError, UsageError
from edge_sdk.registry import near_miss
from edge_sdk.sources.base import BrokenFrame, Frame
from edge_sdk.sources.encoded import Images
from edge_sdk.sources.images import decode_image
from edge_sdk.sources.pixels import MAX_PIXELS, to_bgr8
from edge_sdk.sources.uri import Options, query_options

_POLL_MS = 250
# bits a pixel, shape of the array for (h, w), and how it becomes BGR (None: by its channels)
_RAW: Mapping[str, tuple[int, Callable[[int, int], tuple[int, ...]], str, int | None]] = {
    "bgr24": (24, lambda h, w: (h, w, 3), "u1", None),
    "rgb24": (24, lambda h, w: (h, w, 3), "u1", cv2.COLOR_RGB2BGR),
    "bgra": (32, lambda h, w: (h, w, 4), "u1", None),
    "rgba": (32, lambda h, w: (h, w, 4), "u1", cv2.COLOR_RGBA2BGR),
    "gray8": (8, lambda h, w: (h, w), "u1", None),
    "gray16le": (16, lambda h, w: (h, w), "<u2", None),
    "yuv420p": (12, lambda h, w: (h * 3 // 2, w), "u1", cv2.COLOR_YUV2BGR_I420),
    "nv12": (12, lambda h, w: (h * 3 // 2, w), "u1", cv2.COLOR_YUV2BGR_NV12),
    "yuyv422": (16, lambda h, w: (h, w, 2), "u1", cv2.COLOR_YUV2BGR_YUYV),
}


class Stdin:
    """Every frame that comes on standard input, at most one of them in memory: a slow reader holds the writer back.

    `-` reads JPEG, PNG and binary PNM images one after the other (`ffmpeg … -f mjpeg -`). `stdin:640x480?pixels=bgr24`
    reads raw frames without anything between them; `pixels` is bgr24, rgb24, bgra, rgba, gray8, gray16le, yuv420p,
    nv12 or yuyv422. Options: `fps` (media time of frame n is n / fps, default 25), `live` (take the latest frame and
    drop the others), `fd` (another descriptor).
    """

    patient = True

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        body, query = query_options("" if uri == "-" else uri.partition(":")[2])
        merged = Options({**query, **options}, frozenset({"pixels", "fps", "live", "fd"}), "standard input")
        self.uri = uri
        self.fps: float | None = merged.number("fps", 25.0, low=0.01, high=10_000)
        self.live = merged.flag("live")
        self._fd = int(merged.number("fd", 0, low=0, high=2**20) or 0)
        self._size = _size_of(uri, body, merged.get("pixels"))
        self._pixels = str(merged.get("pixels", ""))
        self._wake, self._bell = -1, -1
        self._stopped = False
        self._count = 0
        self._captured = 0.0
        self._taken: bytes | bytearray = b""
        self._failure: BrokenFrame | None = None

    def open(self) -> None:
        """Take the descriptor.

        Raises:
            SourceError: it is closed, or a terminal.
        """
        try:
            terminal = os.isatty(self._fd)
            os.fstat(self._fd)
        except OSError:
            raise SourceError("standard input is closed", hint="pipe frames into the command") from None
        if terminal:
            raise SourceError(
                "standard input is a terminal", hint="pipe frames into the command: ffmpeg … -f mjpeg - | …"
            )
        self._wake, self._bell = os.pipe()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        self._images = Images(self._read, "standard input")
        self._count = 0

    def grab(self) -> bool:
        if self._stopped or self._wake < 0:
            return False
        if self._size is None:
            try:
                image = self._images.next()
            except BrokenFrame as error:
                # Counted as a frame: `retrieve` says what is wrong with it.
                self._failure = error
                self._count += 1
                return True
            self._failure = None
            self._taken = image or b""
            more = image is not None
        else:
            self._failure = None
            more = self._raw()
        if not more:
            if self._count == 0 and not self._stopped:
                raise SourceError(
                    "standard input ended without one frame", hint="does the command before the pipe work?"
                )
            return False
        self._captured = time.monotonic()
        self._count += 1
        return True

    def retrieve(self) -> Frame:
        if self._failure is not None:
            raise self._failure
        index = self._count - 1
        t_s = index / (self.fps or 25.0)
        if self._size is None:
            image = decode_image(bytes(self._taken), f"{index} of standard input")
        else:
            image = to_bgr8(self._bgr())
        return Frame(image, index, t_s, self._captured, self.uri)

    def interrupt(self) -> None:
        """End a read that waits; allowed from every thread."""
        self._stopped = True
        if self._bell >= 0:
            with contextlib.suppress(OSError):
                os.write(self._bell, b"!")

    def close(self) -> None:
        wake, bell, self._wake, self._bell = self._wake, self._bell, -1, -1
        for fd in (wake, bell):
            if fd >= 0:
                os.close(fd)

    def _raw(self) -> bool:
        """Read one raw frame into memory of its own."""
        assert self._size is not None
        width, height = self._size
        need = width * height * _RAW[self._pixels][0] // 8
        taken = bytearray()
        while len(taken) < need:
            data = self._read(need - len(taken))
            if not data:
                if taken and not self._stopped:
                    self._failure = BrokenFrame(
                        f"standard input ends inside frame {self._count}: {len(taken)} of {need} bytes",
                        hint=f"are the frames {width}x{height} {self._pixels}?",
                        name=f"frame {self._count}",
                    )
                    return True
                return False
            taken += data
        self._taken = taken
        return True

    def _bgr(self) -> NDArray[Any]:
        assert self._size is not None
        width, height = self._size
        _, shape, kind, code = _RAW[self._pixels]
        array = np.frombuffer(self._taken, kind).reshape(shape(height, width))
        return array if code is None else np.asarray(cv2.cvtColor(array, code))

    def _read(self, size: int) -> bytes:
        """Return what is there, waiting for something; nothing at the end, or once it was interrupted."""
        while not self._stopped and self._wake >= 0:
            ready = {fd for fd, _ in self._poll.poll(_POLL_MS)}
            if self._fd in ready and not self._stopped:
                return os.read(self._fd, min(size, 1 << 20))
        return b""


def _size_of(uri: str, body: str, pixels: Any) -> tuple[int, int] | None:
    """Return width and height of raw frames; None when the stream is one of images."""
    if not body:
        if pixels is not None:
            raise UsageError(f"`{uri}`: raw frames need their size", hint="for example stdin:640x480?pixels=bgr24")
        return None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", body)
    if match is None:
        raise UsageError(f"`{uri}`: expected - or stdin:WIDTHxHEIGHT", hint="for example stdin:640x480?pixels=bgr24")
    if pixels not in _RAW:
        found = "nothing" if pixels is None else repr(pixels)
        hint = (near_miss(str(pixels), _RAW) if pixels else None) or f"known: {', '.join(_RAW)}"
        raise UsageError(f"`{uri}`: expected the option `pixels` for raw frames, found {found}", hint=hint)
    width, height = int(match.group(1)), int(match.group(2))
    if not (0 < width * height <= MAX_PIXELS):
        raise UsageError(f"`{uri}`: a frame has 1 to {MAX_PIXELS} pixels")
    if pixels in ("yuv420p", "nv12", "yuyv422") and (width % 2 or (height % 2 and pixels != "yuyv422")):
        raise UsageError(f"`{uri}`: frames of {pixels} have an even width and height")
    return width, height
