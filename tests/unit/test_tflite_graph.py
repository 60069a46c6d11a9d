"""Edits of TFLite graphs and of their image input."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert.tools")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import tflite_parts as parts

from converters import tflite_graph as g
from converters import tflite_input
from edge_sdk.errors import BackendError, ConversionError
from edge_sdk.runtimes.litert import LiteRtRuntime
from edge_sdk.schemas.manifest import InputSpec
from edge_sdk.tasks.preprocess import Preprocessor


def spec(mean=(0.0,), std=(255.0,), **other) -> InputSpec:
    known = {"name": "image", "shape": (1, 32, 32, 3), "dtype": "float32", "layout": "NHWC", "color": "rgb"}
    return InputSpec(**(known | other), mean=mean, std=std)


def answer(model, path: Path, value: np.ndarray) -> dict[str, np.ndarray]:
    g.save(model, path)
    return answer_of(path, value)


def answer_of(path: Path, value: np.ndarray) -> dict[str, np.ndarray]:
    runtime = LiteRtRuntime(path, {})
    return {k: np.array(v) for k, v in runtime.infer({runtime.inputs[0].name: value}).items()}


@pytest.fixture
def classifier(tmp_path):
    return parts.color_classifier(tmp_path / "m.tflite")


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.0,), (1.0,)),
        ((0.0,), (255.0,)),
        ((127.0,), (128.0,)),
        ((127.5,), (127.5,)),
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ((10.0, 20.0, 30.0), (255.0,)),
    ],
)
def test_a_folded_input_takes_pixels_and_answers_as_the_float_one_did(classifier, tmp_path, mean, std):
    pixels = np.random.default_rng(1).integers(0, 256, (1, 32, 32, 3), np.uint8)
    before = answer_of(classifier, ((pixels - np.array(mean)) / np.array(std)).astype(np.float32))
    model = g.load(classifier)

    folded, steps = tflite_input.fold_float(model, spec(mean, std), ("uint8", "float32"))
    after = answer(model, tmp_path / "folded.tflite", pixels)

    assert (folded.dtype, folded.layout, folded.mean, folded.std) == ("uint8", "NHWC", (0.0,), (1.0,))
    assert steps
    np.testing.assert_allclose(after["probs"], before["probs"], atol=2e-4)


def test_an_input_of_planes_becomes_nhwc_by_a_transpose(tmp_path):
    model = parts.empty(8)
    tensor = model.subgraphs[0].tensors[0]
    tensor.shape = [1, 3, 8, 8]
    axes = parts.constant(model, "axes", [2, 3], g.KIND.INT32)
    model.subgraphs[0].outputs = [
        parts.add(model, g.OP.MEAN, [0, axes], "means", (1, 3), "ReducerOptions", keepDims=False)
    ]
    pixels = np.random.default_rng(1).integers(0, 256, (1, 8, 8, 3), np.uint8)

    folded, _ = tflite_input.fold_float(model, spec(shape=(1, 3, 8, 8), layout="NCHW"), ())
    after = answer(model, tmp_path / "m.tflite", pixels)

    assert (folded.shape, folded.layout) == ((1, 8, 8, 3), "NHWC")
    np.testing.assert_allclose(after["means"], pixels.mean((1, 2)) / 255, atol=1e-5)


def test_a_device_without_uint8_keeps_its_float_input(classifier):
    model = g.load(classifier)

    kept, steps = tflite_input.fold_float(model, spec(), ("float32",))

    assert (kept, steps) == (spec(), [])
    assert len(g.load(classifier).subgraphs[0].operators) == len(model.subgraphs[0].operators)


def quantized_entry(scale: float, zero: int):
    """A model whose int8 input is given back as floats."""
    model = parts.empty(8)
    graph = model.subgraphs[0]
    graph.tensors[0].type = g.KIND.INT8
    graph.inputs = [g.add_tensor(model, "image", (1, 8, 8, 3), g.KIND.INT8, scale=scale, zero=zero)]
    out = g.add_tensor(model, "values", (1, 8, 8, 3), g.KIND.FLOAT32)
    graph.operators = [
        g.make_op(model, g.OP.DEQUANTIZE, graph.inputs, [out], tflite_input._options("DequantizeOptions"))
    ]
    graph.outputs = [out]
    return model


@pytest.mark.parametrize("takes", [("int8", "uint8", "float32"), ("uint8", "float32")])
@pytest.mark.parametrize(("mean", "std"), [((0.0,), (255.0,)), ((127.0,), (128.0,))])
def test_an_int8_input_gets_every_pixel_level_exactly(tmp_path, takes, mean, std):
    model = quantized_entry(1 / std[0], int(mean[0]) - 128)
    frame = np.random.default_rng(2).integers(0, 256, (8, 8, 3), np.uint8)
    frame[0, :2] = (0, 255, 1), (254, 128, 127)

    made, _ = tflite_input.fold_integer(model, spec(mean, std, shape=(1, 8, 8, 3), color="bgr"), takes)
    g.save(model, tmp_path / "m.tflite")
    tensor, _ = Preprocessor(made)(frame)
    values = answer_of(tmp_path / "m.tflite", tensor)["values"]

    assert made.dtype == takes[0]
    np.testing.assert_allclose(values[0], (frame - mean[0]) / std[0], atol=1e-6)


def test_means_that_differ_by_channel_are_left_to_the_device_as_a_table(tmp_path):
    mean, std = (123.0, 116.0, 103.0), (58.0, 57.0, 56.0)
    low, high = tflite_input.pixel_range(spec(mean, std))
    scale = (high - low) / 255
    model = quantized_entry(scale, round(-128 - low / scale))
    frame = np.random.default_rng(2).integers(0, 256, (8, 8, 3), np.uint8)

    made, _ = tflite_input.fold_integer(model, spec(mean, std, shape=(1, 8, 8, 3), color="bgr"), ("int8", "uint8"))
    g.save(model, tmp_path / "m.tflite")
    values = answer_of(tmp_path / "m.tflite", Preprocessor(made)(frame)[0])["values"]

    assert (made.dtype, made.mean, made.scale) == ("int8", mean, pytest.approx(scale))
    np.testing.assert_allclose(values[0], (frame - np.array(mean)) / np.array(std), atol=scale / 2 + 1e-6)


def test_the_tail_ends_at_the_last_weights_and_layers_are_counted_from_both_ends(classifier):
    model = g.load(classifier)

    def names(ops):
        return sorted(g.scope(model, op) for op in ops)

    assert names(g.last(model, 0)) == ["probs"]
    assert names(g.last(model, 1)) == ["logits", "mean", "probs"]
    assert names(g.head(model, 0)) == []
    assert names(g.head(model, 1)) == ["conv"]
    assert names(g.head(model, 2)) == ["conv", "deep", "mean"]


def test_outputs_are_named_ordered_and_turned(tmp_path):
    model = parts.empty(4)
    double = parts.add(model, g.OP.ADD, [0, 0], "a", (1, 4, 4, 3), "AddOptions")
    square = parts.add(model, g.OP.MUL, [0, 0], "b", (1, 4, 4, 3), "MulOptions")
    model.subgraphs[0].outputs = [double, square]
    value = np.random.default_rng(0).normal(size=(1, 4, 4, 3)).astype(np.float32)

    g.name_outputs(model, (1, 0), ("a", "sum"), ((0, 3, 1, 2), None))
    found = answer(model, tmp_path / "m.tflite", value)

    assert [o.name for o in LiteRtRuntime(tmp_path / "m.tflite", {}).outputs] == ["a", "sum"]
    np.testing.assert_allclose(found["a"], (value**2).transpose(0, 3, 1, 2), rtol=1e-6)
    np.testing.assert_allclose(found["sum"], value * 2, rtol=1e-6)


def test_constants_that_nothing_reads_do_not_travel(classifier, tmp_path):
    model = g.load(classifier)
    parts.constant(model, "left over", np.zeros(100_000))

    g.save(model, tmp_path / "m.tflite")

    assert (tmp_path / "m.tflite").stat().st_size < classifier.stat().st_size + 100
    assert len(g.load(tmp_path / "m.tflite").subgraphs[0].tensors) == len(g.load(classifier).subgraphs[0].tensors)


def test_equal_models_are_equal_files(classifier, tmp_path):
    for name in ("a", "b"):
        g.save(g.load(classifier), tmp_path / name)

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("vww_96_float.tflite", "fp32"),
        ("vww_96_int8.tflite", "int8"),
        ("mobilenet_v1_0.25_224_quant.tflite", "int8"),
        ("blazeface_short_range.tflite", "fp16"),
        ("mobilenet_v1_0.25_224_float.tflite", "fp32"),
    ],
)
def test_the_precision_of_a_file_is_that_of_its_weights(testdata, file, found):
    assert g.precision(g.load(testdata / "models" / file)) == found


def test_halves_become_singles_with_the_same_answers(testdata, tmp_path):
    file = testdata / "models" / "blazeface_short_range.tflite"
    model = g.load(file)
    value = np.random.default_rng(0).uniform(-1, 1, (1, 128, 128, 3)).astype(np.float32)

    count = g.unpack_halves(model)
    after = answer(model, tmp_path / "m.tflite", value)

    assert count == 74
    assert g.precision(model) == "fp32"
    for key, before in answer_of(file, value).items():
        np.testing.assert_allclose(after[key], before, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"ONNX" * 10, ConversionError, "has not the mark TFL3"),
        (b"\x1c\x00\x00\x00TFL3" + b"\xff" * 40, ConversionError, "is damaged|has no graph"),
    ],
)
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path, content, kind, message):
    (tmp_path / "m.tflite").write_bytes(content)

    with pytest.raises(kind, match=message):
        g.load(tmp_path / "m.tflite")


def test_a_model_of_several_graphs_is_not_edited(classifier, tmp_path):
    model = g.load(classifier)
    model.subgraphs = [model.subgraphs[0], model.subgraphs[0]]
    from ai_edge_litert.tools import flatbuffer_utils

    (tmp_path / "two.tflite").write_bytes(bytes(flatbuffer_utils.convert_object_to_bytearray(model)))

    with pytest.raises(BackendError, match="has 2 subgraphs"):
        g.load(tmp_path / "two.tflite")


def test_an_input_of_another_size_is_not_the_sources(classifier):
    with pytest.raises(ConversionError, match=r"takes \[1, 32, 32, 3\], the source \[1, 3, 64, 64\]"):
        tflite_input.spec_of(g.load(classifier), spec(shape=(1, 3, 64, 64), layout="NCHW"))
