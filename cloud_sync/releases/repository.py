"""The TUF repository of releases: offline root and targets, one terminating role with an online key per device profile.

Metadata lives in DATA/tuf with consistent snapshots (`3.root.json`, `7.<profile>.json`), private keys in DATA/keys as
`<role>-<keyid>.pem` (PKCS8, mode 0600). The root and targets keys are needed only to add a profile and to rotate, and
may be kept elsewhere in between. Specification: https://theupdateframework.github.io/specification/latest/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key  # type: ignore[attr-defined]
from tuf.api.metadata import (  # type: ignore[attr-defined]
    DelegatedRole,
    Delegations,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from cloud_sync.policies import TrustPolicy
from cloud_sync.releases.keyring import Keyring
from cloud_sync.releases.metadata import TOP, MetadataFiles, delegated, fresh, is_due, verifies
from edge_sdk.errors import TrustError
from edge_sdk.schemas.ids import check_id, check_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One signed file: a profile's artifact, `size` in bytes; `custom` is kept in the metadata."""

    profile: str
    sha256: str
    size: int
    custom: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return target_path(self.profile, self.sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleStatus:
    """A role's current metadata: `expires` in seconds since the epoch, `keys` the ids that may sign it."""

    name: str
    version: int
    expires: float
    keys: tuple[str, ...]
    here: bool
    expired: bool


def target_path(profile: str, sha256: str) -> str:
    """Return the TUF target path of an artifact."""
    return f"{profile}/{sha256}.edge"


class TrustRepository:
    """Signed metadata on disk; safe against several threads and processes, and against a crash at any point.

    Every change writes new versions of files that nothing refers to yet, then `timestamp.json` last.
    """

    def __init__(self, data: Path, policy: TrustPolicy | None = None, *, offline_keys: Path | None = None) -> None:
        """`offline_keys` is a further folder in which private keys are looked for, and into which root's and targets'
        new ones go."""
        self.keys = Keyring(data / "keys", offline_keys)
        self.policy = policy or TrustPolicy()
        self._files = MetadataFiles(data / "tuf", self.keys, self.policy)

    @property
    def tuf(self) -> Path:
        """The folder that devices are served from."""
        return self._files.folder

    @property
    def exists(self) -> bool:
        return self._files.exists

    def init(self, now: float, *, root_keys: int = 1, root_threshold: int = 1) -> None:
        """Make keys and the first version of every top-level role.

        Raises:
            TrustError: there is a repository already, or `root_threshold` is not 1 to `root_keys`.
        """
        if not 1 <= root_threshold <= root_keys:
            raise TrustError(
                f"a root threshold of {root_threshold} with {root_keys} keys cannot be met",
                hint="give --root-keys at least as many as --root-threshold",
            )
        with self._files.locked():
            if self.exists:
                raise TrustError(
                    f"{self.tuf} has signed metadata already", hint="`edge trust rotate` replaces single keys"
                )
            roles: dict[str, Role] = {}
            keys: dict[str, Key] = {}
            for name in TOP:
                made = [self.keys.new(name) for _ in range(root_keys if name == "root" else 1)]
                keys.update({k.public_key.keyid: k.public_key for k in made})
                roles[name] = Role([k.public_key.keyid for k in made], root_threshold if name == "root" else 1)
            root = Root(version=1, keys=keys, roles=roles, consistent_snapshot=True)
            self._files.write("root", root, root.roles["root"].keyids, now)
            self._files.write("targets", Targets(), root.roles["targets"].keyids, now)
            self._publish(now, {"targets": 1}, set())

    def ensure(self, now: float) -> None:
        """Make the repository when there is none, and sign again what nears its expiry."""
        with self._files.locked():
            if not self.exists:
                self.init(now)
            self.refresh(now)

    def root_bytes(self) -> bytes:
        """Return the newest root as it is on disk: what a device that enrols is given."""
        return self._files.file("root", self._files.root_version()).read_bytes()

    def publish(self, targets: Sequence[Target], now: float) -> dict[str, int]:
        """Sign `targets` into their profiles' roles and return each role's new version.

        A profile that has no role yet gets one, which needs the targets key.

        Raises:
            TrustError: that key is not here, or the metadata on disk is damaged.
        """
        with self._files.locked():
            for target in targets:
                check_id(target.profile, "profile")
                check_sha256(target.sha256, "artifact")
                if target.profile in TOP:
                    raise TrustError(f"a profile cannot be called `{target.profile}`", hint="TUF uses that name")
            profiles = sorted({t.profile for t in targets})
            changed: dict[str, int] = {}
            meta = self._files.versions()
            top = self._files.load("targets", meta["targets"], Targets)
            known = delegated(top)
            missing = [p for p in profiles if p not in known]
            if missing:
                changed["targets"] = self._delegate(top, missing, now)
                known = delegated(top)
            for profile in profiles:
                role = self._files.load(profile, meta[profile], Targets) if profile in meta else fresh(Targets())
                for target in (t for t in targets if t.profile == profile):
                    role.targets[target.path] = TargetFile(
                        length=target.size,
                        hashes={"sha256": target.sha256},
                        path=target.path,
                        unrecognized_fields={"custom": dict(target.custom)} if target.custom else {},
                    )
                changed[profile] = self._files.bump(profile, role, known[profile].keyids, now)
            self._publish(now, meta | changed, set())
            return changed

    def refresh(self, now: float, *, force: bool = False) -> tuple[str, ...]:
        """Sign online roles again that have lived half of their life; return their names."""
        with self._files.locked():
            meta = self._files.versions()
            top = self._files.load("targets", meta["targets"], Targets)
            changed = {}
            for profile, delegation in delegated(top).items():
                role = self._files.load(profile, meta[profile], Targets)
                if force or is_due(role, self.policy.profile_days, now):
                    changed[profile] = self._files.bump(profile, role, delegation.keyids, now)
            snapshot_due = is_due(self._files.snapshot(), self.policy.snapshot_days, now)
            timestamp_due = is_due(self._files.timestamp(), self.policy.timestamp_days, now)
            if changed or snapshot_due or force or self._repair(meta, changed, now):
                self._publish(now, meta | changed, set())
                self._files.prune(meta | changed)
                return (*changed, "snapshot", "timestamp")
            if timestamp_due:
                self._publish(now, meta, {"snapshot"})
                return ("timestamp",)
            return ()

    def rotate(self, name: str, now: float, *, keep_key: bool = False) -> int:
        """Give a role a new key (or, with `keep_key`, only a later expiry) and return its new version.

        Rotating `root` needs its old key, any other top-level role needs root's, a profile needs targets'.

        Raises:
            TrustError: the role is unknown or a key that must sign is not here.
        """
        with self._files.locked():
            meta = self._files.versions()
            old_keys: Iterable[str] = ()
            if name in TOP:
                old_keys = self._rotate_top(name, now, keep_key=keep_key)
            elif not keep_key:
                top = self._files.load("targets", meta["targets"], Targets)
                if name not in delegated(top):
                    known = ", ".join([*TOP, *sorted(set(meta) - {"targets"})])
                    raise TrustError(f"there is no role `{name}`", hint=f"the roles are {known}")
                key = self.keys.new(name)
                old_keys = list(delegated(top)[name].keyids)
                for keyid in old_keys:
                    top.revoke_key(keyid, name)
                top.add_key(key.public_key, name)
                meta["targets"] = self._files.bump("targets", top, self._files.root().roles["targets"].keyids, now)
            if name not in ("root", "snapshot", "timestamp"):
                role = self._files.load(name, meta[name], Targets)
                meta[name] = self._files.bump(name, role, self._files.keyids(name, meta), now)
            self._publish(now, meta, set())
            for keyid in old_keys:
                self.keys.remove(keyid)
            return self._files.current_version(name)

    def status(self, now: float) -> list[RoleStatus]:
        """Return every role, root first."""
        with self._files.locked():
            meta = self._files.versions()
            signed: dict[str, Signed] = {
                "root": self._files.root(),
                "targets": self._files.load("targets", meta["targets"], Targets),
                "snapshot": self._files.snapshot(),
                "timestamp": self._files.timestamp(),
            }
            signed |= {n: self._files.load(n, v, Targets) for n, v in sorted(meta.items()) if n != "targets"}
            out = []
            for name, value in signed.items():
                keyids = tuple(self._files.keyids(name, meta))
                out.append(
                    RoleStatus(
                        name=name,
                        version=value.version,
                        expires=value.expires.timestamp(),
                        keys=keyids,
                        here=all(self.keys.has(k) for k in keyids),
                        expired=value.expires.timestamp() <= now,
                    )
                )
            return out

    def has_target(self, profile: str, sha256: str) -> bool:
        """Return whether the profile's current role names the artifact."""
        with self._files.locked():
            meta = self._files.versions()
            if profile not in meta:
                return False
            role = self._files.load(profile, meta[profile], Targets)
            return target_path(profile, sha256) in role.targets

    # One change, from new versions to the timestamp

    def _publish(self, now: float, meta: Mapping[str, int], keep: set[str]) -> None:
        root = self._files.root()
        timestamp = self._files.timestamp() if self.exists else fresh(Timestamp())
        if "snapshot" not in keep:
            snapshot = Snapshot(meta={})
            snapshot.version = timestamp.snapshot_meta.version if self.exists else 0
            for name, version in meta.items():
                snapshot.meta[f"{name}.json"] = MetaFile.from_data(
                    version, self._files.file(name, version).read_bytes(), ["sha256"]
                )
            version = self._files.bump("snapshot", snapshot, root.roles["snapshot"].keyids, now)
            data = self._files.file("snapshot", version).read_bytes()
            timestamp.snapshot_meta = MetaFile.from_data(version, data, ["sha256"])
        self._files.bump("timestamp", timestamp, root.roles["timestamp"].keyids, now)

    def _delegate(self, top: Targets, profiles: Sequence[str], now: float) -> int:
        top.delegations = top.delegations or Delegations(keys={}, roles={})
        roles = top.delegations.roles
        assert roles is not None
        self.keys.signers(self._files.root().roles["targets"].keyids, "targets")  # before any key is made
        for profile in profiles:
            key = self.keys.new(profile)
            roles[profile] = DelegatedRole(profile, [], 1, True, paths=[f"{profile}/*"])
            top.add_key(key.public_key, profile)
        return self._files.bump("targets", top, self._files.root().roles["targets"].keyids, now)

    def _repair(self, meta: Mapping[str, int], changed: dict[str, int], now: float) -> bool:
        """Whether a rotation was cut short: the newest root is out, roles still carry the former signatures."""
        root = self._files.root()
        top = self._files.file("targets", meta["targets"])
        if not verifies(root, "targets", top):
            changed["targets"] = self._files.bump(
                "targets", self._files.read(top, Targets), root.roles["targets"].keyids, now
            )
        snapshot = self._files.file("snapshot", self._files.timestamp().snapshot_meta.version)
        good = verifies(root, "snapshot", snapshot) and verifies(
            root, "timestamp", self._files.folder / "timestamp.json"
        )
        return bool(changed) or not good

    def _rotate_top(self, name: str, now: float, *, keep_key: bool) -> list[str]:
        root = self._files.root()
        signing = list(root.roles["root"].keyids)
        old = [] if keep_key else list(root.roles[name].keyids)
        self.keys.signers(signing, "root")
        if keep_key and name != "root":
            return []
        if not keep_key:
            made = [self.keys.new(name) for _ in old]
            for keyid in old:
                root.revoke_key(keyid, name)
            for key in made:
                root.add_key(key.public_key, name)
        root.version += 1
        self._files.write("root", root, list(dict.fromkeys([*signing, *root.roles["root"].keyids])), now)
        return old
