"""Width and height out of an image file's first bytes, before any decoder is trusted with it."""

from __future__ import annotations

import struct

_SOF = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})


def image_size(data: bytes) -> tuple[str, int, int] | None:
    """Return format, width and height in pixels from the header; None when it is none of the formats known here.

    Sizes come from the file as they stand, zero or absurd ones included.
    """
    try:
        for magic, reader in _READERS:
            if data.startswith(magic):
                return reader(data)
    except (struct.error, IndexError, ValueError):
        return None
    return None


def is_cut_jpeg(data: bytes) -> bool:
    """Say whether a JPEG ends before its end-of-image marker (decoders fill the rest with grey without a word)."""
    return data.startswith(b"\xff\xd8") and data.find(b"\xff\xd9", data.rfind(b"\xff\xda")) < 0


def _png(data: bytes) -> tuple[str, int, int] | None:
    if data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack(">II", data[16:24])
    return "PNG", width, height


def _gif(data: bytes) -> tuple[str, int, int]:
    width, height = struct.unpack("<HH", data[6:10])
    return "GIF", width, height


def _bmp(data: bytes) -> tuple[str, int, int]:
    if struct.unpack("<I", data[14:18])[0] == 12:
        width, height = struct.unpack("<HH", data[18:22])
    else:
        width, height = struct.unpack("<ii", data[18:26])
    return "BMP", abs(width), abs(height)


def _jpeg(data: bytes) -> tuple[str, int, int] | None:
    at = 2
    while at + 9 < len(data):
        if data[at] != 0xFF:
            at += 1
            continue
        marker = data[at + 1]
        if marker in (0xFF, 0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _SOF:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return "JPEG", width, height
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return None


def _tiff(data: bytes) -> tuple[str, int, int] | None:
    order = "<" if data[:2] == b"II" else ">"
    at = struct.unpack(order + "I", data[4:8])[0]
    sizes = {}
    for i in range(struct.unpack(order + "H", data[at : at + 2])[0]):
        entry = data[at + 2 + 12 * i : at + 14 + 12 * i]
        tag, kind, _ = struct.unpack(order + "HHI", entry[:8])
        if tag in (256, 257):
            sizes[tag] = struct.unpack(order + ("H" if kind == 3 else "I"), entry[8 : 10 if kind == 3 else 12])[0]
    return ("TIFF", sizes[256], sizes[257]) if len(sizes) == 2 else None


def _webp(data: bytes) -> tuple[str, int, int] | None:
    chunk = data[12:16]
    if data[8:12] != b"WEBP":
        return None
    if chunk == b"VP8X":
        return "WebP", 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L":
        bits = struct.unpack("<I", data[21:25])[0]
        return "WebP", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", data[26:30])
    return "WebP", width & 0x3FFF, height & 0x3FFF


def _pnm(data: bytes) -> tuple[str, int, int] | None:
    words: list[bytes] = []
    for line in data[2:512].split(b"\n"):
        words += line.split(b"#")[0].split()
        if len(words) >= 2:
            return "PNM", int(words[0]), int(words[1])
    return None


_READERS = (
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"\xff\xd8", _jpeg),
    (b"GIF8", _gif),
    (b"BM", _bmp),
    (b"II*\x00", _tiff),
    (b"MM\x00*", _tiff),
    (b"RIFF", _webp),
    *((b"P%d" % i, _pnm) for i in range(1, 7)),
)
