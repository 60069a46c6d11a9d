"""Loops around a detector and a video, ours and those that people write: CPU ms a frame of each.

All use the same folded model, but for `demo` and `light`, which get the published one and the engine's defaults.
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

from bench.demo_loops import DEMOS

TESTDATA = Path(os.environ.get("EDGE_TESTDATA", Path(__file__).resolve().parents[2] / "shared" / "testdata"))
VIDEO = TESTDATA / "videos" / "car-detection.mp4"
MODELS: dict[str, dict[str, Any]] = {
    "FastestDet": {
        "file": "fastestdet_352.onnx",
        "size": 352,
        "decoder": "fastestdet",
        "std": 255.0,
        "letterbox": False,
    },
    "YOLOX-nano": {"file": "yolox_nano_416.onnx", "size": 416, "decoder": "yolox", "std": 1.0, "letterbox": True},
}


def model_artifact(name: str, runtime: str = "onnxruntime", **options: Any) -> Any:
    """Return the folded detector `name` of MODELS as an artifact in a temporary folder, fp32 for either runtime."""
    facts = MODELS[name]
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
        "runtime": {"name": runtime, "options": options},
    }
    folder = Path(tempfile.mkdtemp(prefix="edge-bench-"))
    onnx_file = folder / "model.onnx"
    onnx_file.write_bytes(folded.SerializeToString())
    files = [onnx_file] if runtime == "onnxruntime" else to_ir(onnx_file)
    entries: dict[str, Any] = {f"model/{file.name}": file for file in files}
    entries["labels.txt"] = b""
    return write_artifact(folder / f"{name}.edge", manifest=manifest, entries=entries, evidence={})


def to_ir(onnx_file: Path) -> list[Path]:
    """Convert a model to an OpenVINO IR in fp32 and return its two files."""
    import edge_sdk.runtimes.no_analytics  # noqa: F401  (before openvino)

    # isort: split
    import openvino as ov

    ir = onnx_file.with_suffix(".xml")
    ov.save_model(ov.Core().read_model(str(onnx_file)), str(ir), compress_to_fp16=False)
    return [ir, ir.with_suffix(".bin")]


def cores() -> int:
    return len(os.sched_getaffinity(0))


def _timed(work: Callable[[], int]) -> float:
    import cv2

    cv2.setNumThreads(1)
    begin = time.process_time()
    frames = work()
    return (time.process_time() - begin) * 1000 / frames


def _open(threads: int = 1) -> Any:
    import cv2

    return cv2.VideoCapture(str(VIDEO), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, threads])


def pictures(n: int) -> list[Any]:
    """Return the first n frames of the video."""
    capture = _open()
    return [capture.read()[1] for _ in range(n)]


def _models(artifact: Any, n: int) -> list[Any]:
    models = [artifact.load() for _ in range(n)]
    for model in models:
        model.warm()
    return models


def bound(artifact: Any, frames: int, threads: int) -> float:
    """Decode alone plus the engine alone, `threads` of them side by side."""

    def decode() -> int:
        capture, n = _open(), 0
        while n < frames and capture.read()[0]:
            n += 1
        return n

    models = _models(artifact, threads)
    feeds = [model.prepare(pictures(1)[0])[0] for model in models]
    share = frames // threads

    def engine() -> int:
        def work(i: int) -> None:
            for _ in range(share):
                models[i].infer(feeds[i])

        _join([threading.Thread(target=work, args=(i,)) for i in range(threads)])
        return share * threads

    return _timed(decode) + _timed(engine)


def edge(artifact: Any, frames: int, workers: int | None = None) -> float:
    """The pipeline with its counts, order and summary; the report has the CPU between the first frame and the last."""
    from edge_sdk.pipeline import Pipeline

    return float(Pipeline(str(VIDEO), workers=workers).detect(artifact).run(frames=frames).cpu_ms_per_frame or 0.0)


def serial(artifact: Any, frames: int) -> float:
    (model,) = _models(artifact, 1)

    def work() -> int:
        capture = _open()
        for _ in range(frames):
            model(capture.read()[1])
        return frames

    return _timed(work)


def capture_thread(artifact: Any, frames: int) -> float:
    """One thread reads, one a core answers."""
    models = _models(artifact, cores())

    def work() -> int:
        capture = _open()
        waiting: queue.Queue[Any] = queue.Queue(4)

        def infer(i: int) -> None:
            while (frame := waiting.get()) is not None:
                models[i](frame)

        threads = [threading.Thread(target=infer, args=(i,)) for i in range(len(models))]
        for thread in threads:
            thread.start()
        for _ in range(frames):
            waiting.put(capture.read()[1])
        for _ in threads:
            waiting.put(None)
        for thread in threads:
            thread.join()
        return frames

    return _timed(work)


def pull_workers(artifact: Any, frames: int) -> float:
    """One thread a core reads under a lock and answers."""
    models = _models(artifact, cores())

    def work() -> int:
        capture, lock, left = _open(), threading.Lock(), iter(range(frames))

        def pull(i: int) -> None:
            while True:
                with lock:
                    if next(left, None) is None:
                        return
                    frame = capture.read()[1]
                models[i](frame)

        _join([threading.Thread(target=pull, args=(i,)) for i in range(len(models))])
        return frames

    return _timed(work)


def demo(name: str, frames: int) -> float:
    """The loop of the model's own ONNX Runtime demo over the video, see `bench.demo_loops`."""
    answer, session = DEMOS[name], _default_session(name)
    return _with_defaults(lambda frame: answer(session, frame), frames)


