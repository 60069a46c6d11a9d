"""Scale, mean and layout of the preprocessing inside the first convolutions: the same answers, fewer nodes to run."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
import backend_parts as parts
import convert_parts

from converters.backends import ort
from edge_sdk.schemas.manifest import InputSpec

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
HEIGHT, WIDTH = 13, 18
OTHER = "TensorrtExecutionProvider"


def conv(source: str, target: str, weights: str, *more: str, **attributes):
    return helper.make_node("Conv", [source, weights, *more], [target], name=f"conv_{target}", **attributes)


def weights(rng, *shape):
    return rng.normal(0, 0.3, shape)


def spec(layout="NCHW", channels=3, mean=MEAN, std=STD):
    shape = (1, channels, HEIGHT, WIDTH) if layout == "NCHW" else (1, HEIGHT, WIDTH, channels)
    color = "bgr" if channels == 3 else "gray"
    return InputSpec(name="image", shape=shape, dtype="float32", layout=layout, color=color, mean=mean, std=std)


def build(tmp_path, nodes, constants, outputs, given, precision="fp32", provider="CPU"):
    """Save the nodes, build them; return the model that was made, the steps, and the worst difference to the source."""
    declared = [(name, None) for name in outputs]
    source = convert_parts.save(tmp_path / "m.onnx", nodes, constants, given.shape, declared)
    built = ort.build(parts.request(source, tmp_path / "out", precision=precision, input=given, provider=provider))
    pixels = np.random.default_rng(1).integers(0, 256, (1, HEIGHT, WIDTH, given.channels), np.uint8)
    image = (pixels - np.array(given.mean)) / np.array(given.std)
    image = image if given.layout == "NHWC" else image.transpose(0, 3, 1, 2)
    answers = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
            list(outputs), {"image": tensor}
        )
        for path, tensor in ((source, image.astype(np.float32)), (built.files[0], pixels))
    ]
    worst = max(np.abs(a - b).max() / np.abs(a).max() for a, b in zip(*answers, strict=True))
    return onnx.load(str(built.files[0])), built.steps, worst


def before(model, name):
    """The operations that lead from the input to the node `name`, nearest first."""
    maker = {o: n for n in model.graph.node for o in n.output}
    found, node = [], next(n for n in model.graph.node if n.name == name)
    while node.input[0] in maker:
        node = maker[node.input[0]]
        found.append(node.op_type)
    return found


@pytest.mark.parametrize(
    ("attributes", "step", "path"),
    [
        ({}, "scale, mean, layout", ["Cast", "Reshape"]),
        ({"strides": [2, 2]}, "scale, mean, layout", ["Cast", "Reshape"]),
        ({"auto_pad": "VALID", "strides": [2, 1]}, "scale, mean, layout", ["Cast", "Reshape"]),
        ({"pads": [0, 0, 0, 0], "dilations": [2, 1]}, "scale, mean, layout", ["Cast", "Reshape"]),
        ({"pads": [1, 1, 1, 1]}, "scale, layout", ["Sub", "Cast", "Reshape"]),
        ({"pads": [0, 0, 1, 2], "strides": [2, 3]}, "scale, layout", ["Sub", "Cast", "Reshape"]),
        ({"pads": [0, 3, 0, 0], "strides": [1, 2]}, "scale, layout", ["Sub", "Cast", "Reshape"]),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, "scale", ["Sub", "Cast", "Transpose"]),
        ({"pads": [2, 2, 2, 2], "dilations": [2, 2]}, "scale", ["Sub", "Cast", "Transpose"]),
        ({"dilations": [1, 2]}, "scale, mean", ["Cast", "Transpose"]),
    ],
)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_scale_layout_and_mean_go_into_the_first_convolution_and_the_mean_stays_before_padded_zeros(
    tmp_path, layout, attributes, step, path
):
    rng = np.random.default_rng(0)
    constants = [convert_parts.const("w", weights(rng, 8, 3, 3, 3)), convert_parts.const("b", rng.normal(0, 1, 8))]
    nodes = [conv("planes", "y", "w", "b", **attributes)]
    turn = {"NCHW": helper.make_node("Identity", ["image"], ["planes"]),
            "NHWC": helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2])}  # fmt: skip

    model, steps, worst = build(tmp_path, [turn[layout], *nodes], constants, ["y"], spec(layout))

    assert before(model, "conv_y") == path
    assert f"{step} of the input in the weights of conv_y" in steps
    assert worst < 5e-5


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_kernels_of_any_width_move_over_rows_of_pixels_as_over_planes(tmp_path, width, stride):
    constants = [convert_parts.const("w", weights(np.random.default_rng(0), 4, 3, 3, width))]
    node = conv("image", "y", "w", pads=[1, width // 2, 1, width // 2], strides=[1, stride])

    model, _, worst = build(tmp_path, [node], constants, ["y"], spec())

    assert before(model, "conv_y") == ["Sub", "Cast", "Reshape"]
    assert worst < 5e-5


def test_a_build_for_an_accelerator_keeps_the_planes_that_its_compiler_knows(tmp_path):
    constants = [convert_parts.const("w", weights(np.random.default_rng(0), 4, 3, 3, 3))]

    model, steps, worst = build(
        tmp_path, [conv("image", "y", "w", pads=[1] * 4)], constants, ["y"], spec(), provider=OTHER
    )

    assert before(model, "conv_y") == ["Sub", "Cast", "Transpose"]
    assert "scale of the input in the weights of conv_y" in steps
    assert worst < 5e-5


def test_an_accelerator_gets_pixels_without_mean_and_scale_as_before(tmp_path):
    constants = [convert_parts.const("w", weights(np.random.default_rng(0), 4, 3, 3, 3))]

    model, steps, _ = build(
        tmp_path, [conv("image", "y", "w")], constants, ["y"], spec(mean=(0.0,), std=(1.0,)), provider=OTHER
    )

    assert [n.name for n in model.graph.node] == ["edge_transpose", "edge_cast", "conv_y"]
    assert not any("in the weights" in s for s in steps)


@pytest.mark.parametrize("pad", [0, 1])
def test_a_convolution_by_groups_takes_the_scale_and_the_mean_of_its_own_channels(tmp_path, pad):
    rng = np.random.default_rng(0)
    constants = [convert_parts.const("w", weights(rng, 6, 1, 3, 3))]
    nodes = [conv("image", "y", "w", group=3, pads=[pad] * 4)]

    model, _, worst = build(tmp_path, nodes, constants, ["y"], spec())

    assert before(model, "conv_y") == ["Sub", "Cast", "Transpose"][1 - pad :]
    assert worst < 5e-5


@pytest.mark.parametrize("pad", [0, 2])
def test_a_gray_input_is_scaled_by_the_weights_too(tmp_path, pad):
    constants = [convert_parts.const("w", weights(np.random.default_rng(0), 4, 1, 5, 5))]

    model, _, worst = build(
        tmp_path, [conv("image", "y", "w", pads=[pad] * 4)], constants, ["y"], spec("NCHW", 1, (127.5,), (127.5,))
    )

    assert before(model, "conv_y") == ["Sub", "Cast", "Reshape"][pad == 0 :]
    assert worst < 5e-5


def test_planes_are_made_for_all_where_one_of_the_convolutions_needs_them(tmp_path):
    rng = np.random.default_rng(0)
    constants = [convert_parts.const("w", weights(rng, 4, 3, 3, 3)), convert_parts.const("v", weights(rng, 3, 1, 3, 3))]
    nodes = [conv("image", "a", "w"), conv("image", "b", "v", group=3)]

    model, _, worst = build(tmp_path, nodes, constants, ["a", "b"], spec())

    assert [before(model, f"conv_{n}") for n in "ab"] == [["Cast", "Transpose"]] * 2
    assert worst < 5e-5


def test_every_convolution_that_reads_the_input_is_given_its_own_weights(tmp_path):
    rng = np.random.default_rng(0)
    constants = [convert_parts.const("w", weights(rng, 4, 3, 3, 3)), convert_parts.const("v", weights(rng, 2, 3, 1, 1))]
    nodes = [
        conv("image", "a", "w", pads=[1] * 4),
        conv("image", "b", "w", strides=[2, 2]),
        conv("image", "c", "v"),
    ]

    model, steps, worst = build(tmp_path, nodes, constants, ["a", "b", "c"], spec())

    assert [before(model, f"conv_{n}") for n in "abc"] == [["Sub", "Cast", "Reshape"]] * 3
    assert "scale, layout of the input in the weights of conv_a, conv_b, conv_c" in steps
    assert worst < 5e-5


def test_the_normalisation_of_the_model_itself_goes_into_the_weights_with_it(tmp_path):
    rng = np.random.default_rng(0)
    constants = [
        convert_parts.const("w", weights(rng, 4, 3, 3, 3)),
        convert_parts.const("share", 255.0),
        convert_parts.const("mean", np.array([0.5, 0.4, 0.3]).reshape(1, 3, 1, 1)),
        convert_parts.const("factor", np.array([4.0, 5.0, 6.0]).reshape(3, 1, 1)),
        convert_parts.const("more", 0.25),
    ]
    nodes = [
        helper.make_node("Div", ["image", "share"], ["s"]),
        helper.make_node("Sub", ["s", "mean"], ["d"]),
        helper.make_node("Mul", ["factor", "d"], ["n"]),
        helper.make_node("Add", ["n", "more"], ["m"]),
        conv("m", "y", "w", pads=[1] * 4),
    ]

    model, _, worst = build(tmp_path, nodes, constants, ["y"], spec(mean=(0.0,), std=(1.0,)))

    assert before(model, "conv_y") == ["Sub", "Cast", "Reshape"]
    assert worst < 5e-5


def test_a_mean_that_all_channels_share_is_taken_off_as_one_number(tmp_path):
    constants = [convert_parts.const("w", weights(np.random.default_rng(0), 4, 3, 3, 3))]

    model, _, worst = build(
        tmp_path, [conv("image", "y", "w", pads=[1] * 4)], constants, ["y"], spec(mean=(127.0,), std=(128.0,))
    )

    taken = next(n for n in model.graph.node if n.op_type == "Sub").input[1]
    assert [numpy_helper.to_array(t).tolist() for t in model.graph.initializer if t.name == taken] == [127.0]
    assert worst < 5e-5


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([helper.make_node("MaxPool", ["image"], ["p"], kernel_shape=[2, 2]), conv("p", "y", "w")], ["y"]),
        ([conv("image", "y", "w"), helper.make_node("Sigmoid", ["image"], ["z"])], ["y", "z"]),
        ([helper.make_node("Mul", ["image", "map"], ["p"]), conv("p", "y", "w")], ["y"]),
        ([helper.make_node("Sub", ["one", "image"], ["p"]), conv("p", "y", "w")], ["y"]),
        ([helper.make_node("Mul", ["image", "image"], ["p"]), conv("p", "y", "w")], ["y"]),
        ([helper.make_node("ReduceMean", ["image"], ["m"]), conv("image", "y", "w", "b"),
          helper.make_node("Add", ["y", "m"], ["z"])], ["z"]),
    ],
    ids=["a pooling first", "another reader", "a map", "subtracted from", "squared", "a reader by the way"],
)  # fmt: skip
def test_where_another_node_reads_the_input_the_preprocessing_stays_before_it(tmp_path, nodes, outputs):
    rng = np.random.default_rng(0)
    constants = [
        convert_parts.const("w", weights(rng, 4, 3, 3, 3)),
        convert_parts.const("b", rng.normal(0, 1, 4)),
        convert_parts.const("map", rng.random((1, 1, HEIGHT, WIDTH)) + 0.5),
        convert_parts.const("one", 1.0),
    ]

    model, steps, worst = build(tmp_path, nodes, constants, outputs, spec())

    assert [n.name for n in model.graph.node][:4] == ["edge_transpose", "edge_cast", "edge_sub", "edge_mul"]
    assert not any("in the weights" in s for s in steps)
    assert worst < 5e-5


def test_a_convolution_whose_weights_are_computed_keeps_the_preprocessing_before_it(tmp_path):
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["w"]),
        helper.make_node("Conv", ["image", "w"], ["y"], name="conv_y"),
    ]

    model, _, worst = build(tmp_path, nodes, [], ["y"], spec())

    assert "Mul" in before(model, "conv_y")
    assert worst < 5e-5


def test_half_precision_keeps_small_weights_and_the_preprocessing_in_front(tmp_path):
    constants = [convert_parts.const("w", 1e-3 * weights(np.random.default_rng(0), 4, 3, 3, 3))]

    model, _, worst = build(tmp_path, [conv("image", "y", "w")], constants, ["y"], spec(), precision="fp16")

    assert "Mul" in {n.op_type for n in model.graph.node}
    assert worst < 5e-3


def test_equal_requests_give_equal_bytes(tmp_path):
    model = parts.network(tmp_path / "m.onnx")

    built = [ort.build(parts.request(model, tmp_path / k, precision="fp32")).files[0].read_bytes() for k in "ab"]

    assert built[0] == built[1]
    assert b"edge_input_weight_" in built[0]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_build_can_be_built_again_and_answers_the_same_in_fp32(tmp_path, precision):
    pictures = parts.pictures(tmp_path / "pictures", 4)
    first = ort.build(parts.request(parts.network(tmp_path / "m.onnx"), tmp_path / "a", precision="fp32"))

    again = ort.build(
        parts.request(first.files[0], tmp_path / "b", precision=precision, input=first.input, images=pictures)
    )

    rows = [np.array([a["probs"] for a in parts.answers("onnxruntime", b, pictures)]) for b in (first, again)]
    np.testing.assert_allclose(rows[1].sum(axis=-1), 1, atol=1e-3)
    if precision == "fp32":
        np.testing.assert_allclose(rows[1], rows[0], atol=1e-5)
