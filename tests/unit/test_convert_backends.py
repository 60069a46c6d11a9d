"""The ONNX Runtime and OpenVINO back-ends: what they refuse, what they keep float, what they use again."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("nncf")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
import backend_parts as parts
import convert_parts

from converters.backends import onnx_float, onnx_int8, openvino, ort, reuse, sqnr
from converters.backends.onnx_prepare import fold, optimise
from converters.frontends.base import Source
from converters.frontends.onnx import inspect
from edge_sdk.errors import BackendError, CalibrationError, ConversionError

BUILDS = {"ort": (ort, "onnxruntime"), "openvino": (openvino, "openvino")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return parts.pictures(tmp_path_factory.mktemp("pictures"), 12)


def probs(name, built, pictures):
    return np.concatenate([row["probs"] for row in parts.answers(BUILDS[name][1], built, pictures)])


@pytest.mark.parametrize("name", BUILDS)
def test_a_layer_that_int8_destroys_is_found_first_and_the_build_answers_rightly_with_it_in_float(
    tmp_path, pictures, name, monkeypatch
):
    monkeypatch.setattr(onnx_int8, "LOST", 2.0)
    model = parts.network(tmp_path / "m.onnx", uneven=True)
    back, _ = BUILDS[name]
    more = {"precision": "int8", "images": pictures}
    source = probs(name, back.build(parts.request(model, tmp_path / "f", precision="fp32")), pictures)

    rows = back.sensitivity(parts.request(model, tmp_path / "s", **more), 8)
    # Where outputs are rounded, too, the layer before it loses the same channels.
    lost_layers = {"ort": {"conv1", "conv2"}, "openvino": {"conv2"}}[name]
    worst = rows[: len(lost_layers)]
    plain = probs(name, back.build(parts.request(model, tmp_path / "p", **more)), pictures)
    kept = back.build(parts.request(model, tmp_path / "k", float_layers=tuple(r.layer for r in worst), **more))

    assert {r.layer.partition("/")[0] for r in worst} == lost_layers
    assert worst[-1].error > 0.3 > 10 * rows[len(worst)].error
    lost, left = (np.abs(p - source).mean() for p in (plain, probs(name, kept, pictures)))
    assert left < lost / 5
    assert left < 0.02


def test_a_layer_that_int8_would_fill_with_noise_stays_float_by_itself_and_is_named(tmp_path, pictures):
    model = parts.network(tmp_path / "m.onnx", uneven=True)
    more = {"precision": "int8", "images": pictures}

    built = ort.build(parts.request(model, tmp_path / "a", **more))
    rows = ort.sensitivity(parts.request(model, tmp_path / "s", **more), 8)

    said = next(s for s in built.steps if s.startswith("float because int8 would leave them noise: "))
    assert {"conv1", "conv2"} == set(said.partition(": ")[2].split(", "))
    assert {r.layer for r in rows} == {"conv0", "dense"}


def test_a_float_layer_reads_numbers_that_nothing_has_rounded(tmp_path, pictures):
    model = parts.network(tmp_path / "m.onnx")
    built = ort.build(parts.request(model, tmp_path / "a", precision="int8", images=pictures, float_layers=("conv1",)))
    made = onnx.load(str(built.files[0]))
    maker = {o: n.op_type for n in made.graph.node for o in n.output}
    inputs = {n.name: maker[n.input[0]] for n in made.graph.node if n.op_type == "Conv"}

    assert inputs == {"conv0": "DequantizeLinear", "conv1": "Relu", "conv2": "DequantizeLinear"}


def shared_head(path: Path, *, weighted: bool) -> Path:
    """Boxes up to 320 and scores up to 1 in one tensor; `weighted`: a convolution reads it before the output."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["image", "wb"], ["b"], pads=[1] * 4, name="boxes"),
        helper.make_node("Conv", ["image", "ws"], ["s"], pads=[1] * 4, name="logits"),
        helper.make_node("Sigmoid", ["s"], ["p"]),
        helper.make_node("Concat", ["b", "p"], ["joined"], axis=1, name="join"),
    ]
    constants = [
        convert_parts.const("wb", np.abs(rng.normal(60, 5, (4, 3, 3, 3)) / 27)),
        convert_parts.const("ws", rng.normal(0, 0.5, (2, 3, 3, 3))),
    ]
    if weighted:
        nodes.append(helper.make_node("Conv", ["joined", "we"], ["out"], name="mix"))
        constants.append(convert_parts.const("we", np.eye(6)[:, :, None, None]))
    out = "out" if weighted else "joined"
    return convert_parts.save(path, nodes, constants, [1, 3, 24, 24], [(out, [1, 6, 24, 24])])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("name", "method"), [("ort", ""), ("ort", "nncf"), ("openvino", "")])
