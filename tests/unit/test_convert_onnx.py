"""ONNX in: what is refused, what is fixed, what is recognised."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters import graph
from converters.backends.base import BuildRequest
from converters.backends.onnx_prepare import fold
from converters.frontends.base import Source, sniff
from converters.frontends.onnx import inspect
from converters.plan import decide
from converters.recipe import Recipe, from_flags, parse_resize, parse_size
from edge_sdk.errors import BackendError, ConfigError, ConversionError, UsageError
from edge_sdk.schemas.manifest import InputSpec

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
import convert_parts as parts


def read(path: Path, tmp_path: Path, **more) -> Source:
    return Source.from_json(inspect(str(path), tmp_path, more))


@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("yolox_nano_416", "yolox"),
        ("nanodet_m_320", "nanodet"),
        ("fastestdet_352", "fastestdet"),
        ("ultraface_rfb_320", "ultraface"),
        ("ultraface_slim_320_simplified", "ultraface"),
        ("yunet_n_320", "yunet"),
        ("deeplabv3_float_257", "argmax_mask"),
        ("road_segmentation_adas", "argmax_mask"),
        ("headpose_fsanet_1x1", None),
    ],
)
def test_real_models_are_recognised_by_their_graph(testdata, tmp_path, name, decoder):
    copy = tmp_path / "model.onnx"
    copy.write_bytes((testdata / "models" / f"{name}.onnx").read_bytes())

    assert read(copy, tmp_path).decoder == decoder


def test_raw_anchor_deltas_are_told_from_decoded_boxes(testdata, tmp_path):
    decoded = {
        name: read(testdata / "models" / f"ultraface_{name}.onnx", tmp_path).decoder_params["decoded"]
        for name in ("rfb_320", "slim_320_simplified")
    }

    assert decoded == {"rfb_320": True, "slim_320_simplified": False}


def test_a_softmax_is_a_classifier_and_bare_logits_are_asked_for(tmp_path):
    sure = read(parts.classifier(tmp_path / "a.onnx"), tmp_path)
    bare = read(parts.classifier(tmp_path / "b.onnx", softmax=False), tmp_path)

    assert (sure.decoder, sure.classes) == ("softmax", 3)
    assert (bare.decoder, bare.classes) == (None, 3)
    with pytest.raises(UsageError) as caught:
        decide(Recipe(), bare, labelled_for=None, names=())
    assert all(f in (caught.value.hint or "") for f in ("--decoder", "--color", "--resize", "--mean", "--std"))
    assert decide(
        Recipe(color="rgb", resize="stretch", mean=(0.0,), std=(255.0,)),
        bare,
        labelled_for="classification",
        names=(),
    ).decoder_params == {"logits": True}


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", ConversionError, "`m.onnx` is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ConversionError, "is a Git LFS pointer of 56"),
    ],
)
def test_files_that_are_no_model_are_named_for_what_they_are(tmp_path, content, error, message):
    (tmp_path / "m.onnx").write_bytes(content)

    with pytest.raises(error, match=message):
        sniff(tmp_path / "m.onnx")


def test_a_damaged_file_is_said_to_be_damaged(tmp_path):
    path = parts.classifier(tmp_path / "a.onnx")
    path.write_bytes(path.read_bytes()[:300])

    with pytest.raises(ConversionError, match="is not an ONNX model, or it is cut short"):
        read(path, tmp_path)


def test_nan_weights_are_refused_and_the_weight_named(tmp_path):
    path = parts.classifier(tmp_path / "a.onnx")
    model = onnx.load(str(path))
    weights = np.array(numpy_helper.to_array(model.graph.initializer[0]))
    weights[0, 0, 0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w1"))
    onnx.save(model, str(path))

    with pytest.raises(ConversionError, match="1 NaN values in the weight `w1`"):
        read(path, tmp_path)


def test_operators_of_another_domain_are_refused_by_name(testdata, tmp_path):
    with pytest.raises(BackendError, match=r"`DecodeImage` of the domain `com.microsoft.extensions`"):
        read(testdata / "bad/superres_needs_ort_extensions.onnx", tmp_path)


def test_a_dynamic_batch_becomes_one_and_a_dynamic_size_is_asked_for(tmp_path):
    path = parts.classifier(tmp_path / "a.onnx")
    model = onnx.load(str(path))
    size = model.graph.input[0].type.tensor_type.shape
    size.dim[0].dim_param = "batch"
    onnx.save(model, str(path))
    assert read(path, tmp_path).input.shape == (1, 3, 32, 32)

    size.dim[2].dim_param, size.dim[3].dim_param = "h", "w"
    onnx.save(model, str(path))
    with pytest.raises(UsageError) as caught:
        read(path, tmp_path)
    assert "dynamic shape [1, 3, h, w]" in caught.value.message
    assert "--size" in (caught.value.hint or "")
    assert read(path, tmp_path, size=(48, 24)).input.shape == (1, 3, 24, 48)


def test_two_inputs_are_refused_and_listed(tmp_path):
    nodes = [helper.make_node("Add", ["image", "other"], ["y"])]
    path = parts.save(tmp_path / "a.onnx", nodes, [], [1, 3, 8, 8], [("y", [1, 3, 8, 8])])
    model = onnx.load(str(path))
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1, 3, 8, 8]))
    onnx.save(model, str(path))

    with pytest.raises(ConversionError, match=r"one image input .* it has image \[1, 3, 8, 8\], other"):
        read(path, tmp_path)


@pytest.mark.parametrize(("layout", "shape"), [("NCHW", (1, 3, 4, 5)), ("NHWC", (1, 4, 5, 3)), ("NCHW", (1, 1, 4, 5))])
def test_folded_preprocessing_is_the_float_preprocessing(tmp_path, layout, shape):
    import onnxruntime as ort

    nodes = [helper.make_node("Identity", ["image"], ["y"])]
    path = parts.save(tmp_path / "a.onnx", nodes, [], shape, [("y", shape)])
    channels = shape[1] if layout == "NCHW" else shape[3]
    mean, std = [7.0, 8.0, 9.0][:channels], [2.0, 3.0, 4.0][:channels]
    folded, _ = graph.fold_preprocessing(onnx.load(str(path)), mean=mean, std=std, layout=layout, channels=channels)
    pixels = np.random.default_rng(0).integers(0, 255, (1, 4, 5, channels), np.uint8)
    expected = (pixels.astype(np.float32) - np.array(mean)) / np.array(std)
    expected = expected.transpose(0, 3, 1, 2) if layout == "NCHW" else expected

    found = ort.InferenceSession(folded.SerializeToString()).run(None, {"image": pixels})[0]

    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resizing_of_an_old_opset_stays_what_it_was(tmp_path, mode):
    import onnxruntime as ort

    nodes = [
        helper.make_node("Upsample", ["image", "scales"], ["up"], mode=mode),
        helper.make_node("Relu", ["up"], ["y"]),
    ]
    constants = [parts.const("scales", [1, 1, 2.5, 3])]
    path = parts.save(tmp_path / "a.onnx", nodes, constants, [1, 3, 4, 5], [("y", [1, 3, 10, 15])], opset=9)
    spec = InputSpec(name="image", shape=(1, 3, 4, 5), dtype="float32", layout="NCHW", color="rgb")
    model, _, _, steps = fold(BuildRequest(model=path, out=tmp_path, precision="fp32", input=spec))
    pixels = np.random.default_rng(0).integers(0, 255, (1, 4, 5, 3), np.uint8)
    before = ort.InferenceSession(str(path)).run(None, {"image": pixels.transpose(0, 3, 1, 2).astype(np.float32)})[0]

    after = ort.InferenceSession(model.SerializeToString()).run(None, {"image": pixels})[0]

    assert "opset 9 -> 13" in steps
    np.testing.assert_allclose(after, before, atol=1e-3)


def test_the_tail_after_the_last_weights_and_the_first_layers_are_found(tmp_path):
    model = onnx.load(str(parts.classifier(tmp_path / "a.onnx")))

    assert [n.op_type for n in graph.tail(model)] == ["Softmax"]
    assert [n.op_type for n in graph.head(model, 1)] == ["Conv", "Relu"]
    assert {n.op_type for n in graph.last(model, 1)} == {"Softmax", "Gemm"}


def test_a_recipe_has_the_keys_of_the_flags_and_flags_win(tmp_path):
    (tmp_path / "r.toml").write_text('profile = "generic-cpu"\ngolden = "g"\nmax_drop = 0.05\nmean = 127.5\n')

    recipe = from_flags({"max_drop": 0.02, "task": None}, tmp_path / "r.toml")

    assert (recipe.profile, recipe.max_drop, recipe.mean) == (("generic-cpu",), 0.02, (127.5,))
    assert recipe.golden == tmp_path / "g"


def test_every_wrong_key_of_a_recipe_is_reported_at_once(tmp_path):
    (tmp_path / "r.toml").write_text('profiles = ["a"]\nmax_drop = 3\n')

    with pytest.raises(ConfigError) as caught:
        from_flags({}, tmp_path / "r.toml")

    assert len(caught.value.problems) == 2
    assert "did you mean `profile`?" in caught.value.message


def test_a_std_in_shares_is_refused_with_the_pixels_it_stands_for():
    with pytest.raises(UsageError) as caught:
        from_flags({"mean": [0.485], "std": [0.5]}, None)

    assert "--std 127.5" in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["pad", "stretch:center", "letterbox:300", "letterbox:left"])
def test_an_unknown_resize_is_refused(text):
    with pytest.raises(UsageError, match="is not known"):
        parse_resize(text)


def test_resize_and_size_are_read():
    assert parse_resize("letterbox:topleft:114") == {"mode": "letterbox", "align": "topleft", "pad": 114}
    assert parse_size("320x240") == (320, 240)
    with pytest.raises(UsageError, match="is not WIDTHxHEIGHT"):
        parse_size("320")
