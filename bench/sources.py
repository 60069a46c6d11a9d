"""What a frame costs to decode: OpenCV in this process, an ffmpeg process in software, OpenCV in a process of its own.

The CPU time of the child processes is counted. A dropped frame is one that is advanced over and never converted. The
last case reads the keyframes of a live stream alone, one in 25; its time is spread over all frames of the stream.
"""

from __future__ import annotations

import atexit
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.pipeline import TESTDATA
from bench.run import cpu_ms

ROUNDS = 7
ABOUT = "CPU ms a frame with all processes; start of the process included, spread over the frames"
FRAMES = 200
KEY_EVERY = 25
_WAYS: dict[str, dict[str, Any]] = {
    "opencv": {},
    "ffmpeg process": {"decode": "software"},
    "opencv in a process of its own": {"isolate": True},
}


def cases() -> dict[str, Callable[[], float]]:
    video = TESTDATA / "videos" / "car-detection.mp4"
    if not video.is_file():
        raise SystemExit(f"no test material at {TESTDATA}: set EDGE_TESTDATA")
    large = Path(tempfile.mkdtemp(prefix="edge-bench-")) / "large.mp4"
    words = ["ffmpeg", "-v", "error", "-i", str(video), "-vf", "scale=1920:1080", "-frames:v", str(FRAMES)]
    coding = ["-c:v", "libx264", "-preset", "veryfast", "-bf", "0", "-g", str(KEY_EVERY), "-sc_threshold", "0"]
    subprocess.run([*words, *coding, str(large)], check=True)
    out: dict[str, Callable[[], float]] = {}
    for name, path in (("768x432", video), ("1920x1080", large)):
        for way, options in _WAYS.items():
            out[f"{name}: {way}"] = lambda p=path, o=options: _read(p, o, keep=True)
    for way, options in _WAYS.items():
        out[f"1920x1080 dropped: {way}"] = lambda p=large, o=options: _read(p, o, keep=False)
    address = _live(large)
    out["1920x1080 keyframes alone: ffmpeg process"] = lambda: _keyframes(address)
    return out


def _live(video: Path) -> str:
    """Return an address that gives the video, as a transport stream, as quickly as it is taken."""
    folder = Path(tempfile.mkdtemp(prefix="edge-bench-"))
    words = ["ffmpeg", "-v", "error", "-i", str(video), "-c", "copy", "-f", "mpegts", str(folder / "live")]
    subprocess.run(words, check=True)
    serve = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    server = subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    atexit.register(server.kill)
    assert server.stdout is not None
    port = server.stdout.readline().split(" port ")[1].split()[0]
    return f"http://127.0.0.1:{port}/live"


def _read(path: Path, options: dict[str, Any], *, keep: bool) -> float:
    import cv2

    from edge_sdk.sources import create

    cv2.setNumThreads(1)
    count = 0

    def work() -> None:
        nonlocal count
        source = create(str(path), options)
        source.open()
        while count < FRAMES and source.grab():
            count += 1
            if keep:
                source.retrieve()
        source.close()

    spent = cpu_ms(work)
    return spent / count


def _keyframes(address: str) -> float:
    """Return CPU ms a frame of a stream whose keyframes are read until it ends, which for a live one is an error."""
    from edge_sdk.errors import SourceError
    from edge_sdk.sources import create

    count = 0

    def work() -> None:
        nonlocal count
        source = create(address, {"keyframes": True})
        source.open()
        with contextlib.suppress(SourceError):
            while source.grab():
                source.retrieve()
                count += 1
        source.close()

    spent = cpu_ms(work)
    if not 0 < count <= FRAMES // KEY_EVERY:
        raise SystemExit(f"{count} keyframes of {FRAMES // KEY_EVERY} came")
    return spent / FRAMES
