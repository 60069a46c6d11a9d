"""What every back-end for LiteRT keeps, over precisions and over the dtypes that a device takes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("ai_edge_quantizer")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import tflite_parts as parts

from converters import tflite_graph as g
from converters.backends import registry
from converters.backends.base import BuildRequest
from converters.workers import Workshop
from device_profiles.profile import Int8Scheme
from edge_sdk.errors import BackendError, ConversionError
from edge_sdk.runtimes.base import dequantize
from edge_sdk.runtimes.litert import LiteRtRuntime
from edge_sdk.schemas.manifest import InputSpec
from edge_sdk.tasks.preprocess import Preprocessor

SPEC = InputSpec(
    name="image", shape=(1, 32, 32, 3), dtype="float32", layout="NHWC", color="rgb", mean=(0.0,), std=(255.0,)
)
BACKENDS = ("litert", "tensorflow")
PRECISIONS = ("fp32", "fp16", "dynamic", "int8", "int16x8")
SAVED = """
import sys
import keras
import numpy as np
import tensorflow as tf
image = keras.Input((32, 32, 3), batch_size=1, name="image")
first = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="first")
last = keras.layers.Dense(3, name="last")
hidden = keras.layers.GlobalAveragePooling2D()(first(image))
model = keras.Model(image, {"probs": keras.layers.Softmax(name="probs")(last(hidden)), "other": hidden})
rng = np.random.default_rng(0)
weights = rng.normal(0, 0.02, (3, 3, 3, 8))
weights[1, 1, :, :3] += np.eye(3)[::-1]
first.set_weights([weights, np.zeros(8)])
last.set_weights([np.eye(8)[:, :3] * 30, np.zeros(3)])
call = tf.function(lambda image: model(image), input_signature=[tf.TensorSpec((1, 32, 32, 3), tf.float32, "image")])
module = tf.Module()
module.call, module.tracked = call, [v.value for v in model.variables]
tf.saved_model.save(module, sys.argv[1], signatures={"serving_default": call.get_concrete_function()})
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("backends")
    parts.color_classifier(root / "m.tflite")
    return root, parts.pictures(root / "calibration", 12, seed=1), parts.pictures(root / "golden", 12, seed=2)


