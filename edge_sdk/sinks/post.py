"""POST to an address that a person chose: tried again while its server is in trouble, bounded in time."""

from __future__ import annotations

import base64
import contextlib
import http.client
import logging
import random
import socket
import threading
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from edge_sdk.backoff import Backoff
from edge_sdk.errors import SyncError, UsageError
from edge_sdk.sources.uri import redact

logger = logging.getLogger(__name__)
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class Poster:
    """Posts JSON to `http(s)://[user:pass@]host[:port]/path`; `uri` is the address without credentials.

    Neither a proxy of the environment nor a redirect is followed. An attempt ends after twice `timeout_s`, also when
    the server answers a byte at a time.

    Args:
        timeout_s: of a connection, and of each wait for the server.
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
        if not host or parts.scheme not in ("http", "https") or not address.isascii() or " " in address:
            raise UsageError(f"`{self.uri}` is no webhook address", hint="https://host/path")
        self.host: str = host
        self._port, self._tls = port, parts.scheme == "https"
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"Content-Type": "application/json", "User-Agent": "edge-sdk", "Connection": "close"}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self._headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
        self.timeout_s, self.attempts = timeout_s, attempts
        self._backoff = backoff
        self._stopping = stopping

    def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> int:
        """Send `body` and return the number of attempts that it took.

        Raises:
            SyncError: it was refused, or no attempt reached a working server.
        """
        why = "the pipeline is stopping"
        for attempt in range(self.attempts):
            if attempt and self._stopping.wait(self._backoff.delay_s(attempt - 1, random.random)):
                break
            try:
                status = self._once(body, {**self._headers, **(headers or {})})
            except (OSError, http.client.HTTPException) as error:
                why = str(getattr(error, "strerror", None) or error or type(error).__name__).lower()
            else:
                if status < 300:
                    return attempt + 1
                why = f"answered {status}"
                if status not in _AGAIN:
                    break
            logger.info("%s: %s", self.uri, why)
        raise SyncError(f"webhook `{self.uri}`: {why}", hint="check the address; the result is not delivered")

    def _once(self, body: bytes, headers: Mapping[str, str]) -> int:
        """Return the status of one attempt."""
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        connection = kind(self.host, self._port, timeout=self.timeout_s)
        ended = threading.Timer(2 * self.timeout_s, lambda: _cut(connection))
        ended.daemon = True
        ended.start()
        try:
            connection.request("POST", self._path, body, dict(headers))
            return connection.getresponse().status
        finally:
            ended.cancel()
            connection.close()


def _cut(connection: http.client.HTTPConnection) -> None:
    with contextlib.suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)
