"""The runtime examples do what their first line says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_sdk.testing import build_artifact, color_frame

pytestmark = pytest.mark.e2e
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def clip(path: Path, images: list) -> Path:
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (width, height))
    for image in images:
        writer.write(image)
    writer.release()
    return path


def frames_of(path: Path) -> list:
    video = cv2.VideoCapture(str(path))
    found = []
    while (read := video.read())[0]:
        found.append(read[1])
    video.release()
    return found


def run(*words: object) -> str:
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_classify_folder_lists_files_by_class(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for color in ("blue", "red"):
        cv2.imwrite(str(photos / f"{color}.png"), color_frame(color))
    (photos / "broken.jpg").write_bytes(b"no image")
    model = build_artifact(tmp_path / "m.edge").path
    lines = run(EXAMPLES / "classify_folder.py", model, photos).splitlines()
    assert lines[0].startswith("blue: blue.png (")
    assert lines[1].startswith("red: red.png (")
    assert lines[2] == "could not be read: broken.jpg"


def test_detect_video_writes_results_and_a_video(tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "v.mp4"), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 64))
    for _ in range(5):
        writer.write(color_frame("red", width=64, height=64, box=(16, 16, 48, 48)))
    writer.release()
    model = build_artifact(tmp_path / "m.edge", task="detection").path
    out = run(EXAMPLES / "detect_video.py", model, tmp_path / "v.mp4",
              "--out", tmp_path / "o.jsonl", "--save", tmp_path / "o.mp4")  # fmt: skip
    assert "red: in 5 frames" in out
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 5
    assert (tmp_path / "o.mp4").stat().st_size > 0


def test_ppe_cascade_says_who_wears_the_wrong_colour(tmp_path):
    box = (16, 16, 48, 48)
    images = [color_frame("red", width=64, height=64, box=box)] * 10
    images += [color_frame("green", width=64, height=64, box=box)] * 10
    people = build_artifact(tmp_path / "people.edge", task="detection").path
    colors = build_artifact(tmp_path / "colors.edge").path
    out = run(EXAMPLES / "ppe_cascade.py", people, colors, clip(tmp_path / "v.mp4", images),
              "--who", "red", "green", "--wears", "red", "--refresh", "3",
              "--out", tmp_path / "o.jsonl", "--save", tmp_path / "o.mp4").splitlines()  # fmt: skip
    assert len(out) == 2
    assert " without red: #" in out[0]
    assert 1.0 <= float(out[0].split()[0]) <= 2.0
    assert out[1].endswith("1 alerts")
    last = json.loads((tmp_path / "o.jsonl").read_text().splitlines()[-1])
    assert last["detections"][0]["then"]["ppe"]["classes"][0]["label"] == "green"
    assert len(frames_of(tmp_path / "o.mp4")) == 20


def test_ppe_cascade_finds_the_face_of_a_real_person(real_artifact, coco_labels, testdata, tmp_path):
    size = {"mode": "letterbox", "align": "topleft", "pad": 114}
    people = real_artifact("yolox_nano_416.onnx", "yolox", labels=coco_labels, color="bgr", resize=size)
    face = real_artifact("yunet_n_320.onnx", "yunet", labels=("face",), color="bgr", resize={"mode": "letterbox"})
    video = testdata / "videos" / "asl_help.mkv"
    out = run(EXAMPLES / "ppe_cascade.py", people, face, video, "--wears", "face", "--save", tmp_path / "o.mp4")
    assert out.splitlines()[-1].endswith("0 alerts")
    assert len(frames_of(tmp_path / "o.mp4")) >= 50


def test_segmentation_overlay_tints_the_road_of_a_real_drive(real_artifact, testdata, tmp_path):
    labels = ("background", "road", "curb", "mark")
    road = real_artifact("road_segmentation_adas.onnx", "argmax_mask", labels=labels, color="bgr")
    video = testdata / "videos" / "carnd_test_video.mp4"
    out = run(EXAMPLES / "segmentation_overlay.py", road, video, "--save", tmp_path / "o.mp4",
              "--every", "4", "--frames", "12").splitlines()  # fmt: skip
    assert [line.split()[-1] for line in out[:2]] == ["background", "road"]
    assert 15 < float(out[1].split()[0]) < 50
    before, after = frames_of(video)[8].astype(int), frames_of(tmp_path / "o.mp4")[8].astype(int)
    difference = abs(before - after).max(axis=2)
    height, width = difference.shape
    assert np.median(difference[int(0.8 * height) :, width // 4 : 3 * width // 4]) > 20
    assert np.median(difference[height // 5 : height // 3]) < 20


def test_two_cameras_share_a_model_and_one_that_fails_leaves_the_other_alone(
    real_artifact, coco_labels, testdata, tmp_path
):
    size = {"mode": "letterbox", "align": "topleft", "pad": 114}
    model = real_artifact("yolox_nano_416.onnx", "yolox", labels=coco_labels, color="bgr", resize=size)
    videos = testdata / "videos"
    out = run(EXAMPLES / "two_cameras.py", model, videos / "bottle-detection.mp4", videos / "car-detection.mp4",
              "--frames", "12", "--out", tmp_path / "r").splitlines()  # fmt: skip
    assert out[0].startswith("first: 12 frames, ")
    assert "bottle in " in out[0]
    assert out[1].startswith("second: 12 frames, ")
    assert out[2] == "one model for both"
    for name in ("first", "second"):
        assert len((tmp_path / "r" / f"{name}.jsonl").read_text().splitlines()) == 12
    out = run(EXAMPLES / "two_cameras.py", model, tmp_path / "none.mp4", videos / "bottle-detection.mp4",
              "--frames", "5", "--out", tmp_path / "r").splitlines()  # fmt: skip
    assert out[0].startswith("first: no such file: ")
    assert out[1].startswith("second: 5 frames, ")
