"""What every source of frames keeps to, whatever it reads."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_sdk.errors import UsageError
from edge_sdk.sources import create
from edge_sdk.sources.base import Source, read
from edge_sdk.testing import color_frame

N = 6
COLORS = [("blue", "green", "red")[i % 3] for i in range(N)]
needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the ffmpeg command")


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("video") / "colors.mp4"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 48))
    for color in COLORS:
        writer.write(color_frame(color))
    writer.release()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("folder")
    for i, color in enumerate(COLORS):
        cv2.imwrite(str(path / f"{i}.png"), color_frame(color))
    return path


def piped(data: bytes, uri: str) -> Source:
    reading, writing = os.pipe()

    def feed() -> None:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(data)

    threading.Thread(target=feed, daemon=True).start()
    return create(uri, {"fd": reading})


PNGS = b"".join(cv2.imencode(".png", color_frame(c))[1].tobytes() for c in COLORS)
RAW = b"".join(color_frame(c).tobytes() for c in COLORS)
SOURCES: dict[str, Callable[[Path, Path], Source]] = {
    "video": lambda v, _: create(str(v)),
    "folder": lambda _, f: create(str(f)),
    "ffmpeg": lambda v, _: create(str(v), {"decode": "software"}),
    "isolated": lambda v, _: create(str(v), {"isolate": True}),
    "paced": lambda v, _: create(str(v), {"pace": 1000}),
    "stdin": lambda *_: piped(PNGS, "-"),
    "stdin raw": lambda *_: piped(RAW, "stdin:64x48?pixels=bgr24"),
}
MARKED = [pytest.param(n, marks=needs_ffmpeg) if n == "ffmpeg" else n for n in SOURCES]
AGAIN = [n for n in SOURCES if not n.startswith("stdin")]


@pytest.fixture
def source(request, video, folder):
    found = SOURCES[request.param](video, folder)
    yield found
    found.close()


@pytest.mark.parametrize("source", MARKED, indirect=True)
def test_frames_are_upright_bgr_bytes_in_order_and_then_there_is_an_end(source):
    source.open()
    found = list(iter(lambda: read(source), None))
    assert [f.index for f in found] == list(range(N))
    assert all(a.t_s < b.t_s and a.captured_s <= b.captured_s for a, b in itertools.pairwise(found))
    assert {(f.image.shape, f.image.dtype) for f in found} == {((48, 64, 3), np.dtype(np.uint8))}
    assert [("blue", "green", "red")[int(f.image[24, 32].argmax())] for f in found] == COLORS
    assert not source.grab()


@pytest.mark.parametrize("source", MARKED, indirect=True)
def test_a_frame_keeps_its_pixels_when_the_next_one_is_read(source):
    source.open()
    first = read(source)
    before = first.image.copy()
    for _ in range(3):
        assert read(source) is not None
    assert np.array_equal(first.image, before)


@pytest.mark.parametrize("source", MARKED, indirect=True)
def test_a_frame_that_is_only_grabbed_is_counted(source):
    source.open()
    assert [source.grab() for _ in range(3)] == [True] * 3
    assert source.retrieve().index == 2


@pytest.mark.parametrize("source", MARKED, indirect=True)
def test_close_is_allowed_in_every_state(source):
    source.close()
    source.close()


@pytest.mark.parametrize("source", AGAIN, indirect=True)
def test_an_opened_source_that_is_closed_can_be_opened_again_from_its_begin(source):
    for _ in range(2):
        source.open()
        assert read(source).index == 0
        source.close()
        source.close()


@pytest.mark.parametrize("name", ["video", "folder", "stdin", "0", "picamera:0", "rtsp://cam/1", "synthetic:64x48"])
def test_an_unknown_option_is_a_usage_error_that_names_it(name, video, folder):
    uri = {"video": str(video), "folder": str(folder), "stdin": "-"}.get(name, name)
    with pytest.raises(UsageError, match="unknown option `colour`"):
        create(uri, {"colour": "red"})
