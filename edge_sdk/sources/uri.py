"""Forms of source addresses, and how to show one without its secrets; standard library only."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from edge_sdk.errors import UsageError
from edge_sdk.registry import near_miss

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pbm", ".pnm", ".gif"}
)
STREAM_SCHEMES = frozenset({"rtsp", "rtsps", "http", "https", "rtmp", "rtmps", "udp", "srt", "tcp"})
FILE_SUFFIXES_OVER_HTTP = frozenset({".mp4", ".mkv", ".avi", ".mov", ".webm", ".ts"})

_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^\s'\"]*@")
_FRAGMENT = re.compile(r"#(?:[a-z_]+=[^&#]*)(?:&[a-z_]+=[^&#]*)*$")
_PORTS = {"rtsp": 554, "rtsps": 322, "https": 443, "rtmp": 1935, "rtmps": 443}
_SECRET_QUERY = re.compile(
    r"(?P<key>[?&;](?:[A-Za-z0-9_-]*(?:token|secret|password|passwd|pwd|pass|key|auth|sig|signature|session)"
    r"[A-Za-z0-9_-]*|user|usr|username|login))=[^&;\s'\"]*",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Return `text` with the credentials of every URL in it replaced by `***`."""
    return _SECRET_QUERY.sub(r"\g<key>=***", _USERINFO.sub(r"\g<scheme>***@", text))


def scheme(uri: str) -> str | None:
    """Return the scheme in lower case, or None when `uri` is a path."""
    match = re.match(r"^([A-Za-z][A-Za-z0-9+-]{1,30}):", uri)
    return match.group(1).lower() if match else None


def query_options(uri: str) -> tuple[str, dict[str, str]]:
    """Split `body?a=1&b=2` into the body and its options."""
    body, _, query = uri.partition("?")
    return body, dict(parse_qsl(query, keep_blank_values=True))


def split_options(uri: str) -> tuple[str, dict[str, str]]:
    """Split `address#decode=vaapi&threads=2` into the address and the source options behind the `#`.

    A `#` that is part of an existing path, or not followed by `name=value`, belongs to the address.
    """
    match = _FRAGMENT.search(uri)
    if match is None or _exists(Path(uri)):
        return uri, {}
    return uri[: match.start()], dict(parse_qsl(match.group()[1:], keep_blank_values=True))


def kind_of(uri: str) -> str:
    """Return the registry name of the source that reads `uri`: video, images, camera, stream, stdin or a scheme.

    An existing path always wins over a scheme, so that a file called `rtsp:1.mp4` can be read.
    """
    text = split_options(uri.strip())[0]
    if text == "-":
        return "stdin"
    if text.isdigit() or re.fullmatch(r"/dev/video\d+", text):
        return "camera"
    path = Path(text)
    name = None if _exists(path) else scheme(text)
    if name is None or name == "file":
        path = file_path(text)
        return "images" if _is_dir(path) or path.suffix.lower() in IMAGE_SUFFIXES else "video"
    return "stream" if name in STREAM_SCHEMES else name


def host_of(uri: str) -> tuple[str, int]:
    """Return host and port of a network address.

    Raises:
        UsageError: it is no valid address, or names no host.
    """
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError(f"`{redact(uri)}` is no valid address", hint="expected scheme://host:port/path") from None
    if not host:
        raise UsageError(f"`{redact(uri)}` names no host", hint="expected scheme://host:port/path")
    return host, port or _PORTS.get(parts.scheme, 80)


def answers(uri: str, timeout_s: float = 0.5) -> bool | None:
    """Say whether the host of an address takes a TCP connection; None where that means nothing (udp, srt)."""
    if urlsplit(uri).scheme in ("udp", "srt"):
        return None
    try:
        socket.create_connection(host_of(uri), timeout=timeout_s).close()
    except OSError:
        return False
    return True


def explain_silence(uri: str) -> str:
    """Say why nothing comes from an address as far as a plain connection tells: decoders give no reason."""
    if urlsplit(uri).scheme in ("udp", "srt"):
        return "nothing arrived"
    host, port = host_of(uri)
    try:
        socket.create_connection((host, port), timeout=3).close()
    except socket.gaierror:
        return f"the name `{host}` cannot be resolved"
    except TimeoutError:
        return f"{host}:{port} does not answer"
    except OSError as error:
        return f"{host}:{port}: {(error.strerror or 'no connection').lower()}"
    return "the server answers, but gives no stream that can be decoded (wrong path or credentials?)"


def is_finite_url(uri: str) -> bool:
    """Say whether an http(s) address names a video file rather than a live stream."""
    parts = urlsplit(uri)
    return parts.scheme in ("http", "https") and Path(parts.path).suffix.lower() in FILE_SUFFIXES_OVER_HTTP


def file_path(uri: str) -> Path:
    """Return the path of a plain path or a `file:` address, without its options."""
    uri = split_options(uri)[0]
    if uri.lower().startswith("file:") and not _exists(Path(uri)):
        rest = uri[5:]
        return Path(rest[2:] if rest.startswith("//") else rest)
    return Path(uri)


class Options(dict[str, Any]):
    """The options of one source or sink, every one of them known.

    Args:
        options: names and values, as text or as TOML has them.
        known: the names that it reads.
        what: whose they are, for messages: a live view.

    Raises:
        UsageError: an option is unknown; the hint has the nearest one.
    """

    def __init__(self, options: Mapping[str, Any], known: frozenset[str], what: str) -> None:
        super().__init__(options)
        self.what = what
        for key in options:
            if key not in known:
                hint = near_miss(key, known) or f"known: {', '.join(sorted(known)) or 'none'}"
                raise UsageError(f"unknown option `{key}` of {what}", hint=hint)

    def number(self, key: str, default: float | None, *, low: float, high: float) -> float | None:
        """Return option `key` as a number within bounds.

        Raises:
            UsageError: it is not a number or out of bounds.
        """
        if key not in self:
            return default
        try:
            value = float(self[key])
        except (TypeError, ValueError):
            value = float("nan")
        if not low <= value <= high:
            raise UsageError(f"option `{key}` of {self.what} must be {low:g} to {high:g}, found {self[key]!r}")
        return value

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Return option `key` as true or false.

        Raises:
            UsageError: it is something else.
        """
        value = str(self.get(key, default)).lower()
        if value in ("1", "true", "yes", "on", ""):
            return True
        if value in ("0", "false", "no", "off"):
            return False
        raise UsageError(f"option `{key}` of {self.what} must be true or false, found {self[key]!r}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
