"""ONNX models that are odd but valid: integers at the ends, boxes selected inside, numbers too fine for half."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("nncf")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
import backend_parts as parts
import convert_parts

from converters.backends import onnx_int8, openvino, ort
from edge_sdk.errors import BackendError, ConversionError

BUILDS = {"ort": (ort, "onnxruntime"), "openvino": (openvino, "openvino")}
INT8 = [("ort", ""), ("ort", "nncf"), ("openvino", "")]
FLOAT = [("ort", "fp32", ""), ("ort", "fp16", ""), ("openvino", "fp32", "")]
WAYS = [*FLOAT, *((name, "int8", method) for name, method in INT8)]
ZERO = {"uint8": 0, "int8": -128}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return parts.pictures(tmp_path_factory.mktemp("pictures"), 8)


def with_integers(path: Path, kind: str) -> Path:
    """The network of `backend_parts` with an input and an output of 8-bit integers, 1/255 a step."""
    model = onnx.load(str(parts.network(path)))
    graph = model.graph
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = "pixels" if name == "image" else name
    graph.node.insert(0, helper.make_node("DequantizeLinear", ["image", "step", "zero"], ["pixels"]))
    graph.node.append(helper.make_node("QuantizeLinear", ["probs", "step", "zero"], ["answer"]))
    zero = numpy_helper.from_array(np.array(ZERO[kind], kind), "zero")
    graph.initializer.extend([convert_parts.const("step", 1 / 255), zero])
    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph.input[0].type.tensor_type.elem_type = number
    graph.output[0].CopyFrom(helper.make_tensor_value_info("answer", number, [1, 4]))
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("kind", ZERO)
def test_a_source_with_integers_at_its_ends_keeps_them_in_every_precision(tmp_path, pictures, kind):
    model = with_integers(tmp_path / "m.onnx", kind)
    spec = replace(parts.spec(), dtype=kind, scale=1 / 255, zero=ZERO[kind])
    found = {}
    for name, precision, method in WAYS:
        back, runtime = BUILDS[name]
        more = {"precision": precision, "method": method, "images": pictures if precision == "int8" else ()}
        built = back.build(parts.request(model, tmp_path / f"{name}{precision}{method}", input=spec, **more))
        rows = [row["answer"] for row in parts.answers(runtime, built, pictures)]
        found[name, precision, method] = np.concatenate(rows)
        assert found[name, precision, method].dtype == kind

    source = found.pop(("ort", "fp32", "")).astype(int)
    assert source.std() > 20
    for (_, precision, _), rows in found.items():
        assert np.abs(rows.astype(int) - source).max() <= (25 if precision == "int8" else 1)


def test_only_the_pairs_that_the_quantizer_put_in_take_the_types_of_a_scheme(tmp_path):
    model = onnx.load(str(with_integers(tmp_path / "m.onnx", "int8")))
    for node in model.graph.node:
        node.name = f"{node.op_type} of the source"
    before = model.SerializeToString()

    onnx_int8.retype(model, activation="uint8", weight="int8", leave=[n.name for n in model.graph.node])

    assert model.SerializeToString() == before


def boxes_selected(path: Path) -> Path:
    """Scores of 36 cells and the columns (class, box) of what NonMaxSuppression keeps of them."""
    corners = np.stack([np.repeat(np.arange(6) * 4, 6), np.tile(np.arange(6) * 4, 6)], 1).astype(np.float32)
    names = {"shape": [1, 2, -1], "most": [5], "columns": [1, 2]}
    constants = [
        convert_parts.const("w", np.random.default_rng(0).normal(0, 0.2, (2, 3, 4, 4))),
        convert_parts.const("boxes", np.concatenate([corners, corners + 4], 1)[None]),
        convert_parts.const("overlap", [0.5]),
        convert_parts.const("least", [0.5]),
        *(numpy_helper.from_array(np.array(v, np.int64), k) for k, v in names.items()),
    ]
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["cells"], strides=[4, 4], name="cells"),
        helper.make_node("Sigmoid", ["cells"], ["probs"]),
        helper.make_node("Reshape", ["probs", "shape"], ["scores"]),
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "overlap", "least"], ["selected"]),
        helper.make_node("Gather", ["selected", "columns"], ["kept"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 24, 24])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 2, 36]),
            helper.make_tensor_value_info("kept", TensorProto.INT64, ["n", 2]),
        ],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


def test_non_maximum_suppression_inside_a_model_stays_and_selects_what_the_source_does(tmp_path, pictures):
    model = boxes_selected(tmp_path / "m.onnx")
    source = None
    for name, precision, method in WAYS:
        back, runtime = BUILDS[name]
        more = {"precision": precision, "method": method, "images": pictures if precision == "int8" else ()}
        built = back.build(parts.request(model, tmp_path / f"{name}{precision}{method}", **more))
        rows = parts.answers(runtime, built, pictures)
        source = source or rows
        for row, wanted in zip(rows, source, strict=True):
            np.testing.assert_allclose(row["scores"], wanted["scores"], atol=0.03)
            scores = [
                sorted((float(r["scores"][0, c, b]) for c, b in r["kept"] if b >= 0), reverse=True)
                for r in (row, wanted)
            ]
            np.testing.assert_allclose(*scores, atol=0.03)
            assert (0 < len(scores[1]) <= 10, min(scores[0]) >= 0.5) == (True, True)


def test_an_opset_that_openvino_does_not_know_is_refused_with_the_versions(tmp_path):
    model = onnx.load(str(parts.network(tmp_path / "m.onnx")))
    model.opset_import[0].version = 99
    onnx.save(model, str(tmp_path / "new.onnx"))

    wanted = r"the model has opset 99, which openvino \d+\.\d+\S* does not know: onnx \S+ defines opsets up to \d+"
    with pytest.raises(BackendError, match=wanted) as caught:
        openvino.build(parts.request(tmp_path / "new.onnx", tmp_path / "a", precision="fp32"))
    assert "export it again" in caught.value.hint


def test_fp16_whose_numbers_grow_past_its_range_is_refused_with_the_output(tmp_path):
    nodes = [
        helper.make_node("Mul", ["image", "one"], ["a"]),
        helper.make_node("Mul", ["image", "next"], ["b"]),
        helper.make_node("Sub", ["a", "b"], ["difference"]),
        helper.make_node("Div", ["image", "difference"], ["y"]),
    ]
    # In half precision 1.0002 is 1, so the difference is 0 and not -0.0002.
    constants = [convert_parts.const("one", 1.0), convert_parts.const("next", 1.0002)]
    path = convert_parts.save(tmp_path / "m.onnx", nodes, constants, [1, 3, 24, 24], [("y", [1, 3, 24, 24])])

    with pytest.raises(ConversionError, match="fp16 overflows: the output `y` is not finite") as caught:
        ort.build(parts.request(path, tmp_path / "a", precision="fp16"))
    assert "keep fp32" in caught.value.hint
