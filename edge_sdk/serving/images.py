"""Images in request bodies: the JPEG or PNG itself, or base64 in JSON."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from numpy.typing import NDArray

from edge_sdk.serving.exchange import HttpError
from edge_sdk.sources.base import BrokenFrame
from edge_sdk.sources.images import decode_image

_MAX_PIXELS = 64_000_000


def image_of(data: bytes, name: str) -> NDArray[Any]:
    """Return the BGR pixels of an encoded image; raises HttpError 400 with what is wrong with `name`."""
    try:
        return decode_image(data, name, max_pixels=_MAX_PIXELS)
    except BrokenFrame as error:
        raise HttpError(400, error.message, kind="image", hint=error.hint or "send a JPEG or PNG") from None


def base64_of(text: str, i: int) -> bytes:
    """Return the bytes of image number `i`; raises HttpError 400."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise HttpError(400, f"image {i} is no base64") from None
