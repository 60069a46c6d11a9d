"""TUF on the device against a real repository: what is refused, what is believed, what survives a power cut."""

from __future__ import annotations

import datetime
import hashlib
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tuf", reason="needs edge-sdk[agent]")

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edge_sdk.agent.fs import RealFs
from edge_sdk.agent.http import Limits
from edge_sdk.agent.state import TrustFloor
from edge_sdk.agent.trust import SignedTarget, Trust
from edge_sdk.errors import EdgeError, SyncError, TrustError

PROFILE = "generic-cpu"
DATA = b"an artifact"
SHA = hashlib.sha256(DATA).hexdigest()
LIMITS = Limits(stall_s=0.5, head_s=1.0, min_rate=1000.0, rate_window_s=0.5, total_s=3.0)
NOW = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
DAY = datetime.timedelta(days=1)


class Repository:
    """A TUF repository on disk, signed with real keys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.signers = {
            name: CryptoSigner.generate_ed25519() for name in (*("root", "targets", "snapshot", "timestamp"), PROFILE)
        }
        self.root = Root(version=1, expires=NOW + 365 * DAY, consistent_snapshot=True)
        for name in ("root", "targets", "snapshot", "timestamp"):
            self.root.add_key(self.signers[name].public_key, name)
        self.targets = Targets(version=1, expires=NOW + 365 * DAY)
        role = DelegatedRole(PROFILE, [], 1, True, paths=[f"{PROFILE}/*"])
        self.targets.delegations = Delegations({}, {PROFILE: role})
        self.targets.add_key(self.signers[PROFILE].public_key, PROFILE)
        self.profile = Targets(version=1, expires=NOW + 30 * DAY)
        self.snapshot = Snapshot(version=1, expires=NOW + 7 * DAY)
        self.timestamp = Timestamp(version=1, expires=NOW + DAY)
        self.write_root()
        self.pinned = (folder / "1.root.json").read_bytes()
        self.add(DATA)
        self.publish()

    def add(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        path = f"{PROFILE}/{digest}.edge"
        self.profile.targets[path] = TargetFile.from_data(path, data, ["sha256"])
        return digest

    def write_root(self, *also: CryptoSigner) -> None:
        self._write("root", self.root, f"{self.root.version}.root.json", *also)

    def publish(self) -> None:
        """Sign and write everything but the root, each role one version up from the second time on."""
        self._write("targets", self.targets, f"{self.targets.version}.targets.json")
        self._write(PROFILE, self.profile, f"{self.profile.version}.{PROFILE}.json")
        self.snapshot.meta = {
            "targets.json": MetaFile(self.targets.version),
            f"{PROFILE}.json": MetaFile(self.profile.version),
        }
        self._write("snapshot", self.snapshot, f"{self.snapshot.version}.snapshot.json")
        self.timestamp.snapshot_meta = MetaFile(self.snapshot.version)
        self._write("timestamp", self.timestamp, "timestamp.json")

    def bump(self) -> None:
        for signed in (self.profile, self.snapshot, self.timestamp):
            signed.version += 1
        self.publish()

    def _write(self, role: str, signed: Any, name: str, *also: CryptoSigner) -> None:
        metadata = Metadata(signed)
        metadata.sign(self.signers[role])
        for signer in also:
            metadata.sign(signer, append=True)
        (self.folder / name).write_bytes(metadata.to_bytes())


class Device:
    def __init__(self, root: Path, url: str, pinned: bytes) -> None:
        self.root, self.url, self.pinned = root, url, pinned
        self.floor = TrustFloor()

    def lookup(self, sha256: str = SHA, *, now_s: float | None = None, profile: str = PROFILE) -> SignedTarget:
        trust = Trust(RealFs(), self.root / "tuf", self.url, profile, self.pinned, limits=LIMITS)
        target, self.floor = trust.lookup(sha256, self.floor, NOW.timestamp() if now_s is None else now_s)
        return target

    def lose_the_cache(self) -> None:
        shutil.rmtree(self.root / "tuf")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "www" / "tuf")


@pytest.fixture
def device(tmp_path: Path, repository: Repository) -> Iterator[Device]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(repository.folder.parent))

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    (tmp_path / "device").mkdir()
    yield Device(tmp_path / "device", f"http://127.0.0.1:{server.server_address[1]}", repository.pinned)
    server.shutdown()
    server.server_close()


def test_a_signed_artifact_is_found_and_its_bytes_are_checked(device: Device, tmp_path: Path) -> None:
    target = device.lookup()
    assert (target.path, target.size, target.sha256) == (f"{PROFILE}/{SHA}.edge", len(DATA), SHA)
    assert {n: f.version for n, f in device.floor.roles.items()} == {
        "root": 1, "timestamp": 1, "snapshot": 1, "targets": 1, PROFILE: 1,
    }  # fmt: skip
    (tmp_path / "good").write_bytes(DATA)
    target.verify(tmp_path / "good")
    (tmp_path / "bad").write_bytes(DATA + b"!")
    with pytest.raises(TrustError, match="bad is not the signed"):
        target.verify(tmp_path / "bad")


def test_what_nobody_signed_is_refused(device: Device) -> None:
    with pytest.raises(TrustError, match=f"is not signed for profile `{PROFILE}`"):
        device.lookup("f" * 64)


def test_the_release_key_of_one_profile_cannot_name_the_artifacts_of_another(
    device: Device, repository: Repository
) -> None:
    other = f"other/{SHA}.edge"
    repository.profile.targets[other] = TargetFile.from_data(other, DATA, ["sha256"])
    repository.bump()
    with pytest.raises(TrustError, match="not signed for profile `other`"):
        device.lookup(profile="other")


def test_only_the_profiles_own_role_may_name_an_artifact(device: Device, repository: Repository) -> None:
    extra = f"{PROFILE}/{'e' * 64}.edge"
    repository.targets.targets[extra] = TargetFile.from_data(extra, DATA, ["sha256"])
    repository.targets.version += 1
    repository.bump()
    with pytest.raises(TrustError, match="is not signed for profile"):
        device.lookup("e" * 64)


def test_an_artifact_that_is_signed_under_the_name_of_another_is_refused(
    device: Device, repository: Repository
) -> None:
    path = f"{PROFILE}/{'e' * 64}.edge"
    repository.profile.targets[path] = TargetFile.from_data(path, DATA, ["sha256"])
    repository.bump()
    with pytest.raises(TrustError, match="another SHA-256 than its name"):
        device.lookup("e" * 64)


def test_old_metadata_is_refused_even_when_the_power_cut_tore_the_cache(
    device: Device, repository: Repository, tmp_path: Path
) -> None:
    device.lookup()
    shutil.copytree(repository.folder, tmp_path / "old")
    repository.bump()
    device.lookup()
    shutil.rmtree(repository.folder)
    shutil.copytree(tmp_path / "old", repository.folder)
    with pytest.raises(TrustError):
        device.lookup()
    device.lose_the_cache()
    floor = device.floor
    with pytest.raises(TrustError, match="is at version 1, this device has seen 2"):
        device.lookup()
    assert device.floor == floor


@pytest.mark.parametrize("damage", [b"", b"{", bytes(500)])
def test_a_torn_cache_is_fetched_anew(device: Device, damage: bytes) -> None:
    device.lookup()
    for path in (device.root / "tuf").glob("*.json"):
        if not path.is_symlink():
            path.write_bytes(damage)
    for path in (device.root / "tuf" / "root_history").iterdir():
        path.write_bytes(damage)
    assert device.lookup().sha256 == SHA


def test_expired_metadata_is_refused_with_a_word_about_the_clock(device: Device, repository: Repository) -> None:
    repository.timestamp.expires = NOW - DAY
    repository.bump()
    with pytest.raises(TrustError, match="expired") as caught:
        device.lookup()
    assert "clock" in (caught.value.hint or "")


def test_a_clock_that_went_back_does_not_make_old_metadata_good(device: Device, repository: Repository) -> None:
    device.lookup(now_s=(NOW + 0.5 * DAY).timestamp())
    assert device.floor.time_s == (NOW + 0.5 * DAY).timestamp()
    repository.timestamp.expires = NOW + 0.2 * DAY
    repository.bump()
    with pytest.raises(TrustError, match="`timestamp` expired before the last time this device trusted"):
        device.lookup(now_s=0.0)


def test_a_clock_in_the_far_future_does_not_lock_the_device_out(device: Device, repository: Repository) -> None:
    device.lookup(now_s=(NOW + 9000 * DAY).timestamp())
    assert device.floor.time_s == (NOW + DAY).timestamp()
    repository.timestamp.expires = NOW + 2 * DAY
    repository.bump()
    assert device.lookup().sha256 == SHA


def test_a_new_root_that_the_old_one_signed_is_followed(device: Device, repository: Repository) -> None:
    device.lookup()
    old, new = repository.signers["timestamp"], CryptoSigner.generate_ed25519()
    repository.root.version = 2
    repository.root.revoke_key(old.public_key.keyid, "timestamp")
    repository.root.add_key(new.public_key, "timestamp")
    repository.write_root()
    repository.signers["timestamp"] = new
    repository.timestamp.version = 1  # a new key may start anew
    repository.publish()
    device.lose_the_cache()
    assert device.lookup().sha256 == SHA
    assert device.floor.roles["root"].version == 2


def test_a_root_that_somebody_else_signed_is_refused(device: Device, repository: Repository, tmp_path: Path) -> None:
    forged = Repository(tmp_path / "forged")
    shutil.rmtree(repository.folder)
    shutil.copytree(forged.folder, repository.folder)
    with pytest.raises(TrustError, match="signed by 0/1 keys"):
        device.lookup()


def test_a_changed_byte_anywhere_is_refused(device: Device, repository: Repository) -> None:
    for name in ("timestamp.json", "1.snapshot.json", "1.targets.json", f"1.{PROFILE}.json"):
        path = repository.folder / name
        good = path.read_bytes()
        position = good.index(b'"version"') + 12
        path.write_bytes(good[:position] + b"7" + good[position + 1 :])
        with pytest.raises(EdgeError):
            device.lookup()
        device.lose_the_cache()
        path.write_bytes(good)
    assert device.lookup().sha256 == SHA


def test_endless_metadata_is_cut_off(device: Device, repository: Repository) -> None:
    (repository.folder / "timestamp.json").write_bytes(b" " * 1_000_000)
    with pytest.raises(SyncError, match="maximum allowed length"):
        device.lookup()


def test_a_server_that_is_away_or_empty_is_named(device: Device, repository: Repository, free_port: int) -> None:
    (repository.folder / "timestamp.json").unlink()
    with pytest.raises(SyncError, match="answered 404"):
        device.lookup()
    device.url = f"http://127.0.0.1:{free_port}"
    with pytest.raises(SyncError, match="refused"):
        device.lookup()


def test_metadata_that_drips_is_given_up(device: Device, tmp_path: Path) -> None:
    over = threading.Event()

    class Drip(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "10000")
            self.end_headers()
            for _ in range(10_000):
                self.wfile.write(b" ")
                self.wfile.flush()
                if over.wait(0.05):
                    return

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Drip)
    server.handle_error = lambda *_: None  # type: ignore[method-assign, assignment]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    device.url = f"http://127.0.0.1:{server.server_address[1]}"
    with pytest.raises(SyncError, match="sends fewer than 1000 bytes/s"):
        device.lookup()
    over.set()
    server.shutdown()
    server.server_close()
