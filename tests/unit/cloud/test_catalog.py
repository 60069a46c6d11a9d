"""The catalog takes only whole artifacts, and releases never change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloud_sync.errors import ConflictError, NotFoundError
from edge_sdk.errors import ArtifactError, UsageError
from edge_sdk.schemas.ids import check_id
from edge_sdk.testing import build_artifact


def test_an_artifact_is_kept_under_its_digest_once(world: Any, tmp_path: Path) -> None:
    artifact = build_artifact(tmp_path / "a.edge", golden=False, name="cars")
    first, second = world.catalog.add_file(artifact.path), world.catalog.add_file(artifact.path)
    assert first == second
    assert first["sha256"] == artifact.sha256
    assert world.catalog.blob(artifact.sha256).read_bytes() == artifact.path.read_bytes()
    assert len(world.catalog.artifacts()) == 1
    assert list((world.folder / "blobs" / ".incoming").iterdir()) == []


def test_a_damaged_upload_is_refused_and_leaves_nothing(world: Any, tmp_path: Path) -> None:
    artifact = build_artifact(tmp_path / "a.edge", golden=False)
    cut = tmp_path / "cut.edge"
    cut.write_bytes(artifact.path.read_bytes()[:-200])
    with pytest.raises(ArtifactError):
        world.catalog.add_file(cut)
    assert world.catalog.artifacts() == []
    assert [p.name for p in (world.folder / "blobs").iterdir()] == [".incoming"]


def test_uploads_that_a_killed_service_left_are_cleared_at_the_next_start(world: Any) -> None:
    world.catalog.incoming().write_bytes(b"half")
    world.restart()
    assert list((world.folder / "blobs" / ".incoming").iterdir()) == []


def test_the_same_release_again_is_the_same_and_other_bytes_are_refused(world: Any, tmp_path: Path) -> None:
    first = world.release("1.0")
    check_id(first["release"], "release")
    assert world.catalog.create_release("tiny", "1.0", [first["targets"][0]["sha256"]], actor="t") == first
    other = build_artifact(tmp_path / "b.edge", golden=False, name="tiny", version="x")
    digest = world.catalog.add_file(other.path)["sha256"]
    with pytest.raises(ConflictError, match=r"release 1\.0 of `tiny` exists with other artifacts") as caught:
        world.catalog.create_release("tiny", "1.0", [digest], actor="t")
    assert "--version" in str(caught.value.hint)


def test_a_release_is_signed_before_it_is_listed(world: Any) -> None:
    release = world.release("1.0", profiles=("generic-cpu", "board-b"))
    assert [t["profile"] for t in release["targets"]] == ["board-b", "generic-cpu"]
    assert all(world.signer.has_target(t["profile"], t["sha256"]) for t in release["targets"])
    assert world.catalog.list_releases() == [release]


def test_wrong_sets_of_artifacts_are_refused(world: Any, tmp_path: Path) -> None:
    def add(**changes: Any) -> str:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.edge"
        return str(world.catalog.add_file(build_artifact(path, golden=False, **changes).path)["sha256"])

    a, b, c = add(name="tiny", version="1"), add(name="tiny", version="2"), add(name="cars")
    for digests, message in (
        ([a, b], "two artifacts are for the profile `generic-cpu`"),
        ([c], "is of the model `cars`, the release of `tiny`"),
        ([], "at least one artifact"),
    ):
        with pytest.raises(UsageError, match=message):
            world.catalog.create_release("tiny", "1", digests, actor="t")
    with pytest.raises(NotFoundError, match="no artifact"):
        world.catalog.create_release("tiny", "1", ["f" * 64], actor="t")
    with pytest.raises(UsageError, match="1 to 100 characters"):
        world.catalog.create_release("tiny", " ", [a], actor="t")
    with pytest.raises(NotFoundError, match="no artifact"):
        world.catalog.blob("../../etc/passwd")
    with pytest.raises(NotFoundError, match="no release `x`"):
        world.catalog.release("x")


def test_lineage_follows_parents_as_far_as_they_are_known(world: Any, tmp_path: Path) -> None:
    old = build_artifact(tmp_path / "old.edge", golden=False, name="tiny", version="1")
    new = build_artifact(tmp_path / "new.edge", golden=False, name="tiny", version="2", parent=old.sha256)
    for artifact in (old, new):
        world.catalog.add_file(artifact.path)
    assert [r["version"] for r in world.catalog.lineage(new.sha256)] == ["2", "1"]
