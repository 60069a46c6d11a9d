"""The operator's side of the HTTP API, on the standard library: used by every verb that talks to the service."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
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
        parts = urllib.parse.urlsplit(server)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UsageError(f"server `{server}` is not a URL", hint=f"write it as {DEFAULT_SERVER}")
        self.server = server.rstrip("/")
        self._token = token
        self._timeout_s = timeout_s
        # Never through a proxy from the environment: the token must reach this server only.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())

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
        request = urllib.request.Request(self.server + path, data=data, method=method, headers=headers)
        request.add_header("Accept", "application/json")
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                return bytes(response.read(_MAX_RESPONSE))
        except urllib.error.HTTPError as error:
            with error:
                answer = self._object(error.read(_MAX_RESPONSE), status=error.code)
            found = answer.get("error")
            if not isinstance(found, dict):
                raise self._strange(f"HTTP {error.code}") from None
            raise from_json(found) from None
        except (urllib.error.URLError, TimeoutError, http.client.HTTPException, ConnectionError) as error:
            reason = getattr(error, "reason", None) or error
            raise SyncError(
                f"cannot reach {self.server}: {reason}",
                hint="is `edge serve` running there? `--server URL` names another",
            ) from None

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


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None
