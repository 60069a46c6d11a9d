"""The signed repository as python-tuf's own client sees it."""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("tuf", reason="needs edge-sdk[cloud]")

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadHTTPError,
    ExpiredMetadataError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata
from tuf.ngclient import FetcherInterface, Updater

from cloud_sync.policies import TrustPolicy
from cloud_sync.releases.repository import Target, TrustRepository
from edge_sdk.errors import TrustError

DAY = 86400.0
BYTES = b"an artifact"
SHA = hashlib.sha256(BYTES).hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


class FolderFetcher(FetcherInterface):
    """Serves a folder of metadata as the service does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self.folder / unquote(urlsplit(url).path).lstrip("/")
        if not path.is_file():
            raise DownloadHTTPError("not there", 404)
        yield path.read_bytes()


@pytest.fixture
def now() -> float:
    return datetime.datetime.now(tz=datetime.timezone.utc).timestamp()


@pytest.fixture
def repository(tmp_path: Path, now: float) -> TrustRepository:
    made = TrustRepository(tmp_path / "server")
    made.init(now)
    made.publish([Target(profile="generic-cpu", sha256=SHA, size=len(BYTES), custom={"release": "r1"})], now)
    return made


class Client:
    """A device's trust: its own metadata folder, rooted in what enrolment gave it."""

    def __init__(self, folder: Path, repository: TrustRepository) -> None:
        self.folder, self.root = folder, repository.root_bytes()
        folder.mkdir()

    def look_up(self, repository: TrustRepository, path: str, *, at: float | None = None):  # type: ignore[no-untyped-def]
        updater = Updater(
            metadata_dir=str(self.folder),
            metadata_base_url="http://service/",
            fetcher=FolderFetcher(repository.tuf),
            bootstrap=self.root,
        )
        if at is not None:
            moment = datetime.datetime.fromtimestamp(at, tz=datetime.timezone.utc)
            updater._trusted_set.reference_time = moment
        updater.refresh()
        return updater.get_targetinfo(path)


@pytest.fixture
def client(tmp_path: Path, repository: TrustRepository) -> Client:
    return Client(tmp_path / "client", repository)


def test_the_client_finds_a_published_artifact_with_its_hash_and_release(
    client: Client, repository: TrustRepository
) -> None:
    info = client.look_up(repository, f"generic-cpu/{SHA}.edge")
    assert info is not None
    info.verify_length_and_hashes(BYTES)
    assert info.custom == {"release": "r1"}
    assert client.look_up(repository, f"generic-cpu/{OTHER}.edge") is None


def test_each_profile_has_a_key_of_its_own_and_its_role_cannot_speak_for_another(
    client: Client, repository: TrustRepository, now: float
) -> None:
    repository.publish([Target(profile="board-b", sha256=OTHER, size=5)], now)
    roles = {r.name: r for r in repository.status(now)}
    assert roles["generic-cpu"].keys != roles["board-b"].keys
    path = repository.tuf / f"{roles['board-b'].version}.board-b.json"
    metadata = Metadata.from_file(str(path))
    assert all(t.startswith("board-b/") for t in metadata.signed.targets)
    signers = repository.keys.signers(roles["board-b"].keys, "board-b")
    target = metadata.signed.targets.pop(f"board-b/{OTHER}.edge")
    target.path = f"generic-cpu/{OTHER}.edge"
    metadata.signed.targets[target.path] = target
    metadata.sign(signers[0])
    path.write_bytes(metadata.to_bytes())
    assert client.look_up(repository, f"generic-cpu/{OTHER}.edge") is None


def test_replaying_an_older_timestamp_is_refused(client: Client, repository: TrustRepository, now: float) -> None:
    old = (repository.tuf / "timestamp.json").read_bytes()
    repository.publish([Target(profile="generic-cpu", sha256=OTHER, size=5)], now)
    client.look_up(repository, f"generic-cpu/{OTHER}.edge")
    (repository.tuf / "timestamp.json").write_bytes(old)
    with pytest.raises(BadVersionNumberError):
        client.look_up(repository, f"generic-cpu/{OTHER}.edge")


