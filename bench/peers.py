"""The same video and the same model through edge-sdk and through what people use now, each in its own environment.

Environments are made once with pip; that of roboflow inference takes 7 GB, so that it is measured with `--heavy`, or
where its environment is there. The scripts in `peer_scripts` run in turns, and CPU counts from the 20th frame on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
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
from bench.pipeline_loops import to_ir
from bench.run import RESULTS, machine, table

SCRIPTS = Path(__file__).resolve().parent / "peer_scripts"
ENVIRONMENTS = Path.home() / ".cache" / "edge-sdk" / "bench"
HEADLESS = "opencv-python-headless"


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to run a group's model; `packages` are installed with pip, `{wheel}` is this checkout.

    `shown` are the distributions whose versions stand in the table; what is in every group is not repeated.
    """

    group: str
    name: str
    script: str
    packages: tuple[str, ...]
    model: str
    shown: tuple[str, ...]
    heavy: bool = False


YOLOX, SSD, MOBILENET = "YOLOX-nano", "SSD (OpenVINO IR)", "MobileNet (TFLite)"
ORT, MODEL_API = ("onnxruntime",), ("openvino-model-api", "openvino")
PEERS = (
    Peer(YOLOX, "edge-sdk", "edge_sdk_loop", ("{wheel}[ort]",), "yolox.edge", ORT),
    Peer(YOLOX, "naive cv2 loop", "naive", ("onnxruntime", HEADLESS), "yolox.onnx", ORT),
    Peer(
        *(YOLOX, "supervision loop", "supervision_loop", ("supervision", "onnxruntime", HEADLESS), "yolox.onnx"),
        shown=("supervision", *ORT),
    ),
    Peer(YOLOX, "roboflow inference", "inference_loop", ("inference",), "yolox.onnx", ("inference", *ORT), heavy=True),
    Peer(YOLOX, "edge-sdk on OpenVINO", "edge_sdk_loop", ("{wheel}[openvino]",), "yolox_ov.edge", ("openvino",)),
    Peer(YOLOX, "openvino model_api (mended)", "model_api_loop", ("openvino-model-api",), "yolox.xml", MODEL_API),
    Peer(SSD, "edge-sdk", "edge_sdk_loop", ("{wheel}[openvino]",), "ssd.edge", ("openvino",)),
    Peer(SSD, "openvino model_api", "model_api_loop", ("openvino-model-api",), "ssd.xml", MODEL_API),
    Peer(MOBILENET, "edge-sdk", "edge_sdk_loop", ("{wheel}[litert]",), "mobilenet.edge", ("ai-edge-litert",)),
    Peer(MOBILENET, "MediaPipe", "mediapipe_loop", ("mediapipe",), "mobilenet.tflite", ("mediapipe",)),
)


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.run peers")
    parser.add_argument("--frames", type=int, default=220)
    parser.add_argument("--turns", type=int, default=5, help="measured runs of each (default: 5)")
    parser.add_argument("--heavy", action="store_true", help="roboflow inference too: an environment of 7 GB")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help=f"default: {ENVIRONMENTS}")
    args = parser.parse_args(words)
    peers = [p for p in PEERS if args.heavy or not p.heavy or (_place(args.environments, p) / "done").is_file()]
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as name:
        rows, left_out = _measured(peers, Path(name), args)
    about = "Whole processes on car-detection.mp4 (768 x 432), each as its documentation runs it"
    about += f"; median of {args.turns} alternating rounds of {args.frames} frames"
    about += "".join(f"; {name} is left out: {why.splitlines()[-1]}" for name, why in left_out.items())
    result = {"about": about, "command": "python -m bench.run peers --heavy", "machine": machine(), "rows": rows}
    (RESULTS / "peers.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"peers\n{table(result)}")


def _measured(
    peers: Sequence[Peer], folder: Path, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return a row a peer, and of those that cannot be made or run the reason; ours must run."""
    models, wheel = _models(folder), build_wheel(folder)
    video = TESTDATA / "videos" / "car-detection.mp4"
    pythons: dict[Peer, Path] = {}
    runs: dict[Peer, list[dict[str, float]]] = {p: [] for p in peers}
    left_out: dict[str, str] = {}
    for number in range(args.turns + 1):
        for peer in [p for p in peers if p.name not in left_out]:
            try:
                python = pythons[peer] = pythons.get(peer) or _environment(args.environments, peer, wheel)
                figures = _run(python, peer, video, models[peer.model], args.frames)
            except PeerFails as error:
                if peer.packages[0].startswith("{wheel}"):
                    raise SystemExit(f"{peer.name} failed: {error}") from None
                left_out[peer.name] = str(error)
                continue
            if number > 0:
                runs[peer].append(figures)
    rows = [_row(p, runs[p], runs[_ours(p.group)], pythons[p]) for p in peers if p.name not in left_out]
    return rows, left_out


class PeerFails(Exception):
    """A peer's environment cannot be made, or its script gives no figures; what it said last."""


def _ours(group: str) -> Peer:
    return next(p for p in PEERS if p.group == group)


def _row(
    peer: Peer, runs: Sequence[Mapping[str, float]], ours: Sequence[Mapping[str, float]], python: Path
) -> dict[str, Any]:
    def median(key: str) -> float:
        return statistics.median(r[key] for r in runs)

    ratio = statistics.median(r["cpu_ms"] / o["cpu_ms"] for r, o in zip(runs, ours, strict=True))
    return {
        "model": peer.group,
        "with": peer.name,
        "found": round(median("found")),
        "CPU ms a frame": round(median("cpu_ms"), 2),
        "to edge-sdk": round(ratio, 2),
        "peak RSS MB": round(median("rss_mb")),
        "import CPU s": round(median("import_s"), 2),
        "installed MB": round(_megabytes(python)),
        "versions": ", ".join(_versions(python, peer.shown)),
    }


def _run(python: Path, peer: Peer, video: Path, model: Path, frames: int) -> dict[str, float]:
    command = [str(python), str(SCRIPTS / f"{peer.script}.py"), str(video), str(model), str(frames)]
    quiet = {"OPENVINO_TELEMETRY_DISABLE": "1", "TELEMETRY_OPT_OUT": "True"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | quiet)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise PeerFails(done.stderr[-2000:].strip() or f"exit code {done.returncode}")
    return dict(json.loads(lines[-1]))


def _place(root: Path, peer: Peer) -> Path:
    name = f"{peer.script}-{'-'.join(peer.packages)}"
    return root / name.translate({ord(c): "_" for c in "{}[]/"})


def _environment(root: Path, peer: Peer, wheel: Path) -> Path:
    """Return the python of the peer's environment; those of peers are kept, ours is made anew."""
    ours = any("{wheel}" in p for p in peer.packages)
    place = _place(wheel.parent if ours else root, peer)
    python = place / "bin" / "python"
    if not (place / "done").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        packages = [p.format(wheel=wheel) for p in peer.packages]
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        made = subprocess.run([*pip, *packages], stderr=subprocess.PIPE, text=True, check=False)
        if made.returncode != 0:
            raise PeerFails(made.stderr[-2000:].strip() or f"pip ended with {made.returncode}")
        (place / "done").touch()
    return python


def _versions(python: Path, names: Sequence[str]) -> list[str]:
    code = "import sys; from importlib.metadata import version\nfor name in sys.argv[1:]: print(name, version(name))"
    done = subprocess.run([str(python), "-c", code, *names], capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


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
        "yolox_ov.edge": model_artifact("YOLOX-nano", "openvino").path,
        "yolox.xml": _yolox_ir(folder),
        "ssd.xml": models / "person-detection-retail-0013.xml",
        "ssd.edge": _ssd(folder),
        "mobilenet.tflite": models / "mobilenet_v1_0.25_128_quant.tflite",
        "mobilenet.edge": _mobilenet(folder),
    }


def _yolox_ir(folder: Path) -> Path:
    copy = folder / "yolox.onnx"
    shutil.copyfile(TESTDATA / "models" / "yolox_nano_416.onnx", copy)
    return to_ir(copy)[0]


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
