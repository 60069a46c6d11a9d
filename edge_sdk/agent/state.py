"""What the agent remembers across restarts: `state.json`, written atomically and guarded by a checksum."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_sdk.agent.fs import Fs, atomic_write
from edge_sdk.errors import EdgeError, SchemaError
from edge_sdk.schemas import document
from edge_sdk.schemas.state import Desired, Phase, Transition

VERSION = 1
KEEP_BLACKLIST = 64
KEEP_TRANSITIONS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleFloor:
    """The highest version seen of a TUF role and the keys that signed it; new keys start a new count."""

    version: int
    keys: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustFloor:
    """What a power cut must not make the device forget: role versions and the last time that was trusted."""

    roles: dict[str, RoleFloor] = field(default_factory=dict)
    time_s: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentState:
    """The update in progress and the slots.

    `active` is the slot that should run, `committed` the last one that passed its trial, `previous` the one committed
    before that, `factory` the one the device came with; all are SHA-256 digests. During a trial `active` differs from
    `committed`. `rev` is the newest desired revision that was taken up, `desired` its content; `next` waits until a
    rollback has ended. `blacklist` maps digests that were rolled back here to why. `transitions` are the steps that the
    broker has not taken yet, `seq` the number of the next one.
    """

    v: int = VERSION
    rev: int = -1
    desired: Desired | None = None
    next: Desired | None = None
    phase: Phase = Phase.IDLE
    active: str | None = None
    committed: str | None = None
    previous: str | None = None
    factory: str | None = None
    error: str | None = None
    attempts: int = 0
    retry_at: float | None = None
    trial_crashes: int = 0
    trial_clean_stop: bool = False
    blame: bool = True
    blacklist: dict[str, str] = field(default_factory=dict)
    seq: int = 0
    transitions: tuple[Transition, ...] = ()
    baseline_p95_ms: float | None = None
    trust: TrustFloor = field(default_factory=TrustFloor)
    config: dict[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


class StateFile:
    """`state.json`: `{"body": …, "sha256": of the body's canonical JSON}`."""

    def __init__(self, fs: Fs, path: Path) -> None:
        self.path = path
        self._fs = fs

    def load(self) -> AgentState | None:
        """Return the saved state, None when there is none.

        Raises:
            SchemaError: the file is torn, changed or of another version.
        """
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SchemaError(f"cannot read {self.path.name}: {error}") from None
        try:
            data = document.loads_object(raw, where=self.path.name)
            body = data.get("body")
            digest = hashlib.sha256(document.dumps(body)).hexdigest()
            if not isinstance(body, dict) or not hmac.compare_digest(digest, str(data.get("sha256"))):
                raise SchemaError(f"{self.path.name}: the checksum does not match its content")
            state = document.read(body, AgentState, where=self.path.name)
        except EdgeError:
            raise
        except Exception as error:
            raise SchemaError(f"{self.path.name} cannot be read: {error}") from None
        if state.v != VERSION:
            raise SchemaError(f"{self.path.name}: version {state.v}, this version reads {VERSION}")
        return state

    def save(self, state: AgentState) -> None:
        """Write the state so that a power cut leaves the old or the new one."""
        body = document.write(state)
        digest = hashlib.sha256(document.dumps(body)).hexdigest()
        atomic_write(self._fs, self.path, document.dumps({"body": body, "sha256": digest}))
