"""Reading class masks: PNG files of one channel, or with a palette as in Pascal VOC."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import CalibrationError

_MAGIC = b"\x89PNG\r\n\x1a\n"
_GRAY, _PALETTE = 0, 3


def read_mask(path: Path, side: int) -> NDArray[np.uint8]:
    """Return the class ids of a mask, (side, side), each the nearest of the file's.

    A palette is left aside: the indices into it are the class ids.

    Raises:
        CalibrationError: it cannot be read, or its pixels are colours and not class ids.
    """
    try:
        raw = path.read_bytes()
        bits, gray = _without_palette(raw)
        image = cv2.imdecode(np.frombuffer(gray, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, struct.error, ValueError, cv2.error) as error:
        raise CalibrationError(f"cannot read the mask {path}: {error}", hint="it must be a PNG file") from None
    if image is None:
        raise CalibrationError(f"cannot read the mask {path}", hint="it must be a PNG file")
    if image.ndim == 3 or image.dtype != np.uint8:
        raise CalibrationError(
            f"the mask {path} has colours, expected one channel of 8-bit class ids",
            hint="save class ids as a gray or palette PNG, 255 where pixels do not count",
        )
    ids: NDArray[Any] = image if bits == 8 else image // (255 // (2**bits - 1))
    return np.asarray(cv2.resize(ids, (side, side), interpolation=cv2.INTER_NEAREST), np.uint8)


def _without_palette(raw: bytes) -> tuple[int, bytes]:
    """Return (bits a pixel, the file with palette indices declared as gray levels).

    OpenCV looks colours up in the palette; the indices are what counts here. PNG: ISO/IEC 15948, chunks IHDR, PLTE.
    """
    if not raw.startswith(_MAGIC):
        return 8, raw
    bits, colour = raw[24], raw[25]
    if colour != _PALETTE:
        return (bits if colour == _GRAY and bits < 8 else 8), raw
    out = [_MAGIC]
    for kind, body in _chunks(raw):
        if kind == b"IHDR":
            body = body[:9] + bytes([_GRAY]) + body[10:]
        if kind not in (b"PLTE", b"tRNS"):
            out.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
    return bits, b"".join(out)


def _chunks(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_MAGIC)
    while at + 8 <= len(raw):
        (length,) = struct.unpack(">I", raw[at : at + 4])
        yield raw[at + 4 : at + 8], raw[at + 8 : at + 8 + length]
        at += 12 + length