def test_scores_beside_boxes_keep_their_own_steps_even_before_another_convolution(
    tmp_path, pictures, name, method, weighted
):
    model = shared_head(tmp_path / "m.onnx", weighted=weighted)
    back, runtime = BUILDS[name]
    out = "out" if weighted else "joined"

    def scores(**more):
        built = back.build(parts.request(model, tmp_path / more["precision"], **more))
        return np.concatenate([row[out][:, 4:] for row in parts.answers(runtime, built, pictures)])

    source = scores(precision="fp32")
    found = scores(precision="int8", method=method, images=pictures)

    assert source.std() > 0.05
    assert np.abs(found - source).mean() < 0.02
    assert all(len(np.unique(np.round(found[:, c], 3))) > 50 for c in range(2))


def test_joins_of_very_different_spans_are_found_with_the_weights_that_read_them(tmp_path):
    model = onnx.load(str(shared_head(tmp_path / "m.onnx", weighted=True)))
    images = [np.random.default_rng(0).random((1, 3, 24, 24), np.float32)]

    assert onnx_float.mixed(model, images) == {"join", "mix"}


def test_a_mean_over_a_softmax_is_decoding_and_stays_float(tmp_path, pictures):
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], pads=[1] * 4, name="conv"),
        helper.make_node("Softmax", ["c"], ["p"], axis=1, name="softmax"),
        helper.make_node("Conv", ["p", "sides"], ["box"], name="dfl"),
    ]
    constants = [
        convert_parts.const("w", rng.normal(0, 1, (16, 3, 3, 3))),
        convert_parts.const("sides", np.arange(16).reshape(1, 16, 1, 1)),
    ]
    path = convert_parts.save(tmp_path / "m.onnx", nodes, constants, [1, 3, 24, 24], [("box", [1, 1, 24, 24])])

    assert onnx_float.decoding(onnx.load(str(path))) == {"softmax", "dfl"}
    for name, (back, _) in BUILDS.items():
        built = back.build(parts.request(path, tmp_path / name, precision="int8", images=pictures))
        size = sum(f.stat().st_size for f in built.files)
        assert size > 0


def test_fp16_keeps_layers_with_large_numbers_in_float_and_refuses_what_overflows(tmp_path):
    model = onnx.load(str(parts.network(tmp_path / "m.onnx")))
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e6), "w1"))
        if tensor.name == "w2":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / np.float32(1e6), "w2"))
    onnx.save(model, str(tmp_path / "large.onnx"))

    built = ort.build(parts.request(tmp_path / "large.onnx", tmp_path / "a", precision="fp16"))
    plain = ort.build(parts.request(tmp_path / "large.onnx", tmp_path / "b", precision="fp32"))
    frames = parts.pictures(tmp_path / "frames", 3)
    assert any("nodes float because they hold numbers above" in step for step in built.steps)
    assert np.abs(probs("ort", built, frames) - probs("ort", plain, frames)).max() < 0.01

    nodes = [helper.make_node("Mul", ["image", "k"], ["y"])]
    huge = convert_parts.save(
        tmp_path / "huge.onnx", nodes, [convert_parts.const("k", 1000.0)], [1, 3, 24, 24], [("y", [1, 3, 24, 24])]
    )
    scaled = parts.request(huge, tmp_path / "c", precision="fp16")
    built = ort.build(scaled)
    values = parts.answers("onnxruntime", built, frames)
    assert np.isfinite(values[0]["y"]).all()


def test_an_opset_that_is_too_new_is_refused_with_both_versions(tmp_path):
    model = onnx.load(str(parts.network(tmp_path / "m.onnx")))
    model.opset_import[0].version = 99
    onnx.save(model, str(tmp_path / "new.onnx"))

    with pytest.raises(ConversionError, match=r"opset 99.*reads up to \d+") as caught:
        ort.build(parts.request(tmp_path / "new.onnx", tmp_path / "a", precision="fp32"))
    assert "export" in caught.value.hint


