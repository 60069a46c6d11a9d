"""What sinks write, and what they say when they cannot."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_sdk.errors import SinkError, UsageError
from edge_sdk.sinks import create, sink_name
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sources.base import Frame
from edge_sdk.tasks.base import Classes, Detections


def detection(index: int, *, size: tuple[int, int] = (64, 48), t_s: float | None = None, n: int = 1) -> FrameResult:
    boxes = np.array([[1, 2, 30, 40]] * n, np.float32).reshape(n, 4)
    result = Detections(boxes, np.full(n, 0.75, np.float32), np.zeros(n, np.int32), ("bottle, green",))
    image = np.full((size[1], size[0], 3), 90, np.uint8)
    frame = Frame(image, index, index / 10 if t_s is None else t_s, 0.0, "a.mp4")
    return FrameResult(frame, result, "d" * 64, 1.0, 1.0)


def classes(index: int) -> FrameResult:
    result = Classes(np.array([0.2, 0.8], np.float32), ("cat", "dog"))
    return FrameResult(Frame(np.zeros((8, 8, 3), np.uint8), index, 0.0, 0.0, "a.png"), result, "d" * 64, 1.0, 1.0)


def write(uri: str, items, **options) -> None:
    sink = create(uri, options)
    sink.open()
    for item in items:
        sink.write(item)
    sink.close()


@pytest.mark.parametrize(
    ("uri", "name"),
    [("a.jsonl", "jsonl"), ("jsonl:a.txt", "jsonl"), ("a.csv", "csv"), ("video:x.mp4", "video"), ("o.mp4", "video"),
     ("mqtts://h/t", "mqtt"), ("mqtt://h/t", "mqtt")],
)  # fmt: skip
def test_the_form_of_an_address_names_its_sink(uri, name):
    assert sink_name(uri) == name


def test_a_sink_that_nothing_names_lists_examples():
    with pytest.raises(UsageError, match="its suffix names no kind") as caught:
        create("out.xyz")
    assert "jsonl:out.jsonl" in caught.value.hint


def test_a_line_of_json_has_the_keys_of_the_contract(tmp_path):
    write(f"jsonl:{tmp_path / 'o.jsonl'}", [detection(0), detection(1, n=0)])
    first, second = (json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines())
    assert first == {
        "v": 1, "frame": 0, "t_s": 0.0, "source": "a.mp4", "model": "d" * 64,
        "detections": [{"box": [1.0, 2.0, 30.0, 40.0], "score": 0.75, "class_id": 0, "label": "bottle, green"}],
    }  # fmt: skip
    assert second["detections"] == []


def test_every_line_is_in_the_file_before_the_next_is_written(tmp_path):
    sink = create(f"jsonl:{tmp_path / 'o.jsonl'}")
    sink.open()
    for i in range(3):
        sink.write(detection(i))
        assert len((tmp_path / "o.jsonl").read_text().splitlines()) == i + 1
    sink.close()


def test_a_restarted_worker_goes_on_after_the_last_whole_line(tmp_path):
    for uri in (f"jsonl:{tmp_path / 'o.jsonl'}", f"csv:{tmp_path / 'o.csv'}"):
        path = Path(uri.partition(":")[2])
        write(uri, [detection(0)])
        with path.open("ab") as file:
            file.write(b'{"v":1,"fra')
        write(uri, [detection(1)], append=True)
        text = path.read_text()
        assert '"fra' + "\n" not in text
        assert text.endswith("\n")
    lines = [json.loads(line)["frame"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert lines == [0, 1]
    assert [r["frame"] for r in csv.DictReader((tmp_path / "o.csv").read_text().splitlines())] == ["0", "1"]


def test_a_table_has_one_row_per_detection_and_quotes_labels(tmp_path):
    write(f"csv:{tmp_path / 'o.csv'}", [detection(0, n=2), detection(1, n=0), classes(2)])
    rows = list(csv.DictReader((tmp_path / "o.csv").read_text().splitlines()))
    assert [(r["frame"], r["label"], r["score"], r["x2"]) for r in rows] == [
        ("0", "bottle, green", "0.75", "30.0"),
        ("0", "bottle, green", "0.75", "30.0"),
        ("2", "dog", "0.8", ""),
    ]


@pytest.mark.parametrize("uri", ["jsonl:{}/no/o.jsonl", "csv:{}/no/o.csv", "video:{}/no/o.mp4"])
def test_a_file_that_cannot_be_written_is_named_before_anything_runs(tmp_path, uri):
    sink = create(uri.format(tmp_path))
    with pytest.raises(SinkError, match="cannot be written"):
        sink.open()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_an_error_that_says_so():
    sink = create("jsonl:/dev/full")
    sink.open()
    with pytest.raises(SinkError, match="no space left on device"):
        sink.write(detection(0))
    sink.close()


def read_video(path: Path) -> tuple[int, float, tuple[int, ...]]:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    n, shape = 0, ()
    while True:
        ok, image = capture.read()
        if not ok:
            return n, capture.get(cv2.CAP_PROP_FPS), shape
        n, shape = n + 1, image.shape


def test_the_annotated_video_has_every_frame_at_the_rate_of_the_source(tmp_path):
    write(f"video:{tmp_path / 'o.mp4'}", [detection(i) for i in range(7)], fps=12.5)
    assert read_video(tmp_path / "o.mp4") == (7, 12.5, (48, 64, 3))
    assert [p.name for p in tmp_path.iterdir()] == ["o.mp4"]


def test_the_video_of_a_live_source_keeps_the_time(tmp_path):
    times = [0.0, 0.1, 0.5, 0.52, 1.0]
    write(f"video:{tmp_path / 'o.mp4'}", [detection(i, t_s=t) for i, t in enumerate(times)], fps=10, live=True)
    assert read_video(tmp_path / "o.mp4")[0] == 11


def test_a_frame_of_another_size_is_scaled_to_the_first(tmp_path):
    write(f"video:{tmp_path / 'o.mp4'}", [detection(0), detection(1, size=(128, 96))], fps=10)
    assert read_video(tmp_path / "o.mp4") == (2, 10.0, (48, 64, 3))


def test_a_video_without_frames_leaves_no_file(tmp_path):
    write(f"video:{tmp_path / 'o.mp4'}", [])
    assert list(tmp_path.iterdir()) == []


def test_a_video_of_another_kind_is_refused():
    with pytest.raises(UsageError, match=r"only .mp4 can be written"):
        create("video:o.avi")


@pytest.mark.parametrize("uri", ["mqtt://host", "mqtt:///topic", "mqtt://host/a/+/b", "mqtt://host:x/t"])
def test_a_wrong_broker_address_is_a_usage_error_without_its_password(uri):
    with pytest.raises(UsageError) as caught:
        create(uri.replace("://", "://u:s3cret@"))
    assert "s3cret" not in caught.value.message
