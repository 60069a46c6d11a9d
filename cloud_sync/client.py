"""The operator's side of the HTTP API, on the standard library: used by every verb that talks to the service."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from cloud_sync.errors import from_json
from edge_sdk.errors import SyncError, UsageError

DEFAULT_SERVER = "http://127.0.0.1:8080"
_MAX_RESPONSE = 256 * 1024 * 1024


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a verb `--server`."""
    parser.add_argument(
        "--server",
        default=os.environ.get("EDGE_SERVER", DEFAULT_SERVER),
        metavar="URL",
        help=f"the service (EDGE_SERVER, else {DEFAULT_SERVER}); the token is read from EDGE_TOKEN",
    )


def from_args(args: argparse.Namespace) -> Client:
    """Return a client for `--server` and EDGE_TOKEN."""
    return Client(args.server, os.environ.get("EDGE_TOKEN", ""))


class Client:
    """Calls with the operator's token; every failure is an EdgeError, the server's own where it gave one."""

    def __init__(self, server: str, token: str, *, timeout_s: float = 30.0) -> None:
        """
        Raises:
            UsageError: the server is not an http or https URL.
        """
        try:
            parts = urllib.parse.urlsplit(server)
            named = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port)
        except ValueError:
            named = False
        if not named:
            raise UsageError(f"server `{server}` is not a URL", hint=f"write it as {DEFAULT_SERVER}")
        self.server = server.rstrip("/")
        self._parts = parts
        self._connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._token = token
        self._timeout_s = timeout_s

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """GET a JSON object.

        Raises:
            EdgeError: what the server refused with, or SyncError when it cannot be reached.
        """
        given = {k: v for k, v in (params or {}).items() if v is not None}
        return self._call("GET", path + ("?" + urllib.parse.urlencode(given) if given else ""), None, {})

    def get_text(self, path: str, params: Mapping[str, Any] | None = None) -> str:
        """GET a text such as an HTML page; raises as `get`."""
        given = {k: v for k, v in (params or {}).items() if v is not None}
        path += "?" + urllib.parse.urlencode(given) if given else ""
        return self._read("GET", path, None, {}).decode("utf-8", errors="replace")

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """POST a JSON object; raises as `get`."""
        data = json.dumps(body or {}).encode()
        return self._call("POST", path, data, {"Content-Type": "application/json"})

    def delete(self, path: str) -> dict[str, Any]:
        """DELETE; raises as `get`."""
        return self._call("DELETE", path, None, {})

    def upload(self, path: str, file: Path) -> dict[str, Any]:
        """POST a file's bytes as they are; raises as `get`, or UsageError when the file cannot be read."""
        try:
            with file.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
                return self._call("POST", path, stream, headers)
        except OSError as error:
            raise UsageError(f"cannot read {file}: {error.strerror}", hint="check the path") from None

    def _call(self, method: str, path: str, data: bytes | BinaryIO | None, headers: dict[str, str]) -> dict[str, Any]:
        return self._object(self._read(method, path, data, headers))

    def _read(self, method: str, path: str, data: bytes | BinaryIO | None, headers: dict[str, str]) -> bytes:
        """Send one request: straight to the server, through no proxy and after no redirect, for the token's sake."""
        headers = {"Accept": "application/json", **headers}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        connection = self._connection(self._parts.hostname or "", self._parts.port, timeout=self._timeout_s)
        try:
            try:
                connection.request(method, self._parts.path.rstrip("/") + path, data, headers)
            except (BrokenPipeError, ConnectionResetError):
                pass  # a server that refuses a large body may answer before it has read it
            response = connection.getresponse()
            status, raw = response.status, response.read(_MAX_RESPONSE)
        except (OSError, http.client.HTTPException) as error:
            raise SyncError(
                f"cannot reach {self.server}: {error or type(error).__name__}",
                hint="is `edge serve` running there? `--server URL` names another",
            ) from None
        finally:
            connection.close()
        if status < 300:
            return raw
        found = self._object(raw, status=status).get("error")
        if not isinstance(found, dict):
            raise self._strange(f"HTTP {status}")
        raise from_json(found)

    def _object(self, raw: bytes, *, status: int = 200) -> dict[str, Any]:
        try:
            value = json.loads(raw)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise self._strange(f"HTTP {status} without a JSON object")
        return value

    def _strange(self, what: str) -> SyncError:
        return SyncError(f"{self.server} answered {what}", hint="is this the address of `edge serve`?")