def test_an_operator_that_openvino_lacks_is_named(tmp_path):
    nodes = [helper.make_node("Det", ["image"], ["y"])]
    path = convert_parts.save(tmp_path / "m.onnx", nodes, [], [1, 3, 24, 24], [("y", [1, 3])])

    with pytest.raises(BackendError, match=r"openvino .* cannot convert the model: .*Det"):
        openvino.build(parts.request(path, tmp_path / "a", precision="fp32"))


def test_int8_without_images_asks_for_them(tmp_path):
    model = parts.network(tmp_path / "m.onnx")
    for name, (back, _) in BUILDS.items():
        with pytest.raises(CalibrationError, match="int8 needs calibration images") as caught:
            back.build(parts.request(model, tmp_path / name, precision="int8"))
        assert "--calibration" in caught.value.hint


def test_openvino_starts_from_an_ir_with_the_preprocessing_folded(tmp_path, pictures):
    import openvino as ov

    model, path = parts.network(tmp_path / "m.onnx"), tmp_path / "source.xml"
    wanted = probs("openvino", openvino.build(parts.request(model, tmp_path / "o", precision="fp32")), pictures)
    ov.save_model(ov.convert_model(str(model)), str(path), compress_to_fp16=False)
    more = {"form": "openvino", "outputs": ("probs",)}

    for precision, limit in {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.1}.items():
        images = pictures if precision == "int8" else ()
        built = openvino.build(parts.request(path, tmp_path / precision, precision=precision, images=images, **more))
        assert (built.input.dtype, built.input.layout) == ("uint8", "NHWC")
        assert np.abs(probs("openvino", built, pictures) - wanted).max() < limit
    asked = parts.request(path, tmp_path / "s", precision="int8", images=pictures, **more)
    assert len(openvino.sensitivity(asked, 4)) == 4


def test_openvino_starts_from_a_tflite_file_and_answers_as_litert_does(testdata, tmp_path):
    pytest.importorskip("ai_edge_litert")
    from edge_sdk import runtimes
    from edge_sdk.schemas.manifest import InputSpec
    from edge_sdk.tasks.preprocess import Preprocessor

    model = testdata / "models" / "mlperf_resnet8_cifar10_f.tflite"
    engine = runtimes.registry().load("litert")(model, {"threads": 1})
    name, out = engine.inputs[0].name, engine.outputs[0].name
    spec = InputSpec(name=name, shape=(1, 32, 32, 3), dtype="float32", layout="NHWC", color="rgb")
    frames = parts.pictures(tmp_path / "frames", 8, size=32)
    built = openvino.build(
        parts.request(model, tmp_path / "o", precision="fp32", form="tflite", input=spec, outputs=(out,))
    )
    found = parts.answers("openvino", built, frames)

    import cv2

    prepare = Preprocessor(spec)
    for frame, row in zip(frames, found, strict=True):
        wanted = engine.infer({name: prepare(cv2.imread(frame))[0]})[out]
        np.testing.assert_allclose(row[out], wanted, atol=1e-3)
    engine.close()
    assert built.input.dtype == "uint8"


def test_a_quantized_source_keeps_its_integers_and_is_not_rounded_again(tmp_path, pictures):
    model = parts.network(tmp_path / "m.onnx")
    once = openvino.build(parts.request(model, tmp_path / "a", precision="int8", images=pictures))
    words = {"precision": "int8", "images": pictures, "form": "openvino", "outputs": ("probs",)}

    again = openvino.build(parts.request(once.files[0], tmp_path / "b", **words))

    assert "integers of the source kept" in again.steps
    with pytest.raises(ConversionError, match="the source is quantized already"):
        openvino.build(parts.request(once.files[0], tmp_path / "c", method="accuracy", **words))


def test_qdq_onnx_keeps_its_integers_in_int8_with_the_same_answers(tmp_path, pictures):
    model = parts.network(tmp_path / "m.onnx")
    once = ort.build(parts.request(model, tmp_path / "a", precision="int8", images=pictures))
    (tmp_path / "again").mkdir()
    source = Source.from_json(inspect(str(once.files[0]), tmp_path / "again", {}))

    more = {"precision": "int8", "input": once.input}
    again = ort.build(parts.request(Path(source.forms["onnx"]), tmp_path / "b", **more))

    assert source.precision == "int8"
    assert "integers of the source kept" in again.steps
    np.testing.assert_array_equal(probs("ort", once, pictures), probs("ort", again, pictures))


