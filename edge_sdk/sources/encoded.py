"""Images one after the other in a stream of bytes: where each of them ends."""

from __future__ import annotations

import re
from collections.abc import Callable

from edge_sdk.errors import SourceError
from edge_sdk.sources.base import BrokenFrame

MAX_IMAGE_BYTES = 64 * 1024 * 1024
_MAX_GARBAGE = 64 * 1024
_MARKS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"P5": "PNM", b"P6": "PNM", b"P4": "PNM"}
_PNM = re.compile(rb"P[456]\s(?:\s*#[^\n]*\n)*\s*(\d+)\s+(?:#[^\n]*\n\s*)*(\d+)(?:\s+(?:#[^\n]*\n\s*)*(\d+))?\s")


class Images:
    """Cuts JPEG, PNG and binary PNM images out of a stream; a few bytes between them, such as a multipart head, go.

    Args:
        read: returns the next bytes, at most as many as asked for; empty at the end.
        name: what messages call the stream.
    """

    def __init__(self, read: Callable[[int], bytes], name: str) -> None:
        self._read = read
        self._name = name
        self._buffer = bytearray()
        self.count = 0

    def next(self) -> bytes | None:
        """Return the next image as it is encoded, None at the end.

        Raises:
            BrokenFrame: the stream ends inside an image.
            SourceError: what comes is no image, or one of more than 64 MiB.
        """
        form = self._find()
        if form is None:
            return None
        size = {"JPEG": self._jpeg, "PNG": self._png, "PNM": self._pnm}[form]()
        self._need(size, form)
        image = bytes(self._buffer[:size])
        del self._buffer[:size]
        self.count += 1
        return image

    def _find(self) -> str | None:
        """Drop what stands before the next image and return its format; None at the end."""
        dropped, start = 0, b""
        while True:
            whole = self._more(8)
            start = start or bytes(self._buffer[:16])
            while self._buffer[:1].isspace():
                del self._buffer[:1]
            found = [(at, mark) for mark in _MARKS if (at := _index(self._buffer, mark)) >= 0]
            if found:
                at, mark = min(found)
                del self._buffer[:at]
                return _MARKS[mark]
            if not whole and not self._fill():
                if start and self.count == 0:
                    raise self._garbage(start)
                self._buffer.clear()
                return None
            # The last bytes may be the begin of a mark.
            go = max(0, len(self._buffer) - 7)
            dropped += go
            del self._buffer[:go]
            if dropped > _MAX_GARBAGE:
                raise self._garbage(start)

    def _jpeg(self) -> int:
        """Return the length of the JPEG at the start of the buffer, by its markers (ITU T.81, B.1)."""
        at = 2
        while True:
            self._need(at + 2, "JPEG")
            if self._buffer[at] != 0xFF:
                raise self._broken("JPEG", f"has no marker at byte {at}")
            marker = self._buffer[at + 1]
            if marker == 0xD9:
                return at + 2
            if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:
                at += 1 if marker == 0xFF else 2
                continue
            self._need(at + 4, "JPEG")
            at += 2 + int.from_bytes(self._buffer[at + 2 : at + 4], "big")
            if marker == 0xDA:
                at = self._scan(at)

    def _scan(self, at: int) -> int:
        """Return where the entropy-coded data from `at` on ends: at a marker that is neither stuffing nor a restart."""
        while True:
            found = self._buffer.find(b"\xff", at)
            if found < 0:
                at = max(at, len(self._buffer))
                self._need(at + 1, "JPEG")
                continue
            self._need(found + 2, "JPEG")
            following = self._buffer[found + 1]
            if following not in (0x00, 0xFF) and not 0xD0 <= following <= 0xD7:
                return found
            at = found + (1 if following == 0xFF else 2)

    def _png(self) -> int:
        at = 8
        while True:
            self._need(at + 12, "PNG")
            length, kind = int.from_bytes(self._buffer[at : at + 4], "big"), bytes(self._buffer[at + 4 : at + 8])
            at += 12 + length
            if kind == b"IEND":
                return at
            self._need(at, "PNG")

    def _pnm(self) -> int:
        self._more(512)
        match = _PNM.match(self._buffer)
        kind = self._buffer[1:2]
        if match is None or (kind != b"4" and match.group(3) is None):
            raise self._broken("PNM", "has no head with width, height and largest value")
        width, height = int(match.group(1)), int(match.group(2))
        if kind == b"4":
            # A bitmap has no largest value: what looks like one belongs to the picture.
            head = match.end(2) + 1
            return head + (width + 7) // 8 * height
        largest = int(match.group(3))
        return match.end() + width * height * (3 if kind == b"6" else 1) * (2 if largest > 255 else 1)

    def _need(self, size: int, form: str) -> None:
        if size > MAX_IMAGE_BYTES:
            raise SourceError(
                f"{self._name}: {form} image {self.count} has more than {MAX_IMAGE_BYTES} bytes",
                hint="is it a stream of images?",
            )
        if not self._more(size):
            have = len(self._buffer)
            self._buffer.clear()
            raise self._broken(form, f"is cut short: the stream ends after {have} bytes of it")

    def _more(self, size: int) -> bool:
        """Read until the buffer holds `size` bytes; False when the stream ends first."""
        while len(self._buffer) < size:
            if not self._fill():
                return False
        return True

    def _fill(self) -> bool:
        data = self._read(65536)
        self._buffer += data
        return bool(data)

    def _broken(self, form: str, why: str) -> BrokenFrame:
        # The next mark behind this one is where it goes on.
        del self._buffer[:2]
        number, self.count = self.count, self.count + 1
        return BrokenFrame(f"{self._name}: {form} image {number} {why}", name=f"image {number}")

    def _garbage(self, start: bytes) -> SourceError:
        return SourceError(
            f"{self._name} gives no images: {start!r} begins neither a JPEG nor a PNG nor a PNM (P4, P5, P6)",
            hint="raw frames need their size and pixel format: stdin:640x480?pixels=bgr24",
        )


def _index(buffer: bytearray, mark: bytes) -> int:
    """Return where `mark` is; the short marks of PNM count only at the very start, text may hold them anywhere."""
    if mark.startswith(b"P"):
        return 0 if buffer.startswith(mark) and buffer[2:3].isspace() else -1
    return buffer.find(mark)
