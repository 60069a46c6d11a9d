"""Integer inputs and outputs: pixels go in and values come out exactly as the tensors' scales and zeros say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_sdk import Artifact, runtimes

CASES = {
    "mlperf_resnet8_cifar10_int8.tflite": (32, {}),
    "vww_96_int8.tflite": (96, {"std": [255.0], "scale": 1 / 255, "zero": -128}),
    "mobilenet_v1_0.25_128_quant.tflite": (128, {}),
    "mobilenet_v1_0.25_224_quant.tflite": (224, {"mean": [128.0], "std": [128.0], "scale": 1 / 128, "zero": 128}),
}


def frame(size: int) -> np.ndarray:
    picture = np.random.default_rng(size).integers(0, 256, (size, size, 3), np.uint8)
    picture[0, :3] = (0, 128, 255), (255, 1, 127), (254, 0, 129)
    return picture


@pytest.mark.parametrize("file", CASES)
def test_a_classifier_of_integers_gives_the_values_its_outputs_stand_for(real_artifact, testdata: Path, file: str):
    size, image = CASES[file]
    artifact = real_artifact(file, "softmax", params={"logits": False}, **image)
    engine = runtimes.registry().load("litert")(testdata / "models" / file, {})
    given, output = engine.inputs[0], engine.outputs[0]
    rgb = frame(size)[None, :, :, ::-1].astype(np.int32)
    by_hand = (rgb - (128 if given.dtype == "int8" else 0)).astype(given.dtype)

    raw = engine.infer({given.name: by_hand})[output.name].astype(np.float64)
    with Artifact.open(artifact).load() as model:
        feeds, _ = model.prepare(frame(size))
        found = model(frame(size))

    np.testing.assert_array_equal(feeds[given.name], by_hand)
    np.testing.assert_allclose(found.probs, ((raw - output.zero) * output.scale)[0], atol=1e-6)
    assert found.class_id == raw[0].argmax()


def test_a_detector_of_integers_with_float_outputs_sees_the_same_pixels(real_artifact, testdata: Path):
    file = "ssd_mobilenet_v1_coco_quant.tflite"
    artifact = real_artifact(file, "ssd_pp", params={"score": 0.0, "max_detections": 10})
    engine = runtimes.registry().load("litert")(testdata / "models" / file, {})
    picture = frame(300)

    raw = engine.infer({engine.inputs[0].name: np.ascontiguousarray(picture[None, :, :, ::-1])})
    with Artifact.open(artifact).load() as model:
        feeds, _ = model.prepare(picture)
        found = model(picture)

    np.testing.assert_array_equal(feeds[engine.inputs[0].name][0], picture[:, :, ::-1])
    scores = sorted(raw["TFLite_Detection_PostProcess:2"].ravel(), reverse=True)
    np.testing.assert_allclose(sorted(found.score, reverse=True), scores[: len(found)], atol=1e-6)
    assert len(found) > 0
