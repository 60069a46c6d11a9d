"""What this device believes: TUF metadata, checked against the root it enrolled with and against its own memory.

python-tuf checks signatures, thresholds, expiry and versions against its cache. Added here: the cache may be lost or
torn by a power cut, so the highest version of every role and the last trusted time come from the agent's own state;
slow, endless and stalled answers end; everything is on the disk before it is used.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
)
from tuf.api.metadata import Metadata, TargetFile  # type: ignore[attr-defined]
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from edge_sdk.agent.fs import Fs
from edge_sdk.agent.http import Limits, stream
from edge_sdk.agent.state import RoleFloor, TrustFloor
from edge_sdk.errors import SyncError, TrustError
from edge_sdk.schemas.ids import check_id, check_sha256

logger = logging.getLogger(__name__)
METADATA_LIMITS = Limits(stall_s=15.0, head_s=20.0, min_rate=256.0, rate_window_s=10.0, total_s=60.0)
_TOP = ("root", "timestamp", "snapshot", "targets")


@dataclass(frozen=True, slots=True)
class SignedTarget:
    """One artifact that the profile's release key vouches for."""

    path: str
    sha256: str
    size: int
    info: TargetFile

    def verify(self, path: Path) -> None:
        """Check a file against the signed length and hashes.

        Raises:
            TrustError: it is another file.
        """
        try:
            with path.open("rb") as file:
                self.info.verify_length_and_hashes(file)
        except LengthOrHashMismatchError as error:
            raise TrustError(f"{path.name} is not the signed {self.path}: {error}") from None


class Trust:
    """The client of the server's TUF repository; one thread and one process at a time."""

    def __init__(
        self, fs: Fs, folder: Path, server: str, profile: str, root: bytes, *, limits: Limits = METADATA_LIMITS
    ) -> None:
        self._fs = fs
        self._folder = folder
        self._url = f"{server.rstrip('/')}/tuf/"
        self._profile = check_id(profile, "profile")
        self._root = root
        self._limits = limits

    def lookup(self, sha256: str, floor: TrustFloor, now_s: float) -> tuple[SignedTarget, TrustFloor]:
        """Refresh the metadata and return the signed target of an artifact and the new floor, to be saved before use.

        Raises:
            TrustError: a signature, version, expiry, size or hash was refused, or the artifact is not released for the
                profile.
            SyncError: the server cannot be reached, answers an error, or is too slow; the disk fails.
        """
        path = f"{self._profile}/{check_sha256(sha256, 'artifact')}.edge"
        try:
            info = self._refresh(path)
        except ExpiredMetadataError as error:
            raise TrustError(
                f"{self._url}: {error}", hint="the server must sign again, or this device's clock is wrong"
            ) from None
        except DownloadError as error:
            raise SyncError(f"{self._url}: {error}", hint="check the server") from None
        except RepositoryError as error:
            raise TrustError(f"{self._url}: {error}", hint="the server's metadata is damaged or forged") from None
        except OSError as error:
            raise SyncError(f"cannot keep TUF metadata in {self._folder}: {error}", hint="check the disk") from None
        new = self._raise_floor(floor, now_s)
        self._sync()
        if info is None or not self._names(path):
            raise TrustError(
                f"{path} is not signed for profile `{self._profile}`", hint="publish it for this device's profile"
            )
        if info.hashes.get("sha256") != sha256:
            raise TrustError(f"{path} is signed with another SHA-256 than its name")
        return SignedTarget(path, sha256, info.length, info), new

    def _refresh(self, path: str) -> TargetFile | None:
        self._fs.mkdir(self._folder)
        updater = Updater(
            str(self._folder),
            self._url,
            fetcher=_Fetcher(self._limits),
            config=UpdaterConfig(max_delegations=1, max_root_rotations=64),
            bootstrap=self._root,
        )
        updater.refresh()
        return updater.get_targetinfo(path)

    def _names(self, path: str) -> bool:
        """Say whether it is the profile's own role that names the target."""
        try:
            return path in self._role(self._profile).targets
        except FileNotFoundError:
            return False

    def _role(self, name: str) -> Any:
        return Metadata.from_bytes((self._folder / f"{name}.json").read_bytes()).signed

    def _raise_floor(self, floor: TrustFloor, now_s: float) -> TrustFloor:
        """Refuse versions below the floor and metadata that expired before the last trusted time."""
        root = self._role("root")
        targets = self._role("targets")
        keyids = {name: root.roles[name].keyids for name in _TOP}
        delegation = targets.delegations
        if delegation is not None and delegation.roles and self._profile in delegation.roles:
            keyids[self._profile] = delegation.roles[self._profile].keyids
        roles = dict(floor.roles)
        earliest: float | None = None
        for name, ids in keyids.items():
            try:
                signed = self._role(name)
            except FileNotFoundError:
                continue
            keys = "" if name == "root" else hashlib.sha256(",".join(sorted(ids)).encode()).hexdigest()[:16]
            before = floor.roles.get(name)
            if before is not None and before.keys == keys and signed.version < before.version:
                raise TrustError(
                    f"TUF role `{name}` is at version {signed.version}, this device has seen {before.version}",
                    hint="an old state is being replayed, or the server lost its newest metadata",
                )
            expires = signed.expires.replace(tzinfo=datetime.timezone.utc).timestamp()
            if expires <= floor.time_s:
                raise TrustError(
                    f"TUF role `{name}` expired before the last time this device trusted",
                    hint="this device's clock went back, or old metadata is being replayed",
                )
            earliest = expires if earliest is None else min(earliest, expires)
            roles[name] = RoleFloor(version=signed.version, keys=keys)
        trusted_s = min(now_s, earliest) if earliest is not None else floor.time_s
        return TrustFloor(roles=roles, time_s=max(floor.time_s, trusted_s))

    def _sync(self) -> None:
        history = self._folder / "root_history"
        for folder in (history, self._folder):
            for path in sorted(folder.glob("*.json")):
                self._fs.sync(path)
            self._fs.sync(folder)


class _Fetcher(FetcherInterface):
    """Metadata over this package's bounded HTTP."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def _fetch(self, url: str) -> Iterator[bytes]:
        with stream(url, limits=self._limits) as reply:
            if reply.status != 200:
                raise DownloadHTTPError(f"{url} answered {reply.status}", reply.status)
            yield from reply.chunks
