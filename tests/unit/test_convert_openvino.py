"""OpenVINO IR in: recognised by its operations, its two files checked against each other."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")

import edge_sdk.runtimes.no_analytics  # noqa: F401  (before openvino)

# isort: split
import openvino as ov

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
import convert_parts as parts

from converters.frontends import inspect
from converters.frontends.base import Source, sniff
from converters.plan import decide
from converters.recipe import Recipe
from edge_sdk.errors import BackendError, ConversionError, UsageError


def read(path: Path, tmp_path: Path, **options) -> Source:
    work = tmp_path / f"work{len(list(tmp_path.iterdir()))}"
    work.mkdir()
    return Source.from_json(inspect(str(path), str(work), options))


@pytest.fixture
def ir(tmp_path) -> Path:
    parts.classifier(tmp_path / "m.onnx")
    ov.save_model(ov.convert_model(str(tmp_path / "m.onnx")), str(tmp_path / "m.xml"))
    return tmp_path / "m.xml"


@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("yolox_nano_416.onnx", "yolox"),
        ("nanodet_m_320.onnx", "nanodet"),
        ("fastestdet_352.onnx", "fastestdet"),
        ("ultraface_rfb_320.onnx", "ultraface"),
        ("yunet_n_320.onnx", "yunet"),
        ("blazeface_short_range.tflite", "blazeface"),
        ("deeplabv3_mnv2_dm05_quant.tflite", "argmax_mask"),
    ],
)
def test_detectors_are_recognised_in_openvinos_words_too(testdata, tmp_path, name, decoder):
    ov.save_model(ov.convert_model(str(testdata / "models" / name)), str(tmp_path / "m.xml"))
    found = read(tmp_path / "m.xml", tmp_path)

    assert found.decoder == decoder
    assert (found.reference, set(found.forms)) == ("openvino", {"openvino"})


def test_a_real_detector_with_its_post_processing_finds_people(testdata, tmp_path):
    import cv2

    from edge_sdk.model import Model
    from edge_sdk.parsing import write_dataclass
    from edge_sdk.schemas.manifest import SCHEMA, Manifest

    found = read(testdata / "models/person-detection-retail-0013.xml", tmp_path)
    assert (found.decoder, found.classes) == ("ssd_pp", 1)
    flags = Recipe(color="bgr", resize="stretch", mean=(0.0,), std=(1.0,))
    plan = decide(flags, found, labelled_for=None, names=("person",))
    manifest = {
        "schema": SCHEMA, "name": "m", "version": "1", "profile": "none", "task": plan.task, "source_sha256": "0" * 64,
        "parent": None, "payload_digest": "", "files": {}, "input": write_dataclass(plan.input),
        "outputs": [write_dataclass(o) for o in found.outputs],
        "decoder": {"name": plan.decoder, "params": plan.decoder_params}, "runtime": {"name": "openvino"},
    }  # fmt: skip
    frame = cv2.imread(str(testdata / "photos/squat.bmp"))
    parsed = Manifest.from_json(json.dumps(manifest))
    with Model.open_files(parsed, Path(found.forms["openvino"]), plan.labels) as model:
        people = model(frame)

    assert plan.labels == ("person",)
    assert set(people.class_id.tolist()) == {0}
    assert len(people) == 1
    left, top, right, bottom = people.xyxy[0]
    assert left < frame.shape[1] / 2 < right
    assert bottom - top > frame.shape[0] / 2


def test_an_ir_keeps_its_two_files_together(ir, tmp_path):
    found = read(ir, tmp_path)

    assert sniff(ir) == "openvino"
    assert (found.decoder, found.classes, found.input.shape) == ("softmax", 3, (1, 3, 32, 32))
    assert Path(found.forms["openvino"]).with_suffix(".bin").is_file()
    assert "cannot be turned back" in found.absent["onnx"]


def test_a_missing_or_short_bin_is_named(ir, tmp_path):
    weights = ir.with_suffix(".bin")
    content = weights.read_bytes()
    weights.unlink()
    with pytest.raises(ConversionError, match="`m.xml` has no weights: `m.bin` is not beside it") as caught:
        read(ir, tmp_path)
    assert "one folder" in (caught.value.hint or "")
    weights.write_bytes(content[:40])
    with pytest.raises(ConversionError, match=r"`m.bin` has 40 bytes, `m.xml` reads up to \d+"):
        read(ir, tmp_path)


def test_an_ir_cut_short_is_refused(ir, tmp_path):
    ir.write_text(ir.read_text()[:-200])

    with pytest.raises(ConversionError, match="`m.xml` is cut short"):
        read(ir, tmp_path)


def test_an_ir_that_openvino_cannot_parse_is_refused_by_its_own_name(ir, tmp_path):
    ir.write_text(ir.read_text().replace('type="SoftMax"', 'type="SoftMoreMax"'))

    with pytest.raises((ConversionError, BackendError), match="`m.xml`") as caught:
        read(ir, tmp_path)
    assert "source.xml" not in caught.value.message


def test_an_ir_of_an_old_version_is_refused(testdata, tmp_path):
    with pytest.raises(BackendError, match=r"`ir_v4_unsupported.xml` is an OpenVINO IR of version 4") as caught:
        read(testdata / "bad/ir_v4_unsupported.xml", tmp_path)
    assert "convert the original model again" in (caught.value.hint or "")


def test_nan_weights_are_refused(ir, tmp_path):
    values = np.frombuffer(ir.with_suffix(".bin").read_bytes(), np.uint8).copy()
    values[:2] = np.array([np.nan], np.float16).view(np.uint8)
    ir.with_suffix(".bin").write_bytes(values.tobytes())

    with pytest.raises(ConversionError, match="NaN values in the weight"):
        read(ir, tmp_path)


def test_an_open_size_is_asked_for_and_then_fixed(ir, tmp_path):
    model = ov.Core().read_model(str(ir))
    model.reshape([-1, 3, -1, -1])
    ov.save_model(model, str(tmp_path / "d.xml"))

    with pytest.raises(UsageError, match=r"dynamic shape \[\?, 3, \?, \?\]|dynamic shape \[1, 3, \?, \?\]"):
        read(tmp_path / "d.xml", tmp_path)
    assert read(tmp_path / "d.xml", tmp_path, size=(48, 24)).input.shape == (1, 3, 24, 48)


def test_the_weights_of_another_model_do_not_pass(testdata, ir, tmp_path):
    ov.save_model(ov.convert_model(str(testdata / "models/yunet_n_320.onnx")), str(tmp_path / "y.xml"))
    shutil.copyfile(ir.with_suffix(".bin"), tmp_path / "y.bin")

    with pytest.raises(ConversionError, match="belongs to another model|reads up to"):
        read(tmp_path / "y.xml", tmp_path)
