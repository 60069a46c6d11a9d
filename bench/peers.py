"""The same video and the same model through edge-sdk and through what people use now, each in its own environment.

Environments are made once with pip (roboflow inference alone takes 7 GB: `--heavy` measures it too); the scripts in
`peer_scripts` run in turns, and CPU counts from the 20th frame on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.device import build_wheel
from bench.pipeline import TESTDATA, model_artifact
from bench.run import RESULTS, machine, table

SCRIPTS = Path(__file__).resolve().parent / "peer_scripts"
ENVIRONMENTS = Path.home() / ".cache" / "edge-sdk" / "bench"
HEADLESS = "opencv-python-headless"


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to run a group's model; `packages` are installed with pip, `{wheel}` is this checkout."""

    group: str
    name: str
    script: str
    packages: tuple[str, ...]
    model: str
    heavy: bool = False


PEERS = (
    Peer("YOLOX-nano", "edge-sdk", "edge_sdk_loop", ("{wheel}[ort]",), "yolox.edge"),
    Peer("YOLOX-nano", "naive cv2 loop", "naive", ("onnxruntime", HEADLESS), "yolox.onnx"),
    Peer("YOLOX-nano", "supervision loop", "supervision_loop", ("supervision", "onnxruntime", HEADLESS), "yolox.onnx"),
    Peer("YOLOX-nano", "roboflow inference", "inference_loop", ("inference",), "yolox.onnx", heavy=True),
    Peer("SSD (OpenVINO IR)", "edge-sdk", "edge_sdk_loop", ("{wheel}[openvino]",), "ssd.edge"),
    Peer("SSD (OpenVINO IR)", "openvino model_api", "model_api_loop", ("openvino-model-api",), "ssd.xml"),
    Peer("MobileNet (TFLite)", "edge-sdk", "edge_sdk_loop", ("{wheel}[litert]",), "mobilenet.edge"),
    Peer("MobileNet (TFLite)", "MediaPipe", "mediapipe_loop", ("mediapipe",), "mobilenet.tflite"),
)


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.run peers")
    parser.add_argument("--frames", type=int, default=220)
    parser.add_argument("--turns", type=int, default=5, help="measured runs of each (default: 5)")
    parser.add_argument("--heavy", action="store_true", help="roboflow inference too: an environment of 7 GB")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help=f"default: {ENVIRONMENTS}")
    args = parser.parse_args(words)
    peers = [p for p in PEERS if args.heavy or not p.heavy]
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as name:
        folder = Path(name)
        models = _models(folder)
        wheel = build_wheel(folder)
        pythons = {p: _environment(args.environments, p, wheel) for p in peers}
        video = TESTDATA / "videos" / "car-detection.mp4"
        runs: dict[Peer, list[dict[str, float]]] = {p: [] for p in peers}
        for number in range(args.turns + 1):
            for peer in peers:
                figures = _run(pythons[peer], peer, video, models[peer.model], args.frames)
                if number > 0:
                    runs[peer].append(figures)
        rows = [_row(p, runs[p], runs[_ours(p.group)], _megabytes(pythons[p])) for p in peers]
    about = "Whole processes on car-detection.mp4 (768 x 432), each as its documentation runs it"
    result = {"about": f"{about}; median of {args.turns} alternating rounds", "machine": machine(), "rows": rows}
    (RESULTS / "peers.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"peers\n{table(result)}")


def _ours(group: str) -> Peer:
    return next(p for p in PEERS if p.group == group)


def _row(
    peer: Peer, runs: Sequence[Mapping[str, float]], ours: Sequence[Mapping[str, float]], size: float
) -> dict[str, Any]:
    def median(key: str) -> float:
        return statistics.median(r[key] for r in runs)

    ratio = statistics.median(r["cpu_ms"] / o["cpu_ms"] for r, o in zip(runs, ours, strict=True))
    return {
        "model": peer.group,
        "with": peer.name,
        "CPU ms a frame": round(median("cpu_ms"), 2),
        "to edge-sdk": round(ratio, 2),
        "peak RSS MB": round(median("rss_mb")),
        "import CPU s": round(median("import_s"), 2),
        "installed MB": round(size),
    }


def _run(python: Path, peer: Peer, video: Path, model: Path, frames: int) -> dict[str, float]:
    command = [str(python), str(SCRIPTS / f"{peer.script}.py"), str(video), str(model), str(frames)]
    quiet = {"OPENVINO_TELEMETRY_DISABLE": "1", "TELEMETRY_OPT_OUT": "True"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | quiet)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{peer.name} failed: {done.stderr[-2000:]}")
    return dict(json.loads(lines[-1]))


def _environment(root: Path, peer: Peer, wheel: Path) -> Path:
    """Return the python of the peer's environment; those of peers are kept, ours is made anew."""
    ours = any("{wheel}" in p for p in peer.packages)
    place = (wheel.parent if ours else root) / f"{peer.script}-{'-'.join(peer.packages)}".translate(
        {ord(c): "_" for c in "{}[]/"}
    )
    python = place / "bin" / "python"
    if not (place / "done").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        packages = [p.format(wheel=wheel) for p in peer.packages]
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *packages], check=True)
        (place / "done").touch()
    return python


