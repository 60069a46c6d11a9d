"""How the body of a batch is made small and large again, never above a limit; zstd comes with Python from 3.14 on."""

from __future__ import annotations

import importlib
import sys
import zlib
from typing import Any

_LEVEL = 6
# RFC 8878, 3.1.1.1.2: what every decoder should support, 8 MiB; more is a sender that wants our memory.
_WINDOW_LOG = 23


def compress(encoding: str, body: bytes) -> bytes:
    """Return the body in an encoding of `json`, `json+zlib`, `json+zstd`.

    Raises:
        ImportError: the encoding is zstd and neither Python nor `backports.zstd` brings it.
    """
    if encoding == "json+zlib":
        return zlib.compress(body, _LEVEL)
    if encoding == "json+zstd":
        return bytes(_zstd().compress(body, _LEVEL))
    return body


def decompress(encoding: str, body: bytes, limit: int) -> bytes:
    """Return what `compress` was given, at most `limit` bytes; no more than that is ever held.

    Raises:
        ValueError: it does not decompress, is cut, or is larger.
        ImportError: as for `compress`.
    """
    if encoding == "json":
        return body
    stream, broken = _decompressor(encoding)
    try:
        raw = bytes(stream.decompress(body, limit + 1))
    except broken as error:
        raise ValueError(f"does not decompress as {encoding}: {error}") from None
    if len(raw) > limit or not stream.eof:
        raise ValueError(f"is cut or decompresses to more than {limit} bytes")
    return raw


def _decompressor(encoding: str) -> tuple[Any, type[Exception]]:
    if encoding == "json+zlib":
        return zlib.decompressobj(), zlib.error
    zstd = _zstd()
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}), zstd.ZstdError


def _zstd() -> Any:
    return importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
