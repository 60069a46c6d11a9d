"""The whole way over the real service: enrol, download, trial, commit; nothing is lost when things are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support import children_of, until

for name, extra in (("fastapi", "cloud"), ("paho.mqtt", "agent"), ("tuf", "agent"), ("onnxruntime", "ort")):
    pytest.importorskip(name, reason=f"needs edge-sdk[{extra}]")

from agent_parts import PIPELINE  # noqa: E402

from cloud_sync.broker.choose import find_mosquitto  # noqa: E402
from cloud_sync.client import Client  # noqa: E402
from cloud_sync.errors import ConflictError  # noqa: E402
from edge_sdk.artifact import Artifact  # noqa: E402
from edge_sdk.testing import build_artifact, tiny_classifier_onnx  # noqa: E402

pytestmark = pytest.mark.e2e
SERVE = """
control_period_s = 0.2
[rollout]
stages = [100]
soak_s = 0
bake_s = 0
holdback = 0
first_devices = 1
min_windows = 0
min_stage_windows = 0
trial_s = 1.5
failed_after_s = 0
"""
AGENT = """
state_dir = "state"
pipeline = "pipeline.toml"
report_period_s = 1
[telemetry]
sample_period_s = 0.02
window_n = 5
max_window_s = 0.5
[health]
min_frames = 5
max_latency_ratio = 50
[link]
resend_s = 2
reconnect_min_s = 0.1
reconnect_max_s = 1
"""


class Service:
    def __init__(self, root: Path, broker: str) -> None:
        self.data, self.broker, self.port = root / "data", broker, 0
        self.log = root / "serve.log"
        (root / "serve.toml").write_text(SERVE)
        self.config = root / "serve.toml"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        argv = [sys.executable, "-m", "edge_sdk", "serve", "--data", str(self.data), "--port", str(self.port), "--json"]
        argv += ["--broker", self.broker, "--config", str(self.config)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        self.url = json.loads(line)["url"]
        self.port = urlsplit(self.url).port or 0

    @property
    def client(self) -> Client:
        return Client(self.url, (self.data / "operator.token").read_text().strip())

    @property
    def broker_pid(self) -> int:
        return int((self.data / "broker" / "pid").read_text())

    def end(self, number: int) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process.stdout.close()
        return code

    def release(self, artifact: Artifact, version: str) -> str:
        """Publish an artifact and roll it out to everybody."""
        sent = self.client.upload("/artifacts", artifact.path)
        assert sent["sha256"] == artifact.sha256
        release = self.client.post(
            "/api/v1/releases", {"model": "tiny-classification", "version": version, "artifacts": [artifact.sha256]}
        )["release"]
        until(lambda: self._roll_out(release), why=lambda: f"the end of the rollout before\n{self.log.read_text()}")
        return str(release)

    def _roll_out(self, release: str) -> bool:
        try:
            self.client.post("/api/v1/rollouts", {"release": release})
        except ConflictError:  # one at a time for each device
            return False
        return True

    def device(self, name: str) -> dict[str, Any]:
        return next(d for d in self.client.get("/api/v1/devices")["devices"] if d["id"] == name)

    def events(self, name: str, kind: str | None = None) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        after: str | None = None
        while True:
            params = {"limit": "1000"} | ({"after": after} if after else {}) | ({"kind": kind} if kind else {})
            page = self.client.get(f"/api/v1/devices/{name}/events", params)
            out += page["events"]
            after = page.get("next")
            if not after:
                return out


class Device:
    def __init__(self, root: Path, service: Service, name: str) -> None:
        self.root, self.service, self.name = root, service, name
        root.mkdir()
        (root / "pipeline.toml").write_text(PIPELINE)
        (root / "agent.toml").write_text(AGENT)
        self.process: subprocess.Popen[bytes] | None = None

    def enroll(self) -> None:
        token = self.service.client.post("/api/v1/devices", {"device": self.name, "profile": "generic-cpu"})["token"]
        argv = [sys.executable, "-m", "edge_sdk", "enroll", token, "--server", self.service.url, "--json"]
        done = subprocess.run([*argv, "--state-dir", str(self.root / "state")], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["device"] == self.name

    def start(self) -> None:
        argv = [sys.executable, "-m", "edge_sdk", "agent", "--config", str(self.root / "agent.toml"), "-v"]
        with (self.root / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)

    def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)

    def state(self) -> dict[str, Any]:
        try:
            body: dict[str, Any] = json.loads((self.root / "state" / "state.json").read_text())["body"]
        except FileNotFoundError:
            return {}
        return body

    def log(self) -> str:
        return (self.root / "agent.log").read_text()

    def worker_pid(self) -> int | None:
        assert self.process is not None
        for pid in children_of(self.process.pid):
            if b"edge_sdk.agent.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return None

    def outbox(self) -> tuple[str, int, int, int]:
        """Return (stream, next sequence number, rows that wait, events dropped)."""
        with sqlite3.connect(self.root / "state" / "outbox.db") as db:
            row: tuple[str, int, int, int] = db.execute("SELECT stream, next_seq, rows, dropped FROM box").fetchone()
            return row


@pytest.fixture
def broker() -> str:
    return "auto"


@pytest.fixture
def service(broker: str, tmp_path: Path) -> Iterator[Service]:
    if broker == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    service = Service(tmp_path, broker)
    service.start()
    yield service
    if service.process is not None and service.process.poll() is None:
        service.end(signal.SIGTERM)


@pytest.fixture
def device(service: Service, tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path / "device", service, "cam-1")
    yield device
    if device.process is not None and device.process.poll() is None:
        device.end(signal.SIGTERM)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    root = tmp_path_factory.mktemp("artifacts")
    nan = tiny_classifier_onnx(constant=float("nan"))
    return {
        "good": build_artifact(root / "1.edge", version="1.0.0"),
        "better": build_artifact(root / "2.edge", version="2.0.0", model=tiny_classifier_onnx(gain=8.001)),
        "broken": build_artifact(root / "3.edge", version="3.0.0", model=nan, golden=False),
        "wrong": build_artifact(root / "4.edge", version="4.0.0", model=tiny_classifier_onnx(constant=0.0)),
    }


@pytest.mark.slow
def test_a_release_reaches_a_device_and_a_bad_one_does_not_stay(
    service: Service, device: Device, artifacts: dict[str, Artifact]
) -> None:
    device.enroll()
    assert (device.root / "state" / "identity.json").stat().st_mode & 0o777 == 0o600
    device.start()
    until(lambda: service.device("cam-1")["online"], why="the first report")

    service.release(artifacts["good"], "1.0.0")
    good = artifacts["good"].sha256
    until(lambda: service.device("cam-1")["phase"] == "COMMITTED", why=lambda: f"the commit\n{device.log()}")
    shown = service.device("cam-1")
    assert (shown["digest"], shown["slot"], shown["error"]) == (good, "committed", None)
    windows = until(lambda: service.events("cam-1", "window"), why="telemetry")
    assert {w["model"] for w in windows} == {good}

    # A release that loads and fails on live frames is switched to, and back from.
    service.release(artifacts["broken"], "3.0.0")
    until(lambda: service.device("cam-1")["phase"] == "ROLLED_BACK", why=lambda: f"the rollback\n{device.log()}")
    shown = service.device("cam-1")
    assert shown["digest"] == good
    assert "NaN or infinity" in shown["error"]
    assert artifacts["broken"].sha256 in device.state()["blacklist"]
    alarms = {e["name"] for e in until(lambda: service.events("cam-1", "alarm"), why="alarms")}
    assert "output_not_finite" in alarms

    # A release that fails its self-test never runs.
    until(lambda: service.device("cam-1")["phase"] in ("ROLLED_BACK", "COMMITTED"), why="rest")
    service.release(artifacts["wrong"], "4.0.0")
    until(lambda: service.device("cam-1")["phase"] == "FAILED", why=lambda: f"the refusal\n{device.log()}")
    assert "self-test failed" in service.device("cam-1")["error"]
    assert service.device("cam-1")["digest"] == good

    # A good release is swapped in while the worker runs.
    pid = device.worker_pid()
    service.release(artifacts["better"], "2.0.0")
    until(
        lambda: service.device("cam-1")["digest"] == artifacts["better"].sha256, why=lambda: f"the swap\n{device.log()}"
    )
    until(lambda: service.device("cam-1")["phase"] == "COMMITTED", why="the second commit")
    assert device.worker_pid() == pid
    assert device.end(signal.SIGTERM) == 0
    until(lambda: not service.device("cam-1")["online"], why="the farewell")
    assert not re.search("Traceback", device.log())


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["mosquitto", "embedded"])
def test_kill_9_of_worker_agent_service_and_broker_loses_no_event_and_stores_none_twice(
    service: Service, device: Device, artifacts: dict[str, Artifact]
) -> None:
    device.enroll()
    device.start()
    service.release(artifacts["good"], "1.0.0")
    until(lambda: service.device("cam-1")["phase"] == "COMMITTED", why=lambda: f"the commit\n{device.log()}")

    def grows(n: int = 3) -> None:
        before = device.outbox()[1]
        until(lambda: device.outbox()[1] >= before + n, why=lambda: f"{n} more events\n{device.log()}")

    grows()
    pid = until(device.worker_pid, why="a worker")
    os.kill(pid, signal.SIGKILL)
    until(lambda: device.worker_pid() not in (None, pid), why="another worker")
    grows()
    device.end(signal.SIGKILL)
    device.start()
    grows()
    os.kill(service.broker_pid, signal.SIGKILL)
    grows()
    service.end(signal.SIGKILL)
    grows()
    service.start()
    grows()
    device.end(signal.SIGKILL)
    device.start()
    grows()
    until(lambda: service.device("cam-1")["online"], why="the device to be back")
    assert device.end(signal.SIGTERM) == 0
    device.start()  # sends what the worker wrote at its end
    until(lambda: device.outbox()[2] < 20, why="a short outbox")
    stream, next_seq, _, dropped = device.outbox()
    until(lambda: device.outbox()[1] > next_seq, why="later events")
    assert dropped == 0

    def stored() -> list[int]:
        return [e["seq"] for e in service.events("cam-1") if e["stream"] == stream and e["seq"] < next_seq]

    until(lambda: len(stored()) >= next_seq, why="all events at the service")
    assert sorted(stored()) == list(range(next_seq))
    alarms = [e["name"] for e in service.events("cam-1", "alarm")]
    assert "worker_died" in alarms


@pytest.mark.slow
def test_an_agent_that_is_killed_in_every_phase_of_an_update_finishes_it(
    service: Service, device: Device, artifacts: dict[str, Artifact]
) -> None:
    device.enroll()
    device.start()
    service.release(artifacts["good"], "1.0.0")
    until(lambda: service.device("cam-1")["phase"] == "COMMITTED", why=lambda: f"the commit\n{device.log()}")
    better = artifacts["better"].sha256
    order = ["OFFERED", "DOWNLOADING", "VERIFYING", "STAGED", "TESTED", "TRIAL", "COMMITTED"]

    def reached(phase: str) -> bool:
        state = device.state()
        wanted = (state.get("desired") or {}).get("sha256") == better
        return wanted and state["phase"] in order[order.index(phase) :]

    service.release(artifacts["better"], "2.0.0")
    seen = []
    for phase in order[:-1]:
        deadline = time.monotonic() + 60
        while not reached(phase):
            assert time.monotonic() < deadline, device.log()
            time.sleep(0.001)
        device.end(signal.SIGKILL)
        seen.append(device.state()["phase"])
        assert device.state()["active"] in (artifacts["good"].sha256, better)
        device.start()
    assert len(set(seen)) >= 3, f"killed in {seen}"  # a phase that is short may be over before the signal comes
    until(lambda: service.device("cam-1")["phase"] == "COMMITTED", why=lambda: f"the commit\n{device.log()}")
    until(lambda: service.device("cam-1")["digest"] == better, why="the report")
    assert device.end(signal.SIGTERM) == 0
    assert "Traceback" not in device.log()