def _megabytes(python: Path) -> float:
    """Return what the environment holds in 2^20 bytes, without pip and setuptools."""
    lib = python.parent.parent / "lib"
    files = (f for f in lib.rglob("*") if f.is_file() and not f.is_symlink())
    skip = ("/pip/", "/setuptools/", "/pkg_resources/")
    return sum(f.stat().st_size for f in files if not any(s in str(f) for s in skip)) / 2**20


def _models(folder: Path) -> dict[str, Path]:
    models = TESTDATA / "models"
    return {
        "yolox.onnx": models / "yolox_nano_416.onnx",
        "yolox.edge": model_artifact("YOLOX-nano").path,
        "ssd.xml": models / "person-detection-retail-0013.xml",
        "ssd.edge": _ssd(folder),
        "mobilenet.tflite": models / "mobilenet_v1_0.25_128_quant.tflite",
        "mobilenet.edge": _mobilenet(folder),
    }


def _ssd(folder: Path) -> Path:
    xml = TESTDATA / "models" / "person-detection-retail-0013.xml"
    files = {"model/model.xml": xml, "model/model.bin": xml.with_suffix(".bin")}
    decoder = {"name": "ssd_pp", "params": {}}
    return _artifact(folder / "ssd.edge", "openvino", decoder, task="detection", files=files, labels=("person",))


def _mobilenet(folder: Path) -> Path:
    file = TESTDATA / "models" / "mobilenet_v1_0.25_128_quant.tflite"
    labels = tuple((TESTDATA / "labels" / "imagenet_labels_1001.txt").read_text().splitlines())
    decoder = {"name": "softmax", "params": {"logits": False}}
    files = {"model/model.tflite": file}
    return _artifact(folder / "mobilenet.edge", "litert", decoder, task="classification", files=files, labels=labels)


def _artifact(
    path: Path, runtime: str, decoder: dict[str, Any], *, task: str, files: Mapping[str, Path], labels: Sequence[str]
) -> Path:
    """Write the model file as it is into an artifact; its input is BGR or RGB pixels without mean and std."""
    from edge_sdk import runtimes
    from edge_sdk.artifact import write_artifact

    engine = runtimes.registry().load(runtime)(next(iter(files.values())), {"threads": 1})
    (image,), outputs = engine.inputs, engine.outputs
    shape = [int(d or 1) for d in image.shape]
    manifest = {
        "name": path.stem,
        "version": "1",
        "profile": "generic-cpu",
        "task": task,
        "source_sha256": "0" * 64,
        "parent": None,
        "input": {
            "name": image.name,
            "shape": shape,
            "dtype": image.dtype,
            "layout": "NHWC" if shape[3] == 3 else "NCHW",
            "color": "rgb" if runtime == "litert" else "bgr",
            "resize": {"mode": "stretch"},
        },
        "outputs": [
            {"name": o.name, "shape": [int(d or 1) for d in o.shape], "dtype": o.dtype}
            | ({} if o.scale is None else {"scale": o.scale, "zero": o.zero})
            for o in outputs
        ],
        "decoder": decoder,
        "runtime": {"name": runtime, "options": {"threads": 1}},
    }
    engine.close()
    entries: dict[str, bytes | Path] = {**files, "labels.txt": "".join(f"{x}\n" for x in labels).encode()}
    write_artifact(path, manifest=manifest, entries=entries, evidence={})
    return path
