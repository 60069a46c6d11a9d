"""Results to an HTTP address, one POST of JSON each, tried again with growing pauses."""

from __future__ import annotations

import base64
import json
import logging
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from edge_sdk.backoff import Backoff
from edge_sdk.errors import SyncError, UsageError
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sources.uri import Options, redact

logger = logging.getLogger(__name__)
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class Webhook:
    """`https://[user:pass@]host/path`: one JSON object per result, the line of `--out`.

    Options: `every_s` (at most one POST in that media time), `found` (only results with a detection or an event),
    `timeout_s` of one attempt, `attempts`. What cannot be delivered is a SyncError: the end of a file job, a counted
    drop of a live one.
    """

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        known = frozenset({"every_s", "found", "timeout_s", "attempts", "fps", "live", "append"})
        options = Options(options, known, "a webhook sink")
        self.uri = redact(uri)
        try:
            parts = urlsplit(uri)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in ("http", "https"):
            raise UsageError(f"`{self.uri}` is no webhook address", hint="https://host/path")
        self._url = urlunsplit(parts._replace(netloc=host if port is None else f"{host}:{port}"))
        self._headers = {"Content-Type": "application/json", "User-Agent": "edge-sdk"}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self._headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
        self._every_s = options.number("every_s", 0.0, low=0.0, high=86400) or 0.0
        self._found = options.flag("found")
        self._timeout_s = options.number("timeout_s", 5.0, low=0.1, high=600) or 5.0
        self._attempts = int(options.number("attempts", 3, low=1, high=100) or 3)
        self._backoff = Backoff(first_s=0.2, max_s=10.0)
        self._last_t: float | None = None
        self._closing = threading.Event()
        # The address is one that a person chose: no proxy of the environment, no redirect to elsewhere.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)

    def open(self) -> None:
        self._last_t = None

    def write(self, item: FrameResult) -> None:
        if self._last_t is not None and item.frame.t_s - self._last_t < self._every_s:
            return
        data = item.to_json()
        if self._found and not (data.get("detections") or data.get("events")):
            return
        self._last_t = item.frame.t_s
        self._post(json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode())

    def close(self) -> None:
        self._closing.set()

    def _post(self, body: bytes) -> None:
        why = ""
        for attempt in range(self._attempts):
            if attempt and self._closing.wait(self._backoff.delay_s(attempt - 1, random.random)):
                break
            request = urllib.request.Request(self._url, body, self._headers, method="POST")
            try:
                with self._opener.open(request, timeout=self._timeout_s):
                    return
            except urllib.error.HTTPError as error:
                error.close()
                why = f"answered {error.code}"
                if error.code not in _AGAIN:
                    break
            except OSError as error:
                reason = getattr(error, "reason", error)
                why = str(getattr(reason, "strerror", None) or reason).lower()
            logger.info("%s: %s", self.uri, why)
        raise SyncError(f"webhook `{self.uri}`: {why}", hint="check the address; the result is not delivered")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None
