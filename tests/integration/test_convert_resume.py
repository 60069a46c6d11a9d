"""`edge convert` that is cut short leaves nothing behind, and goes on where it was."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nncf")

sys.path.insert(0, str(Path(__file__).resolve().parent))
import convert_parts as parts
from support import children_of, is_running, until

from edge_sdk import Artifact

pytestmark = pytest.mark.slow
FLAGS = ["--color", "rgb", "--resize", "stretch", "--mean", "0", "--std", "255", "--runtime", "onnxruntime"]
MADE = "onnxruntime fp32 passed"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    parts.classifier(root / "m.onnx")
    parts.color_folders(root / "calibration", 24, seed=1)
    parts.color_folders(root / "golden", 30, seed=2)
    return root


def command(world: Path, out: Path, *words) -> list[str]:
    line = [sys.executable, "-m", "edge_sdk", "convert", world / "m.onnx", "--profile", "x86-64-avx2", *FLAGS]
    data = ["--calibration", world / "calibration", "--golden", world / "golden", "--out", out]
    return [str(word) for word in (*line, *data, *words)]


def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tmp").mkdir(exist_ok=True)
    return os.environ | {"TMPDIR": str(tmp_path / "tmp"), "XDG_CACHE_HOME": str(tmp_path / "cache")}


def run(world: Path, tmp_path: Path, *words, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(world, tmp_path / "out", *words),
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(tmp_path),
        **more,
    )


def cut_short(world: Path, tmp_path: Path, number: int) -> tuple[int, list[int]]:
    """Start a conversion, send the signal when its first build is made, and return its exit and its children."""
    process = subprocess.Popen(
        command(world, tmp_path / "out"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    )
    assert process.stderr is not None
    assert any(MADE in line for line in process.stderr)
    found = children_of(process.pid)
    process.send_signal(number)
    code = process.wait(60)
    process.stderr.close()
    return code, found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_a_conversion_that_is_ended_in_the_middle_goes_on_from_the_cache(world, tmp_path, number, code):
    found, children = cut_short(world, tmp_path, number)

    assert found == code
    assert children
    until(lambda: not any(map(is_running, children)), "the end of the workers")
    assert not list((tmp_path / "out").iterdir())
    if number != signal.SIGKILL:
        assert not list((tmp_path / "tmp").glob("edge-convert-*"))

    again = run(world, tmp_path, "--json")

    assert again.returncode == 0, again.stderr
    line = next(line for line in again.stderr.splitlines() if MADE in line)
    assert line.endswith("(from the cache)")
    assert Artifact.open(json.loads(again.stdout)["artifacts"][0]["path"]).labels == parts.COLORS
    assert not list((tmp_path / "tmp").glob("edge-convert-*"))


def test_a_damaged_cache_is_built_again_and_no_cache_means_none(world, tmp_path):
    first = run(world, tmp_path, "--precision", "fp32", "--json")
    for file in (tmp_path / "cache").rglob("model.onnx"):
        file.write_bytes(file.read_bytes()[:-1] + b"\0")

    again = run(world, tmp_path, "--precision", "fp32", "--json")
    without = run(world, tmp_path, "--precision", "fp32", "--json", "--no-cache")

    digests = {json.loads(done.stdout)["artifacts"][0]["payload_digest"] for done in (first, again, without)}
    assert len(digests) == 1
    assert "an entry of the cache was damaged and is made again" in again.stderr
    assert "from the cache" not in without.stderr


def small_disk(path: Path, size: str) -> bool:
    path.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    try:
        return subprocess.run(words, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.parametrize(("place", "size"), [("work", "24k"), ("out", "8k")])
def test_a_full_disk_is_one_message_and_nothing_half_written(world, tmp_path, place, size):
    disk = tmp_path / "disk"
    if not small_disk(disk, size):
        pytest.skip("a small disk can only be mounted by root")
    try:
        out = disk if place == "out" else tmp_path / "out"
        env = environment(tmp_path) | ({"TMPDIR": str(disk)} if place == "work" else {})
        words = command(world, out, "--json", "--precision", "fp32")
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=env)
        error = json.loads(done.stdout)["error"]
        left = [p for p in out.glob("*") if p.name != ".ses"] if out.exists() else []
    finally:
        subprocess.run(["umount", str(disk)], check=True)

    assert (done.returncode, error["kind"]) == (6, "conversion")
    assert error["message"].startswith("no space to write ")
    assert error["message"].endswith("No space left on device")
    assert error["hint"].startswith("free some space there")
    assert not left
    assert "Traceback" not in done.stderr


def test_a_limit_on_the_size_of_files_is_told_like_a_full_disk(world, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    done = run(world, tmp_path, "--json", "--no-cache", preexec_fn=limit)

    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["message"].startswith("no space to write ")) == (6, True), error
    assert not list((tmp_path / "out").glob("*"))


def test_a_full_cache_does_not_end_a_conversion(world, tmp_path):
    disk = tmp_path / "disk"
    if not small_disk(disk, "8k"):
        pytest.skip("a small disk can only be mounted by root")
    try:
        done = run(world, tmp_path, "--json", "--precision", "fp32", "--cache", str(disk))
    finally:
        subprocess.run(["umount", str(disk)], check=True)

    assert done.returncode == 0, done.stderr
    assert "cannot be written: its disk is full; going on without it" in done.stderr
