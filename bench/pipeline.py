"""CPU a frame of whole pipelines on a real video, against the engine and the decoder alone.

Per model the first case is the bound, engine plus decode; then the pipeline of edge-sdk, the best hand-written loops
(a capture thread and one thread a core; serial) and the loop of most tutorials. All use the same folded model, but for
the tutorial's, which gets the published one and the engine's defaults.
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROUNDS = 5
ABOUT = "CPU ms a frame on car-detection.mp4 (768 x 432); the ratio is to engine + decode, 1.0 is the bound"
FRAMES = 240
TESTDATA = Path(os.environ.get("EDGE_TESTDATA", Path(__file__).resolve().parents[2] / "shared" / "testdata"))
_MODELS: dict[str, dict[str, Any]] = {
    "FastestDet": {
        "file": "fastestdet_352.onnx",
        "size": 352,
        "decoder": "fastestdet",
        "std": 255.0,
        "letterbox": False,
    },
    "YOLOX-nano": {"file": "yolox_nano_416.onnx", "size": 416, "decoder": "yolox", "std": 1.0, "letterbox": True},
}


def cases() -> dict[str, Callable[[], float]]:
    video = TESTDATA / "videos" / "car-detection.mp4"
    if not video.is_file():
        raise SystemExit(f"no test material at {TESTDATA}: set EDGE_TESTDATA")
    out: dict[str, Callable[[], float]] = {}
    for name, facts in _MODELS.items():
        artifact = model_artifact(name)
        out |= {
            f"{name}: engine + decode": lambda a=artifact: _bound(a, video),
            f"{name}: edge-sdk": lambda a=artifact: _edge(a, video),
            f"{name}: edge-sdk, one frame thread": lambda a=artifact: _edge(a, video, workers=1),
            f"{name}: hand-written, capture thread": lambda a=artifact: _threads(a, video),
            f"{name}: hand-written, serial": lambda a=artifact: _serial(a, video),
            f"{name}: tutorial loop": lambda a=artifact, f=facts: _tutorial(a, f, video),
        }
    return out


def model_artifact(name: str) -> Any:
    """Return the folded detector `name` of _MODELS as an artifact in a temporary folder."""
    facts = _MODELS[name]
    import onnx

    from converters.graph import fold_preprocessing
    from edge_sdk.artifact import write_artifact

    source = onnx.load(str(TESTDATA / "models" / facts["file"]))
    folded, _ = fold_preprocessing(source, mean=[0.0] * 3, std=[facts["std"]] * 3, layout="NCHW", channels=3)
    size, image, output = facts["size"], folded.graph.input[0], folded.graph.output[0]
    resize = {"mode": "letterbox", "align": "topleft", "pad": 114} if facts["letterbox"] else {"mode": "stretch"}
    manifest = {
        "name": name.lower(),
        "version": "1.0.0",
        "profile": "generic-cpu",
        "task": "detection",
        "source_sha256": "0" * 64,
        "parent": None,
        "input": {
            "name": image.name,
            "shape": [1, size, size, 3],
            "dtype": "uint8",
            "layout": "NHWC",
            "color": "bgr",
            "resize": resize,
        },
        "outputs": [
            {"name": output.name, "shape": [d.dim_value for d in output.type.tensor_type.shape.dim], "dtype": "float32"}
        ],
        "decoder": {"name": facts["decoder"], "params": {}},
        "runtime": {"name": "onnxruntime", "options": {}},
    }
    folder = Path(tempfile.mkdtemp(prefix="edge-bench-"))
    entries = {"model/model.onnx": folded.SerializeToString(), "labels.txt": b""}
    return write_artifact(folder / f"{name}.edge", manifest=manifest, entries=entries, evidence={})


def _timed(work: Callable[[], int]) -> float:
    import cv2

    cv2.setNumThreads(1)
    begin = time.process_time()
    frames = work()
    return (time.process_time() - begin) * 1000 / frames


def _open(video: Path, threads: int = 1) -> Any:
    import cv2

    return cv2.VideoCapture(str(video), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, threads])


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _models(artifact: Any, n: int) -> list[Any]:
    models = [artifact.load() for _ in range(n)]
    for model in models:
        model.warm()
    return models


def _bound(artifact: Any, video: Path) -> float:
    """Decode alone plus the engine alone, on as many threads as the pipeline has."""

    def decode() -> int:
        capture, n = _open(video), 0
        while n < FRAMES and capture.read()[0]:
            n += 1
        return n

    models = _models(artifact, _cores())
    feeds = [model.prepare(_open(video).read()[1])[0] for model in models]

    def engine() -> int:
        share = FRAMES // len(models)

        def work(i: int) -> None:
            for _ in range(share):
                models[i].infer(feeds[i])

        _join([threading.Thread(target=work, args=(i,)) for i in range(len(models))])
        return share * len(models)

    return _timed(decode) + _timed(engine)


def _edge(artifact: Any, video: Path, workers: int | None = None) -> float:
    """The pipeline with its counts, order and summary; the report has the CPU between the first frame and the last."""
    from edge_sdk.pipeline import Pipeline

    return float(Pipeline(str(video), workers=workers).detect(artifact).run(frames=FRAMES).cpu_ms_per_frame or 0.0)


def _serial(artifact: Any, video: Path) -> float:
    (model,) = _models(artifact, 1)

    def work() -> int:
        capture = _open(video)
        for _ in range(FRAMES):
            model(capture.read()[1])
        return FRAMES

    return _timed(work)


def _threads(artifact: Any, video: Path) -> float:
    models = _models(artifact, _cores())

    def work() -> int:
        capture = _open(video)
        frames: queue.Queue[Any] = queue.Queue(4)

        def infer(i: int) -> None:
            while (frame := frames.get()) is not None:
                models[i](frame)

        threads = [threading.Thread(target=infer, args=(i,)) for i in range(len(models))]
        for thread in threads:
            thread.start()
        for _ in range(FRAMES):
            frames.put(capture.read()[1])
        for _ in threads:
            frames.put(None)
        for thread in threads:
            thread.join()
        return FRAMES

    return _timed(work)


def _tutorial(artifact: Any, facts: dict[str, Any], video: Path) -> float:
    """The engine's defaults, float preprocessing in numpy, a fresh array for every step."""
    import cv2
    import numpy as np
    import onnxruntime as ort

    session = ort.InferenceSession(str(TESTDATA / "models" / facts["file"]), providers=["CPUExecutionProvider"])
    name, size = session.get_inputs()[0].name, facts["size"]
    decoder = artifact.load()
    outputs = [o.name for o in decoder.manifest.outputs]

    def work() -> int:
        capture = _open(video, threads=_cores())
        for _ in range(FRAMES):
            frame = capture.read()[1]
            _, geometry = decoder.prepare(frame)
            if facts["letterbox"]:
                ratio = min(size / frame.shape[0], size / frame.shape[1])
                small = cv2.resize(frame, (int(frame.shape[1] * ratio), int(frame.shape[0] * ratio)))
                image = np.ones((size, size, 3), np.float32) * 114.0
                image[: small.shape[0], : small.shape[1]] = small
            else:
                image = cv2.resize(frame, (size, size)).astype(np.float32) / facts["std"]
            tensor = np.ascontiguousarray(image.transpose(2, 0, 1)[np.newaxis], dtype=np.float32)
            values = session.run(None, {name: tensor})
            decoder.decode(dict(zip(outputs, values, strict=True)), geometry)
        return FRAMES

    cv2.setNumThreads(-1)
    begin = time.process_time()
    frames = work()
    spent = time.process_time() - begin
    cv2.setNumThreads(1)
    return spent * 1000 / frames


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
