"""What the SDK weighs on a device: megabytes installed, import, first detection, memory, growth over 100,000 frames.

Two environments are made from the wheel of this checkout, `[ort]` and `[ort,agent]`; each figure stands beside its aim.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.pipeline import TESTDATA, model_artifact
from bench.run import RESULTS, cpu_ms, machine, table

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 7
CAMERA = """
[source]
uri = "{video}"
params = {{ pace = 10 }}

[[stage]]
name = "detect"
kind = "detect"
model = "{model}"
"""
FIRST = """
import sys, cv2
from edge_sdk import Artifact
model = Artifact.open(sys.argv[2]).load()
model(cv2.VideoCapture(sys.argv[1], cv2.CAP_FFMPEG).read()[1])
"""
IMPORT = "import edge_sdk, numpy, cv2, onnxruntime; from edge_sdk import Artifact, Pipeline"
GROWTH = """
import os, sys
from edge_sdk import Pipeline
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
marks, n = [], 0
for item in Pipeline("synthetic:64x48?n=%s" % sys.argv[2], workers=1).classify(sys.argv[1]):
    n += 1
    if n % 10000 == 0:
        marks.append(round(rss(), 1))
print(marks)
"""


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.run device")
    parser.add_argument("--frames", type=int, default=100_000, help="frames of the memory run (default: 100000)")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as name:
        rows = _rows(Path(name), args.frames)
    sizes = " and ".join(
        f"{row['measured'] * 1.048576:.0f} MB" for row in rows if row["figure"].startswith("installed")
    )
    about = f"What the SDK weighs on a device; MiB are 2^20 bytes, in 10^6 bytes the installations hold {sizes}"
    result = {"about": about, "rounds": ROUNDS, "machine": machine(), "rows": rows}
    (RESULTS / "device.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"device\n{table(result)}")


def _rows(folder: Path, frames: int) -> list[dict[str, Any]]:
    video = TESTDATA / "videos" / "car-detection.mp4"
    artifact = model_artifact("YOLOX-nano")
    wheel = build_wheel(folder)
    ort, agent = (_environment(folder / name, wheel, extras) for name, extras in (("a", "ort"), ("b", "ort,agent")))
    python = str(ort / "bin" / "python")
    detector = str(artifact.path)
    idle = _median(lambda: _process(python, "-c", "pass"))
    imports = _median(lambda: _process(python, "-c", IMPORT)) - idle
    first = _median(lambda: _process(python, "-c", FIRST, str(video), detector))
    memory = _camera(folder, ort, video, detector)
    marks = json.loads(_output(python, "-c", GROWTH, str(_tiny(folder)), str(frames)))
    # The first tenth fills caches and the allocator's pools; from there on nothing may grow.
    growth = marks[-1] - marks[0]
    h264, mpeg4 = (_grab(folder, video, codec) for codec in ("libx264", "mpeg4"))
    return [
        _row("installed, base + [ort]", _megabytes(ort), "MiB", "<= 300"),
        _row("the same without byte code (pip --no-compile)", _megabytes(ort, byte_code=False), "MiB", ""),
        _row("installed, base + [ort,agent]", _megabytes(agent), "MiB", "<= 340"),
        _row("the same without byte code", _megabytes(agent, byte_code=False), "MiB", ""),
        _row("import of edge_sdk, numpy, cv2, onnxruntime", imports / 1000, "s CPU", "<= 0.4"),
        _row("process start to first detection (YOLOX-nano)", first / 1000, "s CPU", "<= 0.6"),
        _row("peak memory of `edge run`'s worker, one live 768 x 432 camera, YOLOX-nano", memory, "MiB", "<= 120"),
        _row(f"growth of memory, frame {frames // len(marks)} to {frames} of a tiny model", growth, "MiB", "none"),
        _row("a dropped 1080p frame / a decoded one, MPEG-4", mpeg4, "", "<= 0.55"),
        _row("a dropped 1080p frame / a decoded one, H.264", h264, "", "<= 0.55"),
        _row("motion gate on a 768 x 432 frame", _gate(video), "ms CPU", "<= 0.15"),
    ]


def _row(figure: str, value: float, unit: str, aim: str) -> dict[str, Any]:
    return {"figure": figure, "measured": round(value, 3), "unit": unit, "aim": aim}


def build_wheel(folder: Path) -> Path:
    """Return the wheel of this checkout, made in `folder`."""
    source = folder / "source"
    ignore = shutil.ignore_patterns("*.egg-info", "__pycache__", ".*", "build")
    shutil.copytree(ROOT, source, ignore=ignore)
    _run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(folder), str(source))
    return next(folder.glob("*.whl"))


def _environment(place: Path, wheel: Path, extras: str) -> Path:
    _run(sys.executable, "-m", "venv", str(place))
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    _run(*pip, f"{wheel}[{extras}]")
    _run(*pip[:3], "uninstall", "-q", "-y", "setuptools", "pip")
    return place


def _megabytes(place: Path, *, byte_code: bool = True) -> float:
    """Return what the environment holds, without pip and setuptools, in 2^20 bytes."""
    files = [f for f in (place / "lib").rglob("*") if f.is_file() and not f.is_symlink()]
    return sum(f.stat().st_size for f in files if byte_code or f.suffix != ".pyc") / 2**20


def _camera(folder: Path, place: Path, video: Path, model: str) -> float:
    """Return the peak memory in MiB of the worker process of a live camera: the video played at 10 frames a second."""
    pipeline = folder / "camera.toml"
    pipeline.write_text(CAMERA.format(video=video, model=model))
    command = [str(place / "bin" / "edge"), "run", str(pipeline), "--frames", "120", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["rss_mb"])


def _median(work: Callable[[], float]) -> float:
    work()
    return statistics.median(work() for _ in range(ROUNDS))


def _process(*words: str) -> float:
    return cpu_ms(lambda: _run(*words))


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)[:200]} failed: {done.stderr[-2000:]}")


def _output(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)[:200]} failed: {done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1]


def _tiny(folder: Path) -> Path:
    from edge_sdk.testing import build_artifact

    return build_artifact(folder / "tiny.edge").path


def _grab(folder: Path, video: Path, codec: str) -> float:
    """Return CPU of a grabbed frame over that of a read one, of the video scaled to 1920 x 1080, in alternation."""
    import cv2

    large = folder / f"{codec}.mp4"
    scale = ["-vf", "scale=1920:1080", "-c:v", codec, "-b:v", "4M", "-pix_fmt", "yuv420p"]
    _run("ffmpeg", "-v", "error", "-y", "-i", str(video), "-frames:v", "150", *scale, str(large))

    def cost(step: str) -> float:
        capture = cv2.VideoCapture(str(large), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        begin, n = time.process_time(), 0
        while capture.grab() if step == "grab" else capture.read()[0]:
            n += 1
        return (time.process_time() - begin) * 1000 / n

    pairs = [(cost("grab"), cost("read")) for _ in range(5)]
    return statistics.median(grab / read for grab, read in pairs)


def _gate(video: Path) -> float:
    """Return CPU ms of the motion gate for one frame, over 200 frames decoded before."""
    import cv2

    from edge_sdk.motion import MotionGate

    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(str(video), cv2.CAP_FFMPEG)
    frames = [capture.read()[1] for _ in range(60)]
    rounds = []
    for _ in range(ROUNDS):
        gate = MotionGate()
        begin = time.process_time()
        for i, frame in enumerate(frames):
            gate.update(frame, i / 25)
        rounds.append((time.process_time() - begin) * 1000 / len(frames))
    return statistics.median(rounds)
