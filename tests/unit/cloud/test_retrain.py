"""Retraining: when it starts, what the gate lets through, and trainers that misbehave."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud_sync.drift.service import Drift
from cloud_sync.errors import ConflictError, NotFoundError
from cloud_sync.policies import DriftPolicy, RetrainPolicy
from cloud_sync.retrain import rules
from cloud_sync.retrain.rules import Metrics, Score, gate, trigger
from cloud_sync.retrain.service import Retrain
from edge_sdk.errors import SchemaError, UsageError

POLICY = RetrainPolicy(command=("train",), cooldown_s=1000)


def decisions(metrics: Metrics, policy: RetrainPolicy = POLICY, golden: str | None = None) -> dict[str, str]:
    return {r.metric: r.decision for r in gate(metrics, policy, golden_before=golden, seed=1)}


def pairs(gain: float, n: int = 300) -> tuple[tuple[float, float], ...]:
    rng = np.random.default_rng(4)
    before = rng.random(n) < 0.7
    after = np.where(rng.random(n) < gain, True, before)
    return tuple((float(a), float(b)) for a, b in zip(after, before, strict=True))


def test_a_clear_gain_passes_and_a_gain_within_the_noise_does_not() -> None:
    assert decisions(Metrics(metric="top1", candidate=0.9, production=0.7, n=300, pairs=pairs(0.5))) == {"top1": "pass"}
    assert decisions(Metrics(metric="top1", candidate=0.7, production=0.7, n=300, pairs=pairs(0.0))) == {
        "top1": "refuse"
    }
    assert decisions(Metrics(metric="top1", candidate=0.72, production=0.70, n=200)) == {"top1": "refuse"}
    assert decisions(Metrics(metric="top1", candidate=0.95, production=0.70, n=200)) == {"top1": "pass"}


def test_non_inferiority_accepts_an_equal_candidate_and_no_worse_one() -> None:
    policy = dataclasses.replace(POLICY, non_inferiority=0.03)
    equal = Metrics(metric="top1", candidate=0.7, production=0.7, n=300, pairs=pairs(0.0))
    worse = dataclasses.replace(equal, pairs=tuple((p * (i % 10 != 0), p) for i, (_, p) in enumerate(equal.pairs)))
    assert decisions(equal, policy) == {"top1": "pass"}
    assert decisions(worse, policy) == {"top1": "refuse"}


def test_a_slice_that_loses_refuses_a_better_candidate_unless_it_is_too_small_to_judge() -> None:
    good = Metrics(metric="top1", candidate=0.9, production=0.7, n=300, pairs=pairs(0.5))
    night = dataclasses.replace(good, slices={"night": Score(candidate=0.5, production=0.6, n=100)})
    small = dataclasses.replace(good, slices={"night": Score(candidate=0.5, production=0.6, n=10)})
    assert decisions(night) == {"top1": "pass", "top1[night]": "refuse"}
    assert decisions(small) == {"top1": "pass", "top1[night]": "pass"}


def test_another_golden_set_than_last_time_refuses() -> None:
    good = Metrics(metric="top1", candidate=0.9, production=0.7, n=300, pairs=pairs(0.5), golden="a" * 64)
    assert decisions(good, golden="a" * 64)["golden set"] == "pass"
    assert decisions(good, golden="b" * 64)["golden set"] == "refuse"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"metric": "top1"}', "candidate"),
        ('{"metric": "m", "candidate": NaN, "production": 0, "n": 1}', "NaN is not a JSON number"),
        ('{"metric": "m", "candidate": 1, "production": 0, "n": 1, "pairs": [[1]]}', r"pairs\[0\] has 1 numbers"),
    ],
)
def test_metrics_of_a_wrong_form_are_named(text: str, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        Metrics.from_json(text.encode())


def run(state: str, ended: float) -> dict[str, Any]:
    return {"state": state, "created_at": ended - 10, "ended_at": ended}


def test_harm_starts_a_run_and_drift_only_where_it_is_asked_for() -> None:
    states = {"a": "likely_harm", "b": "drifted", "c": "stable"}
    assert trigger(POLICY, states, [], now=0) == ("likely harm on 1 of 3 devices", ["a"])
    assert trigger(POLICY, {"b": "drifted"}, [], now=0) is None
    on_drift = dataclasses.replace(POLICY, on=("drifted",), devices=2)
    assert trigger(on_drift, states, [], now=0) == ("likely harm on 2 of 3 devices", ["a", "b"])
    assert trigger(on_drift, {"b": "drifted"}, [], now=0) is None
    assert trigger(RetrainPolicy(), states, [], now=0) is None


def test_a_run_rests_after_a_decision_and_backs_off_after_failures() -> None:
    states = {"a": "likely_harm"}
    assert trigger(POLICY, states, [run("REFUSED", 100)], now=1099) is None
    assert trigger(POLICY, states, [run("REFUSED", 100)], now=1100) is not None
    assert trigger(POLICY, states, [run("TRAINING", 0)], now=9999) is None
    assert trigger(POLICY, states, [run("FAILED", 100)], now=699) is None
    assert trigger(POLICY, states, [run("FAILED", 100)], now=700) is not None
    assert trigger(POLICY, states, [run("FAILED", 100), run("TIMED_OUT", 50)], now=900) is None
    scheduled = dataclasses.replace(POLICY, schedule_s=5000)
    assert trigger(scheduled, {"a": "stable"}, [run("RELEASED", 100)], now=6000) == ("schedule", [])


TRAINER = """
import json, sys
from pathlib import Path
request = json.loads(sys.stdin.readline())
folder = Path(request["dir"])
from edge_sdk.testing import build_artifact
BODY
"""
GOOD = """
build_artifact(folder / "out.edge", golden=False, name=request["model"], version="2.0")
(folder / "metrics.json").write_text(json.dumps(
    {"metric": "top1", "candidate": 0.95, "production": 0.5, "n": 500, "golden": "a" * 64}))
