"""The worker process and what keeps it: commands, deaths, hangs, restarts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
from support import is_running, until

from edge_sdk.agent.process import Worker, WorkerExit, error_from_json
from edge_sdk.agent.supervisor import Supervisor
from edge_sdk.backoff import Backoff
from edge_sdk.errors import ArtifactError, SourceError, UsageError, WorkerError
from edge_sdk.testing import build_artifact, tiny_classifier_onnx

LIVE = "synthetic:64x48?fps=100&live=1"
HEAVY = {"numpy", "cv2", "onnxruntime", "openvino", "torch", "tensorflow", "onnx", "scipy", "pandas", "fastapi"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "colors.edge").path


class Log:
    """The events of a worker, and waiting for one."""

    def __init__(self) -> None:
        self.events: list[dict] = []
        self._changed = threading.Condition()

    def __call__(self, event: dict) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait(self, name: str, *, n: int = 1, timeout_s: float = 60) -> dict:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.named(name)) >= n, timeout_s), self.events
            return self.named(name)[n - 1]

    def named(self, name: str) -> list[dict]:
        return [e for e in self.events if e["event"] == name]


def spec(artifact: Path, source: str = LIVE, **more) -> dict:
    return {"pipeline": {"source": {"uri": source}, "stage": [{"name": "sort", "model": str(artifact)}]}, **more}


@pytest.fixture
def worker(artifact):
    log = Log()
    worker = Worker(spec(artifact), on_event=log)
    worker.start()
    log.wait("ready")
    yield worker, log
    worker.kill("the test is over")
    worker.wait(60)


def test_a_worker_tells_what_it_runs_and_how_it_goes(worker, artifact):
    running, log = worker
    ready = log.wait("ready")
    assert (ready["pid"], ready["live"]) == (running.pid, True)
    assert ready["stages"][0]["name"] == "sort"
    log.wait("heartbeat", n=2)
    stats = log.wait("stats", n=2)
    assert {"frames", "processed", "dropped", "errors", "nonfinite", "latency_ms", "model", "t"} <= set(stats)
    reply = running.request("stats")
    assert reply["stats"]["processed"] > 0


def test_a_worker_imports_no_heavy_package_but_its_engine(worker):
    running, _ = worker
    modules = set(running.request("stats")["modules"])
    assert {"numpy", "cv2", "onnxruntime"} <= modules
    assert not modules & (HEAVY - {"numpy", "cv2", "onnxruntime"})
    assert not modules & {"paho", "tuf", "converters", "cloud_sync", "device_profiles"}


def test_a_worker_swaps_its_model_on_command_and_keeps_it_when_the_new_one_fails(worker, artifact, tmp_path):
    running, _ = worker
    good = build_artifact(tmp_path / "good.edge", version="2.0.0")
    bad = build_artifact(tmp_path / "bad.edge", model=tiny_classifier_onnx(constant=0.0))
    reply = running.request("swap", stage="sort", artifact=str(good.path))
    assert reply["stage"]["model"] == good.sha256
    with pytest.raises(ArtifactError, match="self-tests on this machine"):
        running.request("swap", stage="sort", artifact=str(bad.path))
    with pytest.raises(ArtifactError, match="no such artifact"):
        running.request("swap", stage="sort", artifact=str(tmp_path / "none.edge"))
    assert running.request("stats")["stats"]["model"] == good.sha256
    assert running.alive


def test_a_worker_runs_the_self_test_of_an_artifact_beside_its_pipeline(worker, tmp_path):
    running, _ = worker
    assert all(c["ok"] for c in running.request("selftest")["checks"])
    bad = build_artifact(tmp_path / "bad.edge", model=tiny_classifier_onnx(constant=0.0))
    with pytest.raises(ArtifactError, match="fails"):
        running.request("selftest", artifact=str(bad.path))


def test_an_unknown_command_is_refused_by_name(worker):
    running, _ = worker
    with pytest.raises(UsageError, match="unknown command `dance`") as caught:
        running.request("dance")
    assert "swap" in caught.value.hint


def test_a_worker_that_is_stopped_reports_and_ends_with_0(worker):
    running, log = worker
    ended = running.stop()
    assert ended == WorkerExit(0, None, None)
    assert log.wait("done")["report"]["frames"]["processed"] > 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_the_death_of_a_worker_is_named_and_its_callers_are_told(worker, number):
    running, _ = worker
    os.kill(running.pid, number)
    ended = running.wait(60)
    assert ended.signal == number
    assert number.name in str(ended)
    with pytest.raises(WorkerError, match=f"does not run: killed by {number.name}"):
        running.request("stats")


def test_a_worker_that_stands_still_is_killed(artifact):
    log = Log()
    worker = Worker(spec(artifact), on_event=log, silence_s=3.0)
    worker.start()
    log.wait("ready")
    os.kill(worker.pid, signal.SIGSTOP)
    ended = worker.wait(30)
    assert ended.signal == signal.SIGKILL
    assert "it sent nothing for 3 s" in str(ended)


def test_a_worker_whose_source_fails_says_so_and_ends_with_its_code(artifact, tmp_path):
    log = Log()
    worker = Worker(spec(artifact, str(tmp_path / "none.mp4")), on_event=log)
    worker.start()
    error = error_from_json(log.wait("error")["error"])
    assert isinstance(error, SourceError)
    assert "no such file" in error.message
    assert worker.wait(60).code == 6


def test_a_worker_ends_when_its_parent_dies(artifact, tmp_path):
    script = (
        "import json, sys, time\n"
        "from edge_sdk.agent.process import Worker\n"
        "tell = lambda e: e['event'] == 'ready' and print(e['pid'], flush=True)\n"
        "worker = Worker(json.loads(sys.argv[1]), on_event=tell)\n"
        "worker.start()\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, json.dumps(spec(artifact))], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: not is_running(pid), "the worker, which outlives its parent")


def test_the_parent_of_a_worker_imports_no_native_code():
    script = (
        "import sys, edge_sdk.agent.supervisor, edge_sdk.verbs.run, edge_sdk.verbs.bench\n"
        "from edge_sdk.pipeline_config import PipelineConfig\n"
        "PipelineConfig.from_mapping({'source': {'uri': '0'}, 'stage': [{'model': 'a'}], 'sink': [{'uri': 'a.csv'}]})\n"
        "print(' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    roots = {name.partition(".")[0] for name in done.stdout.split()}
    assert not roots & HEAVY


def test_the_credentials_of_a_source_are_not_in_the_log_of_its_worker(artifact, free_port):
    lines: list[str] = []
    log = Log()
    source = f"rtsp://admin:s3cret@127.0.0.1:{free_port}/live"
    worker = Worker(spec(artifact, source), on_event=log, on_log=lines.append)
    worker.start()
    worker.wait(30)
    assert worker.exit.code == 6
    assert "s3cret" not in json.dumps(log.events)
    assert "s3cret" not in "\n".join(lines)


# -- supervisor -----------------------------------------------------------------------------------------------------


QUICK = Backoff(first_s=0.02, max_s=0.05)


def test_a_dead_worker_is_started_again(artifact):
    log = Log()
    supervisor = Supervisor(spec(artifact), on_event=log, backoff=QUICK)
    supervisor.start()
    first = log.wait("ready")["pid"]
    os.kill(first, signal.SIGKILL)
    second = log.wait("ready", n=2)["pid"]
    assert second != first
    assert log.wait("exit")["exit"] == "killed by SIGKILL"
    assert (supervisor.restarts, supervisor.state) == (1, "running")
    assert supervisor.request("stats")["ok"]
    supervisor.stop()
    assert supervisor.state == "stopped"
    with pytest.raises(WorkerError, match="does not run"):
        supervisor.request("stats")


def test_a_worker_that_dies_again_and_again_is_a_crash_loop(tmp_path):
    broken = tmp_path / "broken.edge"
    broken.write_bytes(b"nothing")
    log = Log()
    supervisor = Supervisor(spec(broken), on_event=log, backoff=QUICK, loop_n=3)
    supervisor.start()
    assert log.wait("restart", n=3)["state"] == "crash_loop"
    assert [e["state"] for e in log.named("restart")[:2]] == ["waiting", "waiting"]
    assert log.wait("error")["error"]["kind"] == "artifact"
    supervisor.stop()


def test_a_spec_is_replaced_without_waiting_out_a_backoff(artifact, tmp_path):
    other = build_artifact(tmp_path / "other.edge", version="2.0.0")
    log = Log()
    supervisor = Supervisor(spec(artifact), on_event=log, backoff=Backoff(first_s=600, max_s=600))
    supervisor.start()
    os.kill(log.wait("ready")["pid"], signal.SIGKILL)
    log.wait("restart")
    supervisor.replace(spec(other.path))
    assert log.wait("ready", n=2)["stages"][0]["model"] == other.sha256
    supervisor.replace(spec(artifact))
    log.wait("ready", n=3)
    assert supervisor.restarts == 1
    supervisor.stop()


def test_a_source_that_ends_is_no_reason_to_start_again(artifact):
    log = Log()
    supervisor = Supervisor(spec(artifact, "synthetic:64x48?n=5"), on_event=log, backoff=QUICK)
    supervisor.start()
    assert log.wait("done")["report"]["frames"]["processed"] == 5
    log.wait("exit")
    assert supervisor.restarts == 0
    supervisor.stop()


def test_the_second_model_of_a_worker_is_swapped_by_its_stage_and_the_service_keeps_the_first(
    artifact, tmp_path, free_port
):
    detector = build_artifact(tmp_path / "cells.edge", task="detection").path
    other = build_artifact(tmp_path / "other.edge", version="2.0.0").path
    stages = [
        {"name": "detect", "model": str(detector)},
        {"name": "color", "model": str(artifact), "after": "detect"},
    ]
    pipeline = {"source": {"uri": LIVE}, "stage": stages}
    log = Log()
    running = Worker({"pipeline": pipeline, "serve": {"port": free_port}}, on_event=log)
    running.start()
    try:
        ready = log.wait("ready")
        assert [s["name"] for s in ready["stages"]] == ["detect", "color"]
        reply = running.request("swap", stage="color", artifact=str(other), timeout_s=60)
        assert reply["stage"]["artifact"] == "tiny-classification 2.0.0"
        stats = log.wait("stats", n=len(log.named("stats")) + 1)
        assert stats["model"] == ready["stages"][0]["model"]
        with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/v2/models/tiny-detection", timeout=60) as answer:
            assert json.load(answer)["name"] == "tiny-detection"
    finally:
        running.kill("the test is over")
        running.wait(60)
