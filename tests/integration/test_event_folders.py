"""Clips and snapshots on disks that fill: a real small file system, and the policy by itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_sdk.errors import SinkError, UsageError
from edge_sdk.pipeline import Pipeline
from edge_sdk.sinks import create
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sinks.folder import Entry, EventFolder, doomed
from edge_sdk.sources.base import Frame
from edge_sdk.tasks.results import Detections
from edge_sdk.testing import ListSource, build_artifact

FPS = 10.0
WAIT_S = 30


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def noisy(index: int) -> Any:
    """A 160 x 120 frame that JPEG cannot make small: about 20 kB."""
    return np.random.default_rng(index).integers(0, 256, (120, 160, 3), np.uint8)


def item(index: int, *events: dict[str, Any]) -> FrameResult:
    frame = Frame(noisy(index), index, index / FPS, 0.0, "test")
    return FrameResult(frame, Detections.empty(), "m", 1.0, 1.0, events=list(events))


def alert(index: int) -> dict[str, Any]:
    return {"kind": "alert", "name": "door", "t_s": index / FPS}


def frames_of(path: Path) -> int:
    capture, n = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), 0
    while capture.read()[0]:
        n += 1
    return n


def entries(*sizes: int) -> list[Entry]:
    return [Entry(f"e{i}", size) for i, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("most", "free", "min_free", "gone"),
    [
        (100, 50, 0, 0),
        (60, 50, 0, 0),
        (59, 50, 0, 1),
        (31, 50, 0, 2),
        (0, 50, 0, 3),
        (100, 50, 60, 1),
        (100, 0, 100, 3),
    ],
)
def test_the_oldest_go_until_little_enough_is_kept_and_enough_is_free(
    most: int, free: int, min_free: int, gone: int
) -> None:
    assert [e.stem for e in doomed(entries(20, 20, 20), most=most, free=free, min_free=min_free)] == [
        "e0",
        "e1",
        "e2",
    ][:gone]


def test_what_a_full_disk_refuses_is_tried_again_after_the_oldest_has_gone(tmp_path: Path) -> None:
    store = EventFolder(tmp_path, "clip", most=10**9, min_free=0)
    for number in range(4):
        for suffix in ("avi", "jpg", "json"):
            (tmp_path / f"clip_20260101T00000{number}Z_00000001.{suffix}").write_bytes(b"x")

    def refused() -> int:
        left = len(list(tmp_path.glob("*.avi")))
        if left > 2:
            with open("/dev/full", "wb", buffering=0) as full:
                full.write(b"x")
        return left

    assert store.write(refused) == 2
    assert sorted({p.stem[17:20] for p in tmp_path.iterdir()}) == ["002", "003"]
    running = "clip_20260101T000003Z_00000001"
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb", buffering=0) as full:
        store.write(lambda: full.write(b"x"), but=running)
    assert {p.stem for p in tmp_path.iterdir()} == {running}


def test_a_disk_that_fills_while_recording_loses_its_oldest_clips_and_no_new_one(small_disk: Path) -> None:
    sink = create(f"clips:{small_disk}/clips", {"fps": FPS, "pre_s": 0.2, "post_s": 0.5, "min_free_mb": 0})
    sink.open()
    for index in range(300):
        sink.write(item(index, *([alert(index)] if index % 20 == 5 else [])))
    sink.close()
    assert sink.lost == 0
    assert sink.clips == 15
    kept = sorted(int(re.split("[_.]", p.name)[2]) for p in (small_disk / "clips").glob("*.avi"))
    assert kept == list(range(285, 285 - 20 * len(kept), -20))[::-1]
    assert 1 <= len(kept) < 15
    for path in (small_disk / "clips").glob("*.avi"):
        assert frames_of(path) == 8
        assert json.loads(path.with_suffix(".json").read_text())["events"]


def test_a_clip_that_is_larger_than_the_disk_is_cut_short_and_can_be_read(small_disk: Path) -> None:
    (small_disk / "other").write_bytes(b"\0" * 600_000)
    sink = create(f"clips:{small_disk}/clips", {"fps": FPS, "pre_s": 0, "post_s": 60, "min_free_mb": 0})
    sink.open()
    for index in range(60):
        sink.write(item(index, *([alert(index)] if index == 2 else [])))
    with pytest.raises(SinkError, match="1 clips could not be written: no space left on device"):
        sink.close()
    (clip,) = (small_disk / "clips").glob("*.avi")
    assert frames_of(clip) > 5


def test_so_much_stays_free_for_the_rest_of_the_device(small_disk: Path) -> None:
    sink = create(f"snapshots:{small_disk}/shots", {"min_free_mb": 0.5})
    sink.open()
    for index in range(60):
        sink.write(item(index, alert(index)))
    sink.close()
    free = os.statvfs(small_disk)
    assert free.f_bavail * free.f_frsize >= 450_000
    assert any((small_disk / "shots").glob("*_00000059.jpg"))


def test_snapshots_on_a_full_disk_replace_the_oldest(small_disk: Path) -> None:
    sink = create(f"snapshots:{small_disk}/shots", {"min_free_mb": 0})
    sink.open()
    for index in range(100):
        sink.write(item(index, alert(index)))
    sink.close()
    names = sorted(p.stem for p in (small_disk / "shots").glob("*.json"))
    assert names[-1].endswith("_00000099")
    assert 10 < len(names) < 100
    for name in names:
        line = json.loads((small_disk / "shots" / f"{name}.json").read_text())
        assert cv2.imread(str(small_disk / "shots" / line["image"])) is not None


def test_a_disk_that_takes_nothing_costs_snapshots_and_stops_no_camera(small_disk: Path, tmp_path: Path) -> None:
    detector = build_artifact(tmp_path / "cells.edge", task="detection").path
    pipe = Pipeline("synthetic:64x64?fps=100&live=1").detect(detector).alert("any", min_frames=1, cooldown_s=0.1)
    with pipe.sink(f"snapshots:{small_disk}/shots", min_free_mb=0) as running:
        for number, _ in enumerate(running):
            if number == 20:
                (small_disk / "other").write_bytes(b"\0" * (os.statvfs(small_disk).f_bavail * 4096))
                for path in (small_disk / "shots").iterdir():
                    path.unlink()
                (small_disk / "more").write_bytes(b"\0" * (os.statvfs(small_disk).f_bavail * 4096))
            if number == 150:
                break
    report = pipe.report()
    assert report.processed >= 150
    assert "snapshots could not be written: no space left on device" in str(report.sinks[0]["error"])


def test_a_snapshot_has_its_picture_its_events_and_the_result(tmp_path: Path) -> None:
    sink = create(f"snapshots:{tmp_path}/shots?every_s=1&quality=90&plain=1")
    sink.open()
    camera = {"kind": "camera", "name": "camera", "problem": "black", "state": "begin", "t_s": 0.5}
    degraded = {"kind": "degraded", "name": "degrade", "level": 1}
    for index in range(30):
        events = {5: [camera], 8: [alert(8)], 20: [alert(20)], 25: [degraded]}.get(index, [])
        sink.write(item(index, *events))
    sink.close()
    first, second = sorted((tmp_path / "shots").glob("*.json"))
    line = json.loads(first.read_text())
    assert (line["frame"], line["events"]) == (5, [camera])
    assert cv2.imread(str(tmp_path / "shots" / line["image"])).shape == (120, 160, 3)
    assert json.loads(second.read_text())["frame"] == 20


def test_wrong_options_and_folders_of_snapshots_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown option `evry_s` of a snapshots sink"):
        create(f"snapshots:{tmp_path}?evry_s=1")
    with pytest.raises(UsageError, match="names no folder"):
        create("snapshots:")
    sink = create(f"snapshots:{tmp_path}/none/here")
    with pytest.raises(SinkError, match="no such file or directory"):
        sink.open()


def test_a_camera_that_goes_black_leaves_a_snapshot(tmp_path: Path) -> None:
    detector = build_artifact(tmp_path / "cells.edge", task="detection").path
    bright = [np.full((64, 64, 3), 120, np.uint8) + np.uint8(f % 5) for f in range(60)]
    images = bright + [np.zeros((64, 64, 3), np.uint8)] * 60
    pipe = Pipeline(ListSource(images, fps=FPS)).detect(detector).camera_health()
    pipe.sink(f"snapshots:{tmp_path}/shots").run()
    (path,) = (tmp_path / "shots").glob("*.json")
    assert json.loads(path.read_text())["events"][0]["problem"] == "black"


def test_sigterm_in_the_middle_of_a_clip_leaves_files_that_can_be_read(tmp_path: Path) -> None:
    detector = build_artifact(tmp_path / "cells.edge", task="detection").path
    config = tmp_path / "p.toml"
    config.write_text(f"""