"""


@pytest.fixture
def loop(world: Any, tmp_path: Path) -> Callable[..., Retrain]:
    world.add_devices(["cam-1", "cam-2"])
    world.complete("1.0")

    def make(body: str, **changes: Any) -> Retrain:
        script = tmp_path / "trainer.py"
        script.write_text(TRAINER.replace("BODY", body))
        policy = RetrainPolicy(**{"command": (sys.executable, str(script)), "rollout": "auto", **changes})
        drift = Drift(world.db, "default", DriftPolicy())
        return Retrain(world.folder, world.db, world.catalog, world.rollouts, drift, tenant="default", policy=policy)

    return make


def test_a_better_model_is_released_and_rolled_out(world: Any, loop: Callable[..., Retrain]) -> None:
    loop_ = loop(GOOD)
    asked = loop_.request(None, reason="by hand", actor="ann")
    assert asyncio.run(loop_.work())
    row = loop_.get(asked["run"])
    assert (row["state"], row["error"]) == ("RELEASED", None)
    assert [(g["metric"], g["decision"]) for g in row["gate"]] == [("top1", "pass")]
    assert world.catalog.release(row["release"])["version"] == "2.0"
    world.run_until(row["rollout"], "COMPLETE")
    assert not asyncio.run(loop_.work())


def test_the_release_waits_for_approval_unless_it_is_automatic(world: Any, loop: Callable[..., Retrain]) -> None:
    loop_ = loop(GOOD, rollout="approval")
    loop_.request("tiny", reason="x", actor="ann")
    asyncio.run(loop_.work())
    assert world.rollouts.list()[0]["state"] == "AWAITING_APPROVAL"
    assert world.rollouts.list()[0]["run"] == loop_.list()[0]["run"]


def test_a_rollout_that_another_one_blocks_is_made_when_that_ended(world: Any, loop: Callable[..., Retrain]) -> None:
    other = world.rollouts.create(world.release("1.5")["release"], actor="test", now=world.now)
    loop_ = loop(GOOD)
    loop_.request("tiny", reason="x", actor="ann")
    asyncio.run(loop_.work())
    row = loop_.list()[0]
    assert row["state"] == "RELEASED"
    assert "no rollout yet: 2 devices are in another rollout" in row["error"]
    world.rollouts.abort(other["id"], actor="test", now=world.now)
    loop_.consider(world.now)
    row = loop_.list()[0]
    assert (row["error"], row["rollout"] is not None) == (None, True)


@pytest.mark.parametrize(
    ("body", "state", "message"),
    [
        (GOOD.replace("0.95", "0.4"), "REFUSED", "the gate refused top1"),
        ("pass", "FAILED", "left no metrics.json"),
        (GOOD.replace("build_artifact(", "(lambda *a, **k: None)("), "FAILED", "left no artifact"),
        ("sys.exit('no labels to train on')", "FAILED", "the trainer ended with 1: no labels to train on"),
        ("import os; os.kill(os.getpid(), 9)", "FAILED", "was killed by SIGKILL"),
        (GOOD + '(folder / "out.edge").write_bytes(b"nothing")', "FAILED", "out.edge|not"),
        (GOOD.replace('request["model"]', '"cars"'), "FAILED", "is of the model `cars`"),
        (GOOD.replace('"2.0"', '"1.0"'), "FAILED", "exists with other artifacts"),
    ],
)
def test_a_trainer_that_fails_releases_nothing(
    world: Any, loop: Callable[..., Retrain], body: str, state: str, message: str
) -> None:
    import re

    loop_ = loop(body.replace('version="1.0"', 'version="1.0", licences={"model": "MIT"}'))
    loop_.request("tiny", reason="x", actor="ann")
    asyncio.run(loop_.work())
    row = loop_.list()[0]
    assert row["state"] == state
    assert re.search(message, row["error"])
    assert len(world.catalog.list_releases()) == 1


def test_a_trainer_that_hangs_is_ended_with_its_children(loop: Callable[..., Retrain], tmp_path: Path) -> None:
    mark = tmp_path / "child"
    body = (
        "import subprocess, time, signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        f"Path({str(mark)!r}).with_suffix('.new').write_text(str(child.pid))\n"
        f"Path({str(mark)!r}).with_suffix('.new').rename({str(mark)!r})\n"
        "time.sleep(1000)"
    )
    for timeout_s in (3, 15, 60):  # a busy machine needs longer to start the trainer at all
        loop_ = loop(body, timeout_s=float(timeout_s))
        asked = loop_.request("tiny", reason="x", actor="ann")["run"]
        asyncio.run(loop_.work())
        row = loop_.get(asked)
        assert (row["state"], row["error"]) == (
            "TIMED_OUT",
            f"the trainer did not end in {timeout_s} s and was stopped",
        )
        if mark.exists():
            break
    pid = int(mark.read_text())
    deadline = time.monotonic() + 30
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def test_a_run_that_a_killed_service_left_starts_again_and_its_old_trainer_is_ended(
    world: Any, loop: Callable[..., Retrain], tmp_path: Path
) -> None:
    import subprocess

    loop_ = loop(GOOD)
    asked = loop_.request("tiny", reason="x", actor="ann")["run"]
    left = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    folder = world.folder / "retrain" / asked
    folder.mkdir(parents=True)
    start = Path(f"/proc/{left.pid}/stat").read_text().rpartition(")")[2].split()[19]
    (folder / "process.json").write_text(json.dumps({"pid": left.pid, "start": start}))
    world.db.execute("UPDATE retrain_runs SET state = 'TRAINING', attempts = 1 WHERE id = ?", (asked,))
    loop_.recover(time.time())
    assert left.wait(60) == -9
    assert loop_.get(asked)["state"] == "QUEUED"
    asyncio.run(loop_.work())
    assert loop_.get(asked)["state"] == "RELEASED"
    world.db.execute("UPDATE retrain_runs SET state = 'TRAINING', attempts = 3 WHERE id = ?", (asked,))
    loop_.recover(time.time())
    assert "stopped 3 times" in loop_.get(asked)["error"]


def test_harm_on_a_device_queues_a_run_of_its_model(world: Any, loop: Callable[..., Retrain]) -> None:
    loop_ = loop(GOOD)
    digest = next(iter(world.digests().values()))
    world.db.execute(
        "INSERT INTO drift_states (tenant, device, pipeline, profile, model, state, since, updated_at, windows_json,"
        " samples, votes_json)"
        " VALUES ('default', 'cam-1', 'camera', 'generic-cpu', ?, 'likely_harm', 0, 0, '[]', 0, '{}')",
        (digest,),
    )
    loop_.consider(world.now)
    loop_.consider(world.now)
    assert [(r["model"], r["reason"], r["devices"]) for r in loop_.list()] == [
        ("tiny", "likely harm on 1 of 1 devices", ["cam-1"])
    ]


def test_mistakes_are_named(world: Any, loop: Callable[..., Retrain]) -> None:
    loop_ = loop(GOOD)
    with pytest.raises(UsageError, match="no release of the model `cars`"):
        loop_.request("cars", reason="x", actor="ann")
    with pytest.raises(NotFoundError, match="no retraining run `x`"):
        loop_.get("x")
    loop_.request("tiny", reason="x", actor="ann")
    with pytest.raises(ConflictError, match="is QUEUED"):
        loop_.request("tiny", reason="x", actor="ann")
    off = loop(GOOD, command=())
    with pytest.raises(UsageError, match="no trainer is configured"):
        off.request("tiny", reason="x", actor="ann")
    missing = loop(GOOD, command=("/no/such/trainer",))
    asyncio.run(missing.work())
    assert "cannot start the trainer `/no/such/trainer`" in missing.list()[0]["error"]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_backoff_doubles_up_to_the_cool_down() -> None:
    assert [rules.retry_after(n, 2000.0) for n in (1, 2, 3, 40)] == [600.0, 1200.0, 2000.0, 2000.0]
