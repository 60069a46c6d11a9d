"""`edge demo` from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import until

psutil = pytest.importorskip("psutil", reason="watches the demo's processes")
for needed in ("torch", "sklearn", "nncf", "fastapi"):
    pytest.importorskip(needed, reason="the demo's extras are not installed")

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.slow]
STEPS = [
    "train",
    "convert",
    "serve",
    "enrol",
    "release",
    "telemetry",
    "no-drift",
    "drift",
    "retrain",
    "rollout",
    "bad-release",
]


def start(*words: str | Path, tmp: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edge_sdk", "demo", "--json", *map(str, words)]
    env = {**os.environ, "TMPDIR": str(tmp)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def processes_of(folder: Path, parent: int) -> list[str]:
    """Return the command lines that name `folder` or belong to `parent`."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        mine = str(folder) in line and process.info["pid"] not in (parent, os.getpid())
        if mine and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(line)
    return found


@pytest.mark.timeout(1500)
def test_the_demo_shows_the_whole_line_and_what_it_keeps_runs_the_readme(tmp_path):
    keep = tmp_path / "keep"
    demo = start("--broker", "embedded", "--keep", keep, tmp=tmp_path)
    out, err = demo.communicate(timeout=1400)
    report = json.loads(out)
    assert demo.returncode == 0, err
    assert report["ok"] is True
    assert [s["name"] for s in report["steps"]] == STEPS
    assert all(s["ok"] and s["seconds"] >= 0 and s["detail"] for s in report["steps"])
    assert "Periods shortened" in err
    assert processes_of(tmp_path, demo.pid) == []

    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    done = subprocess.run([sys.executable, "-c", code.group(1)], cwd=keep, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "digits 1.0.0 onnxruntime" in done.stdout


@pytest.mark.timeout(600)
def test_a_demo_that_is_killed_takes_its_processes_with_it(tmp_path):
    keep = tmp_path / "keep"
    demo = start("--keep", keep, "--broker", "embedded", tmp=tmp_path)
    last = keep / "logs" / "cam-5.log"
    until(lambda: last.exists() and "is running" in last.read_text(), "five agents", 400)
    assert len(processes_of(tmp_path, demo.pid)) >= 6
    demo.kill()
    demo.communicate()
    until(lambda: not processes_of(tmp_path, demo.pid), "the end of service and agents")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_says_so_ends_with_130_and_leaves_nothing_behind(number, tmp_path):
    demo = start(tmp=tmp_path)
    until(lambda: any(tmp_path.glob("edge-demo-*/logs/commands.log")), "the training")
    demo.send_signal(number)
    out, err = demo.communicate(timeout=60)
    assert demo.returncode == 130, err
    report = json.loads(out)
    assert report["ok"] is False
    assert report["steps"][0]["ok"] is False
    until(lambda: not processes_of(tmp_path, demo.pid), "the end of the training")
    assert list(tmp_path.glob("edge-demo-*")) == []


def test_a_directory_that_is_in_use_is_not_taken_for_keeping(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    demo = start("--keep", tmp_path, tmp=tmp_path)
    out, _ = demo.communicate(timeout=60)
    assert demo.returncode == 2
    assert "is not empty" in json.loads(out)["error"]["message"]
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_an_own_model_needs_an_own_source(tmp_path):
    demo = start("--model", "m.onnx", tmp=tmp_path)
    out, _ = demo.communicate(timeout=60)
    assert demo.returncode == 2
    assert json.loads(out)["error"]["message"] == "`edge demo` takes --model and --source together"


@pytest.mark.timeout(600)
def test_an_own_model_is_converted_and_run_on_an_own_video(testdata, tmp_path):
    keep = tmp_path / "keep"
    model, video = testdata / "models" / "yolox_nano_416.onnx", testdata / "videos" / "bottle-detection.mp4"
    demo = start("--model", model, "--source", video, "--keep", keep, tmp=tmp_path)
    out, err = demo.communicate(timeout=500)
    report = json.loads(out)
    assert demo.returncode == 0, err
    assert [(s["name"], s["ok"]) for s in report["steps"]] == [("frames", True), ("convert", True), ("run", True)]
    lines = (keep / "results.jsonl").read_text().splitlines()
    labels = {d["label"] for line in lines for d in json.loads(line)["detections"]}
    assert "bottle" in labels or "39" in labels
    assert (keep / "annotated.mp4").stat().st_size > 10_000


def test_an_own_source_that_is_no_video_fails_with_its_exit_code(tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    demo = start("--model", tmp_path / "m.onnx", "--source", bad, "--keep", tmp_path / "keep", tmp=tmp_path)
    out, _ = demo.communicate(timeout=60)
    report = json.loads(out)
    assert demo.returncode == report["error"]["exit"] == 6
    assert "bad.mp4" in report["error"]["message"]
    assert [s["ok"] for s in report["steps"]] == [False, False, False]
