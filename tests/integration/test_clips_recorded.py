"""Clips of events are cut from the recording of the main stream, where there is one."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support import LIMIT_S, until

from edge_sdk.errors import SinkError
from edge_sdk.pipeline import Pipeline
from edge_sdk.sinks import create
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sinks.cut import Cutter, Job, Span, cut, spans
from edge_sdk.sources.base import Frame
from edge_sdk.sources.recording import Segment, segments
from edge_sdk.tasks.results import Detections
from edge_sdk.testing import build_artifact

pytestmark = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the ffmpeg command")
COLORS = ("blue", "lime", "red")  # in the order of BGR


def name(start_s: float) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ.mkv", time.gmtime(start_s))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: Any) -> tuple[Path, float]:
    """Three segments of four seconds, blue, green and red, with a key frame a second; and when the first began."""
    folder = tmp_path_factory.mktemp("it's recorded")
    start_s = 1_800_000_000.0
    for i, color in enumerate(COLORS):
        words = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", f"color={color}:s=320x240:r=10:d=4", "-g", "10"]
        subprocess.run([*words, "-c:v", "mpeg4", str(folder / name(start_s + 4 * i))], check=True, timeout=60)
    return folder, start_s


def seen(path: Path) -> list[str]:
    """The colour of each picture."""
    capture, out = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    while (answer := capture.read())[0]:
        out.append(COLORS[int(np.argmax(answer[1].mean(axis=(0, 1))))])
    capture.release()
    return out


def test_what_lies_in_the_span_is_copied_a_second_more_at_both_ends(recorded, tmp_path):
    folder, start_s = recorded
    cut(folder, start_s + 3, start_s + 6, tmp_path / "a.mkv")
    found = seen(tmp_path / "a.mkv")
    assert list(dict.fromkeys(found)) == ["blue", "lime"]
    assert 45 <= len(found) <= 60
    cut(folder, start_s + 1.5, start_s + 10.2, tmp_path / "b.mkv")
    found = seen(tmp_path / "b.mkv")
    assert list(dict.fromkeys(found)) == list(COLORS)
    assert len(found) >= 100
    assert list(tmp_path.glob(".*")) == []


def test_a_span_that_was_not_recorded_is_refused_and_leaves_nothing(recorded, tmp_path):
    folder, start_s = recorded
    with pytest.raises(SinkError, match="nothing was recorded then"):
        cut(folder, start_s - 100, start_s - 90, tmp_path / "a.mkv")
    with pytest.raises(SinkError, match="nothing was recorded then"):
        cut(tmp_path / "none", start_s, start_s + 1, tmp_path / "a.mkv")
    assert list(tmp_path.iterdir()) == []


def test_a_segment_that_cannot_be_read_yet_is_left_out(recorded, tmp_path):
    folder, start_s = recorded
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    (mine / name(start_s + 8)).write_bytes(b"\x1aE")
    cut(mine, start_s + 6, start_s + 9, tmp_path / "a.mkv")
    assert set(seen(tmp_path / "a.mkv")) == {"lime"}
    (mine / name(start_s + 4)).write_bytes(b"\x1aE")
    with pytest.raises(SinkError, match="ffmpeg cannot cut a clip"):
        cut(mine, start_s + 6, start_s + 9, tmp_path / "b.mkv")
    assert not (tmp_path / "b.mkv").exists()


def test_spans_begin_and_end_where_they_should():
    kept = [Segment(float(s), Path(str(s)), size) for s, size in ((0, 9), (10, 9), (20, 0), (30, 9))]
    assert spans(kept, 12, 15) == [Span(kept[1], 2.0, 5.0)]
    assert [(s.segment.start_s, s.begin_s, s.end_s) for s in spans(kept, 5, 35)] == [
        (0.0, 5.0, None),
        (10.0, 0.0, None),
        (30.0, 0.0, 5.0),
    ]
    assert spans([], 0, 1) == []


def test_a_clip_waits_until_its_end_is_recorded_and_no_longer_than_the_pipeline(recorded, tmp_path):
    folder, start_s = recorded
    now = [start_s + 6.0]
    cutter = Cutter(folder, clock=lambda: now[0])
    said: list[str | None] = []
    cutter.add(Job(start_s + 1, start_s + 6, tmp_path / "a.mkv", said.append))
    cutter.add(Job(start_s + 1, start_s + 7, tmp_path / "b.mkv", said.append))
    cutter.add(Job(start_s - 50, start_s - 40, tmp_path / "c.mkv", said.append))
    assert said == []
    now[0] = start_s + 8.6
    until(lambda: len(said) == 1)
    assert (tmp_path / "a.mkv").exists()
    cutter.close()
    assert said == [None, None, "nothing was recorded then"]


def events_of(folder: Path, *, recorded: Path, captured_s: float) -> Any:
    """Write a clip of the sub-stream with an event in its middle."""
    sink = create(f"clips:{folder}?pre_s=1&post_s=1", {"fps": 10.0})
    sink.cut_from(recorded)
    sink.open()
    for i in range(40):
        frame = Frame(np.zeros((48, 64, 3), np.uint8), i, i / 10, captured_s + i / 10, "test")
        events = [{"kind": "alert", "name": "door", "t_s": 2.0}] if i == 20 else []
        sink.write(FrameResult(frame, Detections.empty(), "m", 1.0, 1.0, events=events))
    sink.close()


def test_the_cut_takes_the_place_of_the_clip_of_the_sub_stream(recorded, tmp_path):
    folder, _ = recorded
    mine, now_s = tmp_path / "mine", time.time()
    mine.mkdir()
    for i, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, mine / name(now_s - 12 + 4 * i))
    events_of(tmp_path / "events", recorded=mine, captured_s=time.monotonic() - 8)
    (clip,) = (tmp_path / "events").glob("*.mkv")
    assert set(seen(clip)) <= {"lime", "red"}
    assert cv2.VideoCapture(str(clip)).get(cv2.CAP_PROP_FRAME_WIDTH) == 320
    facts = json.loads(clip.with_suffix(".json").read_text())
    assert (facts["video"], [e["name"] for e in facts["events"]]) == (clip.name, ["door"])
    assert clip.with_suffix(".jpg").exists()
    assert not list((tmp_path / "events").glob("*.avi"))


def test_without_a_recording_of_that_time_the_clip_of_the_sub_stream_stays(tmp_path, caplog):
    (tmp_path / "empty").mkdir()
    events_of(tmp_path / "events", recorded=tmp_path / "empty", captured_s=time.monotonic() - 8)
    (clip,) = (tmp_path / "events").glob("*.avi")
    assert len(seen(clip)) == 21
    assert json.loads(clip.with_suffix(".json").read_text())["video"] == clip.name
    assert "nothing was recorded then; the clip of what the model saw is kept" in caplog.text


def test_a_pipeline_that_records_the_main_stream_cuts_its_clips_from_it(rtsp, tmp_path):
    detector = build_artifact(tmp_path / "cells.edge", task="detection").path
    pipe = Pipeline(rtsp.uri("sub")).detect(detector, score=0.0001)
    pipe.alert("any", min_score=0, min_frames=1, cooldown_s=3)
    pipe.record(rtsp.uri("main"), folder=str(tmp_path / "rec"), segment_s=1, min_free_mb=0)
    clips, deadline = tmp_path / "clips", time.monotonic() + LIMIT_S
    with pipe.sink(f"clips:{clips}?pre_s=1&post_s=1"):
        for item in pipe:
            if list(clips.glob("*.mkv")):
                break
            assert time.monotonic() < deadline, (len(item.detections), list(clips.iterdir()))
    made = sorted(clips.glob("*.mkv"))
    capture = cv2.VideoCapture(str(made[0]))
    assert (capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (640, 480)
    assert capture.read()[0]
    assert segments(tmp_path / "rec")
