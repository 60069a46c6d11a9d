"""Forms of sink addresses; standard library only."""

from __future__ import annotations

import re
from pathlib import Path

from edge_sdk.errors import UsageError
from edge_sdk.sources.uri import redact

_ALIASES = {"mqtts": "mqtt", "http": "webhook", "https": "webhook"}
_BY_SUFFIX = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".mp4": "video"}


def sink_name(uri: str) -> str:
    """Return the registry name of the sink that `uri` asks for: its scheme, or what the suffix of a path implies.

    Raises:
        UsageError: neither says which.
    """
    match = re.match(r"^([A-Za-z][A-Za-z0-9+-]{1,30}):", uri)
    if match:
        name = match.group(1).lower()
        return _ALIASES.get(name, name)
    try:
        return _BY_SUFFIX[Path(uri).suffix.lower()]
    except KeyError:
        raise UsageError(
            f"sink `{redact(uri)}`: no scheme, and its suffix names no kind",
            hint="for example jsonl:out.jsonl, csv:out.csv, video:out.mp4, mqtt://host/topic or https://host/hook",
        ) from None


def place(uri: str) -> str:
    """Return the path or address that a sink writes to."""
    name, colon, rest = uri.partition(":")
    return uri if not colon or rest.startswith("//") or len(name) == 1 else rest
