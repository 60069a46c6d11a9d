"""Clips of events: pre-roll, readable after a kill, oldest first out, a full disk."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_sdk.errors import SinkError, UsageError
from edge_sdk.sinks import create
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sources.base import Frame
from edge_sdk.tasks.results import Detections

FPS = 10.0


def item(index: int, *, event: bool = False) -> FrameResult:
    image = np.full((48, 64, 3), (index * 5) % 250, np.uint8)
    frame = Frame(image, index, index / FPS, 0.0, "test")
    events = [{"kind": "alert", "name": "door", "t_s": index / FPS}] if event else []
    return FrameResult(frame, Detections.empty(), "m", 1.0, 1.0, events=events)


def levels(path) -> list[int]:
    capture, out = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    while True:
        ok, image = capture.read()
        if not ok:
            return out
        out.append(round(float(image.mean())))


def feed(sink, n: int, events: set[int]) -> None:
    for i in range(n):
        sink.write(item(i, event=i in events))


def test_a_clip_has_the_seconds_before_and_after_its_event(tmp_path):
    sink = create(f"clips:{tmp_path}/events?pre_s=1&post_s=2", {"fps": FPS})
    sink.open()
    feed(sink, 100, {30})
    sink.close()
    (clip,) = (tmp_path / "events").glob("*.avi")
    found = levels(clip)
    assert len(found) == 31
    assert all(abs(level - i * 5 % 250) <= 3 for level, i in zip(found, range(20, 51), strict=True))
    assert cv2.VideoCapture(str(clip)).get(cv2.CAP_PROP_FPS) == FPS
    assert cv2.imread(str(clip.with_suffix(".jpg"))).shape == (48, 64, 3)
    facts = json.loads(clip.with_suffix(".json").read_text())
    assert facts["t_s"] == 2.0
    assert [e["name"] for e in facts["events"]] == ["door"]


def test_events_close_together_share_a_clip_and_later_ones_get_their_own(tmp_path):
    sink = create(f"clips:{tmp_path}", {"fps": FPS, "pre_s": 0.5, "post_s": 1})
    sink.open()
    feed(sink, 120, {20, 25, 80})
    sink.close()
    first, second = sorted(tmp_path.glob("*.json"))
    assert len(json.loads(first.read_text())["events"]) == 2
    assert len(json.loads(second.read_text())["events"]) == 1
    assert sink.clips == 2


def test_without_events_nothing_is_written(tmp_path):
    sink = create(f"clips:{tmp_path}", {"fps": FPS})
    sink.open()
    feed(sink, 50, set())
    sink.close()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_a_clip_that_can_be_read(tmp_path):
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_clips_sink import create, item\n"
        "sink = create('clips:' + sys.argv[1], {'fps': 10.0, 'pre_s': 1}); sink.open()\n"
        "for i in range(26): sink.write(item(i, event=i == 20))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), here], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    (clip,) = tmp_path.glob("*.avi")
    assert len(levels(clip)) == 16


def test_the_oldest_clips_go_first_when_the_folder_is_full(tmp_path):
    old = tmp_path / "clip_20200101T000000Z_00000001.avi"
    newer = tmp_path / "clip_20210101T000000Z_00000001.avi"
    other = tmp_path / "keep.avi"
    for path in (old, newer, other):
        path.write_bytes(b"\0" * 600_000)
    sink = create(f"clips:{tmp_path}", {"fps": FPS, "max_mb": 1})
    sink.open()
    feed(sink, 30, {5})
    sink.close()
    assert not old.exists()
    assert newer.exists()
    assert other.exists()
    assert sink.clips == 1


def test_a_full_disk_costs_the_clip_and_is_said_at_the_end(tmp_path):
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[2])\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from test_clips_sink import create, feed\n"
        "from edge_sdk.errors import SinkError\n"
        "sink = create('clips:' + sys.argv[1], {'fps': 10.0}); sink.open()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "feed(sink, 60, {10})\n"
        "try: sink.close()\n"
        "except SinkError as error: print(error.message)\n"
    )
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), here], timeout=60, check=True, capture_output=True, text=True
    )
    assert "1 clips could not be written: file too large" in done.stdout
    (clip,) = tmp_path.glob("*.avi")
    assert clip.stat().st_size <= 9000
    assert len(levels(clip)) > 1


def test_wrong_options_and_folders_are_refused(tmp_path):
    with pytest.raises(UsageError, match="unknown option `pres`"):
        create(f"clips:{tmp_path}?pres=1")
    with pytest.raises(UsageError, match="names no folder"):
        create("clips:")
    sink = create(f"clips:{tmp_path}/none/here")
    with pytest.raises(SinkError, match="no such file or directory"):
        sink.open()
