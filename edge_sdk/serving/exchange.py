"""What an HTTP exchange consists of: limits, requests, answers, refusals; standard library only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from edge_sdk.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Connections at once; bytes of one body and of all bodies in memory; seconds for a head, a body and a send.

    `send_buffer` is how many bytes may lie between the server and a slow client, None for the system's choice.
    """

    connections: int = 64
    body_bytes: int = 32 * 1024 * 1024
    bodies_bytes: int = 128 * 1024 * 1024
    head_s: float = 15.0
    body_s: float = 30.0
    send_s: float = 10.0
    send_buffer: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request; `body` is read before it is handed on, names of `headers` are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer; `stream` sends parts until it returns, `send` raises OSError when the client is gone or too slow."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: Callable[[Callable[[bytes], None]], None] | None = None


class HttpError(Exception):
    """A request that is refused, with the reason for its sender."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "usage",
        hint: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.hint = status, message, kind, hint
        self.headers = {} if retry_after_s is None else {"Retry-After": str(max(1, int(retry_after_s + 0.999)))}

    def to_json(self) -> dict[str, Any]:
        return {"exit": 2 if self.status < 500 else 3, "kind": self.kind, "message": self.message, "hint": self.hint}


class App(Protocol):
    """Answers requests, from many threads at once; HttpError becomes a JSON answer."""

    def answer(self, request: Request) -> Answer: ...

    def refuse(self, path: str, error: HttpError) -> Answer:
        """Return the error in the form that clients of `path` read."""
        ...


def json_answer(data: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Return an answer of one JSON document."""
    body = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    return Answer(status=status, body=body, headers=headers or {})


def refusal(error: HttpError) -> Answer:
    """Return the JSON object that this project's errors have everywhere."""
    return json_answer({"error": error.to_json()}, status=error.status, headers=error.headers)


def check_port(value: int, what: str) -> int:
    """Return a port number, 0 to let the system choose.

    Raises:
        UsageError: it is none.
    """
    if not 0 <= value <= 65535:
        raise UsageError(f"{what} takes a port, 0 to 65535, found {value}")
    return value