def light(artifact: Any, name: str, frames: int) -> float:
    """The engine's defaults and float preprocessing in numpy, but the SDK's decoder, which sees likely rows only."""
    import cv2
    import numpy as np

    facts = MODELS[name]
    session = _default_session(name)
    feed, size = session.get_inputs()[0].name, facts["size"]
    decoder = artifact.load()
    outputs = [o.name for o in decoder.manifest.outputs]
    _, geometry = decoder.prepare(pictures(1)[0])

    def answer(frame: Any) -> None:
        if facts["letterbox"]:
            ratio = min(size / frame.shape[0], size / frame.shape[1])
            small = cv2.resize(frame, (int(frame.shape[1] * ratio), int(frame.shape[0] * ratio)))
            image = np.ones((size, size, 3), np.float32) * 114.0
            image[: small.shape[0], : small.shape[1]] = small
        else:
            image = cv2.resize(frame, (size, size)).astype(np.float32) / facts["std"]
        tensor = np.ascontiguousarray(image.transpose(2, 0, 1)[np.newaxis], dtype=np.float32)
        values = session.run(None, {feed: tensor})
        decoder.decode(dict(zip(outputs, values, strict=True)), geometry)

    return _with_defaults(answer, frames)


def _default_session(name: str) -> Any:
    import onnxruntime as ort

    return ort.InferenceSession(str(TESTDATA / "models" / MODELS[name]["file"]), providers=["CPUExecutionProvider"])


def _with_defaults(answer: Callable[[Any], object], frames: int) -> float:
    """Answer frame after frame, OpenCV and its decoder on as many threads as they take by themselves."""
    import cv2

    cv2.setNumThreads(-1)
    begin = time.process_time()
    capture = _open(threads=cores())
    for _ in range(frames):
        answer(capture.read()[1])
    spent = time.process_time() - begin
    cv2.setNumThreads(1)
    return spent * 1000 / frames


def around_engine(artifact: Any, frames: int) -> float:
    """Preprocessing and postprocessing alone, over frames whose outputs are known."""
    (model,) = _models(artifact, 1)
    given = pictures(20)
    answered = []
    for image in given:
        feeds, geometry = model.prepare(image)
        outputs = {name: value.copy() for name, value in model.infer(feeds).items()}
        answered.append((image, outputs, geometry))

    def work() -> int:
        for i in range(frames):
            image, outputs, geometry = answered[i % len(answered)]
            model.prepare(image)
            model.decode(outputs, geometry)
        return frames

    return _timed(work)


class _InMemory:
    """A file of `frames` frames that are decoded already."""

    live = False
    prompt = True
    fps = 30.0
    uri = "memory:"

    def __init__(self, frames: int) -> None:
        self._images, self._left, self._next = pictures(8), frames, 0

    def open(self) -> None: ...

    def grab(self) -> bool:
        self._next += 1
        return self._next <= self._left

    def retrieve(self) -> Any:
        from edge_sdk.sources.base import Frame

        n = self._next - 1
        return Frame(self._images[n % 8], n, n / 30.0, time.monotonic(), self.uri)

    def close(self) -> None: ...


def overhead(frames: int, workers: int | None = None) -> float:
    """A pipeline over a model that does nothing, less a loop over the same frames and model; frames from memory."""
    from edge_sdk.pipeline import Pipeline
    from edge_sdk.testing import fake_model

    answer = (0.0, 0.0, 1.0)
    model = fake_model(lambda _image: answer)
    source: Any = _InMemory(frames)

    def loop() -> int:
        while source.grab():
            model(source.retrieve().image)
        return frames

    plain = _timed(loop)
    source = _InMemory(frames)
    model.keeps_outputs = True
    report = Pipeline(source, workers=workers).classify(model).run()
    return float(report.cpu_ms_per_frame or 0.0) - plain


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
