"""What a graph shows of task and decoder, and what a plan makes of it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, checker, helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
from converters import graph
from converters.frontends import check, registry
from converters.frontends.base import Source, TensorInfo, fix_sizes, sniff
from converters.frontends.canonical import canonical
from converters.frontends.ops import Node, OpGraph
from converters.frontends.parity import compare, examples, require
from converters.frontends.recognise import recognise
from converters.plan import decide
from converters.recipe import Recipe
from edge_sdk.errors import BackendError, ConversionError, UsageError
from edge_sdk.schemas.manifest import InputSpec
from edge_sdk.tasks.preprocess import Preprocessor


def source(*outputs: tuple[int, ...], dtype: str = "float32", **more) -> Source:
    return Source(
        path="m.onnx", format="onnx", sha256="", layout="NCHW",
        input=TensorInfo(name="x", shape=(1, 3, 320, 320), dtype="float32"),
        outputs=tuple(TensorInfo(name=f"y{k}", shape=s, dtype=dtype) for k, s in enumerate(outputs)), **more,
    )  # fmt: skip


HEAD = OpGraph([Node("Conv", ("x", "w"), ("c",)), Node("Sigmoid", ("c",), ("s",)), Node("Mul", ("s", "k"), ("y0",))])
CELLS = 1600 + 400 + 100


@pytest.mark.parametrize(
    ("shape", "decoder"), [((1, 84, CELLS), "yolov8"), ((1, 3 * CELLS, 85), "yolov5"), ((1, 84, CELLS + 1), None)]
)
@pytest.mark.parametrize("side", [1.0, 320.0])
def test_boxes_in_pixels_are_told_from_fractions_by_one_run(shape, decoder, side):
    found = recognise(HEAD, source(shape), lambda value: {"y0": np.full(shape, side, np.float32)})

    assert found.decoder == decoder
    assert found.decoder_params.get("normalized") == (None if decoder is None else side == 1.0)


def test_a_head_whose_boxes_cannot_be_seen_stays_unknown():
    nan = np.full((1, 84, CELLS), np.nan, np.float32)

    assert recognise(HEAD, source((1, 84, CELLS))).decoder is None
    assert recognise(HEAD, source((1, 84, CELLS)), lambda value: {"y0": nan}).decoder is None


def test_class_ids_for_each_pixel_tell_how_many_classes_there_are():
    ops = [Node("Conv", ("x", "w"), ("c",)), Node("ArgMax", ("c",), ("y0",))]
    found = recognise(OpGraph(ops, {"c": (1, 19, 320, 320)}), source((1, 320, 320), dtype="int64"))
    blind = recognise(OpGraph(ops), source((1, 320, 320), dtype="int64"))

    assert (found.decoder, found.classes, blind.decoder) == ("argmax_mask", 19, None)


def test_rows_of_seven_leave_the_background_out_as_the_operation_says():
    def found(facts):
        ops = [Node("Conv", ("x", "w"), ("c",)), Node("DetectionOutput", ("c",), ("d",), facts)]
        return recognise(OpGraph([*ops, Node("Cast", ("d",), ("y0",))]), source((1, 1, 200, 7)))

    with_background = found({"num_classes": 3, "background_label_id": 0})
    without = found({"num_classes": 3, "background_label_id": -1})

    assert (with_background.classes, with_background.decoder_params) == (2, {"label_offset": -1})
    assert (without.classes, without.decoder_params) == (3, {})


@pytest.mark.parametrize(
    ("task", "outputs", "decoder"),
    [
        ("regression", [(1, 3)], "regression"),
        ("regression", [(1, 3), (1, 1)], "regression"),
        ("embedding", [(1, 128)], "embedding"),
        ("classification", [(1, 10)], "softmax"),
        ("segmentation", [(1, 4, 80, 80)], "argmax_mask"),
        ("keypoints", [(1, 1, 33, 3)], "movenet"),
        ("detection", [(1, 100, 6)], None),
        ("embedding", [(1, 128), (1, 3)], None),
        ("keypoints", [(1, 34)], None),
    ],
)
def test_a_named_task_with_one_decoder_needs_no_second_flag(task, outputs, decoder):
    recipe = Recipe(task=task, color="rgb", resize="stretch", mean=(0.0,), std=(255.0,))
    if decoder is None:
        with pytest.raises(UsageError) as caught:
            decide(recipe, source(*outputs), labelled_for=None, names=())
        assert "--decoder NAME" in (caught.value.hint or "")
        return
    plan = decide(recipe, source(*outputs), labelled_for=None, names=())

    assert (plan.task, plan.decoder) == (task, decoder)


def test_labels_of_the_file_come_before_the_golden_sets_and_lose_what_is_skipped():
    known = source((1, 3), classes=3, task="classification", decoder="softmax", labels=("background", "cat", "dog"))
    flags = {"color": "rgb", "resize": "stretch", "mean": (0.0,), "std": (255.0,)}

    assert decide(Recipe(**flags), known, labelled_for=None, names=("a", "b", "c")).labels == known.labels
    skipped = decide(Recipe(**flags, skip_classes=1), known, labelled_for=None, names=("b", "c"))
    assert (skipped.labels, skipped.decoder_params["skip"]) == (("cat", "dog"), 1)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize(
    ("scale", "zero", "mean", "std"),
    [(None, None, 0.0, 1.0), (0.0187, 114, (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)), (0.0078125, 128, 127.5, 127.5)],
)
def test_folded_preprocessing_gives_an_integer_input_what_the_preprocessor_gives(dtype, layout, scale, zero, mean, std):
    kind = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}[dtype]
    shape = (1, 8, 6, 3) if layout == "NHWC" else (1, 3, 8, 6)
    if zero is not None and dtype == "int8":
        zero -= 128
    spec = InputSpec(
        name="x", shape=shape, dtype=dtype, layout=layout, color="bgr", mean=tuple(np.ravel(mean)),
        std=tuple(np.ravel(std)), scale=scale, zero=zero,
    )  # fmt: skip
    ends = [helper.make_tensor_value_info(n, kind, shape) for n in ("x", "y")]
    model = helper.make_model(
        helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:]),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    folded, _ = graph.fold_preprocessing(
        model, mean=spec.mean, std=spec.std, layout=layout, channels=3, scale=scale, zero=zero
    )
    checker.check_model(folded)
    frame = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)

    got = ort.InferenceSession(folded.SerializeToString()).run(None, {"x": frame[None]})[0]
    assert np.array_equal(got, Preprocessor(spec)(frame)[0])


@pytest.mark.parametrize(
    ("sizes", "layout", "size", "fixed"),
    [
        (("batch", 3, 20, 30), None, None, (1, 3, 20, 30)),
        ((None, 3, "h", "w"), None, (64, 32), (1, 3, 32, 64)),
        ((None, None, None, 3), None, (64, 32), (1, 32, 64, 3)),
        ((1, 3, 20, 30), None, (30, 20), (1, 3, 20, 30)),
    ],
)
def test_only_open_sizes_are_filled(sizes, layout, size, fixed):
    assert fix_sizes("x", sizes, layout, size) == fixed


def test_an_open_size_without_the_flag_is_asked_for():
    with pytest.raises(UsageError, match=r"the input `x` has the dynamic shape \[1, 3, h, \?\]"):
        fix_sizes("x", ("n", 3, "h", None), None, None)


def test_forms_with_other_answers_are_refused_with_the_output_and_the_distance():
    spec = TensorInfo(name="x", shape=(1, 8, 8, 3), dtype="float32")
    outputs = [TensorInfo(name="y", shape=(1, 3), dtype="float32")]

    def run(gain):
        return lambda value: {"y": value.mean((1, 2)) * gain}

    same = compare(spec, outputs, run(1.0), run(1.0 + 1e-6), rounds=False)
    other = compare(spec, outputs, run(1.0), run(1.1), rounds=False)

    assert "a to b: same answers, largest difference" in require(same, "a to b", "c")
    with pytest.raises(ConversionError, match=r"a to b: the answers differ, `y` by 1.0e-01 of its range \(limit 0.001"):
        require(other, "a to b", "c")
    with pytest.raises(ConversionError, match="NaN or infinity on plain pictures"):
        compare(spec, outputs, run(float("nan")), run(1.0), rounds=False)


def test_an_exported_graph_has_the_same_bytes_however_the_exporter_walked():
    def model(order, counter):
        names = {k: f"{k}__{counter + i}" for i, k in enumerate(("a", "b", "w", "v"))}
        nodes = {
            "a": helper.make_node("Mul", ["x", names["w"]], [names["a"]]),
            "b": helper.make_node("Mul", ["x", names["v"]], [names["b"]]),
            "y": helper.make_node("Add", [names["a"], names["b"]], ["y"]),
            "lost": helper.make_node("Neg", ["x"], ["nowhere"]),
        }
        values = [helper.make_tensor(names[k], TensorProto.FLOAT, [1], [v]) for k, v in (("w", 2.0), ("v", 3.0))]
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y")]
        chosen = [nodes[k] for k in order]
        drawn = helper.make_graph(chosen, "g", ends[:1], ends[1:], values if counter else values[::-1])
        return helper.make_model(drawn, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)

    one = canonical(model(["a", "b", "lost", "y"], 0))
    two = canonical(model(["b", "a", "y"], 7))

    assert one.SerializeToString() == two.SerializeToString()
    checker.check_model(one)
    session = ort.InferenceSession(one.SerializeToString())
    assert session.run(None, {"x": np.array([4.0], np.float32)})[0] == pytest.approx([20.0])


def test_parity_is_looked_at_in_both_usual_ranges_of_pixels():
    first, second = examples(TensorInfo(name="x", shape=(1, 3, 20, 30), dtype="float32"))

    assert first.shape == second.shape == (1, 3, 20, 30)
    assert first.min() < -0.5
    assert second.max() > 200


@pytest.mark.parametrize(
    ("recipe", "kind", "message"),
    [
        ({"factory": "a:b"}, "tflite", "is a TFLite model, --factory is for PyTorch"),
        ({"signature": "s"}, "onnx", "is a ONNX model, --signature is for SavedModel"),
        ({"opset": 17}, "openvino", "--opset is for PyTorch and Keras and SavedModel and TFLite"),
    ],
)
def test_a_flag_for_another_format_is_refused(recipe, kind, message):
    with pytest.raises(UsageError, match=message) as caught:
        check(kind, Recipe(model=Path("m"), **recipe))
    assert "leave out --" in (caught.value.hint or "")


def test_every_format_that_is_told_apart_has_a_front_end_with_a_title():
    table = registry()

    assert set(table.names()) >= {"onnx", "torch", "keras", "hdf5", "savedmodel", "tflite", "openvino"}
    assert all(table.plugin(name).capabilities["title"] for name in table.names())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.pth", b"", "`m.pth` is empty"),
        ("m.tflite", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        ("m.txt", b"hello there", "is no model that is known: it begins with"),
    ],
)
def test_files_that_are_no_model_are_named_in_every_format(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ConversionError, match=message):
        sniff(tmp_path / name)


def test_zip_archives_are_told_apart_by_what_they_hold(tmp_path):
    import zipfile

    for name, entries in {"a.zip": ("config.json", "model.weights.h5"), "b.bin": ("b/data.pkl",)}.items():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for entry in entries:
                archive.writestr(entry, "x")

    assert (sniff(tmp_path / "a.zip"), sniff(tmp_path / "b.bin")) == ("keras", "torch")


def test_a_folder_that_is_no_savedmodel_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"is a folder without saved_model\.pb"):
        sniff(tmp_path)
    with pytest.raises(UsageError, match="no such model"):
        sniff(tmp_path / "nothing.pt2")


def test_a_missing_package_names_the_extra_of_its_format(monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else real(name, *a))

    with pytest.raises(BackendError, match="is a PyTorch model, which needs `torch`; it is not installed") as caught:
        check("torch", Recipe(factory="a:b"))
    assert "edge-sdk[convert,torch]" in (caught.value.hint or "")
