"""A pipeline that becomes another one when its file changes, and its end when the terminal goes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.testing import build_artifact

WAIT_S = 60

FILE = """
[source]
uri = "synthetic:64x64?fps=50&live=1"
[[stage]]
kind = "detect"
model = "{model}"
[[stage]]
kind = "zone"
name = "door"
params = {{ polygon = [[0, 0], [64, 0], [64, 64]], min_frames = {frames} }}
"""


@pytest.fixture(scope="module")
def detector(tmp_path_factory: Any) -> Path:
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "cells.edge", task="detection").path


class Command:
    """`edge run` on a file, and what it says on stderr."""

    def __init__(self, path: Path, *flags: str) -> None:
        words = [sys.executable, "-m", "edge_sdk", "run", str(path), *flags, "--json"]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for line in stderr:
                with self._changed:
                    self.lines.append(line.rstrip())
                    self._changed.notify_all()

    def wait(self, words: str) -> str:
        with self._changed:
            assert self._changed.wait_for(lambda: any(words in line for line in self.lines), WAIT_S), self.lines
            return next(line for line in self.lines if words in line)

    def end(self) -> dict[str, Any]:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            out = stdout.read()
        assert self.process.wait(WAIT_S) == 0, self.lines
        report: dict[str, Any] = json.loads(out)
        return report


def test_a_changed_file_is_applied_as_soon_as_it_is_written_and_a_bad_one_is_not(
    detector: Path, tmp_path: Path
) -> None:
    path = tmp_path / "p.toml"
    sink = '[[sink]]\nuri = "live:0"\n'
    path.write_text(FILE.format(model=detector, frames=2) + sink)
    command = Command(path, "--watch")
    try:
        command.wait("live view")
        path.write_text(FILE.format(model=detector, frames=3) + sink)
        command.wait("changed door")
        path.write_text(FILE.format(model=detector, frames='"x"') + sink + "bad = 1\n")
        command.wait("is not used, what ran before goes on")
        command.wait("min_frames: expected an integer")
        command.wait("sink[0].bad: unknown key")
        path.write_text("[source")
        command.wait("is not valid TOML")
        path.write_text(FILE.format(model=detector, frames=4).replace("fps=50", "fps=40") + sink)
        command.wait("`source` changes with a fresh start")
        report = command.end()
    finally:
        command.process.kill()
        command.process.wait()
    assert report["frames"]["processed"] > 0
    assert report["reconnects"] == 0


def test_sighup_reads_the_file_again(detector: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    sink = '[[sink]]\nuri = "live:0"\n'
    path.write_text(FILE.format(model=detector, frames=2) + sink)
    command = Command(path)
    try:
        command.wait("live view")
        command.process.send_signal(signal.SIGHUP)
        command.wait("nothing is different")
        path.write_text(FILE.format(model=detector, frames=3) + sink)
        command.process.send_signal(signal.SIGHUP)
        command.wait("changed door")
        command.end()
    finally:
        command.process.kill()
        command.process.wait()


def test_watch_needs_a_file(detector: Path) -> None:
    words = ["run", "--model", str(detector), "--source", "synthetic:64x64?n=5", "--watch"]
    done = subprocess.run([sys.executable, "-m", "edge_sdk", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--watch goes with a pipeline.toml" in done.stderr


def test_one_of_two_cameras_is_changed_and_the_other_goes_on(detector: Path, tmp_path: Path) -> None:
    sink = '[[sink]]\nuri = "live:0"\n'
    for name in ("left", "right"):
        (tmp_path / f"{name}.toml").write_text(FILE.format(model=detector, frames=2) + sink)
    command = Command(tmp_path / "left.toml", str(tmp_path / "right.toml"), "--watch")
    try:
        command.wait("left: live view")
        command.wait("right: live view")
        (tmp_path / "right.toml").write_text(FILE.format(model=detector, frames=4) + sink)
        line = command.wait("changed door")
        assert "right.toml" in line
        (tmp_path / "left.toml").write_text("nonsense")
        command.wait("left.toml is not used, what ran before goes on")
        report = command.end()
    finally:
        command.process.kill()
        command.process.wait()
    for camera in report["cameras"].values():
        assert "error" not in camera
        assert camera["frames"]["processed"] > 0
    assert not [line for line in command.lines if "changed" in line and "left.toml" in line]


def test_a_terminal_that_goes_away_ends_the_run(detector: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(FILE.format(model=detector, frames=2) + f'[[sink]]\nuri = "{tmp_path}/out.jsonl"\n')
    ours, theirs = os.openpty()
    words = [sys.executable, "-m", "edge_sdk", "run", str(path)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    try:
        waiting = threading.Event()
        while not (tmp_path / "out.jsonl").exists() or not (tmp_path / "out.jsonl").stat().st_size:
            assert process.poll() is None
            waiting.wait(0.05)
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        process.wait()
    assert all(json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
