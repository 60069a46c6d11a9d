"""Signed metadata on disk: read, signed, written, each version once; one writer at a time."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    DelegatedRole,
    Metadata,
    Root,
    Signed,
    Snapshot,
    Targets,
    Timestamp,
)

from cloud_sync.files import atomic_write
from cloud_sync.policies import TrustPolicy
from cloud_sync.releases.keyring import Keyring
from edge_sdk.errors import TrustError

S = TypeVar("S", bound=Signed)
KEEP_VERSIONS = 20
TOP = ("root", "targets", "snapshot", "timestamp")


class MetadataFiles:
    """Files of consistent snapshots in `folder` (`3.root.json`, `7.<profile>.json`) beside one `timestamp.json`."""

    def __init__(self, folder: Path, keys: Keyring, policy: TrustPolicy) -> None:
        self.folder = folder
        self._keys = keys
        self._policy = policy
        self._thread = threading.RLock()
        self._depth = 0

    @property
    def exists(self) -> bool:
        return (self.folder / "timestamp.json").is_file()

    def root_version(self) -> int:
        """Return the newest root's version.

        Raises:
            TrustError: there is none.
        """
        versions = [
            int(p.name.split(".")[0]) for p in self.folder.glob("*.root.json") if p.name.split(".")[0].isdecimal()
        ]
        if not versions:
            raise TrustError(f"{self.folder} has no root", hint="`edge trust init` makes one")
        return max(versions)

    def root(self) -> Root:
        return self.load("root", self.root_version(), Root)

    def timestamp(self) -> Timestamp:
        return self.read(self.folder / "timestamp.json", Timestamp)

    def snapshot(self) -> Snapshot:
        return self.load("snapshot", self.timestamp().snapshot_meta.version, Snapshot)

    def versions(self) -> dict[str, int]:
        """The trusted version of targets and of each profile role: what the timestamp leads to."""
        return {name.removesuffix(".json"): m.version for name, m in self.snapshot().meta.items()}

    def current_version(self, name: str) -> int:
        """Return the version of any role."""
        if name == "root":
            return self.root_version()
        if name == "timestamp":
            return self.timestamp().version
        return self.snapshot().version if name == "snapshot" else self.versions()[name]

    def keyids(self, name: str, meta: Mapping[str, int]) -> list[str]:
        """Return the keys that may sign a role, at the versions `meta`.

        Raises:
            TrustError: there is no such role.
        """
        if name in TOP:
            return list(self.root().roles[name].keyids)
        top = self.load("targets", meta["targets"], Targets)
        roles = delegated(top)
        if name not in roles:
            raise TrustError(f"there is no role `{name}`", hint=f"the roles are {', '.join([*TOP, *roles])}")
        return list(roles[name].keyids)

    def load(self, name: str, version: int, kind: type[S]) -> S:
        return self.read(self.file(name, version), kind)

    def read(self, path: Path, kind: type[S]) -> S:
        """Return the metadata of a file.

        Raises:
            TrustError: the file is missing, damaged, or holds another kind of metadata.
        """
        try:
            signed = Metadata.from_bytes(path.read_bytes()).signed
        except FileNotFoundError:
            made = "`edge trust init` makes the repository, `--data DIR` names another"
            hint = "restore it from a backup" if self.exists else made
            raise TrustError(f"{path} is missing", hint=hint) from None
        except (OSError, RepositoryError) as error:
            raise TrustError(f"{path} is damaged: {error}", hint="restore DATA/tuf from a backup") from None
        if not isinstance(signed, kind):
            raise TrustError(f"{path} holds `{signed.type}` metadata", hint="restore DATA/tuf from a backup")
        return signed

    def file(self, name: str, version: int) -> Path:
        return self.folder / f"{version}.{name}.json"

    def bump(self, name: str, signed: Signed, keyids: Sequence[str], now: float) -> int:
        """Write the next version of a role and return its number."""
        signed.version += 1
        self.write(name, signed, keyids, now)
        return signed.version

    def write(self, name: str, signed: Signed, keyids: Sequence[str], now: float) -> None:
        """Sign metadata at the version it has, with the expiry that the policy gives its role.

        Raises:
            TrustError: a key that must sign is not here.
        """
        days = getattr(self._policy, f"{name}_days" if name in TOP else "profile_days")
        moment = datetime.fromtimestamp(now, tz=timezone.utc) + timedelta(days=days)
        signed.expires = moment.replace(microsecond=0)
        metadata: Metadata[Any] = Metadata(signed)
        for signer in self._keys.signers(keyids, name):
            metadata.sign(signer, append=True)
        path = self.folder / "timestamp.json" if name == "timestamp" else self.file(name, signed.version)
        atomic_write(path, metadata.to_bytes())

    def prune(self, meta: Mapping[str, int]) -> None:
        """Delete versions that no client can still be on its way to fetch; roots are kept, devices walk all of them."""
        newest = {**meta, "snapshot": self.timestamp().snapshot_meta.version}
        for path in self.folder.glob("*.*.json"):
            version, name = path.name.split(".")[:2]
            if version.isdecimal() and name in newest and int(version) < newest[name] - KEEP_VERSIONS:
                path.unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other thread and process out; may be nested."""
        with self._thread:
            if self._depth:
                yield
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._depth = 1
                try:
                    yield
                finally:
                    self._depth = 0


def fresh(signed: S) -> S:
    """Return metadata that no version has been written of: the first one will be 1."""
    signed.version = 0
    return signed


def delegated(top: Targets) -> dict[str, DelegatedRole]:
    """Return the profile roles that the top-level targets delegate to."""
    return (top.delegations.roles if top.delegations else None) or {}


def is_due(signed: Signed, days: float, now: float) -> bool:
    """Return whether metadata that lives `days` has less than half of its life before it."""
    return signed.expires.timestamp() - now < days * 86400.0 / 2


def verifies(root: Root, role: str, path: Path) -> bool:
    """Return whether a file carries the signatures that `root` asks of a top-level role."""
    metadata = Metadata.from_bytes(path.read_bytes())
    return bool(root.get_verification_result(role, metadata.signed_bytes, metadata.signatures))
