"""The agent process on its own: the state directory, the worker, another pipeline; no cloud in reach."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import children_of, until

for name, extra in (("paho.mqtt", "agent"), ("tuf", "agent"), ("onnxruntime", "ort")):
    pytest.importorskip(name, reason=f"needs edge-sdk[{extra}]")

from agent_parts import PIPELINE, Device, edge  # noqa: E402

from edge_sdk.agent.jobs import self_test  # noqa: E402
from edge_sdk.agent.state import AgentState  # noqa: E402
from edge_sdk.artifact import Artifact  # noqa: E402
from edge_sdk.errors import ArtifactError, WorkerError  # noqa: E402
from edge_sdk.schemas.state import Desired, Phase  # noqa: E402
from edge_sdk.testing import build_artifact, tiny_classifier_onnx  # noqa: E402


@pytest.fixture
def device(tmp_path: Path, free_port: int) -> Iterator[Device]:
    device = Device(tmp_path / "device", free_port)
    yield device
    if device.process is not None:
        device.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    root = tmp_path_factory.mktemp("artifacts")
    better = build_artifact(root / "2.edge", version="2.0.0", model=tiny_classifier_onnx(gain=8.001))
    return build_artifact(root / "1.edge"), better


# -- the process ------------------------------------------------------------------------------------------------------


def test_the_agent_process_imports_no_array_library_and_no_engine(device: Device) -> None:
    code = (
        "import sys, edge_sdk.agent.daemon, edge_sdk.agent.trust, edge_sdk.verbs.agent, edge_sdk.verbs.enroll\n"
        "print([m for m in ('numpy', 'cv2', 'onnxruntime', 'openvino', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_an_agent_without_a_release_waits_and_ends_with_0(device: Device) -> None:
    device.start()
    until(lambda: "no release is installed yet" in device.log(), "the word about the release")
    assert device.end() == 0
    assert "Traceback" not in device.log()


def test_a_second_agent_on_the_same_state_directory_is_refused(device: Device) -> None:
    device.start()
    until(lambda: "no release is installed yet" in device.log(), "the first agent")
    done = edge("agent", "--config", str(device.root / "agent.toml"))
    assert done.returncode == 2
    assert device.process is not None
    assert f"another agent (process {device.process.pid}) runs on" in done.stderr
    assert device.end(signal.SIGKILL) == -signal.SIGKILL
    device.start()
    until(lambda: device.log().count("no release is installed yet") == 2, "the next agent")


def test_without_a_cloud_the_pipeline_runs_and_telemetry_waits_in_the_outbox(
    device: Device, artifacts: tuple[Artifact, Artifact]
) -> None:
    digest = device.install(artifacts[0])
    device.save(AgentState(active=digest, committed=digest, phase=Phase.COMMITTED, seq=5))
    device.start()
    until(lambda: len(device.windows()) >= 2, lambda: f"windows\n{device.log()}")
    assert {w["model"] for w in device.windows()} == {digest}
    before = len(device.windows())
    assert device.end() == 0
    device.start()
    until(lambda: len(device.windows()) > before + 1, "windows of the second life")


def test_the_artifact_that_a_device_came_with_runs_at_once(
    device: Device, artifacts: tuple[Artifact, Artifact]
) -> None:
    (device.root / "factory.edge").write_bytes(artifacts[0].path.read_bytes())
    with (device.root / "agent.toml").open("a") as file:
        file.write('[slots]\nfactory = "factory.edge"\n')
    device.start()
    until(device.windows, lambda: f"windows\n{device.log()}")
    assert {w["model"] for w in device.windows()} == {artifacts[0].sha256}


@pytest.mark.parametrize("damage", [b"", b"{}", bytes(2000), None])
def test_a_lost_or_damaged_state_does_not_stop_a_device(
    device: Device, artifacts: tuple[Artifact, Artifact], damage: bytes | None
) -> None:
    digest = device.install(artifacts[0])
    if damage is not None:
        device.paths.state.write_bytes(damage)
    device.start()
    until(device.windows, lambda: f"windows\n{device.log()}")
    assert device.windows()[0]["model"] == digest
    assert device.end() == 0
    assert "Traceback" not in device.log()


def test_a_damaged_slot_is_not_run_and_the_one_before_is(device: Device, artifacts: tuple[Artifact, Artifact]) -> None:
    first, second = (device.install(a) for a in artifacts)
    path = device.paths.root / "slots" / second / "artifact.edge"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    device.save(AgentState(active=second, committed=second, previous=first, phase=Phase.COMMITTED))
    device.start()
    until(device.windows, lambda: f"windows\n{device.log()}")
    assert device.windows()[0]["model"] == first
    assert f"slot {second[:12]} is damaged" in device.state()["error"]


def test_a_trial_in_which_the_device_died_twice_is_rolled_back_without_a_cloud(
    device: Device, artifacts: tuple[Artifact, Artifact]
) -> None:
    first, second = (device.install(a) for a in artifacts)
    desired = Desired(rev=2, release="r2", target=f"generic-cpu/{second}.edge", sha256=second, size=9, trial_s=600)
    device.save(AgentState(rev=2, desired=desired, active=second, committed=first, phase=Phase.TRIAL, trial_crashes=0))
    device.start()
    until(lambda: device.state().get("trial_crashes") == 1, lambda: f"the first restart\n{device.log()}")
    until(device.windows, lambda: f"windows of the trial\n{device.log()}")
    device.end(signal.SIGKILL)
    device.start()
    until(lambda: device.state().get("phase") == "ROLLED_BACK", lambda: f"the rollback\n{device.log()}")
    assert device.state()["active"] == first
    assert second in device.state()["blacklist"]
    until(lambda: device.windows()[-1]["model"] == first, "windows of the old model")
    assert "update_rolled_back" in device.alarms()


def test_a_worker_that_dies_is_restarted_and_the_alarm_is_kept(
    device: Device, artifacts: tuple[Artifact, Artifact]
) -> None:
    digest = device.install(artifacts[0])
    device.save(AgentState(active=digest, committed=digest, phase=Phase.COMMITTED))
    device.start()
    until(device.windows, lambda: f"windows\n{device.log()}")
    assert device.process is not None
    children = children_of(device.process.pid)
    workers = [c for c in children if b"edge_sdk.agent.worker" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    until(lambda: any(w["counters"]["restarts"] for w in device.windows()), lambda: f"the restart\n{device.log()}")
    assert device.alarms() == ["worker_died"]
    assert device.end() == 0


def test_a_damaged_outbox_is_put_aside_and_said(device: Device, artifacts: tuple[Artifact, Artifact]) -> None:
    digest = device.install(artifacts[0])
    device.save(AgentState(active=digest, committed=digest, phase=Phase.COMMITTED))
    device.paths.outbox.write_bytes(os.urandom(50_000))
    device.start()
    until(device.windows, lambda: f"windows\n{device.log()}")
    until(lambda: "kept as outbox.db.damaged-0" in (device.state().get("error") or ""), "the error")
    assert device.alarms() == ["outbox_damaged"]
    assert device.end() == 0


def test_a_self_test_names_what_was_wrong(artifacts: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    self_test(artifacts[0].path, lambda: False)
    wrong = build_artifact(tmp_path / "wrong.edge", model=tiny_classifier_onnx(constant=0.0))
    with pytest.raises(ArtifactError, match="the self-test failed"):
        self_test(wrong.path, lambda: False)
    with pytest.raises(WorkerError, match="the self-test was interrupted"):
        self_test(artifacts[0].path, lambda: True)
    (tmp_path / "junk.edge").write_bytes(b"junk")
    with pytest.raises(ArtifactError, match="the self-test failed"):
        self_test(tmp_path / "junk.edge", lambda: False)


# -- another pipeline -------------------------------------------------------------------------------------------------


def gate_of(frames: Any) -> str:
    return f'[[stage]]\nkind = "motion_gate"\nname = "gate"\nparams = {{ refresh_s = {frames}, hold_s = 0.2 }}\n'


def test_a_changed_pipeline_file_is_applied_on_sighup_without_a_fresh_worker_and_a_bad_one_is_an_alarm(
    device: Device, artifacts: tuple[Artifact, Artifact]
) -> None:
    digest = device.install(artifacts[0])
    device.save(AgentState(active=digest, committed=digest, phase=Phase.COMMITTED, seq=5))
    device.start()
    until(lambda: len(device.windows()) >= 2, lambda: f"windows\n{device.log()}")
    assert device.process is not None
    (device.root / "pipeline.toml").write_text(PIPELINE + gate_of(0.5))
    device.process.send_signal(signal.SIGHUP)
    until(lambda: "pipeline: changed gate" in device.log(), device.log)
    (device.root / "pipeline.toml").write_text(PIPELINE + gate_of('"x"') + "wrong = 1\n")
    device.process.send_signal(signal.SIGHUP)
    until(lambda: "the pipeline stays as it is" in device.log(), device.log)
    assert "refresh_s: expected a number" in device.log()
    until(lambda: "pipeline_refused" in device.alarms(), "the alarm")
    (device.root / "pipeline.toml").write_text(PIPELINE.replace("fps=60", "fps=50"))
    device.process.send_signal(signal.SIGHUP)
    until(lambda: "a fresh worker for the new pipeline: `source`" in device.log(), device.log)
    before = len(device.windows())
    until(lambda: len(device.windows()) > before + 1, "windows of the fresh worker")
    assert "worker_died" not in device.alarms()
    assert device.end() == 0


def test_what_the_cloud_wants_of_stages_goes_over_the_file_from_the_start(
    device: Device, artifacts: tuple[Artifact, Artifact]
) -> None:
    digest = device.install(artifacts[0])
    (device.root / "pipeline.toml").write_text(PIPELINE + gate_of(0.5))
    wanted = {"stages": {"gate": {"refresh_s": 0.25}}}
    device.save(AgentState(active=digest, committed=digest, phase=Phase.COMMITTED, seq=5, config=wanted))
    device.start()
    until(lambda: len(device.windows()) >= 2, lambda: f"windows\n{device.log()}")
    assert device.end() == 0
    device.save(
        AgentState(
            active=digest, committed=digest, phase=Phase.COMMITTED, seq=9, config={"stages": {"gat": {"refresh_s": 1}}}
        )
    )
    device.start()
    until(lambda: "gat: no such stage, it has sort, gate" in device.log(), device.log)
    until(lambda: "pipeline_refused" in device.alarms(), "the alarm")
