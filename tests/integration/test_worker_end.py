"""The end of a worker is noticed by its process id, whoever else holds its pipes and whatever goes wrong here."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edge_sdk.agent.pipes import read_lines, write_all
from edge_sdk.agent.process import Worker
from edge_sdk.agent.supervisor import Supervisor
from edge_sdk.output import Output
from edge_sdk.testing import build_artifact
from edge_sdk.verbs.run_session import Session

LIMIT_S = 60
FINITE = "synthetic:64x48?n=5&fps=100"
LIVE = "synthetic:64x48?fps=100&live=1"
LEAVES_A_CHILD = """\
import os, sys
if "edge_sdk.agent.worker" in sys.orig_argv:
    child = os.fork()
    if child == 0:
        os.execvp("sleep", ["sleep", "600"])
    with open({pids!r}, "a") as file:
        file.write(f"{{child}}\\n")
"""
DIES_AFTER_DONE = """\
#!{python}
import json, os, signal, subprocess, sys
child = subprocess.Popen([{python!r}, *sys.argv[1:]], stdout=subprocess.PIPE)
for line in child.stdout:
    os.write(1, line)
    if json.loads(line).get("event") == "done":
        child.wait()
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "colors.edge").path


@pytest.fixture
def litter(tmp_path, monkeypatch):
    """Let every worker fork a process that keeps its three pipes open for long after it."""
    pids = tmp_path / "pids"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(LEAVES_A_CHILD.format(pids=str(pids)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))

    def living() -> list[int]:
        found = [int(line) for line in pids.read_text().split()] if pids.exists() else []
        return [pid for pid in found if Path(f"/proc/{pid}").exists() or not Path("/proc").exists()]

    yield living
    for pid in living():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def spec(artifact: Path, source: str = FINITE) -> dict:
    return {"pipeline": {"source": {"uri": source}, "stage": [{"name": "sort", "model": str(artifact)}]}}


def waiting_for(name: str):
    seen = threading.Event()
    return seen, lambda event: seen.set() if event["event"] == name else None


def test_a_run_ends_although_a_process_that_the_worker_forked_keeps_its_pipes(artifact, litter):
    command = [sys.executable, "-m", "edge_sdk", "run", "--json", "--model", str(artifact), "--source", FINITE]
    done = subprocess.run(command, capture_output=True, timeout=LIMIT_S, check=True)
    assert json.loads(done.stdout)["frames"]["processed"] == 5
    assert len(litter()) == 1


def test_a_worker_killed_while_a_process_that_it_forked_keeps_its_pipes_is_seen_to_die(artifact, litter):
    ready, on_event = waiting_for("ready")
    worker = Worker(spec(artifact, LIVE), on_event=on_event)
    worker.start()
    assert ready.wait(LIMIT_S)
    os.kill(worker.pid, signal.SIGKILL)
    assert str(worker.wait(LIMIT_S)) == "killed by SIGKILL"
    assert litter()


def test_a_worker_killed_before_it_read_a_spec_that_fills_the_pipe_lets_start_return(artifact, litter):
    worker = Worker(spec(artifact) | {"filler": "x" * 2_000_000})
    starting = threading.Thread(target=worker.start, daemon=True)

    def kill() -> None:
        while worker.pid is None or not litter():
            time.sleep(0.002)
        os.kill(worker.pid, signal.SIGKILL)

    killing = threading.Thread(target=kill, daemon=True)
    killing.start()
    starting.start()
    starting.join(LIMIT_S)
    assert not starting.is_alive()
    assert worker.wait(LIMIT_S).signal == signal.SIGKILL


def test_a_run_whose_worker_is_killed_right_after_its_report_still_has_the_report(artifact, tmp_path, monkeypatch):
    shim = tmp_path / "python"
    shim.write_text(DIES_AFTER_DONE.format(python=sys.executable))
    shim.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shim))
    assert Session(spec(artifact, FINITE), Output()).run()["frames"]["processed"] == 5
    frames = Session(spec(artifact, LIVE + "&n=5"), Output()).run()["frames"]
    assert frames["processed"] + sum(frames["dropped"].values()) == frames["in"]
    assert 1 <= frames["processed"] <= 5, "a busy machine may miss frames of a camera"


def test_what_shows_the_worker_s_events_and_lines_may_fail_and_its_end_is_still_told(artifact):
    def fail(_: object) -> None:
        raise BrokenPipeError("the terminal is gone")

    broken = {"pipeline": {"source": {"uri": "missing.mp4"}, "stage": []}}
    for what in (spec(artifact), broken):
        worker = Worker(what, on_event=fail, on_log=fail)
        worker.start()
        assert worker.wait(LIMIT_S) is not None


def test_a_supervisor_whose_listener_fails_on_every_event_ends_with_its_worker(artifact):
    told = threading.Event()

    def fail(event: dict) -> None:
        if event["event"] == "exit":
            told.set()
        raise RuntimeError("no")

    supervisor = Supervisor(spec(artifact), on_event=fail)
    supervisor.start()
    assert told.wait(LIMIT_S)
    supervisor.stop()
    assert not supervisor.alive


def test_a_session_ends_when_deciding_about_a_restart_fails(artifact, tmp_path):
    class Closed(Output):
        def note(self, message: str, style: str | None = None) -> None:
            raise BrokenPipeError("the terminal is gone")

    session = Session(spec(artifact, LIVE), Closed())
    kills: list[int] = []

    def kill() -> None:
        while session._supervisor.state != "running":
            time.sleep(0.01)
        kills.append(session._supervisor.worker.pid)
        os.kill(kills[0], signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    ended = threading.Event()
    guard = threading.Timer(LIMIT_S, lambda: ended.is_set() or os.kill(os.getpid(), signal.SIGTERM))
    guard.start()
    try:
        with pytest.raises(Exception, match="the worker process died: killed by SIGKILL"):
            session.run()
    finally:
        ended.set()
        guard.cancel()
    assert kills


def test_a_stop_that_comes_before_the_worker_has_started_is_not_lost(artifact):
    done, on_event = waiting_for("done")
    worker = Worker(spec(artifact, LIVE), on_event=on_event)
    worker.stop(0.0)
    worker.start()
    assert worker.wait(LIMIT_S).clean
    assert done.is_set()


def test_lines_end_with_what_the_child_left_although_the_pipe_stays_open():
    reading, writing = os.pipe()
    try:
        os.write(writing, b"one\ntwo\nthr")
        assert list(read_lines(reading, lambda: True)) == [b"one", b"two", b"thr"]
    finally:
        os.close(reading)
        os.close(writing)


def test_writing_to_a_child_that_is_gone_and_never_read_is_a_broken_pipe():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    asked = iter([False, False, False, True])
    try:
        with pytest.raises(BrokenPipeError):
            write_all(writing, b"x" * 1_000_000, lambda: next(asked, True))
    finally:
        os.close(reading)
        os.close(writing)
