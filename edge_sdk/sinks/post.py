"""POST to an address that a person chose: tried again while its server is in trouble, bounded in time."""

from __future__ import annotations

import base64
import http.client
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
from edge_sdk.sources.uri import redact

logger = logging.getLogger(__name__)
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class Poster:
    """Posts JSON to `http(s)://[user:pass@]host[:port]/path`; `uri` is the address without credentials.

    Neither a proxy of the environment nor a redirect is followed.

    Args:
        timeout_s: of one attempt.
        attempts: how often it is tried in all.
        stopping: set, it ends the pauses between attempts.

    Raises:
        UsageError: the address has another form.
    """

    def __init__(
        self, address: str, *, timeout_s: float, attempts: int, backoff: Backoff, stopping: threading.Event
    ) -> None:
        self.uri = redact(address)
        try:
            parts = urlsplit(address)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in ("http", "https"):
            raise UsageError(f"`{self.uri}` is no webhook address", hint="https://host/path")
        self.host: str = host
        shown = f"[{host}]" if ":" in host else host
        self._url = urlunsplit(parts._replace(netloc=shown if port is None else f"{shown}:{port}"))
        self._headers = {"Content-Type": "application/json", "User-Agent": "edge-sdk"}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self._headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
        self.timeout_s, self.attempts = timeout_s, attempts
        self._backoff = backoff
        self._stopping = stopping
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)

    def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> int:
        """Send `body` and return the number of attempts that it took.

        Raises:
            SyncError: it was refused, or no attempt reached a working server.
        """
        why = "the pipeline is stopping"
        for attempt in range(self.attempts):
            if attempt and self._stopping.wait(self._backoff.delay_s(attempt - 1, random.random)):
                break
            request = urllib.request.Request(self._url, body, {**self._headers, **(headers or {})}, method="POST")
            try:
                with self._opener.open(request, timeout=self.timeout_s):
                    return attempt + 1
            except urllib.error.HTTPError as error:
                error.close()
                why = f"answered {error.code}"
                if error.code not in _AGAIN:
                    break
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                why = str(getattr(reason, "strerror", None) or reason).lower()
            logger.info("%s: %s", self.uri, why)
        raise SyncError(f"webhook `{self.uri}`: {why}", hint="check the address; the result is not delivered")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None
