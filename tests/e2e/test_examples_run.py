"""The runtime examples do what their first line says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from edge_sdk.testing import build_artifact, color_frame

pytestmark = pytest.mark.e2e
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


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
