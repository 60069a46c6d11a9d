"""The annotated video on a disk that fills: what was written can be read, and nobody is told otherwise."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_sdk.errors import SinkError
from edge_sdk.sinks import create
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sources.base import Frame
from edge_sdk.tasks.results import Detections


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of three megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def item(index: int) -> FrameResult:
    image = np.random.default_rng(index).integers(0, 255, (240, 320, 3), np.uint8)
    return FrameResult(Frame(image, index, index / 10, 0.0, "test"), Detections.empty(), "m", 1.0, 1.0)


def frames_of(path: Path) -> int:
    capture, n = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), 0
    while capture.read()[0]:
        n += 1
    capture.release()
    return n


def until_refused(sink: Any) -> tuple[int, str]:
    """Write frames until one is refused; return how many were taken, and why no more."""
    for i in range(2000):
        try:
            sink.write(item(i))
        except SinkError as error:
            return i, error.message
    raise AssertionError("2000 frames fit on three megabytes")


def test_a_video_on_a_disk_that_fills_ends_before_and_can_be_read(disk: Path) -> None:
    sink = create(f"video:{disk}/v.mp4", {"fps": 10.0, "min_free_mb": 1})
    sink.open()
    written, said = until_refused(sink)
    assert said == f"`{disk}/v.mp4` ends after {written} frames: the disk is full"
    assert written > 0
    with pytest.raises(SinkError, match="the disk is full"):
        sink.write(item(written))
    sink.close()
    assert frames_of(disk / "v.mp4") == written
    assert [p.name for p in disk.iterdir()] == ["v.mp4"]


def test_a_video_that_the_disk_did_not_take_is_no_video(disk: Path) -> None:
    sink = create(f"video:{disk}/v.mp4", {"fps": 10.0, "min_free_mb": 0})
    sink.open()
    sink.write(item(0))
    with contextlib.suppress(OSError), (disk / "other").open("wb", buffering=0) as other:
        while other.write(bytes(4096)):
            pass
    said = set()
    for i in range(1, 60):
        try:
            sink.write(item(i))
        except SinkError as error:
            said.add(error.message)
    assert said == {f"`{disk}/v.mp4.part.mp4` is not complete and cannot be read"}
    sink.close()
    assert [p.name for p in disk.iterdir()] == ["other"]


def test_a_disk_without_room_is_said_before_the_first_frame(tmp_path: Path) -> None:
    sink = create(f"video:{tmp_path}/v.mp4", {"min_free_mb": 1e9})
    sink.open()
    with pytest.raises(SinkError, match="MB are free on the disk, a video begins with"):
        sink.write(item(0))
    sink.close()
    assert list(tmp_path.iterdir()) == []
