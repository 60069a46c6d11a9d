"""The agent process on its own: configuration, identity, the state directory, the worker; no cloud in reach."""

from __future__ import annotations

import http.server
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import children_of, until

for name, extra in (("paho.mqtt", "agent"), ("tuf", "agent"), ("onnxruntime", "ort")):
    pytest.importorskip(name, reason=f"needs edge-sdk[{extra}]")

from edge_sdk.agent.config import AgentConfig, Identity, Paths, load_identity, save_identity  # noqa: E402
from edge_sdk.agent.fs import RealFs  # noqa: E402
from edge_sdk.agent.jobs import self_test  # noqa: E402
from edge_sdk.agent.state import AgentState, StateFile  # noqa: E402
from edge_sdk.artifact import Artifact  # noqa: E402
from edge_sdk.errors import ArtifactError, ConfigError, WorkerError  # noqa: E402
from edge_sdk.pipeline_config import PipelineConfig  # noqa: E402
from edge_sdk.schemas.state import Desired, Phase  # noqa: E402
from edge_sdk.testing import build_artifact, tiny_classifier_onnx  # noqa: E402

PIPELINE = """
[source]
uri = "synthetic:64x48?fps=60&live=1"
[[stage]]
name = "sort"
model = "slot"
"""
AGENT = """
state_dir = "state"
pipeline = "pipeline.toml"
[telemetry]
sample_period_s = 0.05
window_n = 3
"""
SECRET = "credential-of-the-device"


class Device:
    """A folder with an agent's files, enrolled at a cloud that is not there."""

    def __init__(self, root: Path, port: int) -> None:
        self.root = root
        self.paths = Paths(root / "state")
        self.paths.root.mkdir(parents=True)
        (root / "pipeline.toml").write_text(PIPELINE)
        (root / "agent.toml").write_text(AGENT)
        identity = Identity(
            server=f"http://127.0.0.1:{port}", tenant="acme", device="cam-1",
            broker_url=f"mqtt://127.0.0.1:{port}", credential=SECRET, profile="generic-cpu",
        )  # fmt: skip
        save_identity(self.paths, identity, b"{}")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = [sys.executable, "-m", "edge_sdk", "agent", "--config", str(self.root / "agent.toml"), "-v"]
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)

    def log(self) -> str:
        return (self.root / "log").read_text() if (self.root / "log").exists() else ""

    def state(self) -> dict[str, Any]:
        try:
            body: dict[str, Any] = json.loads(self.paths.state.read_text())["body"]
        except (OSError, ValueError, KeyError):
            return {}
        return body

    def save(self, state: AgentState) -> None:
        StateFile(RealFs(), self.paths.state).save(state)

    def install(self, artifact: Artifact) -> str:
        folder = self.paths.root / "slots" / artifact.sha256
        folder.mkdir(parents=True)
        (folder / "artifact.edge").write_bytes(artifact.path.read_bytes())
        return artifact.sha256

    def events(self, kind: str) -> list[dict[str, Any]]:
        if not self.paths.outbox.exists():
            return []
        db = sqlite3.connect(self.paths.outbox, timeout=10)
        try:
            rows = [json.loads(row[0]) for row in db.execute("SELECT json FROM events ORDER BY seq")]
        except sqlite3.DatabaseError:  # it is being made, or put aside
            return []
        finally:
            db.close()
        return [r for r in rows if r["kind"] == kind]

    def windows(self) -> list[dict[str, Any]]:
        return self.events("window")

    def alarms(self) -> list[str]:
        return [e["name"] for e in self.events("alarm")]


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


