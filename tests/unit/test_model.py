"""A model from its files: signature, outputs, overrides, the self-test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_sdk import testing
from edge_sdk.artifact import Artifact, check_golden, golden_entries, write_artifact
from edge_sdk.errors import ArtifactError, BackendError, NonFiniteError, SchemaError, UsageError
from edge_sdk.golden import compare
from edge_sdk.model import Model
from edge_sdk.runtimes.base import TensorSpec
from edge_sdk.schemas import document
from edge_sdk.schemas.manifest import Manifest

pytest.importorskip("onnxruntime")


@pytest.fixture
def detector(tmp_path: Path) -> Iterator[Model]:
    with testing.build_artifact(tmp_path / "d.edge", task="detection").load() as model:
        yield model


def manifest_of(**changes: Any) -> Manifest:
    return Manifest.from_json(document.dumps(testing.tiny_manifest(**changes)))


def test_a_classifier_names_the_colour_of_a_frame(tmp_path: Path) -> None:
    with testing.build_artifact(tmp_path / "c.edge").load() as model:
        for color in testing.LABELS:
            row = model(testing.color_frame(color)).to_json()["classes"][0]
            assert (row["label"], row["score"] > 0.9) == (color, True)


def test_a_detector_finds_a_box_in_frame_pixels(detector: Model) -> None:
    found = detector(testing.color_frame("red", width=128, height=96, box=(32, 32, 64, 64)))
    assert {found.label(int(i)) for i in found.class_id} == {"red"}
    assert found.xyxy.min(axis=0).tolist()[:2] == [32, 32]
    assert found.xyxy.max(axis=0).tolist()[2:] == [64, 64]


def test_the_digest_of_a_model_is_that_of_its_artifact(tmp_path: Path) -> None:
    artifact = testing.build_artifact(tmp_path / "c.edge")
    with artifact.load() as model:
        assert model.digest == artifact.sha256


def test_loading_leaves_no_files_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = testing.build_artifact(tmp_path / "c.edge")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    with artifact.load() as model:
        model.warm()
        assert not list((tmp_path / "tmp").iterdir())


def test_decoder_params_are_overridden_key_by_key(tmp_path: Path) -> None:
    artifact = testing.build_artifact(tmp_path / "d.edge", task="detection")
    frame = testing.color_frame("blue", box=(16, 16, 48, 32))
    with artifact.load(decoder_params={"max_detections": 1}) as model:
        assert len(model(frame)) == 1
        assert len(model.reference()(frame)) > 1
        assert all(check.ok for check in check_golden(model, artifact.golden()))


def test_runtime_options_are_overridden_and_checked(tmp_path: Path) -> None:
    artifact = testing.build_artifact(tmp_path / "c.edge")
    artifact.load(options={"threads": 2}).close()
    with pytest.raises(UsageError, match="options of runtime `onnxruntime`: threads: expected 1 to 256, found 0"):
        artifact.load(options={"threads": 0})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_outputs_that_are_not_finite_are_an_error_of_their_own(tmp_path: Path, value: float) -> None:
    artifact = testing.build_artifact(tmp_path / "n.edge", model=testing.tiny_classifier_onnx(constant=value))
    with artifact.load() as model:
        with pytest.raises(
            NonFiniteError, match="output `logits` holds 3 of 3 values that are NaN or infinite"
        ) as caught:
            model(testing.color_frame("red"))
        assert (caught.value.kind, caught.value.exit_code) == ("nonfinite", 3)
        assert not any(check.ok for check in check_golden(model, artifact.golden()))


def test_finite_outputs_whose_sum_overflows_are_answered_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    model = testing.fake_model(lambda _image: (3e38, 3e38, 0.0))
    assert model(testing.color_frame("green")).class_id == 0
    assert not recwarn.list


def test_a_fake_runtime_stands_in_for_an_engine() -> None:
    model = testing.fake_model(lambda image: image.reshape(-1, 3).mean(axis=0))
    assert model(testing.color_frame("green")).label(1) == "green"
    model.close()
    with pytest.raises(BackendError, match="closed"):
        model(testing.color_frame("green"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": [{"name": "probs", "shape": [1, 3], "dtype": "float32"}]}, "no output `probs`, it has logits"),
        (
            {"outputs": [{"name": "logits", "shape": [1, 4], "dtype": "float32"}]},
            r"output `logits` is float32 \[1, 3\]",
        ),
        ({"outputs": [{"name": "logits", "shape": [1, 3], "dtype": "int8"}]}, "in the model, int8"),
        ({"input": testing.tiny_manifest()["input"] | {"name": "picture"}}, "inputs image, the manifest has one"),
        ({"input": testing.tiny_manifest()["input"] | {"dtype": "float32"}}, "input `image` is uint8"),
        ({"input": testing.tiny_manifest()["input"] | {"shape": [1, 16, 16, 3]}}, "input `image` is uint8"),
        ({"decoder": {"name": "yolox"}}, "is for detection, the manifest says classification"),
    ],
)
def test_a_manifest_of_another_model_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    artifact = testing.build_artifact(tmp_path / "a.edge", golden=False, **changes)
    with pytest.raises(ArtifactError, match=message):
        artifact.load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtime": {"name": "hailo"}}, "needs runtime `hailo`, which this edge-sdk has not"),
        ({"decoder": {"name": "detr"}}, "needs decoder `detr`, which this edge-sdk has not"),
        ({"runtime": {"name": "onnxruntime", "max": "1.0"}}, "the artifact was proved with <1.0"),
    ],
)
def test_what_this_machine_lacks_is_a_backend_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    artifact = testing.build_artifact(tmp_path / "a.edge", golden=False, **changes)
    with pytest.raises(BackendError, match=message) as caught:
        artifact.load()
    assert (caught.value.exit_code, bool(caught.value.hint)) == (3, True)


def test_quantized_outputs_are_read_as_the_numbers_they_stand_for() -> None:
    manifest = manifest_of(
        outputs=[{"name": "logits", "shape": [1, 3], "dtype": "int8", "scale": 0.5, "zero": 2}],
        decoder={"name": "softmax", "params": {"logits": False}},
    )
    runtime = testing.FakeRuntime(
        lambda feeds: {"logits": np.array([[2, 3, 4]], np.int8)},
        [TensorSpec(name="image", shape=(1, 32, 32, 3), dtype="uint8")],
        [TensorSpec(name="logits", shape=(1, 3), dtype="int8", scale=0.5, zero=2)],
    )
    model = Model(manifest, runtime, testing.LABELS)
    assert model(testing.color_frame("red")).probs.tolist() == [0.0, 0.5, 1.0]


# The self-test.


def test_a_genuine_artifact_passes_its_self_test(tmp_path: Path) -> None:
    for task in ("classification", "detection"):
        artifact = testing.build_artifact(tmp_path / f"{task}.edge", task=task)
        cases = artifact.golden()
        assert len(cases) == 3
        with artifact.load() as model:
            assert [c.ok for c in check_golden(model, cases)] == [True] * 3


def test_a_model_that_answers_otherwise_fails_its_self_test(tmp_path: Path) -> None:
    artifact = testing.build_artifact(tmp_path / "w.edge", model=testing.tiny_classifier_onnx(constant=0))
    with artifact.load() as model:
        checks = check_golden(model, artifact.golden())
    assert [c.ok for c in checks] == [False] * 3
    assert "scores 0.333, expected 0.999 within 0.1" in checks[0].detail


def test_golden_frames_are_kept_small(detector: Model) -> None:
    entries = golden_entries(detector, [np.zeros((1000, 2000, 3), np.uint8)])
    assert sorted(entries) == ["golden/000.png", "golden/golden.json"]
    assert cv2.imdecode(np.frombuffer(entries["golden/000.png"], np.uint8), 1).shape == (160, 320, 3)
    assert golden_entries(detector, [np.zeros((1000, 2000, 3), np.uint8)]) == entries


def with_golden(path: Path, index: Any, frame: bytes = b"") -> Artifact:
    raw = index if isinstance(index, bytes) else json.dumps(index).encode()
    entries = {"model/model.onnx": testing.tiny_classifier_onnx(), "golden/golden.json": raw, "golden/0.png": frame}
    return write_artifact(path, manifest=testing.tiny_manifest(), entries=entries, evidence={})


CASE = {"frame": "0.png", "expected": {"classes": []}, "tolerance": {}}
GOLDEN = {"schema": "edge.golden/1", "cases": [CASE]}


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + bytes(8) + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes(9)


@pytest.mark.parametrize(
    ("index", "frame", "message"),
    [
        (b"{", b"", "not valid JSON"),
        (GOLDEN | {"schema": "edge.golden/2"}, b"", "this version reads `edge.golden/1`"),
        (GOLDEN | {"cases": {}}, b"", "has not a list"),
        (GOLDEN | {"cases": [CASE] * 65}, b"", "at most 64"),
        (GOLDEN | {"cases": [1]}, b"", "case 0 of golden/golden.json has not"),
        (GOLDEN | {"cases": [CASE | {"tolerance": {"score": "x"}}]}, b"", "case 0 of golden/golden.json has not"),
        (GOLDEN | {"cases": [CASE | {"frame": "1.png"}]}, b"", "names `1.png`, which the artifact has not"),
        (GOLDEN, b"no png", "0x0 pixels or no PNG"),
        (GOLDEN, png_header(60_000, 60_000), "60000x60000 pixels or no PNG"),
        (GOLDEN, png_header(8, 8), "cannot be read as PNG"),
    ],
)
def test_a_self_test_that_cannot_be_read_is_refused(tmp_path: Path, index: Any, frame: bytes, message: str) -> None:
    artifact = with_golden(tmp_path / "g.edge", index, frame)
    with pytest.raises((ArtifactError, SchemaError), match=message):
        artifact.golden()


def test_an_artifact_without_a_self_test_has_no_cases(tmp_path: Path) -> None:
    assert testing.build_artifact(tmp_path / "a.edge", golden=False).golden() == ()


def box(label: str, score: float, *corners: float) -> dict[str, Any]:
    return {"box": list(corners), "score": score, "class_id": ord(label), "label": label}


DETECTED = {"detections": [box("a", 0.9, 0, 0, 10, 10), box("b", 0.3, 50, 50, 60, 60)]}
FLOOR = {"floor": 0.35}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (DETECTED["detections"], None),
        ([box("a", 0.85, 1, 0, 11, 10)], None),
        ([box("a", 0.85, 1, 0, 11, 10), box("c", 0.34, 0, 0, 5, 5)], None),
        ([], "no `a` at [0, 0, 10, 10], expected one with score 0.900"),
        ([box("c", 0.9, 0, 0, 10, 10)], "no `a` at"),
        ([box("a", 0.9, 8, 0, 18, 10)], "no `a` at"),
        ([box("a", 0.7, 0, 0, 10, 10)], "scores 0.700, expected 0.900 within 0.1"),
        ([box("a", 0.9, 0, 0, 10, 10), box("c", 0.6, 0, 0, 5, 5)], "unexpected `c` at [0, 0, 5, 5]"),
    ],
)
def test_detections_are_compared_within_their_tolerance(found: Any, message: str | None) -> None:
    result = compare(DETECTED, {"detections": found}, FLOOR)
    assert result is None if message is None else message in str(result)


def classes(*scores: float) -> dict[str, Any]:
    rows = [{"class_id": i, "label": "abc"[i], "score": s} for i, s in enumerate(scores)]
    return {"classes": sorted(rows, key=lambda row: -row["score"])}


@pytest.mark.parametrize(
    ("expected", "found", "message"),
    [
        (classes(0.9, 0.1), classes(0.85, 0.15), None),
        (classes(0.52, 0.48), classes(0.48, 0.52), None),
        (classes(0.9, 0.1), classes(0.7, 0.3), "`a` scores 0.700"),
        (classes(0.56, 0.44), classes(0.48, 0.52), "the best class is `b`, expected `a`"),
        (classes(0.9, 0.1), {"detections": []}, "expected classes, found detections"),
        (classes(0.9), {"classes": []}, "`a` scores 0.000"),
        ({"classes": [{}]}, classes(0.9), "cannot be read"),
        ({"values": {"yaw": 10.0}}, {"values": {"yaw": 10.9}}, None),
        ({"values": {"yaw": 10.0}}, {"values": {"yaw": 12.0}}, "`yaw` is 12, expected 10"),
        ({"values": {"yaw": 10.0}}, {"values": {"pitch": 10.0}}, "values pitch, expected yaw"),
        ({"embedding": [1.0, 0.0]}, {"embedding": [0.99, 0.1]}, None),
        ({"embedding": [1.0, 0.0]}, {"embedding": [0.0, 1.0]}, "cosine 0.0000"),
        ({"embedding": [1.0, 0.0]}, {"embedding": [1.0]}, "1 values, expected 2"),
        ({"other": 1}, {"other": 2}, "the result differs"),
        ({"other": 1}, {"other": 1}, None),
    ],
)
def test_other_results_are_compared_within_their_tolerance(expected: Any, found: Any, message: str | None) -> None:
    result = compare(expected, found, {})
    assert result is None if message is None else message in str(result)


def mask(*counts: int) -> dict[str, Any]:
    segment = {"class_id": 1, "label": "x", "share": 0.5, "counts": list(counts)}
    return {"mask": {"size": [10, 10], "segments": [segment]}}


def test_masks_are_compared_by_the_pixels_that_agree() -> None:
    assert compare(mask(50, 50), mask(52, 48), {}) is None
    assert "90.0% of the mask agrees" in str(compare(mask(50, 50), mask(60, 40), {}))
    assert "cannot be read" in str(compare(mask(50, 10), mask(50, 50), {}))
    assert "the mask is" in str(compare(mask(50, 50), {"mask": {"size": [1, 1], "segments": []}}, {}))


def test_keypoints_are_compared_by_distance_where_they_are_sure() -> None:
    def pose(x: float, score: float = 0.9) -> dict[str, Any]:
        return {
            "keypoints": [
                {"name": "nose", "x": x, "y": 0.0, "score": score},
                {"name": "k", "x": 0, "y": 100, "score": 1},
            ]
        }

    assert compare(pose(0), pose(2), {}) is None
    assert "`nose` is 9.0 pixels off, expected at most 3.0" in str(compare(pose(0), pose(9), {}))
    assert compare(pose(0, 0.1), pose(9, 0.1), {}) is None
    assert "`nose` scores" in str(compare(pose(0, 0.9), pose(0, 0.5), {}))
    assert "0 keypoints, expected 2" in str(compare(pose(0), {"keypoints": []}, {}))


def test_the_list_source_gives_its_images_in_order_and_ends() -> None:
    source = testing.ListSource([testing.color_frame("red"), testing.color_frame("blue")], fps=10)
    source.open()
    assert source.grab()
    assert source.grab()
    frame = source.retrieve()
    assert (frame.index, frame.t_s, frame.image[0, 0].tolist()) == (1, 0.1, [255, 0, 0])
    assert not source.grab()
    source.close()
