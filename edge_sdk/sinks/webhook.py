"""Results to an HTTP address, one POST of JSON each, tried again with growing pauses."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any, ClassVar

from edge_sdk.backoff import Backoff
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sinks.post import Poster
from edge_sdk.sources.uri import Options


class Webhook:
    """`https://[user:pass@]host/path`: one JSON object per result, the line of `--out`.

    Options: `every_s` (at most one POST in that media time), `found` (only results with a detection or an event),
    `timeout_s` of one attempt, `attempts`. What cannot be delivered is a SyncError: the end of a file job, a counted
    drop of a live one.
    """

    changeable: ClassVar[frozenset[str]] = frozenset({"every_s", "found", "timeout_s", "attempts"})

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        options = Options(options, self.changeable | {"fps", "live", "append"}, "a webhook sink")
        self._closing = threading.Event()
        self._poster = Poster(
            uri,
            timeout_s=options.number("timeout_s", 5.0, low=0.1, high=600) or 5.0,
            attempts=int(options.number("attempts", 3, low=1, high=100) or 3),
            backoff=Backoff(first_s=0.2, max_s=10.0),
            stopping=self._closing,
        )
        self.uri = self._poster.uri
        self._every_s = options.number("every_s", 0.0, low=0.0, high=86400) or 0.0
        self._found = options.flag("found")
        self._last_t: float | None = None

    def adopt(self, other: Webhook) -> None:
        """Take over the options of another that was made for the same address."""
        self._every_s, self._found = other._every_s, other._found
        self._poster.timeout_s, self._poster.attempts = other._poster.timeout_s, other._poster.attempts

    def open(self) -> None:
        self._last_t = None

    def write(self, item: FrameResult) -> None:
        if self._last_t is not None and item.frame.t_s - self._last_t < self._every_s:
            return
        data = item.to_json()
        if self._found and not (data.get("detections") or data.get("events")):
            return
        self._last_t = item.frame.t_s
        self._poster.post(json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode())

    def close(self) -> None:
        self._closing.set()
