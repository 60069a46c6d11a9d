"""Int8 of TFLite graphs as converters write them: pads of max pools, masks, activations that stand alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("ai_edge_quantizer")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import tflite_parts as parts
from ai_edge_litert import schema_py_generated as schema

from converters import tflite_fuse
from converters import tflite_graph as g
from converters.backends import litert
from converters.backends.base import BuildRequest, Built
from device_profiles.profile import Int8Scheme
from edge_sdk.runtimes.base import dequantize
from edge_sdk.runtimes.litert import LiteRtRuntime
from edge_sdk.schemas.manifest import InputSpec
from edge_sdk.tasks.preprocess import Preprocessor

SIZE = 16
SPEC = InputSpec(
    name="image", shape=(1, SIZE, SIZE, 3), dtype="float32", layout="NHWC", color="rgb", mean=(0.0,), std=(255.0,)
)
STEPS = {"strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1}
LEAST = float(np.finfo(np.float32).min)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return parts.pictures(tmp_path_factory.mktemp("images"), 12, size=SIZE)


def conv(model: Any, data: int, name: str, channels: int, size: int, *, inputs: int, seed: int) -> int:
    """Append a 3x3 convolution without an activation."""
    values = np.random.default_rng(seed).normal(0, 0.3, (channels, 3, 3, inputs))
    tensors = [data, parts.constant(model, f"{name}_w", values), parts.constant(model, f"{name}_b", np.zeros(channels))]
    return parts.add(model, g.OP.CONV_2D, tensors, name, (1, size, size, channels), "Conv2DOptions", **STEPS)


def finish(model: Any, data: int, path: Path, channels: int) -> Path:
    """Append a mean and a dense layer, and write the model."""
    axes = parts.constant(model, "axes", [1, 2], g.KIND.INT32)
    mean = parts.add(model, g.OP.MEAN, [data, axes], "mean", (1, channels), "ReducerOptions", keepDims=False)
    weights = np.random.default_rng(9).normal(0, 1, (4, channels))
    inputs = [mean, parts.constant(model, "last_w", weights), parts.constant(model, "last_b", np.zeros(4))]
    model.subgraphs[0].outputs = [
        parts.add(model, g.OP.FULLY_CONNECTED, inputs, "out", (1, 4), "FullyConnectedOptions")
    ]
    g.save(model, path)
    return path


def padded_pool(path: Path, fill: float) -> Path:
    """Convolution, a pad of `fill` on all sides, a max pool of it without padding of its own, convolution."""
    model = parts.empty(SIZE)
    first = conv(model, 0, "first", 8, SIZE, inputs=3, seed=1)
    sides = parts.constant(model, "sides", [[0, 0], [1, 1], [1, 1], [0, 0]], g.KIND.INT32)
    inputs = [first, sides, parts.constant(model, "fill", np.float32(fill))]
    padded = parts.add(model, g.OP.PADV2, inputs, "padded", (1, SIZE + 2, SIZE + 2, 8), "PadV2Options")
    window = {"strideW": 2, "strideH": 2, "filterWidth": 3, "filterHeight": 3, "padding": schema.Padding.VALID}
    pooled = parts.add(model, g.OP.MAX_POOL_2D, [padded], "pooled", (1, 8, 8, 8), "Pool2DOptions", **window)
    return finish(model, conv(model, pooled, "second", 8, 8, inputs=8, seed=2), path, 8)


def masked_softmax(path: Path) -> Path:
    """Convolution, a mask that takes half of the channels out of a softmax, convolution."""
    model = parts.empty(SIZE)
    first = conv(model, 0, "first", 8, SIZE, inputs=3, seed=1)
    mask = parts.constant(model, "mask", np.where(np.arange(8) % 2, np.float32(LEAST), np.float32(0)))
    shape = (1, SIZE, SIZE, 8)
    masked = parts.add(model, g.OP.ADD, [first, mask], "masked", shape, "AddOptions")
    soft = parts.add(model, g.OP.SOFTMAX, [masked], "soft", shape, "SoftmaxOptions", beta=1.0)
    return finish(model, conv(model, soft, "second", 8, SIZE, inputs=8, seed=2), path, 8)


def relus(path: Path) -> Path:
    """A residual block whose activations stand alone, the first of which two operations read."""
    model = parts.empty(SIZE)
    shape = (1, SIZE, SIZE, 8)
    first = conv(model, 0, "first", 8, SIZE, inputs=3, seed=1)
    start = parts.add(model, g.OP.RELU, [first], "start", shape, "ReshapeOptions")
    second = conv(model, start, "second", 8, SIZE, inputs=8, seed=2)
    total = parts.add(model, g.OP.ADD, [start, second], "total", shape, "AddOptions")
    end = parts.add(model, g.OP.RELU6, [total], "end", shape, "ReshapeOptions")
    for op in model.subgraphs[0].operators:
        if g.code(model, op) in (g.OP.RELU, g.OP.RELU6):
            op.builtinOptionsType, op.builtinOptions = 0, None
    return finish(model, end, path, 8)


def swish(path: Path) -> Path:
    """Two convolutions with a swish between them, whose first channel is 500 times the others and next to unread."""
    model = parts.empty(SIZE)
    shape = (1, SIZE, SIZE, 8)
    first = conv(model, 0, "first", 8, SIZE, inputs=3, seed=1)
    gate = parts.add(model, g.OP.LOGISTIC, [first], "gate", shape, "ReshapeOptions")
    soft = parts.add(model, g.OP.MUL, [first, gate], "swish", shape, "MulOptions")
    second = conv(model, soft, "second", 8, SIZE, inputs=8, seed=2)
    for label, part, share in (("first_w", np.s_[0], 500.0), ("second_w", np.s_[..., 0], 1 / 5000)):
        index = next(k for k, t in enumerate(model.subgraphs[0].tensors) if g.name(t) == label)
        values = np.array(g.constant(model, index))
        values[part] = np.abs(values[part]) * share
        model.buffers[model.subgraphs[0].tensors[index].buffer].data = np.frombuffer(values.tobytes(), np.uint8)
    op = next(op for op in model.subgraphs[0].operators if g.code(model, op) == g.OP.LOGISTIC)
    op.builtinOptionsType, op.builtinOptions = 0, None
    total = parts.add(model, g.OP.ADD, [second, second], "total", shape, "AddOptions")
    return finish(model, conv(model, total, "third", 8, SIZE, inputs=8, seed=3), path, 8)


def built(model: Path, out: Path, images: tuple[str, ...], precision: str, **more: Any) -> Built:
    out.mkdir()
    images = images if precision in ("int8", "int16x8") else ()
    return litert.build(
        BuildRequest(
            model=model, out=out, precision=precision, input=SPEC, form="tflite", images=images, outputs=("out",),
            scheme=Int8Scheme(activation="int8"), **more,
        )
    )  # fmt: skip


def answers(file: Path, spec: InputSpec, images: tuple[str, ...]) -> np.ndarray:
    engine, preprocess = LiteRtRuntime(file, {}), Preprocessor(spec)
    found = [engine.infer({spec.name: preprocess(cv2.imread(name))[0]})["out"] for name in images]
    return np.stack([dequantize(value, engine.outputs[0])[0] for value in found])


def noise(one: np.ndarray, other: np.ndarray) -> float:
    """The greatest difference as a share of the range of the answers."""
    return float(np.abs(one - other).max() / np.ptp(other))


@pytest.mark.parametrize("fill", [LEAST, -np.inf, -1e4])
@pytest.mark.parametrize("precision", ["int8", "int16x8"])
def test_a_pad_below_all_values_before_a_max_pool_does_not_stretch_the_range(tmp_path, images, fill, precision):
    model = padded_pool(tmp_path / "m.tflite", fill)

    done = built(model, tmp_path / "out", images, precision)

    assert noise(answers(done.files[0], done.input, images), answers(model, SPEC, images)) < 0.05
    assert any("1 pads of max pools" in step for step in done.steps)


def test_a_pad_that_can_win_the_pool_keeps_its_value(tmp_path, images):
    model = padded_pool(tmp_path / "m.tflite", 3.0)

    done = built(model, tmp_path / "out", images, "int8")

    assert noise(answers(done.files[0], done.input, images), answers(model, SPEC, images)) < 0.05
    assert not any("pads of max pools" in step for step in done.steps)


@pytest.mark.parametrize("precision", ["fp16", "dynamic", "int8", "int16x8"])
def test_an_output_that_a_weighted_layer_makes_keeps_its_name(tmp_path, images, precision):
    model = padded_pool(tmp_path / "m.tflite", LEAST)

    done = built(model, tmp_path / "out", images, precision)
    engine = LiteRtRuntime(done.files[0], {})

    assert ([o.name for o in engine.outputs], done.outputs) == (["out"], ("out",))
    assert noise(answers(done.files[0], done.input, images), answers(model, SPEC, images)) < 0.05


def test_a_mask_of_the_least_float_stays_float_and_the_layers_around_it_do_not(tmp_path, images):
    model = masked_softmax(tmp_path / "m.tflite")

    done = built(model, tmp_path / "out", images, "int8")
    graph = g.load(done.files[0])
    kinds = {
        g.code(graph, op): graph.subgraphs[0].tensors[int(op.outputs[0])].type for op in graph.subgraphs[0].operators
    }

    assert noise(answers(done.files[0], done.input, images), answers(model, SPEC, images)) < 0.05
    assert (kinds[g.OP.ADD], kinds[g.OP.SOFTMAX], kinds[g.OP.CONV_2D]) == (
        g.KIND.FLOAT32, g.KIND.FLOAT32, g.KIND.INT8,
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "fp16", "dynamic", "int8", "int16x8"])
def test_activations_that_stand_alone_join_the_operation_before_them(tmp_path, images, precision):
    model = relus(tmp_path / "m.tflite")

    done = built(model, tmp_path / "out", images, precision)
    graph = g.load(done.files[0])

    assert not {g.OP.RELU, g.OP.RELU6} & {g.code(graph, op) for op in graph.subgraphs[0].operators}
    assert noise(answers(done.files[0], done.input, images), answers(model, SPEC, images)) < 0.05
    assert "2 activations fused into the operations before them" in done.steps


def test_an_activation_whose_input_is_read_twice_or_is_an_output_stays(tmp_path):
    model = g.load(relus(tmp_path / "m.tflite"))
    names = {g.name(t): k for k, t in enumerate(model.subgraphs[0].tensors)}
    model.subgraphs[0].outputs = [*model.subgraphs[0].outputs, names["total"]]

    assert tflite_fuse.fuse_activations(model) == 1


def test_what_stands_between_layers_that_stay_float_stays_float_too(tmp_path, images):
    model = swish(tmp_path / "m.tflite")
    whole = built(model, tmp_path / "whole", images, "int8")

    done = built(model, tmp_path / "out", images, "int8", float_layers=("first", "second"))
    before, after = (noise(answers(b.files[0], b.input, images), answers(model, SPEC, images)) for b in (whole, done))

    assert after < 0.05
    assert before > 0.2


def test_the_operations_beside_a_layer_end_at_weights_and_at_sums(tmp_path):
    model = g.load(swish(tmp_path / "m.tflite"))

    def names(layer: str) -> set[str]:
        return {g.scope(model, op) for op in g.beside(model, {layer})}

    assert (names("first"), names("second")) == ({"gate", "swish"}, {"gate", "swish", "total"})
    assert (names("third"), names("out")) == ({"total", "mean"}, {"mean"})
