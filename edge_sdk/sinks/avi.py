"""JPEG frames in an AVI file that can be read at every moment, also when its writer was killed."""

from __future__ import annotations

import os
import struct
from pathlib import Path

_MAX_BYTES = 1_900_000_000


class MjpegAvi:
    """Appends JPEG frames of one size at a fixed rate; the sizes in the header are right after each frame.

    Written without an index, which players make themselves. Microsoft, AVI RIFF File Reference.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, *, fps: float, width: int, height: int) -> None:
        self.path = path
        self.frames = 0
        header, self._marks = _header(fps, width, height)
        self.size = len(header)
        self._movi = self.size - 4
        self._file = path.open("wb", buffering=0)
        try:
            self._write_all(header, 0)
        except OSError:
            self._file.close()
            raise

    @property
    def full(self) -> bool:
        """Whether the format holds no more."""
        return self.size > _MAX_BYTES

    def add(self, jpeg: bytes) -> None:
        """Append one frame; on an error the file ends with the frame before."""
        chunk = b"00dc" + struct.pack("<I", len(jpeg)) + jpeg + b"\0" * (len(jpeg) % 2)
        try:
            self._write_all(chunk, self.size)
        except OSError:
            os.ftruncate(self._file.fileno(), self.size)
            raise
        self.size += len(chunk)
        self.frames += 1
        values = {"riff": self.size - 8, "frames": self.frames, "length": self.frames, "movi": self.size - self._movi}
        for name, value in values.items():
            self._write_all(struct.pack("<I", value), self._marks[name])

    def close(self) -> None:
        self._file.close()

    def _write_all(self, data: bytes, at: int) -> None:
        self._file.seek(at)
        done = 0
        while done < len(data):
            done += self._file.write(data[done:]) or 0


def _header(fps: float, width: int, height: int) -> tuple[bytes, dict[str, int]]:
    """Return the header up to the first frame and where its counts stand."""
    rate, scale = round(fps * 1000), 1000
    main = struct.pack("<14I", round(1e6 / fps), 0, 0, 0, 0, 0, 1, 0, width, height, 0, 0, 0, 0)
    stream = b"vidsMJPG" + struct.pack(
        "<IHHIIIIIIII4H", 0, 0, 0, 0, scale, rate, 0, 0, 0, 0xFFFFFFFF, 0, 0, 0, width, height
    )
    picture = struct.pack("<IiiHH4sIiiII", 40, width, height, 1, 24, b"MJPG", width * height * 3, 0, 0, 0, 0)
    strl = _list(b"strl", _chunk(b"strh", stream) + _chunk(b"strf", picture))
    hdrl = _list(b"hdrl", _chunk(b"avih", main) + strl)
    head = b"RIFF\0\0\0\0AVI " + hdrl
    marks = {
        "riff": 4,
        "frames": head.index(b"avih") + 8 + 16,
        "length": head.index(b"vidsMJPG") + 32,
        "movi": len(head) + 4,
    }
    return head + b"LIST\4\0\0\0movi", marks


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data


def _list(name: bytes, data: bytes) -> bytes:
    return b"LIST" + struct.pack("<I", len(data) + 4) + name + data