def tuned(path: Path, out: Path, share: float) -> Path:
    """The same network after a little more training: weights moved by `share` of their spread."""
    rng = np.random.default_rng(5)
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if tensor.name.startswith("w"):
            values = numpy_helper.to_array(tensor)
            moved = values + rng.normal(0, share * values.std(), values.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    onnx.save(model, str(out))
    return out


@pytest.mark.parametrize(("name", "method"), [("ort", ""), ("ort", "nncf"), ("openvino", "")])
def test_with_a_base_the_next_version_is_a_smaller_delta_and_still_answers_rightly(tmp_path, pictures, name, method):
    bsdiff4 = pytest.importorskip("bsdiff4")
    back, _ = BUILDS[name]
    first, second = parts.network(tmp_path / "m.onnx"), tmp_path / "n.onnx"
    tuned(first, second, 0.01)
    more = {"precision": "int8", "method": method, "images": pictures}
    base = back.build(parts.request(first, tmp_path / "base", **more))

    fresh = back.build(parts.request(second, tmp_path / "fresh", **more))
    kept = back.build(parts.request(second, tmp_path / "kept", base=base.files[0], **more))
    source = back.build(parts.request(second, tmp_path / "source", precision="fp32"))

    old, *new = (b.files[-1].read_bytes() for b in (base, fresh, kept))
    plain, small = (len(bsdiff4.diff(old, n)) for n in new)
    assert any(s.startswith("scales of the base used again: ") for s in kept.steps)
    assert small < 0.95 * plain
    assert np.abs(probs(name, kept, pictures) - probs(name, source, pictures)).max() < 0.06


@pytest.mark.parametrize("name", BUILDS)
def test_a_float_base_is_refused_with_what_is_wanted(tmp_path, pictures, name):
    back, _ = BUILDS[name]
    model = parts.network(tmp_path / "m.onnx")
    plain = back.build(parts.request(model, tmp_path / "f", precision="fp32"))

    with pytest.raises(ConversionError, match="the base's model has no int8 scales to use again") as caught:
        back.build(parts.request(model, tmp_path / "a", precision="int8", images=pictures, base=plain.files[0]))
    assert "--base" in caught.value.hint


def test_ranges_and_scales_are_kept_only_while_they_fit():
    assert reuse.range_fits((0.0, 10.5), (0.0, 10.0))
    assert not reuse.range_fits((0.0, 11.5), (0.0, 10.0))
    assert not reuse.range_fits((0.0, 1.0), (0.0, 0.0))
    zero, one = np.zeros(1), np.float32([1])
    values = reuse.integers(np.float32([[1.6, 1.7, -200]]), one, zero, np.int8([[1, 1, 0]]), 127)
    assert values.tolist() == [[1, 2, -127]]


def test_weights_keep_their_integers_when_a_channel_was_scaled_as_a_whole():
    rng = np.random.default_rng(0)
    before = rng.integers(-127, 128, (3, 200)).astype(np.int8)
    old = np.float32([0.1, 0.1, 0.1])
    exact = before * old[:, None] * np.array([[1.001], [1.1], [3.0]])
    new = (np.abs(exact).max(axis=1) / 127).astype(np.float32)

    used, made, kept = reuse.weights(exact, new, old, np.zeros(3), before, top=127)

    assert (made == before).all()
    assert kept == 600
    assert used[0] == np.float32(0.1)
    np.testing.assert_allclose(used[1:], [0.11, 0.3], rtol=1e-3)


def test_agreement_counts_each_channel_of_an_output():
    rng = np.random.default_rng(0)
    output = np.concatenate([rng.normal(300, 80, (1, 1, 500)), rng.random((1, 1, 500))], axis=1)
    collapsed = output.copy()
    collapsed[:, 1] = 0

    assert sqnr.agreement([output], [output]) == 1.0
    assert sqnr.agreement([collapsed], [output]) == pytest.approx(0.5)
    assert np.corrcoef(output.ravel(), collapsed.ravel())[0, 1] > 0.999


def test_the_file_has_standard_operators_only(tmp_path):
    model, _, _, _ = fold(parts.request(parts.network(tmp_path / "m.onnx"), tmp_path / "a", precision="fp32"))
    optimise(model, tmp_path / "o.onnx")
    made = onnx.load(str(tmp_path / "o.onnx"))

    assert {n.domain for n in made.graph.node} == {""}
    assert [o.domain for o in made.opset_import] == [""]
    assert TensorProto.FLOAT in {t.data_type for t in made.graph.initializer}