def edge(*argv: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edge_sdk", *argv], capture_output=True, text=True, timeout=timeout)


# -- configuration and identity ---------------------------------------------------------------------------------------


def test_every_wrong_key_of_agent_toml_is_named_at_once(device: Device) -> None:
    (device.root / "agent.toml").write_text(
        'state_dirr = "x"\npipeline = 3\n[telemetry]\nwindow_n = 0\n[health]\nmax_crash = 1\n[link]\nwindow = 100\n'
    )
    done = edge("agent", "--config", str(device.root / "agent.toml"), "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["kind"]) == (2, "config")
    for expected in (
        "state_dirr: unknown key, did you mean `state_dir`?",
        "state_dir: missing",
        "pipeline: expected a path, found an integer 3",
        "telemetry.window_n: expected 1 to 100000, found 0",
        "health.max_crash: unknown key, did you mean `max_crashes`?",
        "link.window: expected 1 to 64, found 100",
    ):
        assert expected in error["message"]


def test_a_missing_pipeline_file_is_named(device: Device) -> None:
    (device.root / "pipeline.toml").unlink()
    with pytest.raises(ConfigError, match=r"no such file: .*pipeline\.toml"):
        AgentConfig.from_toml(device.root / "agent.toml")


def test_a_pipeline_with_a_model_of_its_own_is_refused_with_the_way_to_do_it(device: Device) -> None:
    (device.root / "pipeline.toml").write_text(PIPELINE.replace('"slot"', '"mine.edge"'))
    with pytest.raises(ConfigError, match=r'stage model is `.*mine\.edge`, under an agent it must be "slot"') as caught:
        AgentConfig.from_toml(device.root / "agent.toml")
    assert "`factory`" in (caught.value.hint or "")


def test_a_second_model_is_the_pipeline_files_own_beside_the_one_from_the_slot(device: Device) -> None:
    second = '\n[[stage]]\nname = "color"\nafter = "{}"\nmodel = "colors.edge"\n'
    name = PipelineConfig.from_toml(device.root / "pipeline.toml").model_stage.label
    (device.root / "pipeline.toml").write_text(PIPELINE + second.format(name))
    config = AgentConfig.from_toml(device.root / "agent.toml")
    stages = PipelineConfig.from_toml(config.pipeline).with_model("slot.edge").stages
    assert [s.model for s in stages if not s.is_step] == ["slot.edge", str(device.root / "colors.edge")]


def test_an_agent_that_has_not_enrolled_says_how(device: Device) -> None:
    device.paths.identity.unlink()
    done = edge("agent", "--config", str(device.root / "agent.toml"))
    assert done.returncode == 2
    assert "this device has not enrolled" in done.stderr
    assert "edge enroll TOKEN --server URL --state-dir" in done.stderr


def test_an_identity_of_another_device_is_refused(device: Device) -> None:
    (device.root / "agent.toml").write_text(f'device = "cam-2"\n{AGENT}')
    config = AgentConfig.from_toml(device.root / "agent.toml")
    with pytest.raises(ConfigError, match="names device `cam-2`"):
        load_identity(device.paths, config)


def test_an_identity_that_others_could_read_is_closed(device: Device) -> None:
    device.paths.identity.chmod(0o644)
    config = AgentConfig.from_toml(device.root / "agent.toml")
    identity, _ = load_identity(device.paths, config)
    assert device.paths.identity.stat().st_mode & 0o777 == 0o600
    assert SECRET not in repr(identity)


def test_telemetry_settings_of_the_cloud_go_over_those_of_the_file(device: Device) -> None:
    config = AgentConfig.from_toml(device.root / "agent.toml")
    assert config.with_telemetry({"window_n": 50}).telemetry.window_n == 50
    assert config.with_telemetry({"window_n": 50}).telemetry.sample_period_s == 0.05
    assert config.with_telemetry(None) is config
    for wrong in ({"window": 1}, [], {"window_n": "many"}):
        with pytest.raises(ConfigError, match="telemetry"):
            config.with_telemetry(wrong)


# -- enrolment --------------------------------------------------------------------------------------------------------


class Cloud(http.server.BaseHTTPRequestHandler):
    answers: list[tuple[int, Any]]
    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status, answer = self.answers.pop(0)
        if status == 0:
            self.connection.close()
            return
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def cloud() -> Iterator[tuple[str, type[Cloud]]]:
    handler = type("Handler", (Cloud,), {"answers": [], "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign, assignment]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()


GOOD = {
    "tenant": "acme",
    "device": "cam-1",
    "broker_url": "mqtt://h:1883",
    "credential": SECRET,
    "tuf_root": '{"signed": {}}',
}


def test_enrolment_writes_an_identity_that_only_its_user_reads(cloud: tuple[str, type[Cloud]], tmp_path: Path) -> None:
    url, handler = cloud
    handler.answers += [(0, b""), (200, GOOD)]
    lost = edge("enroll", "token-1", "--server", url, "--state-dir", str(tmp_path / "state"))
    assert lost.returncode == 7
    done = edge("enroll", "token-1", "--server", url + "/", "--state-dir", str(tmp_path / "state"), "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["device"], shown["tenant"], shown["server"]) == ("cam-1", "acme", url)
    assert SECRET not in done.stdout + done.stderr
    paths = Paths(tmp_path / "state")
    assert paths.identity.stat().st_mode & 0o777 == 0o600
    assert json.loads(paths.identity.read_text())["credential"] == SECRET
    assert paths.trust_root.read_text() == GOOD["tuf_root"]
    assert handler.asked[0]["nonce"] == handler.asked[1]["nonce"], "an answer that was lost is asked for again"
    again = edge("enroll", "token-2", "--server", url, "--state-dir", str(tmp_path / "state"))
    assert again.returncode == 2
    assert "this device has enrolled" in again.stderr


@pytest.mark.parametrize(
    ("status", "answer", "code", "message"),
    [
        (401, {"error": {"message": "the claim token is unknown", "hint": "ask for a new one"}}, 7, "token is unknown"),
        (502, b"<html>", 7, "answered 502"),
        (200, b"[]", 4, "expected an object"),
        (200, {**GOOD, "tuf_root": None}, 4, "`tuf_root` is missing"),
        (200, {**GOOD, "tuf_root": "no json"}, 4, "tuf_root is not valid JSON"),
        (200, {k: v for k, v in GOOD.items() if k != "credential"}, 4, "credential: missing"),
        (200, {**GOOD, "device": "../x"}, 4, "is not an id"),
    ],
)
def test_a_refusal_or_a_strange_answer_leaves_no_identity(
    cloud: tuple[str, type[Cloud]], tmp_path: Path, status: int, answer: Any, code: int, message: str
) -> None:
    url, handler = cloud
    handler.answers.append((status, answer))
    done = edge("enroll", "t", "--server", url, "--state-dir", str(tmp_path))
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not Paths(tmp_path).identity.exists()


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
    until(lambda: len(device.windows()) >= 2, f"windows\n{device.log()}")
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
    until(device.windows, f"windows\n{device.log()}")
    assert {w["model"] for w in device.windows()} == {artifacts[0].sha256}


@pytest.mark.parametrize("damage", [b"", b"{}", bytes(2000), None])
def test_a_lost_or_damaged_state_does_not_stop_a_device(
    device: Device, artifacts: tuple[Artifact, Artifact], damage: bytes | None
) -> None:
    digest = device.install(artifacts[0])
    if damage is not None:
        device.paths.state.write_bytes(damage)
    device.start()
    until(device.windows, f"windows\n{device.log()}")
    assert device.windows()[0]["model"] == digest
    assert device.end() == 0
    assert "Traceback" not in device.log()


def test_a_damaged_slot_is_not_run_and_the_one_before_is(device: Device, artifacts: tuple[Artifact, Artifact]) -> None:
    first, second = (device.install(a) for a in artifacts)
    path = device.paths.root / "slots" / second / "artifact.edge"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    device.save(AgentState(active=second, committed=second, previous=first, phase=Phase.COMMITTED))
    device.start()
    until(device.windows, f"windows\n{device.log()}")
    assert device.windows()[0]["model"] == first
    assert f"slot {second[:12]} is damaged" in device.state()["error"]


def test_a_trial_in_which_the_device_died_twice_is_rolled_back_without_a_cloud(
    device: Device, artifacts: tuple[Artifact, Artifact]
) -> None:
    first, second = (device.install(a) for a in artifacts)
    desired = Desired(rev=2, release="r2", target=f"generic-cpu/{second}.edge", sha256=second, size=9, trial_s=600)
    device.save(AgentState(rev=2, desired=desired, active=second, committed=first, phase=Phase.TRIAL, trial_crashes=0))
    device.start()
    until(lambda: device.state().get("trial_crashes") == 1, f"the first restart\n{device.log()}")
    until(device.windows, f"windows of the trial\n{device.log()}")
    device.end(signal.SIGKILL)
    device.start()
    until(lambda: device.state().get("phase") == "ROLLED_BACK", f"the rollback\n{device.log()}")
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
    until(device.windows, f"windows\n{device.log()}")
    assert device.process is not None
    children = children_of(device.process.pid)
    workers = [c for c in children if b"edge_sdk.agent.worker" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    until(lambda: any(w["counters"]["restarts"] for w in device.windows()), f"the restart\n{device.log()}")
    assert device.alarms() == ["worker_died"]
    assert device.end() == 0


def test_a_damaged_outbox_is_put_aside_and_said(device: Device, artifacts: tuple[Artifact, Artifact]) -> None:
    digest = device.install(artifacts[0])
    device.save(AgentState(active=digest, committed=digest, phase=Phase.COMMITTED))
    device.paths.outbox.write_bytes(os.urandom(50_000))
    device.start()
    until(device.windows, f"windows\n{device.log()}")
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
    until(lambda: len(device.windows()) >= 2, f"windows\n{device.log()}")
    assert device.process is not None
    (device.root / "pipeline.toml").write_text(PIPELINE + gate_of(0.5))
    device.process.send_signal(signal.SIGHUP)
    until(lambda: "pipeline: changed gate" in device.log(), device.log())
    (device.root / "pipeline.toml").write_text(PIPELINE + gate_of('"x"') + "wrong = 1\n")
    device.process.send_signal(signal.SIGHUP)
    until(lambda: "the pipeline stays as it is" in device.log(), device.log())
    assert "refresh_s: expected a number" in device.log()
    until(lambda: "pipeline_refused" in device.alarms(), "the alarm")
    (device.root / "pipeline.toml").write_text(PIPELINE.replace("fps=60", "fps=50"))
    device.process.send_signal(signal.SIGHUP)
    until(lambda: "a fresh worker for the new pipeline: `source`" in device.log(), device.log())
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
    until(lambda: len(device.windows()) >= 2, f"windows\n{device.log()}")
    assert device.end() == 0
    device.save(
        AgentState(
            active=digest, committed=digest, phase=Phase.COMMITTED, seq=9, config={"stages": {"gat": {"refresh_s": 1}}}
        )
    )
    device.start()
    until(lambda: "gat: no such stage, it has sort, gate" in device.log(), device.log())
    until(lambda: "pipeline_refused" in device.alarms(), "the alarm")