def test_a_frozen_repository_is_refused_once_its_timestamp_expired(
    client: Client, repository: TrustRepository, now: float
) -> None:
    client.look_up(repository, f"generic-cpu/{SHA}.edge")
    with pytest.raises(ExpiredMetadataError):
        client.look_up(repository, f"generic-cpu/{SHA}.edge", at=now + 2 * DAY)
    assert set(repository.refresh(now + 2 * DAY)) == {"timestamp"}
    assert client.look_up(repository, f"generic-cpu/{SHA}.edge", at=now + 2 * DAY) is not None


def test_metadata_signed_by_another_key_is_refused(
    client: Client, repository: TrustRepository, tmp_path: Path, now: float
) -> None:
    forged = TrustRepository(tmp_path / "forged")
    forged.init(now)
    forged.publish([Target(profile="generic-cpu", sha256=OTHER, size=5)], now)
    shutil.copy(forged.tuf / "timestamp.json", repository.tuf / "timestamp.json")
    with pytest.raises(UnsignedMetadataError):
        client.look_up(repository, f"generic-cpu/{OTHER}.edge")


def test_a_profile_role_that_the_snapshot_does_not_name_is_refused(
    client: Client, repository: TrustRepository, now: float
) -> None:
    old = (repository.tuf / "1.generic-cpu.json").read_bytes()
    version = repository.publish([Target(profile="generic-cpu", sha256=OTHER, size=5)], now)["generic-cpu"]
    (repository.tuf / f"{version}.generic-cpu.json").write_bytes(old)
    with pytest.raises(RepositoryError):
        client.look_up(repository, f"generic-cpu/{OTHER}.edge")


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp", "generic-cpu"])
def test_a_client_follows_every_key_rotation_and_the_old_key_is_gone(
    client: Client, repository: TrustRepository, now: float, role: str
) -> None:
    client.look_up(repository, f"generic-cpu/{SHA}.edge")
    before = {r.name: r.keys for r in repository.status(now)}[role]
    repository.rotate(role, now)
    after = {r.name: r.keys for r in repository.status(now)}[role]
    assert set(before).isdisjoint(after)
    assert not any(repository.keys.has(k) for k in before)
    assert client.look_up(repository, f"generic-cpu/{SHA}.edge") is not None
    repository.publish([Target(profile="generic-cpu", sha256=OTHER, size=5)], now)
    assert client.look_up(repository, f"generic-cpu/{OTHER}.edge") is not None


def test_keeping_the_key_only_moves_the_expiry(repository: TrustRepository, now: float) -> None:
    before = {r.name: r for r in repository.status(now)}
    repository.rotate("root", now + 10 * DAY, keep_key=True)
    repository.rotate("targets", now + 10 * DAY, keep_key=True)
    after = {r.name: r for r in repository.status(now)}
    for name in ("root", "targets"):
        assert after[name].keys == before[name].keys
        assert after[name].expires == pytest.approx(before[name].expires + 10 * DAY, abs=1)


def test_online_roles_are_signed_again_before_they_expire_and_not_sooner(
    client: Client, repository: TrustRepository, now: float
) -> None:
    assert repository.refresh(now + 60) == ()
    assert repository.refresh(now + 0.6 * DAY) == ("timestamp",)
    assert set(repository.refresh(now + 4 * DAY)) == {"snapshot", "timestamp"}
    assert set(repository.refresh(now + 16 * DAY)) == {"generic-cpu", "snapshot", "timestamp"}
    assert client.look_up(repository, f"generic-cpu/{SHA}.edge", at=now + 16 * DAY) is not None


def test_keys_moved_offline_are_asked_for_by_name(repository: TrustRepository, tmp_path: Path, now: float) -> None:
    offline = tmp_path / "safe"
    offline.mkdir()
    for role in ("root", "targets"):
        for key in repository.keys.folder.glob(f"{role}-*.pem"):
            shutil.move(key, offline / key.name)
    repository.publish(
        [Target(profile="generic-cpu", sha256=OTHER, size=5)], now
    )  # an old profile needs no offline key
    with pytest.raises(TrustError, match="of role `targets` is not in") as caught:
        repository.publish([Target(profile="board-b", sha256=OTHER, size=5)], now)
    assert "--keys DIR" in str(caught.value.hint)
    assert {r.name for r in repository.status(now) if not r.here} == {"root", "targets"}
    with_keys = TrustRepository(repository.tuf.parent, offline_keys=offline)
    with_keys.publish([Target(profile="board-b", sha256=OTHER, size=5)], now)
    with_keys.rotate("targets", now)
    assert list(repository.keys.folder.glob("targets-*.pem")) == []


