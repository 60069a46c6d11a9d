"""One image file, or a folder of them in the order of their names."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge_sdk.errors import SourceError
from edge_sdk.sources.base import BrokenFrame, Frame, Image
from edge_sdk.sources.headers import image_size, is_cut_jpeg
from edge_sdk.sources.pixels import MAX_PIXELS, to_bgr8
from edge_sdk.sources.uri import IMAGE_SUFFIXES, Options, file_path

logger = logging.getLogger(__name__)
_MAX_BYTES = 512 * 1024 * 1024


class Images:
    """Images as frames, EXIF orientation applied; a file that cannot be decoded is a BrokenFrame that names it.

    Options: `fps` (media time of frame n is n / fps, default 1), `recursive`.
    """

    live = False

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        options = Options(options, frozenset({"fps", "recursive"}), "an image source")
        self.uri = uri
        self.path = file_path(uri)
        self.fps = options.number("fps", 1.0, low=1e-6, high=1e6) or 1.0
        self._recursive = options.flag("recursive")
        self._files: list[Path] = []
        self._next = 0

    def open(self) -> None:
        self._next = 0
        if self.path.is_dir():
            pattern = "**/*" if self._recursive else "*"
            found = (p for p in self.path.glob(pattern) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            self._files = sorted(found, key=_natural)
            if not self._files:
                raise SourceError(f"no images in folder `{self.path}`", hint=self._hint_empty())
        elif self.path.is_file():
            self._files = [self.path]
        else:
            raise SourceError(f"no such file or folder: `{self.path}`", hint=nearest_file(self.path))

    def grab(self) -> bool:
        self._next += 1
        return self._next <= len(self._files)

    def retrieve(self) -> Frame:
        index = self._next - 1
        path = self._files[index]
        return Frame(load_image(path), index, index / self.fps, time.monotonic(), str(path))

    def close(self) -> None:
        self._files = []

    def _hint_empty(self) -> str:
        if not self._recursive and any(p.is_dir() for p in self.path.iterdir()):
            return "it has sub-folders: name one of them, or set the source option recursive = true"
        return f"image files end in {', '.join(sorted(IMAGE_SUFFIXES))}"


def load_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Return an image file as upright BGR uint8.

    The size in the header is checked before anything is decoded.

    Raises:
        BrokenFrame: the file is damaged, no image, or larger than `max_pixels`.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise _broken(path.name, f"is {path.stat().st_size} bytes, the limit is {_MAX_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise _broken(path.name, f"cannot be read: {error.strerror}") from None
    return decode_image(data, path.name, max_pixels=max_pixels)


def decode_image(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Return the image that `data` encodes as upright BGR uint8; `name` is for messages.

    Raises:
        BrokenFrame: it is damaged, no image, or larger than `max_pixels`.
    """
    if not data:
        raise _broken(name, "is empty (0 bytes)")
    if data.startswith(b"version https://git-lfs"):
        raise _broken(name, "is a Git LFS pointer, not the image", "fetch it with `git lfs pull`")
    size = image_size(data)
    if size is None:
        raise _broken(
            name, "has no header of a known image format", "PNG, JPEG, BMP, TIFF, WebP, GIF and PNM can be read"
        )
    form, width, height = size
    if width <= 0 or height <= 0:
        raise _broken(name, f"says it is {width} x {height} pixels")
    if width * height > max_pixels:
        raise _broken(
            name, f"says it is {width} x {height} pixels, the limit is {max_pixels} in all: refused undecoded"
        )
    if is_cut_jpeg(data):
        raise _broken(name, "is cut short: the JPEG has no end")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        logger.debug("%s: %s", name, error)
        image = None
    if image is None:
        raise _broken(name, f"cannot be decoded: the {form} data is damaged or of an unsupported kind")
    return to_bgr8(image)


def _broken(name: str, why: str, hint: str | None = None) -> BrokenFrame:
    return BrokenFrame(f"image `{name}` {why}", hint=hint, name=name)


def nearest_file(path: Path) -> str:
    """Return a hint for a path that does not exist: the nearest name beside it."""
    from edge_sdk.registry import near_miss

    try:
        names = [p.name for p in path.parent.iterdir()]
    except OSError:
        return f"the folder `{path.parent}` does not exist either"
    return near_miss(path.name, names) or "check the path"


def _natural(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key by which `img2` comes before `img10`."""
    parts = re.split(r"(\d+)", str(path))
    return [(1, int(p), "") if p.isdecimal() else (0, 0, p) for p in parts], str(path)
