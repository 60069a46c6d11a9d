"""Publish, roll out, roll back, drift and retrain over the real service, broker and HTTP, with devices that obey."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tuf", reason="needs edge-sdk[agent]")

import urllib3
from tuf.api.exceptions import DownloadError
from tuf.ngclient import Updater

from cloud_sync.errors import ConflictError
from edge_sdk.errors import ArtifactError, ConfigError, UsageError
from edge_sdk.schemas.state import Desired, Phase, Reported, Transition
from edge_sdk.testing import build_artifact

from .conftest import BROKERS, Device, Serve, need, wait_for

pytestmark = pytest.mark.e2e
CONFIG = """
control_period_s = 0.1
[rollout]
stages = [20, 100]
soak_s = 0.3
bake_s = 0.3
holdback = 0.0
first_devices = 1
min_windows = 2
min_stage_windows = 4
silent_after_s = 4
failed_after_s = 0.5
bin_s = 2
[drift]
baseline_windows = 6
baseline_samples = 300
baseline_span_s = 0
enough_n = 100
bootstrap = 60
[retrain]
command = ["{python}", "{trainer}"]
rollout = "auto"
on = ["drifted"]
cooldown_s = 600
"""
TRAINER = """
import json, sys
from pathlib import Path
from edge_sdk.testing import build_artifact
request = json.loads(sys.stdin.readline())
folder = Path(request["dir"])
build_artifact(folder / "new.edge", golden=False, name=request["model"], version="9.0")
(folder / "metrics.json").write_text(json.dumps({"metric": "top1", "candidate": 0.95, "production": 0.6, "n": 400}))
"""


class Camera(Device):
    """A device that does what it is told: looks the target up through TUF, downloads it, reports each phase."""

    def __init__(self, identity: dict[str, Any], server: str, folder: Path) -> None:
        super().__init__(identity)
        self.server, self.folder = server, folder / self.name
        (self.folder / "tuf").mkdir(parents=True)
        self.digest: str | None = None
        self.rev = -1
        self.phase = Phase.IDLE
        self.dead = False
        self.ota = 0
        self.rng = np.random.default_rng(len(self.name))
        self.shift = 0.0
        self.health: Callable[[str | None], dict[str, Any]] = lambda digest: {}
        self.work = threading.Lock()

    def _on_message(self, client: Any, data: Any, message: Any) -> None:
        super()._on_message(client, data, message)
        if message.topic.endswith("/desired") and message.payload and not self.dead:
            threading.Thread(target=self.obey, args=(Desired.from_json(message.payload),), daemon=True).start()

    def _on_connect(self, client: Any, *rest: Any) -> None:
        super()._on_connect(client, *rest)
        self.report(self.phase)  # what was said before may have died with the broker

    def obey(self, desired: Desired) -> None:
        with self.work:
            if desired.rev <= self.rev:
                return
            self.rev = desired.rev
            before = Phase.IDLE
            for phase in (Phase.OFFERED, Phase.DOWNLOADING, Phase.TRIAL, Phase.COMMITTED):
                if phase is Phase.TRIAL and self.digest != desired.sha256:
                    wait_for(lambda: self.fetch(desired), why="a download")
                self.step(desired, before, phase)
                before = phase

    def fetch(self, desired: Desired) -> bool:
        """Look the target up and download it; False when the service is away, which is tried again."""
        try:
            self._fetch(desired)
        except (OSError, DownloadError, http.client.HTTPException, urllib3.exceptions.HTTPError):
            return False  # also in the middle of an answer
        return True

    def _fetch(self, desired: Desired) -> None:
        updater = Updater(
            metadata_dir=str(self.folder / "tuf"),
            metadata_base_url=f"{self.server}/tuf/",
            bootstrap=self.identity["tuf_root"].encode(),
        )
        info = updater.get_targetinfo(desired.target)
        assert info is not None
        basic = base64.b64encode(f"{self.name}:{self.identity['credential']}".encode()).decode()
        request = urllib.request.Request(
            f"{self.server}/artifacts/{desired.sha256}", headers={"Authorization": f"Basic {basic}"}
        )
        with urllib.request.urlopen(request) as response:
            data = response.read()
        info.verify_length_and_hashes(data)
        self.digest = desired.sha256

    def step(self, desired: Desired, before: Phase, phase: Phase) -> None:
        self.ota += 1
        transition = Transition(
            seq=self.ota,
            t=time.time(),
            rev=desired.rev,
            release=desired.release,
            sha256=desired.sha256,
            rollout=desired.rollout,
            source=before,
            to=phase,
        )
        self.publish("ota", transition.to_json())
        self.report(phase)

    def report(self, phase: Phase) -> None:
        self.phase = phase
        reported = Reported(rev=max(self.rev, 0), online=True, digest=self.digest, phase=phase)
        self.publish("state", reported.to_json(), retain=True)

    def window(self, n: int = 100) -> None:
        """Send one telemetry window of what the camera saw."""
        now = time.time()
        rows = 0.5 + self.shift + 0.05 * self.rng.normal(size=(n, 4))
        mean, names = rows.mean(axis=0), [f"f{i}" for i in range(4)]
        away = rows - mean
        hist = [np.histogram(np.clip(rows[:, j], 0, 1), 32, (0, 1))[0].tolist() for j in range(4)]
        group = {
            "names": names,
            "n": n,
            "mean": mean.tolist(),
            "m2": (away.T @ away)[np.triu_indices(4)].tolist(),
            "hist": hist,
        }
        health = {"errors": 0, "slow": 0, "confidence": 0.8, **self.health(self.digest)}
        event = {
            "seq": self.next_seq,
            "kind": "window",
            "t": now,
            "t0": now - 0.1,
            "t1": now,
            "pipeline": "camera",
            "model": self.digest or "none",
            "n": n,
            "counters": {"frames": n, "processed": n, "errors": health["errors"], "slow": health["slow"]},
            "confidence": health["confidence"],
            "groups": {"image": group},
        }
        self.send_events([event])


class Fleet:
    """The service of one test and its cameras."""

    def __init__(self, folder: Path, broker: str) -> None:
        trainer = folder / "trainer.py"
        trainer.write_text(TRAINER)
        config = folder / "serve.toml"
        config.write_text(CONFIG.replace("{python}", sys.executable).replace("{trainer}", str(trainer)))
        self.folder = folder
        self.serve = Serve(folder / "data", broker, "--config", str(config)).start()
        self.cameras: list[Camera] = []

    def add(self, count: int) -> list[Camera]:
        for _ in range(count):
            name = f"cam-{len(self.cameras)}"
            token = self.serve.client.post("/api/v1/devices", {"device": name, "profile": "generic-cpu"})["token"]
            identity = self.serve.client.post("/api/v1/enroll", {"token": token})
            camera = Camera(identity, self.serve.about["url"], self.folder)
            self.cameras.append(camera)
            camera.connect()
        return self.cameras

    def publish(self, version: str, **changes: Any) -> dict[str, Any]:
        path = self.folder / f"{version}.edge"
        build_artifact(path, golden=False, name="tiny", version=version, **changes)
        digest = self.serve.client.upload("/artifacts", path)["sha256"]
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
        body = {"model": "tiny", "version": version, "artifacts": [digest]}
        return self.serve.client.post("/api/v1/releases", body)

    def roll_out(self, release: dict[str, Any], *, until: str, **changes: Any) -> dict[str, Any]:
        made = self.serve.client.post("/api/v1/rollouts", {"release": release["release"], **changes})
        return self.follow(made["id"], until)

    def follow(self, rollout: str, until: str) -> dict[str, Any]:
        """Let every camera send windows until the rollout is in a state."""
        row: dict[str, Any] = {}

        def there() -> bool:
            for camera in self.cameras:
                if not camera.dead:
                    camera.window()
            row.update(self.serve.client.get(f"/api/v1/rollouts/{rollout}"))
            time.sleep(0.1)
            return str(row["state"]) == until

        deadline = time.monotonic() + 120
        while not there():
            seen = [(c.name, c.rev, c.digest, c.connections) for c in self.cameras]
            assert time.monotonic() < deadline, (until, row, seen)
        return row

    def close(self) -> None:
        for camera in self.cameras:
            camera.close()
        self.serve.stop()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    need(BROKERS[0])
    made = Fleet(tmp_path, BROKERS[0])
    yield made
    made.close()


def digest_of(release: dict[str, Any]) -> str:
    return str(release["targets"][0]["sha256"])


def test_a_good_release_reaches_all_and_a_bad_one_is_undone_on_the_device_that_had_it(fleet: Fleet) -> None:
    cameras = fleet.add(5)
    good = fleet.publish("1.0")
    row = fleet.roll_out(good, until="COMPLETE")
    assert row["devices"] == {"COMMITTED": 5}
    assert {c.digest for c in cameras} == {digest_of(good)}
    bad = fleet.publish("2.0")
    for camera in cameras:
        camera.health = lambda digest: {"errors": 100} if digest == digest_of(bad) else {}
    row = fleet.roll_out(bad, until="ROLLED_BACK")
    assert row["stage"] == 0
    assert row["devices"] == {"QUEUED": 4, "ROLLED_BACK": 1}
    assert "error_share" in {g["name"] for g in row["guards"] if g["tripped"]}
    assert {c.digest for c in cameras} == {digest_of(good)}
    late = fleet.add(6 - len(cameras))[-1]
    wait_for(lambda: late.digest == digest_of(good), why="the current release on a device that came later")


def test_a_silent_device_holds_the_rollout_until_it_comes_back(fleet: Fleet) -> None:
    cameras = fleet.add(5)
    for camera in cameras:
        camera.dead = True
    release = fleet.publish("1.0")
    row = fleet.roll_out(release, until="HELD")
    assert row["devices"] == {"QUEUED": 4, "SILENT": 1}
    assert row["reason"] == "guard silent: 1 of 1 devices are silent"
    for camera in cameras:
        camera.dead = False
        for topic, payload in list(camera.received):
            if topic.endswith("/desired") and payload:
                camera.obey(Desired.from_json(payload))
    assert fleet.follow(row["id"], "COMPLETE")["devices"] == {"COMMITTED": 5}


def test_a_service_killed_in_mid_rollout_finishes_it(fleet: Fleet) -> None:
    fleet.add(5)
    release = fleet.publish("1.0")
    rollout = fleet.serve.client.post("/api/v1/rollouts", {"release": release["release"]})["id"]
    for _ in range(3):
        time.sleep(0.15)  # wherever it is by then: every point must do
        for camera in fleet.cameras:
            camera.window()
        fleet.serve.kill()
        fleet.serve.start()
    row = fleet.follow(rollout, "COMPLETE")
    assert row["devices"] == {"COMMITTED": 5}
    assert {c.rev for c in fleet.cameras} == {1}


def test_drift_is_seen_a_model_retrained_and_rolled_out_by_itself(fleet: Fleet) -> None:
    cameras = fleet.add(3)
    fleet.roll_out(fleet.publish("1.0"), until="COMPLETE")

    def states() -> set[str]:
        for camera in cameras:
            camera.window()
        time.sleep(0.1)
        return {d["state"] for d in fleet.serve.client.get("/api/v1/drift")["devices"]}

    wait_for(lambda: states() == {"stable"}, why="baselines")
    for _ in range(6):
        assert "drifted" not in states()
    for camera in cameras:
        camera.shift = 0.15
    wait_for(lambda: fleet.serve.client.get("/api/v1/retrain")["runs"] or not states(), why="a retraining run")
    run = fleet.serve.client.get("/api/v1/retrain")["runs"][0]
    assert "drifted on" in run["reason"]
    done = wait_for(
        lambda: next((r for r in fleet.serve.client.get("/api/v1/retrain")["runs"] if r["rollout"]), None),
        why="a release of the retrained model",
    )
    assert (done["state"], done["gate"][0]["decision"]) == ("RELEASED", "pass")
    assert fleet.follow(done["rollout"], "COMPLETE")["devices"] == {"COMMITTED": 3}
    page = fleet.serve.client.get_text("/api/v1/drift/report")
    assert "<svg" in page


def test_http_refuses_what_it_must(fleet: Fleet, tmp_path: Path) -> None:
    client = fleet.serve.client
    camera = fleet.add(1)[0]
    release = fleet.publish("1.0")
    url = f"{fleet.serve.about['url']}/artifacts/{digest_of(release)}"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url)
    basic = base64.b64encode(f"{camera.name}:{camera.identity['credential']}".encode()).decode()
    headers = {"Authorization": f"Basic {basic}", "Range": "bytes=10-19"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as response:
        assert response.status == 206
        assert response.read() == (tmp_path / "1.0.edge").read_bytes()[10:20]
    for name in ("..%2f..%2foperator.token", "targets.json", "0.root.json", "1.root.json%00"):
        with pytest.raises(urllib.error.HTTPError, match="404|400"):
            urllib.request.urlopen(f"{fleet.serve.about['url']}/tuf/{name}")
    with urllib.request.urlopen(f"{fleet.serve.about['url']}/tuf/timestamp.json") as response:
        assert response.headers["Cache-Control"] == "no-store"
    broken = tmp_path / "broken.edge"
    broken.write_bytes(b"PK\x03\x04 not an artifact")
    with pytest.raises(ArtifactError):
        client.upload("/artifacts", broken)
    build_artifact(tmp_path / "other.edge", golden=False, name="tiny", version="other")
    digest = client.upload("/artifacts", tmp_path / "other.edge")["sha256"]
    with pytest.raises(ConflictError, match="exists with other artifacts"):
        client.post("/api/v1/releases", {"model": "tiny", "version": "1.0", "artifacts": [digest]})
    with pytest.raises(ConfigError, match="soack_s"):
        client.post("/api/v1/rollouts", {"release": release["release"], "soack_s": 1})
    with pytest.raises(UsageError, match="no rollout `nope`"):
        client.post("/api/v1/rollouts/nope/abort")
    assert [r["name"] for r in client.get("/api/v1/trust")["roles"]][:4] == ["root", "targets", "snapshot", "timestamp"]


def test_the_verbs_print_what_the_service_says(fleet: Fleet, tmp_path: Path) -> None:
    fleet.add(2)
    build_artifact(tmp_path / "a.edge", golden=False, name="tiny", version="1.0")

    def edge(*words: str) -> Any:
        env = {"EDGE_TOKEN": (fleet.serve.data / "operator.token").read_text().strip(), "PATH": "/usr/bin:/bin"}
        argv = [sys.executable, "-m", "edge_sdk", *words, "--json"]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False)
        return done.returncode, json.loads(done.stdout)

    server = ("--server", fleet.serve.about["url"])
    code, release = edge("publish", str(tmp_path / "a.edge"), "--model", "tiny", "--version", "1.0", *server)
    assert (code, set(release) >= {"release", "version", "targets"}) == (0, True)
    code, rollout = edge(
        "rollout", "create", "--release", release["release"], "--stages", "50,100", "--approval", *server
    )
    assert (code, rollout["state"], rollout["stages"]) == (0, "AWAITING_APPROVAL", [50, 100])
    assert edge("rollout", "approve", rollout["id"], *server)[0] == 0
    fleet.follow(rollout["id"], "COMPLETE")
    code, shown = edge("rollout", "show", rollout["id"], *server)
    assert shown["devices"] == {"COMMITTED": 2}
    assert {"name", "value", "limit", "tripped"} <= set(shown["guards"][0])
    assert (
        edge("rollout", "pause", rollout["id"], *server)[1]["error"]["message"]
        == f"rollout `{rollout['id']}` is COMPLETE"
    )
    assert edge("rollout", "create", "--release", "x", "--stages", "all", *server)[0] == 2
    assert edge("rollout", "list", *server)[1]["rollouts"][0]["id"] == rollout["id"]
    code, drift = edge("drift", "show", *server)
    assert {"device", "kind", "p", "statistic", "n", "state"} <= set(drift["verdicts"][0])
    assert edge("drift", "report", "--html", str(tmp_path / "r.html"), *server)[0] == 0
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    code, run = edge("retrain", "run", "--wait", *server)
    assert (code, run["state"]) == (0, "RELEASED")
    assert {"metric", "candidate", "production", "decision"} <= set(run["gate"][0])
    assert edge("retrain", "show", *server)[1]["runs"][0]["run"] == run["run"]
    code, trust = edge("trust", "status", "--data", str(fleet.serve.data))
    assert {"name", "version", "expires", "keys"} <= set(trust["roles"][0])