def test_a_rotation_cut_short_is_finished_by_the_next_refresh(
    client: Client, repository: TrustRepository, now: float
) -> None:
    client.look_up(repository, f"generic-cpu/{SHA}.edge")
    kept = {p.name: p.read_bytes() for p in repository.tuf.glob("*.json")}
    repository.rotate("timestamp", now)
    newest = max(repository.tuf.glob("*.root.json"), key=lambda p: int(p.name.split(".")[0]))
    for path in repository.tuf.glob("*.json"):
        if path != newest and path.name not in kept:
            path.unlink()
    (repository.tuf / "timestamp.json").write_bytes(kept["timestamp.json"])
    with pytest.raises(RepositoryError):
        client.look_up(repository, f"generic-cpu/{SHA}.edge")
    repository.refresh(now)
    assert client.look_up(repository, f"generic-cpu/{SHA}.edge") is not None


def test_a_publication_cut_before_its_timestamp_is_unseen_and_can_be_repeated(
    client: Client, repository: TrustRepository, now: float
) -> None:
    old = (repository.tuf / "timestamp.json").read_bytes()
    repository.publish([Target(profile="generic-cpu", sha256=OTHER, size=5)], now)
    (repository.tuf / "timestamp.json").write_bytes(old)
    assert client.look_up(repository, f"generic-cpu/{OTHER}.edge") is None
    repository.publish([Target(profile="generic-cpu", sha256=OTHER, size=5)], now)
    assert client.look_up(repository, f"generic-cpu/{OTHER}.edge") is not None


def test_a_root_threshold_needs_that_many_keys(tmp_path: Path, now: float) -> None:
    with pytest.raises(TrustError, match="threshold of 3 with 2 keys cannot be met"):
        TrustRepository(tmp_path / "a").init(now, root_keys=2, root_threshold=3)
    made = TrustRepository(tmp_path / "b")
    made.init(now, root_keys=3, root_threshold=2)
    assert len({r.name: r.keys for r in made.status(now)}["root"]) == 3
    made.rotate("root", now)
    made.publish([Target(profile="generic-cpu", sha256=SHA, size=len(BYTES))], now)
    assert Client(tmp_path / "c", made).look_up(made, f"generic-cpu/{SHA}.edge") is not None


def test_mistakes_are_named(repository: TrustRepository, tmp_path: Path, now: float) -> None:
    with pytest.raises(TrustError, match="has signed metadata already"):
        repository.init(now)
    with pytest.raises(TrustError, match="there is no role `nobody`") as caught:
        repository.rotate("nobody", now)
    assert "root, targets, snapshot, timestamp, generic-cpu" in str(caught.value.hint)
    with pytest.raises(TrustError, match="cannot be called `snapshot`"):
        repository.publish([Target(profile="snapshot", sha256=SHA, size=1)], now)
    (repository.tuf / "timestamp.json").write_text("{")
    with pytest.raises(TrustError, match="is damaged"):
        repository.status(now)
    with pytest.raises(TrustError, match="is missing") as caught:
        TrustRepository(tmp_path / "none").status(now)
    assert caught.value.hint == "`edge trust init` makes the repository, `--data DIR` names another"


def test_private_keys_are_readable_by_their_owner_only(repository: TrustRepository) -> None:
    keys = list(repository.keys.folder.glob("*.pem"))
    assert len(keys) == 5
    assert {k.stat().st_mode & 0o777 for k in keys} == {0o600}


def test_the_life_of_each_role_is_configurable(tmp_path: Path, now: float) -> None:
    made = TrustRepository(tmp_path, TrustPolicy(timestamp_days=0.001))
    made.init(now)
    signed = json.loads((made.tuf / "timestamp.json").read_text())["signed"]
    expires = datetime.datetime.fromisoformat(signed["expires"].replace("Z", "+00:00")).timestamp()
    assert expires - now == pytest.approx(86.4, abs=1)
