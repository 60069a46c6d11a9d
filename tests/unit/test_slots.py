"""Slots and state.json: what is whole, what is refused, what is collected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from slot_parts import A, B, C, content, digest_of

from edge_sdk.agent.fs import RealFs
from edge_sdk.agent.slots import Slots, runnable
from edge_sdk.agent.state import AgentState, RoleFloor, StateFile, TrustFloor
from edge_sdk.errors import ArtifactError, SchemaError, TrustError
from edge_sdk.schemas.state import Desired, Phase, Transition


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    made = Slots(RealFs(), tmp_path)
    made.prepare()
    return made


def put(slots: Slots, name: str) -> str:
    digest = digest_of(name)
    slots.staged(digest).write_bytes(content(name))
    slots.install(digest)
    return digest


def test_an_installed_artifact_is_whole_and_its_staging_is_gone(slots: Slots) -> None:
    digest = put(slots, "a")
    assert slots.whole(digest)
    assert slots.artifact(digest).read_bytes() == content("a")
    assert list(slots.staging.iterdir()) == []
    assert slots.install(digest) == slots.artifact(digest)


def test_bytes_that_do_not_hash_to_the_digest_never_become_a_slot(slots: Slots) -> None:
    slots.staged(A).write_bytes(content("b"))
    with pytest.raises(TrustError, match="staged artifact hashes to"):
        slots.install(A)
    assert slots.digests() == ()


def test_a_damaged_slot_is_replaced_by_a_new_install(slots: Slots) -> None:
    put(slots, "a")
    slots.artifact(A).write_bytes(b"torn")
    assert not slots.whole(A)
    assert slots.whole(put(slots, "a"))


def test_a_link_in_place_of_an_artifact_is_no_slot(slots: Slots, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(content("a"))
    slots.artifact(A).parent.mkdir()
    slots.artifact(A).symlink_to(tmp_path / "elsewhere")
    assert not slots.whole(A)


@pytest.mark.parametrize("odd", [None, "", "..", "../../etc", A.upper(), "a" * 63])
def test_a_name_that_is_no_digest_is_no_slot(slots: Slots, odd: str | None) -> None:
    assert not slots.whole(odd)


def test_collecting_keeps_only_what_is_named(slots: Slots) -> None:
    for name in "abc":
        put(slots, name)
    slots.staged("d" * 64).write_bytes(b"part")
    slots.collect((A, None, C))
    assert slots.digests() == tuple(sorted((A, C)))
    slots.collect_staging(None)
    assert list(slots.staging.iterdir()) == []


def test_the_artifact_that_a_device_came_with_becomes_its_factory_slot(slots: Slots, tmp_path: Path) -> None:
    (tmp_path / "factory.edge").write_bytes(content("a"))
    assert slots.adopt(tmp_path / "factory.edge") == A
    assert slots.adopt(tmp_path / "factory.edge") == A
    assert slots.whole(A)
    with pytest.raises(ArtifactError, match=r"cannot read .*none\.edge"):
        slots.adopt(tmp_path / "none.edge")


def test_the_slot_to_run_is_the_first_whole_one_in_order(slots: Slots) -> None:
    for name in "abc":
        put(slots, name)
    state = AgentState(active=A, committed=B, previous=C)
    for expected in (A, B, C):
        assert runnable(slots, state) == expected
        slots.artifact(expected).write_bytes(b"damaged")
    assert runnable(slots, state) is None
    put(slots, "a")
    put(slots, "b")
    blamed = AgentState(blacklist={min(A, B): "bad"})
    assert runnable(slots, blamed) == max(A, B)
    assert runnable(slots, None) == min(A, B)


# -- state.json -----------------------------------------------------------------------------------------------------


def full_state() -> AgentState:
    desired = Desired(
        rev=3, release="r3", target=f"p/{B}.edge", sha256=B, size=9, config={"telemetry": {"window_n": 9}}
    )
    step = Transition(seq=4, t=1.5, rev=3, release="r3", sha256=B, source=Phase.IDLE, to=Phase.OFFERED, error="x")
    trust = TrustFloor(roles={"root": RoleFloor(version=2), "p": RoleFloor(version=7, keys="k")}, time_s=123.5)
    return AgentState(
        rev=3, desired=desired, next=desired, phase=Phase.PAUSED, active=A, blacklist={C: "bad"}, seq=5,
        transitions=(step,), trust=trust, retry_at=99.5, config={"telemetry": {"window_n": 9}},
    )  # fmt: skip


def test_the_state_survives_a_round_trip_whole(tmp_path: Path) -> None:
    file = StateFile(RealFs(), tmp_path / "state.json")
    assert file.load() is None
    file.save(full_state())
    assert file.load() == full_state()


def test_every_torn_or_changed_state_is_noticed(tmp_path: Path) -> None:
    file = StateFile(RealFs(), tmp_path / "state.json")
    file.save(full_state())
    raw = file.path.read_bytes()
    for cut in range(0, len(raw), 97):
        file.path.write_bytes(raw[:cut])
        with pytest.raises(SchemaError):
            file.load()
    for position in range(10, len(raw), 53):
        file.path.write_bytes(raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :])
        with pytest.raises(SchemaError):
            file.load()
    file.path.write_bytes(bytes(len(raw)))
    with pytest.raises(SchemaError):
        file.load()


def test_a_state_of_another_version_is_refused_by_number(tmp_path: Path) -> None:
    file = StateFile(RealFs(), tmp_path / "state.json")
    file.save(replace(full_state(), v=2))
    with pytest.raises(SchemaError, match="version 2, this version reads 1"):
        file.load()
