"""A small HTTP server with bounds on what a client can use up: connections, bytes, time; standard library only."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from edge_sdk.errors import SinkError
from edge_sdk.serving.exchange import Answer, App, HttpError, Limits, Request

logger = logging.getLogger(__name__)
_LINE_BYTES = 8192
_LINGER_S = 2.0
_FULL = b'{"error":{"exit":6,"kind":"busy","message":"too many connections","hint":"try again in a second"}}\n'


class LocalServer:
    """Serves `app` on one address; `open` binds, `close` finishes what is in flight for at most `drain_s`."""

    def __init__(self, host: str, port: int, app: App, *, limits: Limits | None = None, name: str = "http") -> None:
        self.host, self.port = host, port
        self._app, self._limits, self._name = app, limits or Limits(), name
        self._server: _Server | None = None

    @property
    def address(self) -> str:
        """The URL; with the port that the system chose once it is open."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/"

    def open(self) -> None:
        """Bind and answer from threads of its own.

        Raises:
            SinkError: the address is taken or not one of this machine.
        """
        try:
            self._server = _Server(self.host, self.port, self._app, self._limits)
        except (OSError, UnicodeError) as error:
            why = (getattr(error, "strerror", None) or str(error)).lower()
            raise SinkError(
                f"cannot listen on {self.host} port {self.port}: {why}",
                hint="choose another port, or 0 for a free one",
            ) from None
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name=self._name, daemon=True).start()

    def close(self, drain_s: float = 0.0) -> None:
        """Take no more connections, wait for requests in flight, then close all; safe to call twice."""
        server, self._server = self._server, None
        if server is not None:
            server.finish(drain_s)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, host: str, port: int, app: App, limits: Limits) -> None:
        self.app, self.limits = app, limits
        self.draining = False
        self._free = threading.BoundedSemaphore(limits.connections)
        self._changed = threading.Condition()
        self._in_flight = self._reserved = 0
        self._open: set[socket.socket] = set()
        if ":" in host:
            self.address_family = socket.AF_INET6
        self.loopback = _is_loopback(host)
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer would ask the resolver for this machine's name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.settimeout(0.2)
                head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
                request.sendall(f"{head}Connection: close\r\nContent-Length: {len(_FULL)}\r\n\r\n".encode() + _FULL)
            self.shutdown_request(request)
            return
        with self._changed:
            self._open.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._changed:
                self._open.discard(request)
            self._free.release()

    def handle_error(self, *_: Any) -> None:
        logger.exception("a connection failed")

    @contextlib.contextmanager
    def flight(self) -> Iterator[None]:
        with self._changed:
            self._in_flight += 1
        try:
            yield
        finally:
            with self._changed:
                self._in_flight -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Hold `size` bytes of the memory for bodies while the block runs."""
        with self._changed:
            if self._reserved + size > self.limits.bodies_bytes:
                raise HttpError(503, "too many bytes are being uploaded at once", kind="busy", retry_after_s=1)
            self._reserved += size
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= size

    def finish(self, drain_s: float) -> None:
        self.draining = True
        self.shutdown()
        self.socket.close()
        with self._changed:
            if not self._changed.wait_for(lambda: self._in_flight == 0, timeout=drain_s) and drain_s:
                logger.warning("%d requests were not finished in %.0f s", self._in_flight, drain_s)
            still_open = list(self._open)
        for connection in still_open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _DeadlineReader(io.RawIOBase):
    """Reads a socket until a moment in time, however slowly the bytes trickle in."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.deadline = 0.0
        self.received = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        n = self._connection.recv_into(buffer)
        self.received += n
        return n


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "edge-sdk", ""
    server: _Server
    path: str

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._raw = _DeadlineReader(self.connection)
        self.rfile = io.BufferedReader(self._raw, 1 << 16)
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.server.limits.send_buffer is not None:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.server.limits.send_buffer)

    def handle_one_request(self) -> None:
        limits = self.server.limits
        self._raw.deadline, before = time.monotonic() + limits.head_s, self._raw.received
        self.command, self.path, self.requestline, self.request_version = "", "/", "", "HTTP/1.1"
        self.close_connection = True
        try:
            self.raw_requestline = self.rfile.readline(_LINE_BYTES + 1)
            if not self.raw_requestline:
                return
            if len(self.raw_requestline) > _LINE_BYTES:
                self._send(self._refuse(HttpError(414, f"the request line is longer than {_LINE_BYTES} bytes")))
                self._linger()
                return
            if not self.parse_request():
                return
            with self.server.flight():
                self._respond()
        except TimeoutError:
            self.close_connection = True
            if self._raw.received > before:
                error = HttpError(408, f"the request head did not arrive within {limits.head_s:g} s", kind="timeout")
                self._send(self._refuse(error))
        except OSError:
            self.close_connection = True

    def _respond(self) -> None:
        consumed = False
        try:
            self._check_host()
            if self.server.draining:
                raise HttpError(503, "the server is stopping", kind="stopping", retry_after_s=5)
            size = self._body_size()
            with self.server.reserve(size):
                body = self._read(size)
                consumed = True
                parts = urlsplit(self.path)
                request = Request(
                    method=self.command,
                    path=parts.path,
                    query=dict(parse_qsl(parts.query, keep_blank_values=True)),
                    headers={k.lower(): v for k, v in self.headers.items()},
                    body=body,
                )
                answer = self.server.app.answer(request)
        except HttpError as error:
            answer = self._refuse(error)
        except OSError:
            raise
        except Exception as error:
            logger.exception("%s %s failed", self.command, self.path)
            text = f"a defect of the server: {type(error).__name__}"
            answer = self._refuse(HttpError(500, text, kind="bug", hint="its log has the details"))
        self.close_connection = self.close_connection or not consumed or self.server.draining
        self._send(answer)
        if not consumed:
            self._linger()

    def _check_host(self) -> None:
        """A page of another site must not reach a loopback server through a name that it points here."""
        if not self.server.loopback or "Host" not in self.headers:
            return
        try:
            name = urlsplit(f"//{self.headers['Host']}").hostname or ""
        except ValueError:
            name = ""
        if name != "localhost" and not _is_address(name):
            raise HttpError(403, f"this server does not answer for host `{name[:80]}`", hint="use 127.0.0.1")

    def _body_size(self) -> int:
        if "Transfer-Encoding" in self.headers:
            raise HttpError(411, "chunked bodies are not read", hint="send Content-Length")
        text = self.headers.get("Content-Length")
        if text is None:
            if self.command in ("POST", "PUT"):
                raise HttpError(411, "the request says no length", hint="send Content-Length")
            return 0
        if not (text.isascii() and text.isdigit()) or len(self.headers.get_all("Content-Length") or ()) > 1:
            raise HttpError(400, f"Content-Length must be one number of bytes, found `{text[:40]}`")
        size = int(text[:20])
        if size > self.server.limits.body_bytes:
            raise HttpError(413, f"the body is {size} bytes, the limit is {self.server.limits.body_bytes}")
        return size

    def _read(self, size: int) -> bytes:
        self._raw.deadline = time.monotonic() + self.server.limits.body_s
        try:
            body = self.rfile.read(size) if size else b""
        except TimeoutError:
            message = f"the body did not arrive within {self.server.limits.body_s:g} s"
            raise HttpError(408, message, kind="timeout") from None
        if len(body) < size:
            raise HttpError(400, f"the body ends after {len(body)} of {size} bytes")
        return body

    def _refuse(self, error: HttpError) -> Answer:
        return self.server.app.refuse(self.path, error)

    def _send(self, answer: Answer) -> None:
        self.connection.settimeout(self.server.limits.send_s)
        # Whatever the request said it was: an answer without a status line helps nobody.
        self.request_version = "HTTP/1.1"
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.stream is None:
            self.send_header("Content-Length", str(len(answer.body)))
        else:
            self.close_connection = True
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        if answer.stream is not None:
            answer.stream(self._write)
        else:
            self.wfile.write(answer.body)

    def _write(self, data: bytes) -> None:
        self.wfile.write(data)

    def _linger(self) -> None:
        """Let the client read the refusal before unread bytes make the system reset the connection."""
        deadline = time.monotonic() + _LINGER_S
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.connection.recv(1 << 16):
                    return

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.close_connection = True
        self._send(self._refuse(HttpError(code, message or explain or "the request cannot be read")))

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("%s", format % args)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
