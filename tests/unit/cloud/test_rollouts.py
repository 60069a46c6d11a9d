"""Rollouts over a real store with devices that obey, refuse, fail or fall silent."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from cloud_sync.errors import ConflictError, NotFoundError
from cloud_sync.rollout.cohorts import assign, bucket
from edge_sdk.errors import ConfigError, UsageError

FIVE = [f"cam-{i}" for i in range(5)]
TWENTY = [f"cam-{i:02}" for i in range(20)]


def sha(release: dict[str, Any]) -> str:
    return str(release["targets"][0]["sha256"])


def start(world: Any, release: dict[str, Any], **changes: Any) -> str:
    made = world.rollouts.create(release["release"], changes=changes, actor="test", now=world.now)
    return str(made["id"])


def test_a_good_release_reaches_every_device_stage_by_stage(world: Any) -> None:
    world.add_devices(TWENTY)
    release = world.release("1.0")
    rollout = start(world, release)
    most = 0
    for _ in range(60):
        world.tick()
        row = world.rollouts.get(rollout)
        got = sum(d == sha(release) for d in world.digests().values())
        allowed = [2, 10, 20, 20][row["stage"]]
        assert got <= allowed
        most = max(most, got)
        if row["state"] == "COMPLETE":
            break
    assert row["state"] == "COMPLETE"
    assert most == 20
    assert row["devices"] == {"COMMITTED": 20}
    assert [e["state"] for e in row["events"]] == ["READY", "RUNNING", "RUNNING", "RUNNING", "BAKING", "COMPLETE"]
    assert {g["name"] for g in row["guards"]} == {"errors", "error_share", "slow", "confidence", "failures", "silent"}
    assert not any(g["tripped"] for g in row["guards"])
    assert world.catalog.current()["generic-cpu"]["release"] == release["release"]


def test_a_stage_is_not_passed_before_its_soak_and_its_windows(world: Any) -> None:
    world.add_devices(FIVE)
    rollout = start(world, world.release("1.0"), soak_s=50, min_windows=3)
    world.tick(1)
    assert world.rollouts.get(rollout)["devices"] == {"NOTIFIED": 1, "QUEUED": 4}
    world.tick(1)
    for _ in range(20):
        world.tick(5, windows=False)
    row = world.rollouts.get(rollout)
    assert (row["state"], row["stage"], row["devices"]["COMMITTED"]) == ("RUNNING", 0, 1)
    for _ in range(4):
        world.tick(1)
    assert world.rollouts.get(rollout)["stage"] == 1


@pytest.mark.parametrize(
    ("health", "guard"),
    [({"errors": 100}, "error_share"), ({"slow": 90}, "slow"), ({"confidence": 0.2}, "confidence")],
)
def test_a_release_that_passes_its_self_test_and_fails_live_is_rolled_back_in_the_first_stage(
    world: Any, health: dict[str, Any], guard: str
) -> None:
    world.add_devices(FIVE)
    good = world.complete("1.0")
    for _ in range(5):
        world.tick()
    bad = world.release("2.0")
    world.health = lambda device, digest: health if digest == sha(bad) else {}
    rollout = start(world, bad, min_stage_windows=8)
    row = world.run_until(rollout, "ROLLED_BACK")
    assert row["stage"] == 0
    assert guard in {g["name"] for g in row["guards"] if g["tripped"]}
    assert row["reason"].startswith("guard ")
    assert set(world.digests().values()) == {sha(good)}
    assert row["devices"] == {"QUEUED": 4, "ROLLED_BACK": 1}
    undo = world.catalog.release(row["undo_release"])
    assert undo["kind"] == "undo"
    assert undo["number"] > world.catalog.release(bad["release"])["number"]
    assert undo["targets"][0]["sha256"] == sha(good)
    told = [world.desired(d) for d in FIVE]
    assert Counter(t.release for t in told) == {good["release"]: 4, undo["release"]: 1}


def test_a_device_that_rolls_itself_back_undoes_the_rollout(world: Any) -> None:
    world.add_devices(FIVE)
    good = world.complete("1.0")
    bad = world.release("2.0")
    world.behaviour = lambda device, desired: "ROLLED_BACK" if desired.sha256 == sha(bad) else "COMMITTED"
    row = world.run_until(start(world, bad), "ROLLED_BACK")
    assert row["reason"] == "guard failures: 1 of 1 devices failed"
    assert set(world.digests().values()) == {sha(good)}


def test_a_failure_that_the_device_retries_in_time_is_no_failure(world: Any) -> None:
    world.add_devices(FIVE)
    release = world.release("1.0")
    rollout = start(world, release)
    world.behaviour = lambda device, desired: "FAILED"
    world.tick()
    failed = next(d for d in FIVE if world.desired(d) is not None)
    world.tick(2)
    assert world.rollouts.get(rollout)["devices"]["FAILED"] == 1
    assert world.rollouts.get(rollout)["state"] == "RUNNING"
    world.behaviour = lambda device, desired: "COMMITTED"
    world.report(failed, phase="COMMITTED", digest=sha(release))
    assert world.run_until(rollout, "COMPLETE")["devices"] == {"COMMITTED": 5}


def test_a_silent_device_holds_the_rollout_and_its_return_lets_it_go_on(world: Any) -> None:
    world.add_devices(FIVE)
    rollout = start(world, world.release("1.0"))
    world.behaviour = lambda device, desired: "ignore"
    world.tick()
    told = next(d for d in FIVE if world.desired(d) is not None)
    row = world.run_until(rollout, "HELD")
    assert row["devices"] == {"QUEUED": 4, "SILENT": 1}
    assert row["reason"] == "guard silent: 1 of 1 devices are silent"
    world.behaviour = lambda device, desired: "COMMITTED"
    desired = world.desired(told)
    world.report(told, rev=desired.rev, phase="COMMITTED", digest=desired.sha256)
    assert world.run_until(rollout, "COMPLETE")["devices"] == {"COMMITTED": 5}


def test_an_operator_may_go_on_without_a_silent_device(world: Any) -> None:
    world.add_devices(FIVE)
    rollout = start(world, world.release("1.0"))
    dead: list[str] = []

    def first_is_dead(device: str, desired: Any) -> str:
        if not dead:
            dead.append(device)
        return "ignore" if device in dead else "COMMITTED"

    world.behaviour = first_is_dead
    world.run_until(rollout, "HELD")
    world.rollouts.resume(rollout, actor="test", now=world.now)
    assert world.run_until(rollout, "COMPLETE")["devices"] == {"COMMITTED": 4, "SILENT": 1}


def test_a_device_that_falls_silent_on_the_new_release_counts_as_failed(world: Any) -> None:
    world.add_devices(FIVE)
    world.complete("1.0")
    rollout = start(world, world.release("2.0"), soak_s=500)
    world.tick()
    world.tick()
    took = next(r["device"] for r in world.rollouts.get(rollout)["records"] if r["state"] == "COMMITTED")
    world.report(took, online=0)
    row = world.run_until(rollout, "ROLLING_BACK")
    assert row["reason"] == "guard failures: 1 of 1 devices failed"
    for _ in range(30):
        world.tick()
    assert world.rollouts.get(rollout)["state"] == "ROLLING_BACK"  # it had the release: it is waited for
    undo = world.desired(took)
    world.report(took, online=1, rev=undo.rev, digest=undo.sha256, phase="COMMITTED")
    assert world.run_until(rollout, "ROLLED_BACK")


def test_the_time_in_which_the_service_was_down_is_not_taken_for_the_devices_silence(world: Any) -> None:
    world.add_devices(FIVE)
    rollout = start(world, world.release("1.0"), soak_s=50_000)
    world.tick()
    world.tick()
    world.db.execute("UPDATE devices SET online = 0")  # as the service marks them when it starts
    world.now += 10_000
    world.restart()
    world.controller.deaf_until(world.now)
    world.controller.step(world.now)
    assert world.rollouts.get(rollout)["devices"]["COMMITTED"] == 1
    assert world.rollouts.get(rollout)["state"] == "RUNNING"
    world.now += 101
    world.controller.step(world.now)
    world.controller.step(world.now)
    assert world.rollouts.get(rollout)["devices"]["SILENT"] == 1


def test_a_service_that_is_killed_at_any_step_ends_with_the_same_fleet(world: Any) -> None:
    world.add_devices(TWENTY)
    release = world.release("1.0")
    rollout = start(world, release)
    for step in range(80):
        lost = world.controller.step(world.now) if step % 2 else []
        world.restart()
        for row in world.db.query("SELECT id, desired_json, rev, desired_rev FROM devices"):  # as a broker's retained
            desired = world.desired(row["id"])
            if desired is not None and row["rev"] != row["desired_rev"]:
                from cloud_sync.rollout.controller import Order

                world.obey(Order(tenant="default", device=row["id"], desired=desired))
        del lost
        world.tick()
        if world.rollouts.get(rollout)["state"] == "COMPLETE":
            break
    assert world.rollouts.get(rollout)["devices"] == {"COMMITTED": 20}
    assert {r["desired_rev"] for r in world.db.query("SELECT desired_rev FROM devices")} == {1}


def test_a_rollout_waits_for_approval_and_obeys_pause_and_abort(world: Any) -> None:
    world.add_devices(FIVE)
    rollout = start(world, world.release("1.0"), approval=True)
    world.tick()
    assert world.rollouts.get(rollout)["state"] == "AWAITING_APPROVAL"
    world.rollouts.approve(rollout, actor="ann", now=world.now)
    world.tick()
    world.rollouts.pause(rollout, actor="ann", now=world.now)
    for _ in range(20):
        world.tick()
    assert world.rollouts.get(rollout)["devices"] == {"COMMITTED": 1, "QUEUED": 4}
    world.rollouts.resume(rollout, actor="ann", now=world.now)
    world.tick()
    world.tick()
    row = world.rollouts.abort(rollout, actor="ann", now=world.now)
    assert row["state"] == "ROLLING_BACK"
    row = world.run_until(rollout, "ROLLED_BACK")
    assert "had nothing to go back to" in row["reason"]
    with pytest.raises(ConflictError, match="is ROLLED_BACK"):
        world.rollouts.resume(rollout, actor="ann")


def test_a_draft_is_only_written_down_until_it_is_approved(world: Any) -> None:
    world.add_devices(FIVE)
    release = world.release("1.0")
    made = world.rollouts.create(release["release"], draft=True, actor="ann", now=world.now)
    assert (made["state"], world.tick()) == ("DRAFT", [])
    assert world.rollouts.approve(made["id"], actor="ann", now=world.now)["state"] == "READY"


def test_aborting_before_anything_was_told_only_cancels(world: Any) -> None:
    world.add_devices(FIVE)
    rollout = start(world, world.release("1.0"), approval=True)
    assert world.rollouts.abort(rollout, actor="ann", now=world.now)["state"] == "CANCELLED"
    assert world.tick() == []


def test_a_complete_rollout_can_still_be_undone_and_later_devices_get_the_old_bytes(world: Any) -> None:
    world.add_devices(FIVE)
    good = world.complete("1.0")
    release = world.release("2.0")
    rollout = start(world, release)
    world.run_until(rollout, "COMPLETE")
    world.rollouts.abort(rollout, actor="ann", now=world.now)
    world.run_until(rollout, "ROLLED_BACK")
    assert set(world.digests().values()) == {sha(good)}
    world.add_devices(["late"])
    world.tick()
    assert world.desired("late").sha256 == sha(good)


def test_a_device_that_enrols_later_gets_its_profiles_current_release(world: Any) -> None:
    world.add_devices(FIVE)
    first = world.complete("1.0")
    world.add_devices(["late"])
    world.add_devices(["odd"], profile="board-b")
    world.tick()
    world.tick()
    assert world.digests()["late"] == sha(first)
    assert world.desired("odd") is None
    second = world.release("2.0")
    rollout = start(world, second)
    world.tick()
    world.add_devices(["later"])
    world.run_until(rollout, "COMPLETE")
    world.tick()
    world.tick()
    assert set(world.digests().values()) - {None} == {sha(second)}


def test_devices_of_another_profile_are_incompatible_and_each_profile_is_in_the_first_stage(world: Any) -> None:
    world.add_devices(TWENTY)
    world.add_devices(["pi-1", "pi-2"], profile="raspberry-pi-5")
    world.add_devices(["odd"], profile="board-b")
    rollout = start(world, world.release("1.0", profiles=("generic-cpu", "raspberry-pi-5")))
    world.tick()
    row = world.rollouts.get(rollout)
    assert row["devices"] == {"INCOMPATIBLE": 1, "NOTIFIED": 3, "QUEUED": 19}
    assert {r["profile"] for r in row["records"] if r["state"] == "NOTIFIED"} == {"generic-cpu", "raspberry-pi-5"}
    assert world.run_until(rollout, "COMPLETE")["devices"] == {"COMMITTED": 22, "INCOMPATIBLE": 1}


def test_two_rollouts_cannot_have_the_same_device_but_may_share_the_fleet(world: Any) -> None:
    world.add_devices(FIVE)
    first, second = world.release("1.0"), world.release("2.0")
    rollout = world.rollouts.create(first["release"], devices=FIVE[:2], actor="test", now=world.now)["id"]
    with pytest.raises(ConflictError, match="2 devices are in another rollout") as caught:
        start(world, second)
    assert rollout in str(caught.value.hint)
    world.rollouts.create(second["release"], devices=FIVE[2:], actor="test", now=world.now)


def test_the_held_back_devices_change_last(world: Any) -> None:
    world.add_devices(TWENTY)
    rollout = start(world, world.release("1.0"), holdback=0.1, bake_s=100)
    world.run_until(rollout, "BAKING")
    for _ in range(5):
        world.tick()
    assert world.rollouts.get(rollout)["devices"] == {"COMMITTED": 18, "QUEUED": 2}
    assert world.run_until(rollout, "COMPLETE")["devices"] == {"COMMITTED": 20}


def test_a_device_told_something_else_meanwhile_is_superseded(world: Any) -> None:
    world.add_devices(FIVE)
    rollout = start(world, world.release("1.0"))
    world.tick()
    told = next(d for d in FIVE if world.desired(d) is not None)
    world.db.execute("UPDATE devices SET desired_rev = desired_rev + 1 WHERE id = ?", (told,))
    world.tick()
    assert world.rollouts.get(rollout)["devices"]["SUPERSEDED"] == 1


def test_mistakes_of_an_operator_are_named(world: Any) -> None:
    release = world.release("1.0")
    with pytest.raises(UsageError, match="no enrolled device of this selection"):
        start(world, release)
    world.add_devices(FIVE)
    with pytest.raises(NotFoundError, match="no release `nope`"):
        start(world, {"release": "nope"})
    with pytest.raises(NotFoundError, match="no enrolled device `ghost`"):
        world.rollouts.create(release["release"], devices=["ghost"], actor="test")
    with pytest.raises(ConfigError, match="soack_s"):
        start(world, release, soack_s=1)
    with pytest.raises(ConfigError, match="not rising percentages"):
        start(world, release, stages=[50, 20, 100])
    with pytest.raises(NotFoundError, match="no rollout `x`"):
        world.rollouts.get("x")


def test_buckets_are_uniform_and_change_with_the_salt() -> None:
    values = [bucket("salt", f"d{i}") for i in range(2000)]
    assert all(0 <= v < 1 for v in values)
    assert 0.47 < sum(values) / len(values) < 0.53
    assert bucket("salt", "d1") == bucket("salt", "d1") != bucket("other", "d1")


def test_stages_are_cut_by_profile_and_a_small_fleet_starts_with_a_fifth() -> None:
    fleet = {f"a{i}": "a" for i in range(400)} | {f"b{i}": "b" for i in range(40)}
    stages = assign(fleet, salt="s", stages=(1, 10, 50, 100), first_devices=10, holdback=0.05)
    first = Counter(fleet[d] for d, s in stages.items() if s == 0)
    assert 10 <= sum(first.values()) <= 12
    assert set(first) == {"a", "b"}
    assert Counter(stages.values())[4] == 22
    small = assign({f"d{i}": "a" for i in range(5)}, salt="s", stages=(1, 100), first_devices=10, holdback=0.05)
    assert Counter(small.values()) == {0: 1, 1: 4}
    assert assign({"one": "a"}, salt="s", stages=(1, 100), first_devices=10, holdback=0.5) == {"one": 0}
