"""Sources give frames: video files, image folders, cameras, network streams, standard input, test patterns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edge_sdk.errors import UsageError
from edge_sdk.registry import Plugin, Registry
from edge_sdk.sources.uri import Options, kind_of, redact, split_options

if TYPE_CHECKING:
    from edge_sdk.sources.base import Source

_DECODED = ("video", "stream")
_ISOLATED = ("video", "stream", "camera", "picamera")


def sources() -> Registry:
    """Return the table of sources by kind; a third party's kind is also its URI scheme."""
    return Registry(
        "source",
        {
            "video": Plugin(target="edge_sdk.sources.video:VideoFile", capabilities={"forms": ("PATH", "file:PATH")}),
            "images": Plugin(target="edge_sdk.sources.images:Images", capabilities={"forms": ("FOLDER", "IMAGE")}),
            "camera": Plugin(
                target="edge_sdk.sources.video:Camera", capabilities={"forms": ("0", "camera:0", "/dev/video0")}
            ),
            "picamera": Plugin(
                target="edge_sdk.sources.picamera:PiCamera",
                capabilities={"forms": ("picamera:0?width=1280&height=720&fps=30",)},
            ),
            "stream": Plugin(
                target="edge_sdk.sources.video:Stream", capabilities={"forms": ("rtsp://…", "http://…", "https://…")}
            ),
            "stdin": Plugin(
                target="edge_sdk.sources.stdin:Stdin",
                capabilities={"forms": ("-", "stdin:640x480?pixels=bgr24&fps=30")},
            ),
            "synthetic": Plugin(
                target="edge_sdk.sources.synthetic:Synthetic",
                capabilities={"forms": ("synthetic:640x480?n=100&fps=30&seed=0&live=1",)},
            ),
        },
    )


def create(uri: str, options: Mapping[str, Any] | None = None) -> Source:
    """Return the source for `uri`, not yet open; `options` win over those behind a `#` in the address.

    The options `loop` and `pace` (frames per second, or true for its own rate) work on every finite source and make
    it a live one: its frames come and go at that rate whether or not they are read. `decode` reads a video or a stream
    with an ffmpeg process (see `edge_sdk.sources.ffmpeg`), `keyframes` does so with a live stream's keyframes alone,
    `isolate` decodes in a process of its own.

    Raises:
        UsageError: the form, or an option, is unknown.
    """
    uri, behind = split_options(uri)
    options = {**behind, **(options or {})}
    loop, pace = options.pop("loop", False), options.pop("pace", None)
    source = _plain(uri, options)
    if loop or pace:
        from edge_sdk.sources.paced import Paced

        return Paced(source, fps=None if pace in (None, True) else float(pace), loop=bool(loop))
    return source


def can_isolate(uri: str) -> bool:
    """Say whether the source for `uri` can decode in a process of its own."""
    return kind_of(uri) in _ISOLATED


def _plain(uri: str, options: dict[str, Any]) -> Source:
    kind = kind_of(uri)
    if kind in _ISOLATED and _keyframes(uri, kind, options) and options.setdefault("decode", "software") == "auto":
        options["decode"] = "software"
    decode, isolate = options.get("decode"), options.pop("isolate", False)
    if decode is not None:
        if kind not in _DECODED:
            raise UsageError(
                f"source option `decode` does not go with `{redact(uri)}`", hint="videos and streams have it"
            )
        from edge_sdk.sources.decoding import choose

        if decode == "auto" and choose("auto", str(options.get("codec", "h264"))).used.name == "software":
            del options["decode"]
            options.pop("codec", None)
        else:
            from edge_sdk.sources.ffmpeg import Ffmpeg

            return Ffmpeg(uri, options)
    if str(isolate).lower() in ("true", "1", "yes", "on", ""):
        if kind not in _ISOLATED:
            raise UsageError(f"source option `isolate` does not go with `{redact(uri)}`", hint="it decodes nothing")
        from edge_sdk.sources.isolated import Isolated

        return Isolated(uri, options)
    source: Source = sources().load(kind)(uri, options)
    return source


def _keyframes(uri: str, kind: str, options: dict[str, Any]) -> bool:
    """Say whether only keyframes are wanted; the option goes where they are not."""
    if not Options(options, frozenset(options), "a source").flag("keyframes"):
        options.pop("keyframes", None)
        return False
    if kind != "stream":
        raise UsageError(
            f"source option `keyframes` does not go with `{redact(uri)}`", hint="live network streams have it"
        )
    return True


__all__ = ["can_isolate", "create", "kind_of", "redact", "sources", "split_options"]
