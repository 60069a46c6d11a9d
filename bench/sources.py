"""What a frame costs to decode: OpenCV in this process, an ffmpeg process in software, OpenCV in a process of its own.

The CPU time of the child processes is counted. A dropped frame is one that is advanced over and never converted.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.pipeline import TESTDATA
from bench.run import cpu_ms

ROUNDS = 7
ABOUT = "CPU ms a frame with all processes; start of the process included, spread over the frames"
FRAMES = 200
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
    subprocess.run([*words, "-c:v", "libx264", "-preset", "veryfast", "-bf", "0", str(large)], check=True)
    out: dict[str, Callable[[], float]] = {}
    for name, path in (("768x432", video), ("1920x1080", large)):
        for way, options in _WAYS.items():
            out[f"{name}: {way}"] = lambda p=path, o=options: _read(p, o, keep=True)
    for way, options in _WAYS.items():
        out[f"1920x1080 dropped: {way}"] = lambda p=large, o=options: _read(p, o, keep=False)
    return out


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
