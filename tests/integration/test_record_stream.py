"""The main stream of a real RTSP camera is recorded while a pipeline sees its sub-stream."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import cv2
import pytest
from support import until

from edge_sdk.pipeline import Pipeline
from edge_sdk.sources.record import Recorder
from edge_sdk.sources.recording import RecordingConfig, segments
from edge_sdk.testing import build_artifact

pytestmark = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the ffmpeg command")


def pictures(path: Path) -> list[tuple[int, ...]]:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    found = []
    while (answer := capture.read())[0]:
        found.append(answer[1].shape)
    capture.release()
    return found


def test_the_main_stream_is_recorded_while_the_sub_stream_is_seen(rtsp, tmp_path):
    model = build_artifact(tmp_path / "m.edge").path
    folder = tmp_path / "door"
    pipe = Pipeline(rtsp.uri("sub")).classify(model)
    pipe.record(rtsp.uri("main"), folder=str(folder), segment_s=1, min_free_mb=0)
    shapes = set()
    with pipe:
        for item in pipe:
            shapes.add(item.frame.image.shape)
            if len(segments(folder)) >= 3:
                break
        child = pipe._recorder._child
        words = Path(f"/proc/{child.process.pid}/cmdline").read_bytes()
    assert shapes == {(240, 320, 3)}
    assert b"s3cret" not in words
    kept = [s.path for s in segments(folder)]
    assert {shape for path in kept[:2] for shape in pictures(path)} == {(480, 640, 3)}
    assert child.process.returncode is not None
    report = pipe.report().to_json()["recording"]
    assert report["segments"] == len(kept)
    assert report["uri"] == f"rtsp://***@127.0.0.1:{rtsp.port}/main"


@pytest.mark.parametrize("trouble", ["freezes", "dies"])
def test_a_recording_goes_on_when_the_camera_comes_back(rtsp, tmp_path, trouble):
    config = RecordingConfig(folder=str(tmp_path), segment_s=1, stall_s=3, min_free_mb=0)
    recorder = Recorder(rtsp.uri("main"), config)
    recorder.start()
    try:
        until(lambda: len(segments(tmp_path)) >= 2, "a recording")
        rtsp.freeze() if trouble == "freezes" else rtsp.off()
        until(lambda: recorder.describe()["error"], "an error")
        said, before = recorder.describe()["error"], len(segments(tmp_path))
        rtsp.thaw() if trouble == "freezes" else rtsp.on()
        until(lambda: len(segments(tmp_path)) >= before + 2, "more of the recording")
        until(lambda: recorder.describe()["error"] is None, "the end of the error")
    finally:
        recorder.close()
    assert "s3cret" not in said
    # A stream of which nothing was heard when it froze is given the 15 s of one that is opened.
    assert re.search(r"gave nothing to record for (3|15) s" if trouble == "freezes" else "stopped", said)
    assert all(pictures(s.path) for s in segments(tmp_path) if s.size > 0)


def test_the_oldest_segments_go_when_there_are_too_many(rtsp, tmp_path):
    config = RecordingConfig(folder=str(tmp_path), segment_s=1, max_age_h=0.001, min_free_mb=0)
    (tmp_path / "20200101T000000Z.mkv").write_bytes(b"old")
    (tmp_path / "notes.txt").write_text("not a segment")
    recorder = Recorder(rtsp.uri("main"), config)
    recorder.start()
    try:
        until(lambda: recorder.describe()["deleted"] >= 2, "deletion")
        until(lambda: segments(tmp_path), "a recording")
    finally:
        recorder.close()
    assert (tmp_path / "notes.txt").exists()
    assert not (tmp_path / "20200101T000000Z.mkv").exists()


def test_a_disk_that_fills_costs_the_oldest_segments_and_stops_nothing(rtsp, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=180k", "tmpfs", str(disk)], capture_output=True)
    if mount.returncode:
        pytest.skip("this user may not mount a small disk")
    recorder = Recorder(rtsp.uri("main"), RecordingConfig(folder=str(disk / "rec"), segment_s=1, min_free_mb=0))
    try:
        (disk / "other").write_bytes(bytes(120 * 1024))
        recorder.start()
        until(lambda: recorder.describe()["deleted"] >= 2, "deletion")
        newest = until(lambda: segments(disk / "rec"), "a segment")[-1]
        until(lambda: segments(disk / "rec")[-1:] > [newest], "a newer segment")
    finally:
        recorder.close()
        subprocess.run(["umount", str(disk)], check=False)
