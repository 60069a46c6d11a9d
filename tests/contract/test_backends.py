"""What every back-end that starts from ONNX keeps to, whatever its runtime, precision and method."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("nncf")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
import backend_parts as parts

from converters import backends
from device_profiles.profile import Int8Scheme
from edge_sdk.errors import BackendError, ConversionError

WAYS = [
    (name, precision, method)
    for name in ("ort", "openvino")
    for precision, methods in backends.registry().plugin(name).capabilities["methods"].items()
    for method in methods
] + [("openvino", "int8", "accuracy")]
SCHEMES = {
    "u8s8 7 bits": Int8Scheme(reduce_range=True),
    "s8s8": Int8Scheme(activation="int8"),
    "u8u8": Int8Scheme(weight="uint8"),
    "per tensor": Int8Scheme(per_channel=False),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("backends")
    return parts.network(root / "m.onnx"), parts.pictures(root / "pictures", 12)


def build(name, world, out, **more):
    model, pictures = world
    if more["precision"] == "int8":
        more.setdefault("images", pictures)
    built = backends.registry().load(name)(parts.request(model, out, **more))
    return built, backends.registry().plugin(name).capabilities["runtime"]


def probs(name, world, out, **more):
    built, runtime = build(name, world, out, **more)
    return np.concatenate([row["probs"] for row in parts.answers(runtime, built, world[1])])


@pytest.fixture(scope="module")
def source(world, tmp_path_factory):
    return probs("ort", world, tmp_path_factory.mktemp("source") / "o", precision="fp32")


@pytest.mark.parametrize(("name", "precision", "method"), WAYS)
def test_a_build_agrees_with_the_source_takes_uint8_frames_and_has_the_same_bytes_again(
    world, source, tmp_path, name, precision, method
):
    first, runtime = build(name, world, tmp_path / "a", precision=precision, method=method)
    again, _ = build(name, world, tmp_path / "b", precision=precision, method=method)
    found = np.concatenate([row["probs"] for row in parts.answers(runtime, first, world[1])])

    assert (first.input.dtype, first.input.layout, first.input.shape) == ("uint8", "NHWC", (1, 24, 24, 3))
    assert np.abs(found - source).max() < {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.1}[precision]
    assert [f.read_bytes() for f in first.files] == [f.read_bytes() for f in again.files]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(f.name for f in first.files)
    assert all(step.strip() for step in first.steps)


@pytest.mark.parametrize("method", ["", "nncf"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_integers_of_a_build_are_those_of_the_scheme(world, source, tmp_path, method, scheme):
    wanted = SCHEMES[scheme]
    built, runtime = build("ort", world, tmp_path / "o", precision="int8", method=method, scheme=wanted)
    model = onnx.load(str(built.files[0]))
    held = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = [held[n.input[0]] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in held]
    scales = [held[n.input[1]] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in held]
    weights = [w for w in weights if w.dtype != np.int32]
    zeros = [held[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"]

    assert {w.dtype.name for w in weights} == {wanted.weight}
    assert {z.dtype.name for z in zeros} == {wanted.activation}
    assert all(s.size == 1 for s in scales) != wanted.per_channel
    middle = 128 if wanted.weight == "uint8" else 0
    top = max(int(np.abs(w.astype(int) - middle).max()) for w in weights)
    assert top <= 64 if wanted.reduce_range else 100 < top <= 128
    if wanted.reduce_range or parts.ADDS_UP:
        found = np.concatenate([row["probs"] for row in parts.answers(runtime, built, world[1])])
        assert np.abs(found - source).max() < 0.1


def weights_in_int8(model: Path) -> int:
    """How many layers of an ONNX file or an IR have 8-bit constants of more than one dimension."""
    if model.suffix == ".onnx":
        held = {t.name: t for t in onnx.load(str(model)).graph.initializer}
        return sum(len(t.dims) > 1 and t.data_type in (2, 3) for t in held.values())
    import openvino as ov

    constants = [op for op in ov.Core().read_model(str(model)).get_ordered_ops() if op.get_type_name() == "Constant"]
    return sum(op.get_output_element_type(0) == ov.Type.i8 and len(op.get_output_shape(0)) > 1 for op in constants)


@pytest.mark.parametrize(("name", "method"), [("ort", ""), ("ort", "nncf"), ("openvino", "")])
def test_layers_are_named_with_their_error_and_those_asked_for_stay_float(world, tmp_path, name, method):
    model, pictures = world
    capability = backends.registry().plugin(name).capabilities["sensitivity"]
    module, _, function = capability.partition(":")
    ask = parts.request(model, tmp_path / "s", precision="int8", method=method, images=pictures)
    rows = getattr(__import__(module, fromlist=[function]), function)(ask, 8)

    assert len(rows) == 4
    assert [r.error for r in rows] == sorted((r.error for r in rows), reverse=True)
    assert 0 < rows[-1].error < rows[0].error < 0.1

    layers = tuple(r.layer for r in rows[:3])
    plain, some = (
        build(name, world, tmp_path / f"{len(kept)}", precision="int8", method=method, float_layers=kept)[0]
        for kept in ((), layers)
    )
    assert (weights_in_int8(plain.files[0]), weights_in_int8(some.files[0])) == (4, 1)
    with pytest.raises(ConversionError, match="nothing of the model was quantized"):
        build(name, world, tmp_path / "all", precision="int8", method=method, float_layers=tuple(r.layer for r in rows))


@pytest.mark.parametrize("name", ["ort", "openvino"])
def test_what_a_back_end_does_not_build_is_said_with_what_it_builds(world, tmp_path, name):
    with pytest.raises(BackendError, match="builds fp32, fp16, int8, not int16x8"):
        build(name, world, tmp_path / "a", precision="int16x8")
    with pytest.raises(BackendError, match="has no int8 method `best`"):
        build(name, world, tmp_path / "b", precision="int8", method="best")
    with pytest.raises(ConversionError, match="the model has no layer `conv9` to keep in float") as caught:
        build(name, world, tmp_path / "c", precision="int8", float_layers=("conv9",))
    assert "did you mean `conv" in caught.value.hint
