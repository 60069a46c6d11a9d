"""The loops that the benchmark calls the demos' find what the SDK finds with the demo's thresholds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench.demo_loops import DEMOS, fastestdet, yolox
from edge_sdk import runtimes
from edge_sdk.model import Model
from edge_sdk.schemas.manifest import DecoderSpec, InputSpec, Manifest, OutputSpec, Resize, RuntimeSpec

PICTURES = 40
MODELS = {
    "YOLOX-nano": ("yolox_nano_416.onnx", "yolox", {"resize": Resize(mode="letterbox", align="topleft", pad=114)}),
    "FastestDet": ("fastestdet_352.onnx", "fastestdet", {"std": (255.0,)}),
}


def session_of(path: Path) -> Any:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def open_model(path: Path, decoder: str, params: dict[str, Any], **image: Any) -> Model:
    runtime = runtimes.registry().load("onnxruntime")(path, {})
    manifest = Manifest(
        schema="edge.artifact/1",
        name=path.stem,
        version="1",
        profile="generic-cpu",
        task="detection",
        source_sha256="0" * 64,
        parent=None,
        payload_digest="0" * 64,
        files={},
        input=InputSpec(
            name=runtime.inputs[0].name,
            shape=tuple(d or 1 for d in runtime.inputs[0].shape),
            dtype="float32",
            layout="NCHW",
            color="bgr",
            **image,
        ),
        outputs=tuple(OutputSpec(name=o.name, shape=tuple(o.shape), dtype=o.dtype) for o in runtime.outputs),
        decoder=DecoderSpec(name=decoder, params=params),
        runtime=RuntimeSpec(name="onnxruntime"),
    )
    return Model(manifest, runtime, ())


def pictures(testdata: Path) -> list[Any]:
    files = sorted((testdata / "datasets" / "coco128_train2017").rglob("*.jpg"))[:PICTURES]
    assert files
    return [cv2.imread(str(file)) for file in files]


def overlap(box: Any, others: Any) -> Any:
    """Return the IoU of one box with (n, 4) others."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    return shared / ((box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared)


def found_in(boxes: Any, classes: Any, others: Any, others_classes: Any, frame: Any, least: float) -> int:
    """Return how many boxes have one of the same class among the others, both cut at the frame."""
    height, width = frame.shape[:2]
    edge = np.array([width, height] * 2, float)
    cut, others_cut = np.clip(boxes, 0, edge), np.clip(others, 0, edge)
    return sum(
        any(overlap(box, others_cut[others_classes == class_id]) > least)
        for box, class_id in zip(cut, classes, strict=True)
    )


def test_yolox_demo_and_sdk_find_the_same_boxes(testdata):
    name, decoder, image = MODELS["YOLOX-nano"]
    path = testdata / "models" / name
    session = session_of(path)
    both, demo_all, ours_all = 0, 0, 0
    with open_model(path, decoder, {"score": 0.25, "iou": 0.45, "class_agnostic": True}, **image) as model:
        for frame in pictures(testdata):
            ours, demo = model(frame), yolox(session, frame)
            demo = demo[demo[:, 4] >= 0.25]
            both += found_in(demo[:, :4], demo[:, 5], ours.xyxy, ours.class_id, frame, 0.8)
            demo_all, ours_all = demo_all + len(demo), ours_all + len(ours)
    assert min(demo_all, ours_all) > 50
    assert both >= 0.95 * max(demo_all, ours_all)


def test_what_fastestdets_demo_finds_the_sdk_finds(testdata):
    """The demo shrinks by area, not linearly, rounds to pixels and suppresses across classes; scores differ by rule."""
    name, decoder, image = MODELS["FastestDet"]
    path = testdata / "models" / name
    session = session_of(path)
    both = demo_all = 0
    with open_model(path, decoder, {"score": 0.25}, **image) as model:
        for frame in pictures(testdata):
            ours, demo = model(frame), fastestdet(session, frame, threshold=0.5)
            both += found_in(demo[:, :4], demo[:, 5], ours.xyxy, ours.class_id, frame, 0.6)
            demo_all += len(demo)
    assert demo_all > 30
    assert both >= 0.9 * demo_all


@pytest.mark.parametrize("name", sorted(DEMOS))
def test_a_picture_of_nothing_gives_no_boxes(testdata, name):
    session = session_of(testdata / "models" / MODELS[name][0])
    assert DEMOS[name](session, np.full((300, 400, 3), 114, np.uint8)).shape == (0, 6)
