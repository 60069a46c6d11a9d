"""ONNX files as other tools leave them: weights in a file beside them, nodes out of order, integers already."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters import onnx_source
from converters.frontends.base import Source
from converters.frontends.onnx import inspect
from edge_sdk.errors import ConversionError, UsageError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
import convert_parts as parts


def read(path: Path, tmp_path: Path) -> Source:
    (tmp_path / "work").mkdir(exist_ok=True)
    return Source.from_json(inspect(str(path), tmp_path / "work", {}))


@pytest.fixture
def split(tmp_path) -> Path:
    """A model whose weights are in `w.bin` beside it."""
    path = parts.classifier(tmp_path / "whole.onnx")
    words = {"save_as_external_data": True, "size_threshold": 0, "convert_attribute": True}
    onnx.save(onnx.load(str(path)), str(tmp_path / "split.onnx"), location="w.bin", **words)
    return tmp_path / "split.onnx"


def point(path: Path, key: str, value: str) -> None:
    """Change where the first tensor of a model says that it is."""
    model = onnx.load(str(path), load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.external_data)
    kept = [e for e in tensor.external_data if e.key != key]
    del tensor.external_data[:]
    tensor.external_data.extend(kept)
    tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def test_weights_in_a_file_beside_the_model_are_read_into_one_file(split, tmp_path):
    found = read(split, tmp_path)

    made = onnx.load(found.forms["onnx"], load_external_data=False)
    wanted = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(tmp_path / "whole.onnx")).graph.initializer}
    assert {t.name for t in made.graph.initializer} == set(wanted)
    for tensor in made.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), wanted[tensor.name])


def test_the_hash_of_a_source_covers_the_weights_beside_it(split, tmp_path):
    before = read(split, tmp_path).sha256
    data = bytearray((tmp_path / "w.bin").read_bytes())
    data[1] ^= 1
    (tmp_path / "w.bin").write_bytes(data)

    assert read(split, tmp_path).sha256 != before


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "sub/w.bin", "", "."])
def test_weights_are_read_from_the_folder_of_the_model_only(split, tmp_path, location):
    point(split, "location", location)

    with pytest.raises(ConversionError, match=r"keeps the tensor `w1` in (another place|`\.`)") as caught:
        read(split, tmp_path)
    assert "save it in one file" in str(caught.value.hint)


def test_a_link_and_an_absent_file_are_no_weights(split, tmp_path):
    (tmp_path / "w.bin").rename(tmp_path / "elsewhere")
    with pytest.raises(ConversionError, match="in `w.bin`, which is no file beside it"):
        read(split, tmp_path)
    (tmp_path / "w.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConversionError, match="in `w.bin`, which is no file beside it"):
        read(split, tmp_path)


@pytest.mark.parametrize(("key", "value"), [("offset", "99999999"), ("offset", "-1"), ("length", "99999999")])
def test_weights_that_are_cut_short_are_named(split, tmp_path, key, value):
    point(split, key, value)

    with pytest.raises(ConversionError, match=r"`w.bin` has \d+ bytes, the tensor `w1` of `split.onnx` is"):
        read(split, tmp_path)


def test_a_place_that_is_no_number_is_said(split, tmp_path):
    point(split, "offset", "here")

    with pytest.raises(ConversionError, match="does not say where the tensor `w1` is"):
        read(split, tmp_path)


def test_nodes_out_of_order_are_put_in_order(tmp_path):
    path = parts.classifier(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    onnx.save(model, str(path))

    made = onnx.load(read(path, tmp_path).forms["onnx"])

    assert [n.op_type for n in made.graph.node] == [n.op_type for n in nodes]


def test_a_graph_that_reads_itself_is_refused_in_one_line(tmp_path):
    path = parts.classifier(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    model.graph.node[0].input[0] = model.graph.node[1].output[0]
    onnx.save(model, str(path))

    with pytest.raises(ConversionError, match="`m.onnx` is not a valid ONNX model"):
        read(path, tmp_path)


def test_integer_weights_behind_dequantize_and_integer_layers_are_recognised_and_float_ones_are_not(tmp_path):
    def model(*nodes):
        return helper.make_model(helper.make_graph(list(nodes), "g", [], []))

    plain = helper.make_node("Conv", ["x", "w"], ["y"])
    pair = helper.make_node("DequantizeLinear", ["q", "s"], ["d"])
    turned = helper.make_node("Transpose", ["d"], ["w"])
    pixels = helper.make_node("DequantizeLinear", ["image", "s"], ["x"])

    assert onnx_source.quantized(model(pair, turned, plain))
    assert onnx_source.quantized(model(helper.make_node("ConvInteger", ["x", "w"], ["y"])))
    assert not onnx_source.quantized(model(pixels, plain))


def test_a_quantized_onnx_file_is_an_int8_source(tmp_path):
    path = parts.classifier(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    weight = next(t for t in model.graph.initializer if t.name == "w1")
    values = np.clip(np.rint(numpy_helper.to_array(weight) * 64), -127, 127).astype(np.int8)
    weight.CopyFrom(numpy_helper.from_array(values, "q1"))
    model.graph.initializer.append(helper.make_tensor("s1", TensorProto.FLOAT, [], [1 / 64]))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["q1", "s1"], ["w1"]))
    onnx.save(model, str(path))

    found = read(path, tmp_path)

    assert (found.quantized, found.precision) == (True, "int8")
    assert "its layers have integer weights already: int8 keeps them" in found.because


@pytest.mark.parametrize(("opset", "ir"), [(13, 8), (17, 8), (21, 10)])
def test_a_newer_ir_version_than_the_opset_needs_is_lowered_as_older_runtimes_want(tmp_path, opset, ir):
    path = parts.classifier(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    model.ir_version = 99
    model.opset_import[0].version = opset
    onnx.save(model, str(path))

    assert onnx.load(read(path, tmp_path).forms["onnx"]).ir_version == ir


def fixed_input(path: Path, batch: int) -> Path:
    model = onnx.load(str(parts.classifier(path)))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(model, str(path))
    return path


def test_a_fixed_batch_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(ConversionError, match="takes 4 images at a time, frames come one by one") as caught:
        read(fixed_input(tmp_path / "m.onnx", 4), tmp_path)
    assert "a batch of 1" in str(caught.value.hint)


def test_a_size_that_the_model_contradicts_is_refused(tmp_path):
    path = fixed_input(tmp_path / "m.onnx", 1)

    with pytest.raises(UsageError, match=r"is 32x32 in the model, --size says 64x48"):
        inspect(str(path), tmp_path, {"size": (64, 48)})
    assert inspect(str(path), tmp_path, {"size": [32, 32]})["input"]["shape"] == [1, 3, 32, 32]