[source]
uri = "synthetic:64x64?fps=50&live=1"
[[stage]]
kind = "detect"
model = "{detector}"
[[stage]]
kind = "alert"
name = "any"
params = {{ min_frames = 1, cooldown_s = 0.2 }}
[[sink]]
uri = "clips:clips?pre_s=0&post_s=60"
[[sink]]
uri = "snapshots:shots"
[[sink]]
uri = "out.jsonl"
[[sink]]
uri = "live:0"
""")
    words = [sys.executable, "-m", "edge_sdk", "run", str(config), "--json"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        with process.stderr as stderr:
            for line in stderr:
                if "live view" in line:
                    started.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        assert started.wait(WAIT_S)
        grown = threading.Event()
        while not any(p.stat().st_size > 20_000 for p in (tmp_path / "clips").glob("*.avi")):
            assert not grown.wait(0.05)
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        with process.stdout as stdout:
            out = stdout.read()
        assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        process.wait()
    report = json.loads(out)
    (clip,) = (tmp_path / "clips").glob("*.avi")
    assert frames_of(clip) > 5
    assert json.loads(clip.with_suffix(".json").read_text())["events"]
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == report["frames"]["processed"]
    assert all(json.loads(p.read_text()) for p in (tmp_path / "shots").glob("*.json"))
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".part")]
