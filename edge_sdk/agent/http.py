"""HTTP for a device: one streamed GET or a small POST with limits on time, rate and size; standard library only."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from edge_sdk import __version__
from edge_sdk.errors import SyncError, UsageError

CHUNK = 64 * 1024
MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A transfer may pause `stall_s`, must keep `min_rate` bytes/s over each `rate_window_s`, and end in `total_s`."""

    stall_s: float = 20.0
    head_s: float = 30.0
    min_rate: float = 1024.0
    rate_window_s: float = 20.0
    total_s: float = 4 * 3600.0


class HttpStatus(SyncError):
    """The server answered with an error status."""

    def __init__(self, status: int, url: str, reason: str = "") -> None:
        super().__init__(f"{url} answered {status} {reason}".rstrip())
        self.status = status


@dataclass(frozen=True, slots=True)
class Reply:
    """A response whose body is still to be read, in chunks, once."""

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]


def basic_auth(user: str, password: str) -> dict[str, str]:
    """Return the header of HTTP Basic authentication."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@contextmanager
def stream(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Reply]:
    """GET `url` and yield the reply; up to 3 redirects are followed, credentials only on the same host.

    Raises:
        SyncError: no connection, no answer, a broken transfer, or one below the limits; the message names the URL.
        UsageError: the URL is not http or https.
    """
    limits = limits or Limits()
    sent = {"User-Agent": f"edge-sdk/{__version__}", "Accept-Encoding": "identity", **(headers or {})}
    for _ in range(MAX_REDIRECTS + 1):
        connection = _connection(url, limits)
        response: http.client.HTTPResponse | None = None
        try:
            with _errors(url):
                connection.connect()
            with _errors(url), _deadline(connection.sock, limits.head_s):
                sock = connection.sock
                connection.request("GET", _path(url), headers=sent)
                response = connection.getresponse()
            target = response.getheader("Location")
            if response.status in _REDIRECTS and target:
                following = urljoin(url, target)
                if urlsplit(following)[:2] != urlsplit(url)[:2]:
                    sent.pop("Authorization", None)
                url = following
                continue
            heads = {k.lower(): v for k, v in response.getheaders()}
            with _deadline(sock, limits.total_s):
                yield Reply(response.status, heads, _chunks(url, response, limits, should_stop))
            return
        finally:
            if response is not None:
                response.close()
            connection.close()
    raise SyncError(f"{url} redirects more than {MAX_REDIRECTS} times")


def post_json(
    url: str, body: Mapping[str, Any], *, limits: Limits | None = None, max_bytes: int = 1 << 20
) -> tuple[int, bytes]:
    """POST a JSON object and return (status, body).

    Raises:
        SyncError: no connection, no answer in time, or an answer above `max_bytes`.
        UsageError: the URL is not http or https.
    """
    limits = limits or Limits(total_s=60.0)
    connection = _connection(url, limits)
    response: http.client.HTTPResponse | None = None
    head = {"Content-Type": "application/json", "User-Agent": f"edge-sdk/{__version__}"}
    try:
        with _errors(url):
            connection.connect()
        with _errors(url), _deadline(connection.sock, limits.head_s + limits.total_s):
            connection.request("POST", _path(url), body=json.dumps(body).encode(), headers=head)
            response = connection.getresponse()
            data = b""
            for chunk in _chunks(url, response, limits, lambda: False):
                data += chunk
                if len(data) > max_bytes:
                    raise SyncError(f"{url} answered more than {max_bytes} bytes")
            return response.status, data
    finally:
        if response is not None:
            response.close()
        connection.close()


def _connection(url: str, limits: Limits) -> http.client.HTTPConnection:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"`{url}` is not a URL: {error}", hint="expected http://HOST:PORT or https://HOST") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"`{url}` is not an http or https URL", hint="expected http://HOST:PORT or https://HOST")
    if parts.scheme == "https":
        return http.client.HTTPSConnection(
            parts.hostname, port, timeout=limits.stall_s, context=ssl.create_default_context()
        )
    return http.client.HTTPConnection(parts.hostname, port, timeout=limits.stall_s)


def _path(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _chunks(
    url: str, response: http.client.HTTPResponse, limits: Limits, should_stop: Callable[[], bool]
) -> Iterator[bytes]:
    start = time.monotonic()
    window, received = start, 0
    while True:
        if should_stop():
            raise SyncError(f"the transfer of {url} was interrupted")
        with _errors(url):
            chunk = response.read1(CHUNK)
        if not chunk:
            return
        received += len(chunk)
        now = time.monotonic()
        if now - start > limits.total_s:
            raise SyncError(f"{url} took longer than {limits.total_s:g} s")
        if now - window >= limits.rate_window_s:
            if received < limits.min_rate * (now - window):
                raise SyncError(f"{url} sends fewer than {limits.min_rate:g} bytes/s", hint="the line is too slow")
            window, received = now, 0
        yield chunk


@contextmanager
def _errors(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        what = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        raise SyncError(f"{url}: {what}", hint="check the network, the server and its address") from None


@contextmanager
def _deadline(sock: socket.socket, seconds: float) -> Iterator[None]:
    """Cut the connection after `seconds`, whatever it is doing (a drip of header bytes defeats socket timeouts)."""

    def cut() -> None:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
