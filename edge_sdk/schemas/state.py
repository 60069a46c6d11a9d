"""Desired state (cloud to device) and reported state (device to cloud); AWS calls the pair a shadow."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_sdk.schemas import document
from edge_sdk.schemas.ids import check_id, check_sha256

VERSION = 1
LAST_WILL = b'{"online":false,"v":1}'


class Phase(str, enum.Enum):
    """Where a device is in an update; `state.phase` and the ends of an `ota` transition."""

    IDLE = "IDLE"
    OFFERED = "OFFERED"
    DOWNLOADING = "DOWNLOADING"
    PAUSED = "PAUSED"
    VERIFYING = "VERIFYING"
    STAGED = "STAGED"
    TESTED = "TESTED"
    SHADOW = "SHADOW"
    TRIAL = "TRIAL"
    COMMITTED = "COMMITTED"
    FAILED = "FAILED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    SAFE_MODE = "SAFE_MODE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What one device should run; `rev` only grows, a lower one is stale and ignored."""

    v: int = VERSION
    rev: int = field(metadata={"min": 0})
    release: str
    target: str
    sha256: str
    size: int = field(metadata={"min": 1})
    rollout: str | None = None
    trial_s: float = field(default=60.0, metadata={"min": 0})
    config: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, raw: bytes) -> Desired:
        """Read a `desired` message.

        Raises:
            SchemaError: it has not the form, or a name in it is not an id or a SHA-256.
        """
        desired = document.read(document.loads_object(raw, where="desired", max_bytes=65536), cls, where="desired")
        check_id(desired.release, "release")
        check_sha256(desired.sha256, "sha256")
        return desired

    def to_json(self) -> bytes:
        return document.dumps(document.write(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxState:
    rows: int = 0
    dropped: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What one device says of itself; a key absent from a message keeps its last value at the receiver."""

    v: int = VERSION
    rev: int | None = None
    online: bool | None = None
    digest: str | None = None
    slot: str | None = None
    phase: Phase | None = None
    profile: str | None = None
    outbox: OutboxState | None = None
    error: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, raw: bytes) -> Reported:
        """Read a `state` message.

        Raises:
            SchemaError: it has not the form.
        """
        return document.read(document.loads_object(raw, where="state", max_bytes=65536), cls, where="state")

    def to_json(self) -> bytes:
        return document.dumps(document.write(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One step of an update on a device, sent on `ota`; `t` is seconds since the epoch by the device's clock."""

    v: int = VERSION
    seq: int = field(metadata={"min": 0})
    t: float
    rev: int
    release: str
    sha256: str
    rollout: str | None = None
    source: Phase = field(metadata={"key": "from"})
    to: Phase
    error: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, raw: bytes) -> Transition:
        """Read an `ota` message.

        Raises:
            SchemaError: it has not the form.
        """
        return document.read(document.loads_object(raw, where="ota", max_bytes=65536), cls, where="ota")

    def to_json(self) -> bytes:
        return document.dumps(document.write(self))