@pytest.fixture(scope="module")
def saved(world):
    pytest.importorskip("tensorflow", reason="the extra [tensorflow] is not installed")
    folder = world[0] / "saved"
    done = subprocess.run([sys.executable, "-c", SAVED, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def worker():
    """One worker for all builds, so that TensorFlow is imported once."""
    found = Workshop("contract", job_limit_s=170, memory_mb=8192)
    yield found
    found.close()


@pytest.fixture(params=BACKENDS)
def backend(request, world):
    """A function that says what a back-end is asked for."""
    name = request.param
    model, form = (world[0] / "m.tflite", "tflite")
    if name == "tensorflow":
        model, form = request.getfixturevalue("saved"), "savedmodel"

    def ask(out: Path, precision: str, **other) -> BuildRequest:
        images = world[1] if precision in ("int8", "int16x8") else ()
        scheme = Int8Scheme(activation="int8")
        known = {"images": images, "scheme": scheme, "outputs": ("probs",), "form": form, "input": SPEC}
        return BuildRequest(model=model, out=out, precision=precision, **(known | other))

    ask.name = name
    return ask


def made(worker: Workshop, backend, out: Path, precision: str, **other) -> dict:
    request = backend(out, precision, **other)
    return dict(worker.call("build", backend=backend.name, request=request.to_json(), options={"threads": 1}))


def answers(reply: dict, images: tuple[str, ...]) -> np.ndarray:
    spec = InputSpec(**{k: tuple(v) if isinstance(v, list) else v for k, v in reply["input"].items() if k != "resize"})
    runtime = LiteRtRuntime(Path(reply["files"][0]), {})
    preprocess, outputs = Preprocessor(spec), {o.name: o for o in runtime.outputs}
    found = [runtime.infer({spec.name: preprocess(cv2.imread(name))[0]})["probs"] for name in images]
    return np.stack([dequantize(value, outputs["probs"])[0] for value in found])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_build_answers_rightly_on_pixels_and_equal_requests_give_equal_bytes(
    backend, world, worker, tmp_path, precision
):
    replies = [made(worker, backend, tmp_path / name, precision) for name in ("a", "b")]
    files = [Path(reply["files"][0]).read_bytes() for reply in replies]

    found = answers(replies[0], world[2])

    assert hashlib.sha256(files[0]).digest() == hashlib.sha256(files[1]).digest()
    assert [o["name"] for o in replies[0]["outputs"]] == ["probs"]
    assert list(found.argmax(axis=1)) == [0, 1, 2] * 4
    assert np.abs(found.sum(axis=1) - 1).max() < 0.02
    assert replies[0]["steps"]
    assert replies[0]["input"]["dtype"] in ("uint8", "int8")


@pytest.mark.parametrize(
    ("takes", "given", "returned"),
    [
        (("float32",), "float32", "float32"),
        (("float32", "uint8"), "uint8", "float32"),
        (("float32", "int8", "uint8"), "int8", "float32"),
        (("int8",), "int8", "int8"),
    ],
)
def test_the_dtypes_of_an_int8_build_are_those_that_the_device_takes(
    backend, world, worker, tmp_path, takes, given, returned
):
    reply = made(worker, backend, tmp_path / "out", "int8", io_dtypes=takes)

    found = answers(reply, world[2])

    assert reply["input"]["dtype"] == given
    assert [o["dtype"] for o in reply["outputs"]] == [returned]
    assert (reply["outputs"][0].get("scale") is not None) == (returned == "int8")
    assert list(found.argmax(axis=1)) == [0, 1, 2] * 4


def test_layers_that_hurt_are_ranked_and_stay_float_by_the_names_of_the_ranking(backend, world, worker, tmp_path):
    request = backend(tmp_path / "rank", "int8")
    rows = worker.call("sensitivity", backend=backend.name, request=request.to_json(), images=4)["layers"]
    names = [row["layer"] for row in rows]

    full = made(worker, backend, tmp_path / "full", "int8")
    spared = made(worker, backend, tmp_path / "spared", "int8", float_layers=tuple(names))

    assert [row["error"] for row in rows] == sorted((row["error"] for row in rows), reverse=True)
    assert all(0 <= row["error"] <= 1 for row in rows)
    assert len(names) >= 2
    assert g.precision(g.load(Path(full["files"][0]))) == "int8"
    assert g.precision(g.load(Path(spared["files"][0]))) == "fp32"


def test_the_layers_next_to_the_ends_may_stay_float(backend, worker, tmp_path):
    reply = made(worker, backend, tmp_path / "out", "int8", float_first=1, float_last=1)
    graph = g.load(Path(reply["files"][0]))
    kinds = [
        g.DTYPES[graph.subgraphs[0].tensors[op.inputs[1]].type]
        for op in graph.subgraphs[0].operators
        if g.code(graph, op) in g.WEIGHT_OPS
    ]

    assert (kinds[0], kinds[-1]) == ("float32", "float32")


def test_an_unknown_precision_is_refused_with_what_the_back_end_builds(backend, worker, tmp_path):
    with pytest.raises(BackendError, match=f"the {backend.name} back-end builds fp32, fp16, .* not int4"):
        made(worker, backend, tmp_path / "out", "int4")


def test_an_output_that_the_model_has_not_is_refused(backend, worker, tmp_path):
    with pytest.raises((ConversionError, BackendError), match="boxes") as caught:
        made(worker, backend, tmp_path / "out", "fp32", outputs=("boxes", "probs"))
    assert caught.value.hint is None or "same names" in caught.value.hint


def test_scales_of_a_base_are_kept_where_they_fit(world, worker, tmp_path):
    def ask(out: Path, precision: str, **other) -> BuildRequest:
        known = {"form": "tflite", "input": SPEC, "outputs": ("probs",), "scheme": Int8Scheme(activation="int8")}
        return BuildRequest(model=world[0] / "m.tflite", out=out, precision=precision, **(known | other))

    ask.name = "litert"
    old = made(worker, ask, tmp_path / "old", "int8", images=world[1])
    fresh = made(worker, ask, tmp_path / "fresh", "int8", images=world[1][:6])
    kept = made(worker, ask, tmp_path / "kept", "int8", images=world[1][:6], base=Path(old["files"][0]))

    files = {k: Path(v["files"][0]).read_bytes() for k, v in (("old", old), ("fresh", fresh), ("kept", kept))}
    assert any("ranges of the base kept" in step for step in kept["steps"])
    assert sum(a != b for a, b in zip(files["old"], files["kept"], strict=False)) < sum(
        a != b for a, b in zip(files["old"], files["fresh"], strict=False)
    )


def test_dynamic_weights_leave_small_layers_float_in_the_legacy_method(world, worker, tmp_path):
    def ask(out: Path, precision: str, **other) -> BuildRequest:
        return BuildRequest(
            model=world[0] / "m.tflite", out=out, precision=precision, form="tflite", input=SPEC, **other
        )

    ask.name = "litert"
    plain = made(worker, ask, tmp_path / "plain", "dynamic")
    legacy = made(worker, ask, tmp_path / "legacy", "dynamic", method="legacy")

    assert g.precision(g.load(Path(plain["files"][0]))) == "dynamic"
    assert g.precision(g.load(Path(legacy["files"][0]))) == "fp32"


@pytest.mark.parametrize("name", BACKENDS)
def test_the_table_says_what_a_back_end_reads_and_for_what(name):
    can = registry().plugin(name).capabilities

    assert can["runtime"] == "litert"
    assert set(can["methods"]) == set(PRECISIONS)
    assert can["sensitivity"].startswith("converters.backends.")


@pytest.mark.parametrize(
    ("file", "spec", "precision"),
    [
        ("vww_96_int8.tflite", {"shape": (1, 96, 96, 3), "dtype": "int8"}, "int8"),
        ("mobilenet_v1_0.25_128_quant.tflite", {"shape": (1, 128, 128, 3), "dtype": "uint8"}, "int8"),
        ("mlperf_resnet8_cifar10_int8.tflite", {"shape": (1, 32, 32, 3), "dtype": "int8"}, "int8"),
    ],
)
def test_a_quantized_file_is_kept_as_it_came_in_its_own_precision_only(
    testdata, worker, tmp_path, file, spec, precision
):
    model = testdata / "models" / file
    runtime = LiteRtRuntime(model, {})
    known = InputSpec(name=runtime.inputs[0].name, layout="NHWC", color="rgb", **spec)

    def ask(out: Path, wanted: str) -> BuildRequest:
        return BuildRequest(model=model, out=out, precision=wanted, form="tflite", input=known)

    ask.name = "litert"
    reply = made(worker, ask, tmp_path / "out", precision)
    other = LiteRtRuntime(Path(reply["files"][0]), {})
    value = np.random.default_rng(0).integers(-100, 100, known.shape).astype(known.dtype)

    before = runtime.infer({known.name: value})
    after = other.infer({known.name: value})
    for output in runtime.outputs:
        np.testing.assert_array_equal(after[output.name], before[output.name])
    assert other.outputs[0].scale == runtime.outputs[0].scale
    with pytest.raises(BackendError, match=f"is {precision} already, so fp32 cannot be built from it"):
        made(worker, ask, tmp_path / "fp32", "fp32")
