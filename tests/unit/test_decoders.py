"""Decoders on tensors made by hand: what goes in as a box comes out as that box."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest

from edge_sdk.errors import ArtifactError, BackendError, UsageError
from edge_sdk.tasks import decoders
from edge_sdk.tasks.base import Classes, Detections, Geometry, Mask
from edge_sdk.tasks.results import NO_CLASS

# A 200 x 100 frame, stretched to 64 x 64.
STRETCH = Geometry(200, 100, 64, 64, 64 / 200, 64 / 100)
# The same frame in the middle of 64 x 64: 64 x 32 at y 16.
LETTERBOX = Geometry(200, 100, 64, 64, 0.32, 0.32, 0.0, 16.0)


def decode(name: str, outputs: Any, params: Any = None, labels: Any = (), geometry: Geometry = STRETCH) -> Any:
    named = outputs if isinstance(outputs, dict) else {f"o{i}": o for i, o in enumerate(outputs)}
    return decoders().load(name)(params or {}, labels)(named, geometry)


def cells(strides: tuple[int, ...] = (8, 16, 32), size: int = 64) -> int:
    return sum((size // s) ** 2 for s in strides)


def yolox_output(classes: int = 3) -> Any:
    """One box at centre (20, 12), 16 x 8 in input pixels, class 2, score 0.72; level 8, cell (2, 1)."""
    out = np.zeros((1, cells(), 5 + classes), np.float32)
    out[0, 8 + 2] = [0.5, 0.5, np.log(2), 0, 0.9, *([0] * (classes - 1)), 0.8]
    return out


YOLOX_BOX = [12 / 0.32, 8 / 0.64, 28 / 0.32, 16 / 0.64]


@pytest.mark.parametrize(
    "split",
    [
        lambda o: [o],
        lambda o: [o[..., :4], o[..., 4:]],
        lambda o: [o[..., :5], o[..., 5:]],
        lambda o: [o[..., :4], o[..., 4:5], o[..., 5:]],
    ],
    ids=["whole", "4+", "5+", "4+1+"],
)
def test_yolox_decodes_its_columns_in_one_output_or_split(split: Any) -> None:
    found = decode("yolox", split(yolox_output()), labels=("a", "b", "c"))
    np.testing.assert_allclose(found.xyxy, [YOLOX_BOX], rtol=1e-5)
    assert found.score == pytest.approx([0.72])
    assert found.label(int(found.class_id[0])) == "c"


def test_a_letterboxed_box_goes_back_past_the_padding() -> None:
    out = np.zeros((1, cells(), 6), np.float32)
    out[0, 8 * 4 + 4] = [0, 0, 0, 0, 1, 1]
    found = decode("yolox", [out], geometry=LETTERBOX)
    np.testing.assert_allclose(found.xyxy, [[28 / 0.32, 12 / 0.32, 36 / 0.32, 20 / 0.32]], rtol=1e-5)


def test_boxes_are_clipped_to_the_frame_and_those_outside_go() -> None:
    out = np.zeros((1, cells(), 6), np.float32)
    out[0, 0] = [0, 0, np.log(4), np.log(4), 1, 1]
    out[0, 1] = [0, -3, 0, 0, 0.9, 1]
    found = decode("yolox", [out])
    np.testing.assert_allclose(found.xyxy, [[0, 0, 16 / 0.32, 16 / 0.64]], rtol=1e-5)


def test_yolov5_and_yolov8_decode_the_same_box() -> None:
    box = [20, 12, 16, 8]
    v5 = np.zeros((1, 10, 8), np.float32)
    v5[0, 4] = [*box, 0.9, 0, 0, 0.8]
    v8 = np.zeros((1, 7, 10), np.float32)
    v8[0, :, 4] = [*box, 0, 0, 0.72]
    expected = decode("yolov5", [v5])
    for outputs in ([v8], [v8.transpose(0, 2, 1)], [v8[:, :4], v8[:, 4:]]):
        found = decode("yolov8", outputs, {"classes": 3})
        np.testing.assert_allclose(found.xyxy, expected.xyxy, rtol=1e-5)
        assert found.score == pytest.approx(expected.score)
        assert list(found.class_id) == [2]
    np.testing.assert_allclose(expected.xyxy, [YOLOX_BOX], rtol=1e-5)


def test_normalised_boxes_are_fractions_of_the_input() -> None:
    out = np.zeros((1, 6, 9), np.float32)
    out[0, :, 0] = [20 / 64, 12 / 64, 16 / 64, 8 / 64, 0.5, 0]
    np.testing.assert_allclose(decode("yolov8", [out], {"normalized": True}, ("a", "b")).xyxy, [YOLOX_BOX], rtol=1e-5)


@pytest.mark.parametrize(("name", "strides"), [("nanodet", (8, 16, 32)), ("picodet", (8, 16, 32, 64))])
@pytest.mark.parametrize("joined", [False, True])
def test_distribution_heads_decode_the_sides_of_a_box(name: str, strides: tuple[int, ...], joined: bool) -> None:
    scores = [np.zeros((1, (64 // s) ** 2, 3), np.float32) for s in strides]
    sides = [np.zeros((1, (64 // s) ** 2, 32), np.float32) for s in strides]
    # Level 16, cell (1, 2): centre (24, 40); sides of 1, 0, 0.5 and 2 cells.
    scores[1][0, 9, 1] = 0.8
    bins = sides[1][0, 9].reshape(4, 8)
    bins[0, 1] = bins[1, 0] = bins[3, 2] = 60
    bins[2, 0] = bins[2, 1] = 60
    outputs = [np.concatenate([np.concatenate(p, 2) for p in zip(scores, sides, strict=True)], 1)] if joined else None
    found = decode(name, outputs or [*scores, *sides])
    expected = np.array([[24 - 16, 40, 24 + 8, 40 + 32]]) / [0.32, 0.64, 0.32, 0.64]
    np.testing.assert_allclose(found.xyxy, np.clip(expected, 0, [200, 100, 200, 100]), rtol=1e-4)
    assert list(found.class_id) == [1]


def test_overlapping_boxes_of_one_class_leave_the_strongest() -> None:
    out = np.zeros((1, 4, 7), np.float32)
    out[0, 0] = [20, 20, 10, 10, 0.6, 1, 0]
    out[0, 1] = [21, 20, 10, 10, 0.9, 1, 0]
    out[0, 2] = [20, 21, 10, 10, 0.8, 0, 1]
    out[0, 3] = [50, 50, 10, 10, 0.7, 1, 0]
    assert decode("yolov5", [out]).score == pytest.approx([0.9, 0.8, 0.7])
    assert decode("yolov5", [out], {"class_agnostic": True}).score == pytest.approx([0.9, 0.7])
    assert decode("yolov5", [out], {"max_detections": 1}).score == pytest.approx([0.9])
    assert decode("yolov5", [out], {"score": 0.75}).score == pytest.approx([0.9, 0.8])
    assert decode("yolov5", [out], {"iou": 1.0}).score == pytest.approx([0.9, 0.8, 0.7, 0.6])


@pytest.mark.parametrize("name", ["yolox", "yolov5", "fastestdet"])
def test_nothing_found_is_an_empty_result(name: str) -> None:
    shape = (1, 7, 4, 4) if name == "fastestdet" else (1, cells(), 8)
    found = decode(name, [np.zeros(shape, np.float32)])
    assert len(found) == 0
    assert found.xyxy.shape == (0, 4)
    assert [a.dtype for a in (found.xyxy, found.score, found.class_id)] == [np.float32, np.float32, np.int32]
    assert found.to_json() == {"detections": []}


def test_every_cell_firing_at_once_is_bounded() -> None:
    out = np.random.default_rng(0).uniform(0, 1, (1, cells((8, 16, 32), 512), 85)).astype(np.float32)
    geometry = Geometry(512, 512, 512, 512, 1, 1)
    assert len(decode("yolox", [out], {"score": 0.0}, geometry=geometry)) <= 100


def test_fastestdet_scores_objectness_and_class_together() -> None:
    out = np.zeros((1, 7, 4, 4), np.float32)
    out[0, :, 1, 2] = [0.81, 0, 0, 0, 0, 0.2, 0.7]
    found = decode("fastestdet", [out])
    assert found.score == pytest.approx([0.81**0.6 * 0.7**0.4])
    np.testing.assert_allclose(found.xyxy, [[50, 0, 150, 50]], atol=1e-4)


def test_ssd_takes_the_count_and_the_order_of_its_outputs() -> None:
    boxes = np.array([[[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1], [0, 0, 1, 1]]], np.float32)
    classes, scores = np.array([[3, 1, 1]], np.float32), np.array([[0.9, 0.8, 0.7]], np.float32)
    count = np.array([2], np.float32)
    found = decode("ssd_pp", [boxes, classes, scores, count], {"label_offset": 1})
    np.testing.assert_allclose(found.xyxy, [[40, 10, 120, 50], [0, 0, 200, 100]], rtol=1e-5)
    assert list(found.class_id) == [4, 2]
    swapped = decode("ssd_pp", [boxes, scores, classes, count], {"label_offset": 1, "scores_first": True})
    np.testing.assert_array_equal(swapped.class_id, found.class_id)


def test_detection_output_ends_at_the_first_negative_image() -> None:
    rows = np.zeros((1, 1, 3, 7), np.float32)
    rows[0, 0, 0] = [0, 1, 0.9, 0.1, 0.2, 0.5, 0.6]
    rows[0, 0, 1, 0] = -1
    rows[0, 0, 2] = [0, 1, 0.9, 0, 0, 1, 1]
    found = decode("ssd_pp", [rows], {"label_offset": -1})
    np.testing.assert_allclose(found.xyxy, [[20, 20, 100, 60]], rtol=1e-5)
    assert list(found.class_id) == [0]


def test_softmax_of_logits_and_of_probabilities() -> None:
    logits = np.log(np.array([[[[0.1, 0.2, 0.7]]]], np.float32))
    for params, values in (({}, logits), ({"logits": False}, np.exp(logits))):
        found: Classes = decode("softmax", [values], params, ("a", "b", "c"))
        np.testing.assert_allclose(found.probs, [0.1, 0.2, 0.7], rtol=1e-5)
        assert found.to_json()["classes"][0] == {"class_id": 2, "label": "c", "score": 0.7}


def test_softmax_leaves_leading_classes_out_and_lists_the_best() -> None:
    found = decode("softmax", [np.array([[0.9, 0.02, 0.05, 0.03]], np.float32)], {"logits": False, "skip": 1, "top": 2})
    assert [row["class_id"] for row in found.to_json()["classes"]] == [1, 2]


def test_huge_logits_do_not_overflow() -> None:
    found = decode("softmax", [np.array([[1e4, -1e4]], np.float32)])
    np.testing.assert_array_equal(found.probs, [1, 0])


def test_independent_classes_are_sigmoids() -> None:
    found = decode("softmax", [np.array([[0.0, 100.0]], np.float32)], {"multi_label": True})
    np.testing.assert_allclose(found.probs, [0.5, 1.0])


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_a_mask_is_the_best_class_of_each_pixel(layout: str) -> None:
    ids = np.random.default_rng(0).integers(0, 3, (64, 64))
    scores = np.eye(3, dtype=np.float32)[ids][None]
    values = scores if layout == "NHWC" else scores.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(decode("argmax_mask", [values]).ids, ids)
    np.testing.assert_array_equal(decode("argmax_mask", [ids[None].astype(np.int64)]).ids, ids)
    np.testing.assert_array_equal(decode("argmax_mask", [ids[None, :, :, None].astype(np.int32)]).ids, ids)


def test_a_mask_of_two_classes_two_pixels_high_obeys_its_layout() -> None:
    value = np.zeros((1, 2, 5, 2), np.float32)
    value[0, 1] = 1
    assert decode("argmax_mask", [value], {"layout": "NHWC"}).ids.shape == (2, 5)
    assert decode("argmax_mask", [value], {"layout": "NCHW"}).ids.tolist() == [[1, 1]] * 5


def test_a_letterboxed_mask_covers_the_frame_and_nothing_else() -> None:
    ids = np.full((32, 32), 1, np.uint8)
    ids[8:24] = 2
    ids[8:24, :16] = 3
    upright = Mask(ids, LETTERBOX).upright()
    assert upright.shape == (100, 200)
    assert np.unique(upright).tolist() == [2, 3]
    assert (upright[:, :100] == 3).all()


def test_what_a_cropping_model_did_not_see_has_no_class() -> None:
    geometry = Geometry(200, 100, 64, 64, 0.64, 0.64, -32.0, 0.0)
    mask = Mask(np.full((64, 64), 1, np.uint8), geometry, ("a", "b"))
    upright = mask.upright()
    assert (upright[:, 55:145] == 1).all()
    assert (upright[:, :45] == NO_CLASS).all()
    assert [s["label"] for s in mask.to_json()["mask"]["segments"]] == ["b"]


def test_the_run_lengths_of_a_mask_are_those_of_coco() -> None:
    ids = np.random.default_rng(1).integers(0, 3, (20, 30)).astype(np.uint8)
    geometry = Geometry(30, 20, 30, 20, 1, 1)
    made = Mask(ids, geometry).to_json()["mask"]
    assert made["size"] == [20, 30]
    for segment in made["segments"]:
        counts = segment["counts"]
        assert sum(counts) == 600
        flat = np.repeat(np.arange(len(counts)) % 2, counts)
        np.testing.assert_array_equal(flat.reshape(30, 20).T, ids == segment["class_id"])
    json.dumps(made, allow_nan=False)


def test_pycocotools_reads_the_run_lengths() -> None:
    coco_mask = pytest.importorskip("pycocotools.mask")
    ids = np.zeros((20, 30), np.uint8)
    ids[5:10, 3:9] = 1
    segment = Mask(ids, Geometry(30, 20, 30, 20, 1, 1)).to_json()["mask"]["segments"][1]
    rle = coco_mask.frPyObjects({"size": [20, 30], "counts": segment["counts"]}, 20, 30)
    np.testing.assert_array_equal(coco_mask.decode(rle), ids)


def test_movenet_points_are_in_frame_pixels_and_named() -> None:
    value = np.zeros((1, 1, 17, 3), np.float32)
    value[0, 0, 0] = [0.5, 0.25, 0.9]
    found = decode("movenet", [value]).to_json()["keypoints"]
    assert found[0] == {"name": "nose", "x": 50.0, "y": 50.0, "score": 0.9}
    assert found[16]["name"] == "right_ankle"


def test_an_embedding_has_length_one_unless_told_not_to() -> None:
    value = np.array([[3.0, 4.0]], np.float32)
    assert decode("embedding", [value]).vector == pytest.approx([0.6, 0.8])
    assert decode("embedding", [value], {"normalize": False}).vector == pytest.approx([3, 4])
    assert decode("embedding", [np.zeros((1, 2), np.float32)]).to_json() == {"embedding": [0.0, 0.0]}


def test_regression_names_its_values() -> None:
    found = decode("regression", [np.array([[1.0, 2.0]], np.float32)], {"scale": 2.0, "offset": 1.0}, ("yaw", "pitch"))
    assert found.to_json() == {"values": {"yaw": 3.0, "pitch": 5.0}}


WRONG_SHAPES = {
    "softmax": [np.zeros((1, 3, 2))],
    "yolox": [np.zeros((1, 10, 8))],
    "yolov5": [np.zeros((1, 10, 5))],
    "yolov8": [np.zeros((1, 4, 10))],
    "nanodet": [np.zeros((1, 64, 3))],
    "picodet": [np.zeros((1, 64, 3))],
    "fastestdet": [np.zeros((1, 5, 4, 4))],
    "ssd_pp": [np.zeros((1, 3, 4))],
    "ultraface": [np.zeros((1, 5, 2)), np.zeros((1, 4, 4))],
    "yunet": [np.zeros((1, 64, 1))],
    "blazeface": [np.zeros((1, 64, 16)), np.zeros((1, 64, 1))],
    "argmax_mask": [np.zeros((4, 4))],
    "movenet": [np.zeros((1, 17, 2))],
    "embedding": [np.zeros((2, 3))],
    "regression": [np.zeros((1, 3))],
}


@pytest.mark.parametrize("name", sorted(WRONG_SHAPES))
def test_a_decoder_says_what_it_expects_and_what_the_model_gives(name: str) -> None:
    labels = ("a", "b") if name == "regression" else ()
    with pytest.raises(ArtifactError, match=f"decoder `{name}` expects .* the model gives o0") as caught:
        decode(name, [a.astype(np.float32) for a in WRONG_SHAPES[name]], labels=labels)
    assert caught.value.hint


@pytest.mark.parametrize("name", sorted(WRONG_SHAPES))
def test_a_wrong_param_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=f"params of decoder `{name}`: scroe: unknown key"):
        decode(name, [], {"scroe": 1})


def test_every_decoder_of_the_contract_is_there_with_its_task() -> None:
    table = decoders()
    assert set(table.names(third_party=False)) == set(WRONG_SHAPES)
    for name in WRONG_SHAPES:
        assert table.load(name).task == table.plugin(name).capabilities["task"]


@pytest.mark.parametrize("params", [{"strides": []}, {"strides": [0]}, {"score": 2.0}, {"score": float("nan")}])
def test_params_that_cannot_be_are_refused(params: Any) -> None:
    with pytest.raises(UsageError, match="params of decoder `yolox`"):
        decode("yolox", [], params)


def detections() -> Detections:
    return Detections(
        np.array([[1, 2, 4, 6], [10, 20, 30, 40]], np.float32),
        np.array([0.9, 0.5], np.float32),
        np.array([1, 0], np.int32),
        ("cat", "dog"),
        np.array([7, -1], np.int64),
        np.zeros((2, 5, 2), np.float32),
    )


def test_detections_are_selected_row_by_row() -> None:
    kept = detections()[np.array([False, True])]
    assert kept.xyxy.tolist() == [[10, 20, 30, 40]]
    assert kept.keypoints is not None
    assert kept.keypoints.shape == (1, 5, 2)
    assert [len(detections()[i]) for i in (slice(0, 1), [1, 0])] == [1, 2]


def test_detections_as_json_and_coco() -> None:
    rows = detections().to_json()["detections"]
    assert rows[0]["box"] == [1, 2, 4, 6]
    assert (rows[0]["label"], rows[0]["track"], "track" in rows[1]) == ("dog", 7, False)
    assert detections().to_coco(3, {0: 17, 1: 18})[0] == {
        "image_id": 3,
        "category_id": 18,
        "bbox": [1, 2, 3, 4],
        "score": 0.9,
    }


def test_detections_for_supervision_name_the_package_when_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(BackendError, match="needs `supervision`") as caught:
        detections().to_supervision()
    assert caught.value.hint == "pip install supervision"


def test_detections_become_those_of_supervision() -> None:
    pytest.importorskip("supervision")
    found = detections().to_supervision()
    assert list(found.data["class_name"]) == ["dog", "cat"]
    assert found.tracker_id.tolist() == [7, -1]
