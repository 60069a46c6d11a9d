"""How two models' answers to one picture differ."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edge_sdk.pipeline.compare import Pairs, compare
from edge_sdk.tasks.results import NO_CLASS, Classes, Detections, Embedding, Geometry, Keypoints, Mask, Values

LABELS = ("cat", "dog")


def boxes(*rows: tuple[float, float, float, float, float, int], labels=LABELS) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int32), labels)


def test_boxes_are_matched_by_label_and_overlap_the_best_pair_first():
    old = boxes((0, 0, 10, 10, 0.9, 0), (2, 0, 12, 10, 0.8, 0), (50, 50, 60, 60, 0.7, 1))
    new = boxes((2, 0, 12, 10, 0.5, 0), (50, 50, 60, 60, 0.7, 0))
    pair = compare(old, new)
    assert pair.ious == (1.0,)
    assert pair.differences == {"cat": (pytest.approx(-0.3),)}
    assert dict(pair.only_old) == {"cat": 1, "dog": 1}
    assert dict(pair.only_new) == {"cat": 1}
    assert pair.agreement == pytest.approx(2 / 5)


def test_labels_are_compared_by_name_not_by_number():
    new = boxes((0, 0, 10, 10, 0.9, 1), labels=("dog", "cat"))
    assert compare(boxes((0, 0, 10, 10, 0.9, 0)), new).agreement == 1.0


def test_two_empty_answers_agree_and_one_empty_answer_does_not():
    assert compare(boxes(), boxes()).agreement == 1.0
    assert compare(boxes((0, 0, 10, 10, 0.9, 0)), boxes()).agreement == 0.0
    assert compare(boxes(), boxes((0, 0, 10, 10, 0.9, 0))).agreement == 0.0


def test_classes_agree_when_the_best_label_is_the_same():
    old, new = Classes(np.array([0.7, 0.3], np.float32), LABELS), Classes(np.array([0.4, 0.6], np.float32), LABELS)
    pair = compare(old, new)
    assert pair.agreement == 0.0
    assert pair.differences == {"cat": (pytest.approx(-0.3),), "dog": (pytest.approx(0.3),)}
    assert (dict(pair.only_old), dict(pair.only_new)) == ({"cat": 1}, {"dog": 1})
    assert compare(old, old).agreement == 1.0


def test_a_class_that_the_other_model_has_not_has_no_difference():
    pair = compare(Classes(np.array([1.0], np.float32), ("cat",)), Classes(np.array([1.0], np.float32), ("fish",)))
    assert pair.agreement == 0.0
    assert pair.differences == {}


def test_masks_agree_in_the_share_of_pixels_that_both_saw():
    place = Geometry(4, 2, 4, 2, 1.0, 1.0)
    old = Mask(np.array([[0, 0, 1, 1], [0, 0, 1, NO_CLASS]], np.uint8), place, LABELS)
    new = Mask(np.array([[0, 1, 1, 1], [0, 0, 1, 1]], np.uint8), place, LABELS)
    pair = compare(old, new)
    assert pair.agreement == pytest.approx(6 / 7)
    assert sorted(pair.ious) == [pytest.approx(3 / 4), pytest.approx(3 / 4)]


def test_points_agree_within_a_tenth_of_the_figure():
    score = np.ones(3, np.float32)
    old = Keypoints(np.array([[0, 0], [0, 100], [50, 50]], np.float32), score, ("a", "b", "c"))
    new = Keypoints(old.points + np.array([[9, 0], [11, 0], [0, 0]], np.float32), 0.5 * score, ("a", "b", "c"))
    pair = compare(old, new)
    assert pair.agreement == pytest.approx(2 / 3)
    assert pair.differences["b"] == (-0.5,)


def test_values_have_differences_by_name_and_embeddings_a_cosine():
    assert compare(
        Values(np.array([1.0, 5.0], np.float32), ("yaw", "roll")), Values(np.array([3.0], np.float32), ("yaw",))
    ).differences == {"yaw": (2.0,)}
    one, two = np.array([1, 0], np.float32), np.array([1, 1], np.float32)
    assert compare(Embedding(one), Embedding(two)).agreement == pytest.approx(0.7071, abs=1e-4)
    assert compare(Embedding(one), Embedding(np.zeros(3, np.float32))).agreement == 0.0


def test_many_pairs_give_means_deviations_and_the_worst_frames():
    pairs = Pairs()
    old = boxes((0, 0, 10, 10, 0.9, 0))
    for frame, score in enumerate((0.8, 0.6, 0.7)):
        pairs.add(compare(old, boxes((0, 0, 10, 10, score, 0))), frame)
    pairs.add(compare(old, boxes()), 3)
    data = pairs.to_json()
    assert data["pairs"] == 4
    assert data["agreement"]["mean"] == pytest.approx(0.75)
    assert data["differences"]["cat"] == {"n": 3, "mean": pytest.approx(-0.2), "std": pytest.approx(0.1)}
    assert data["only_old"] == {"cat": 1}
    assert data["worst"] == [{"frame": 3, "agreement": 0.0}]
    json.dumps(data, allow_nan=False)
