"""Sources give frames: video files, image folders, cameras, network streams, test patterns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edge_sdk.registry import Plugin, Registry
from edge_sdk.sources.uri import kind_of, redact

if TYPE_CHECKING:
    from edge_sdk.sources.base import Source


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
            "stream": Plugin(
                target="edge_sdk.sources.video:Stream", capabilities={"forms": ("rtsp://…", "http://…", "https://…")}
            ),
            "synthetic": Plugin(
                target="edge_sdk.sources.synthetic:Synthetic",
                capabilities={"forms": ("synthetic:640x480?n=100&fps=30&seed=0&live=1",)},
            ),
        },
    )


def create(uri: str, options: Mapping[str, Any] | None = None) -> Source:
    """Return the source for `uri`, not yet open.

    The options `loop` and `pace` (frames per second, or true for its own rate) work on every finite source and make
    it a live one: its frames come and go at that rate whether or not they are read.

    Raises:
        UsageError: the form, or an option, is unknown.
    """
    options = dict(options or {})
    loop, pace = options.pop("loop", False), options.pop("pace", None)
    source: Source = sources().load(kind_of(uri))(uri, options)
    if loop or pace:
        from edge_sdk.sources.paced import Paced

        return Paced(source, fps=None if pace in (None, True) else float(pace), loop=bool(loop))
    return source


__all__ = ["create", "kind_of", "redact", "sources"]
