"""Errors of the service that an HTTP status stands for; the client raises the same classes on the other side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_sdk import errors
from edge_sdk.errors import EdgeError, SyncError, UsageError


class NotFoundError(UsageError):
    kind = "not_found"


class ConflictError(UsageError):
    """The request is well formed and the state of its subject does not allow it."""

    kind = "conflict"


class TooLargeError(UsageError):
    kind = "too_large"


class AuthError(SyncError):
    """The token or credential is missing or wrong."""

    kind = "auth"


class StoreError(SyncError):
    """The database cannot be read or written."""

    kind = "store"


_STATUS: dict[str, int] = {
    "not_found": 404,
    "conflict": 409,
    "too_large": 413,
    "auth": 401,
    "store": 503,
}
_STATUS_OF_EXIT = {2: 400, 3: 501, 4: 422, 5: 409, 6: 500, 7: 503}
_KINDS: dict[str, type[EdgeError]] = {
    cls.kind: cls
    for cls in (
        errors.UsageError,
        errors.ConfigError,
        errors.ProfileError,
        errors.BackendError,
        errors.ArtifactError,
        errors.SchemaError,
        errors.TrustError,
        errors.GuardrailError,
        errors.CalibrationError,
        errors.ConversionError,
        errors.SourceError,
        errors.WorkerError,
        errors.SyncError,
        NotFoundError,
        ConflictError,
        TooLargeError,
        AuthError,
        StoreError,
    )
}
_CLASS_OF_EXIT: dict[int, type[EdgeError]] = {
    2: errors.UsageError,
    3: errors.BackendError,
    4: errors.ArtifactError,
    5: errors.GuardrailError,
    6: errors.ConversionError,
}


def http_status(error: EdgeError) -> int:
    """Return the HTTP status that stands for `error`."""
    return _STATUS.get(error.kind) or _STATUS_OF_EXIT.get(error.exit_code, 500)


def from_json(data: Mapping[str, Any]) -> EdgeError:
    """Return the error that a server's `{"error": {...}}` object describes."""
    kind, number = str(data.get("kind")), data.get("exit")
    cls = _KINDS.get(kind) or _CLASS_OF_EXIT.get(number if isinstance(number, int) else 0, SyncError)
    hint = data.get("hint")
    return cls(str(data.get("message") or "the server gave no reason"), hint=str(hint) if hint else None)
