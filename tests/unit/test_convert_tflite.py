"""TFLite in: what the file shows, what its metadata says, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from converters import tflite_graph
from converters.backends.base import BuildRequest
from converters.frontends import inspect, tflite_metadata
from converters.frontends.base import Preprocess, Source, TensorInfo, sniff
from converters.frontends.tflite import integer_pixels
from converters.plan import decide
from converters.recipe import Recipe
from edge_sdk.errors import BackendError, ConversionError, UsageError
from edge_sdk.runtimes.litert import LiteRtRuntime
from edge_sdk.tasks.preprocess import Preprocessor


def read(path: Path, work: Path, **options) -> Source:
    work.mkdir(exist_ok=True)
    return Source.from_json(inspect(str(path), str(work), options))


@pytest.fixture(scope="module")
def real(testdata, tmp_path_factory):
    """A function from a name to its source, read once."""
    found: dict[str, Source] = {}

    def get(name: str) -> Source:
        if name not in found:
            found[name] = read(testdata / "models" / f"{name}.tflite", tmp_path_factory.mktemp(name))
        return found[name]

    return get


@pytest.mark.parametrize(
    ("name", "decoder", "classes"),
    [
        ("blazeface_short_range", "blazeface", 1),
        ("mlperf_resnet8_cifar10_f", "softmax", 10),
        ("mlperf_resnet8_cifar10_int8", "softmax", 10),
        ("vww_96_float", "softmax", 2),
        ("deeplabv3_mnv2_dm05_quant", "argmax_mask", 21),
        ("movenet_lightning_ptq", "movenet", 17),
        ("ssd_mobilenet_v1_coco_quant", "ssd_pp", 90),
        ("yolox_nano_int8", "yolox", 80),
    ],
)
def test_real_files_are_recognised_by_their_operations(real, name, decoder, classes):
    found = real(name)

    assert (found.format, found.reference, found.decoder, found.classes) == ("tflite", "tflite", decoder, classes)
    assert Path(found.forms["tflite"]).is_file()


def test_a_float_file_has_an_onnx_form_whose_answers_are_the_same(real):
    pytest.importorskip("tf2onnx")
    found = real("vww_96_float")

    assert found.opset == 18
    assert any(line.startswith("TFLite to ONNX opset 18: same answers") for line in found.because)


def test_an_integer_file_has_a_float_onnx_form_with_close_answers_and_float_outputs(real):
    pytest.importorskip("tf2onnx")
    import onnx

    found = real("mlperf_resnet8_cifar10_int8")
    model = onnx.load(found.forms["onnx"])

    assert (found.quantized, found.input.dtype, found.outputs[0].scale) == (True, "int8", 1 / 256)
    assert any("in float arithmetic: close answers" in line for line in found.because)
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert model.graph.output[0].name == found.outputs[0].name


def test_a_detector_with_its_post_processing_has_an_onnx_form_judged_by_its_scores(real):
    pytest.importorskip("tf2onnx")
    found = real("ssd_mobilenet_v1_coco_quant")

    assert "onnx" in found.forms
    assert any("close answers, the strongest score differs by 0.0" in line for line in found.because)


def test_the_four_outputs_of_a_detector_come_in_the_order_of_its_post_processing(real):
    found = real("ssd_mobilenet_v1_coco_quant")

    assert [o.shape for o in found.outputs] == [(1, 10, 4), (1, 10), (1, 10), (1,)]
    assert found.outputs[1].name.endswith(":1")


def test_post_processing_is_kept_inside_the_build_and_sees_what_the_file_sees(real, testdata, tmp_path):
    pytest.importorskip("ai_edge_quantizer")
    from converters.backends import litert
    from converters.images import read as picture

    found = real("ssd_mobilenet_v1_coco_quant")
    plan = decide(Recipe(resize="stretch"), found, labelled_for=None, names=())
    names, model = tuple(o.name for o in found.outputs), Path(found.forms["tflite"])
    ask = {"model": model, "form": "tflite", "input": plan.input, "outputs": names}
    built = litert.build(BuildRequest(out=tmp_path, precision="int8", **ask))
    photos = sorted((testdata / "datasets" / "coco128_train2017" / "images").iterdir())[:4]
    source, kept = (
        [engine.infer({plan.input.name: prepare(picture(str(photo)))[0]}) for photo in photos]
        for engine, prepare in (
            (LiteRtRuntime(path, {"threads": 1}), Preprocessor(spec))
            for path, spec in ((model, plan.input), (built.files[0], built.input))
        )
    )

    assert b"TFLite_Detection_PostProcess" in built.files[0].read_bytes()
    assert built.outputs == names
    assert max(float(row[names[2]].max()) for row in source) > 0.5
    for row, wanted in zip(kept, source, strict=True):
        for name in names:
            np.testing.assert_array_equal(row[name], wanted[name])


def test_labels_and_colour_come_from_the_metadata(real):
    found = real("ssd_mobilenet_v1_coco_quant")
    plan = decide(Recipe(resize="stretch"), found, labelled_for=None, names=())

    assert found.labels[:2] == ("person", "bicycle")
    assert found.preprocess.color == "rgb"
    assert plan.labels == found.labels
    assert (plan.input.dtype, plan.input.scale, plan.input.mean, plan.input.std) == ("uint8", None, (0.0,), (1.0,))


def test_what_the_file_does_not_tell_is_asked_for(real):
    with pytest.raises(UsageError) as caught:
        decide(Recipe(), real("vww_96_float"), labelled_for=None, names=())

    assert all(flag in (caught.value.hint or "") for flag in ("--color", "--resize", "--mean", "--std"))
    assert "--decoder" not in (caught.value.hint or "")


def info(dtype: str, scale: float | None, zero: int) -> TensorInfo:
    return TensorInfo(name="x", shape=(1, 8, 8, 3), dtype=dtype, scale=scale, zero=zero)


@pytest.mark.parametrize(
    ("dtype", "scale", "zero"),
    [
        ("uint8", 0.0078125, 128),
        ("uint8", 0.007843138, 127),
        ("uint8", 1 / 255, 0),
        ("uint8", 1.0, 0),
        ("int8", 0.003921568859368563, -128),
        ("int8", 1.0, -128),
        ("int8", 0.007843138, -1),
    ],
)
def test_integers_that_stand_for_a_usual_range_are_the_pixels(dtype, scale, zero):
    from edge_sdk.schemas.manifest import InputSpec
    from edge_sdk.tasks.preprocess import Preprocessor

    known = integer_pixels(info(dtype, scale, zero))
    assert known is not None
    assert known.mean is not None
    assert known.std is not None
    spec = InputSpec(
        name="x", shape=(1, 16, 16, 3), dtype=dtype, layout="NHWC", color="bgr", mean=known.mean, std=known.std,
        scale=scale, zero=zero,
    )  # fmt: skip
    frame = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)

    assert np.array_equal(Preprocessor(spec)(frame)[0][0], frame.astype(int) + np.iinfo(dtype).min)


@pytest.mark.parametrize(("dtype", "scale", "zero"), [("uint8", 0.0187, 114), ("uint8", None, 0), ("int16", 1.0, 0)])
def test_integers_of_another_range_say_nothing_of_pixels(dtype, scale, zero):
    assert integer_pixels(info(dtype, scale, zero)) is None


def test_an_unusual_range_needs_mean_and_std_and_keeps_its_scale():
    source = Source(
        path="m.tflite", format="tflite", sha256="", input=info("uint8", 0.0187, 114), layout="NHWC",
        outputs=(TensorInfo(name="y", shape=(1, 3), dtype="float32"),), classes=3, decoder="softmax",
        task="classification", preprocess=Preprocess(),
    )  # fmt: skip
    with pytest.raises(UsageError, match="does not tell 2 thing") as caught:
        decide(Recipe(color="rgb", resize="stretch"), source, labelled_for=None, names=())
    assert caught.value.hint == "say them: --mean A,B,C, --std A,B,C"
    recipe = Recipe(color="rgb", resize="stretch", mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
    spec = decide(recipe, source, labelled_for=None, names=()).input

    assert (spec.scale, spec.zero, spec.mean) == (0.0187, 114, (123.7, 116.3, 103.5))


def test_pixels_without_a_scale_take_no_mean(real):
    with pytest.raises(UsageError, match="takes uint8 pixels, --mean and --std cannot apply"):
        decide(Recipe(mean=(127.5,), std=(127.5,)), real("movenet_lightning_ptq"), labelled_for=None, names=())


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("coral_model_invoking_error", BackendError, "unresolved custom op: fake-op-double"),
        ("person_detect_micro_badquant", ConversionError, r"quantized_dimension must be in range \[0, 1\)"),
        ("keras_lstm_mnist_ptq", ConversionError, r"needs one image input .* it has serving_default_x:0 \[1, 28, 28\]"),
    ],
)
def test_odd_files_are_refused_for_what_is_odd_about_them(testdata, tmp_path, name, error, message):
    path = testdata / "bad" / f"{name}.tflite"
    with pytest.raises(error, match=message) as caught:
        read(path, tmp_path / "work")
    assert "source.tflite" not in caught.value.message


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_files_cut_short_are_refused_wherever_they_end(testdata, tmp_path, share):
    raw = (testdata / "models/vww_96_float.tflite").read_bytes()
    path = tmp_path / "cut.tflite"
    path.write_bytes(raw[: int(len(raw) * share)])

    with pytest.raises(ConversionError, match="`cut.tflite`"):
        read(path, tmp_path / "work")


def edited(testdata, tmp_path, change) -> Path:
    model = tflite_graph.read(testdata / "models/vww_96_float.tflite")
    change(model)
    tflite_graph.save(model, tmp_path / "edited.tflite")
    return tmp_path / "edited.tflite"


def test_nan_weights_are_refused_and_the_weight_named(testdata, tmp_path):
    def spoil(model):
        for index, tensor in enumerate(model.subgraphs[0].tensors):
            value = tflite_graph.constant(model, index)
            if value is not None and value.dtype == np.float32 and value.size > 3:
                value = value.copy()
                value.flat[2] = np.nan
                model.buffers[tensor.buffer].data = np.frombuffer(value.tobytes(), np.uint8)
                tensor.name = b"spoiled"
                return

    with pytest.raises(ConversionError, match="1 NaN values in the weight `spoiled`"):
        read(edited(testdata, tmp_path, spoil), tmp_path / "work")


def test_an_open_size_is_asked_for_and_then_fixed(testdata, tmp_path):
    def unfix(model):
        image = model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]]
        image.shapeSignature = [-1, -1, -1, 3]

    path = edited(testdata, tmp_path, unfix)
    with pytest.raises(UsageError, match=r"dynamic shape \[1, \?, \?, 3\]") as caught:
        read(path, tmp_path / "work")
    assert "--size WIDTHxHEIGHT" in (caught.value.hint or "")
    assert read(path, tmp_path / "work", size=(96, 96)).input.shape == (1, 96, 96, 3)


def test_damaged_metadata_says_nothing_and_stops_nothing():
    rng = np.random.default_rng(0)
    for size in (0, 1, 4, 40, 400):
        noise = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
        assert tflite_metadata.read(noise, noise) == tflite_metadata.Metadata()


def _table(builder, fields):
    builder.StartObject(max(fields) + 1)
    for slot, put in fields.items():
        put(slot)
    return builder.EndObject()


def _vector(builder, offsets):
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def metadata(mean: float, std: float) -> bytes:
    """TFLite Metadata with an RGB image and NormalizationOptions, as TensorFlow's writer lays it out."""
    import flatbuffers

    b = flatbuffers.Builder(0)

    def floats(value):
        b.StartVector(4, 1, 4)
        b.PrependFloat32(value)
        return b.EndVector()

    def refer(offset):
        return lambda slot: b.PrependUOffsetTRelativeSlot(slot, offset, 0)

    def byte(value):
        return lambda slot: b.PrependUint8Slot(slot, value, 0)

    means, stds = floats(mean), floats(std)
    options = _table(b, {0: refer(means), 1: refer(stds)})
    unit = _table(b, {0: byte(1), 1: refer(options)})
    image = _table(b, {0: byte(1)})
    content = _table(b, {0: byte(2), 1: refer(image)})
    units = _vector(b, [unit])
    tensor = _table(b, {3: refer(content), 4: refer(units)})
    tensors = _vector(b, [tensor])
    graph = _table(b, {2: refer(tensors)})
    graphs = _vector(b, [graph])
    b.Finish(_table(b, {3: refer(graphs)}), b"M001")
    return bytes(b.Output())


def test_normalization_and_colour_are_read_from_the_metadata():
    found = tflite_metadata.read(b"", metadata(127.5, 127.0))

    assert (found.color, found.mean, found.std) == ("rgb", (127.5,), (127.0,))


def test_tflite_is_told_by_its_mark(testdata):
    assert sniff(testdata / "models/vww_96_float.tflite") == "tflite"
