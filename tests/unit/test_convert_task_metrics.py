"""Metrics of classification, segmentation, keypoints, embedding and regression, against others' and by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from converters.datasets import DataSet
from converters.metrics import classification, keypoints, notes, segmentation, task, vectors
from converters.metrics.measured import compare
from converters.samples import Person, Sample
from edge_sdk.errors import CalibrationError, ConversionError

ONES = np.ones((1, 200))


def probs(classes: np.ndarray, count: int, *, right: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = rng.random((len(classes), count))
    hit = rng.random(len(classes)) < right
    out[np.flatnonzero(hit), classes[hit]] += 1
    return out / out.sum(axis=1, keepdims=True)


def test_average_precision_is_scikit_learns_with_ties_and_with_weights():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    scores, positive = np.round(rng.random(200), 1), rng.random(200) < 0.1
    weights = rng.integers(0, 3, (1, 200)).astype(float)

    figure = classification.average_precision(scores, positive)

    assert figure(ONES)[0] == pytest.approx(metrics.average_precision_score(positive, scores))
    weighted = metrics.average_precision_score(positive, scores, sample_weight=weights[0])
    assert figure(weights)[0] == pytest.approx(weighted)


def test_macro_f1_is_scikit_learns_with_weights():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(2)
    truth, guess = rng.integers(0, 5, 200), rng.integers(0, 6, 200)
    weights = rng.integers(1, 4, (1, 200)).astype(float)

    figure = classification.macro_f1(guess, truth, 6)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert figure(ONES)[0] == pytest.approx(metrics.f1_score(truth, guess, average="macro"))
        weighted = metrics.f1_score(truth, guess, average="macro", sample_weight=weights[0])
    assert figure(weights)[0] == pytest.approx(weighted)


def test_top5_and_the_parts_of_rare_and_common_classes():
    classes = np.array([0] * 100 + [1] * 92 + [2] * 6 + [3] * 2)
    found = classification.measure(probs(classes, 8, right=0.9), classes, tuple("abcdefgh"), labelled=True)

    assert found.name == "top1"
    assert found.value < found.more["top5"] <= 1
    assert {p.key for p in found.parts} == {
        "macro F1 macro-F1", "class a recall", "class b recall", "rare class c PR-AUC",
    }  # fmt: skip
    assert found.more["macro_f1"] == next(p.value for p in found.parts if p.kind == "macro")


def test_without_a_rare_class_there_is_no_macro_f1():
    classes = np.repeat([0, 1], 50)

    assert "macro_f1" not in classification.measure(probs(classes, 2, right=0.9), classes, (), labelled=True).more


def test_miou_counts_the_classes_that_occur_and_leaves_unseen_pixels_out():
    truth = np.zeros((1, 2, 4), np.uint8)
    truth[0, :, 2:] = 1
    truth[0, 1, 3] = 255
    mask = np.zeros((1, 2, 4), np.uint8)
    mask[0, 0, 2:] = 1
    mask[0, 0, 0] = 255

    found = segmentation.measure(mask, truth, 5, ("wall", "door"), labelled=True)

    assert found.value == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert found.more["pixel_accuracy"] == pytest.approx(5 / 6)


def test_ids_above_the_classes_are_wrong_and_no_error():
    found = segmentation.measure(np.full((1, 2, 2), 9), np.zeros((1, 2, 2)), 3, (), labelled=True)

    assert found.value == 0


def test_oks_is_that_of_pycocotools():
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(3)
    truth = rng.random((17, 2)) * 200
    seen = rng.random(17) < 0.7
    found = truth + rng.normal(0, 6, (17, 2))
    points = np.concatenate([truth, seen[:, None] * 2], axis=1).reshape(-1).tolist()
    gt, dt = COCO(), COCO()
    row = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "iscrowd": 0,
        "ignore": 0,
        "area": 9000.0,
        "bbox": [0, 0, 200, 200],
    }
    gt.dataset = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": [
        row | {"keypoints": points, "num_keypoints": int(seen.sum())}]}  # fmt: skip
    theirs = np.concatenate([found, np.ones((17, 1))], axis=1).reshape(-1).tolist()
    dt.dataset = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": [
        row | {"keypoints": theirs, "score": 1.0, "num_keypoints": 17}]}  # fmt: skip
    gt.createIndex()
    dt.createIndex()
    run = COCOeval(gt, dt, "keypoints")
    run._prepare()

    ours = keypoints.measure({"points": found[None]}, [keypoints.pose_of(truth, seen, 9000.0)], (), labelled=True)

    assert ours.value == pytest.approx(float(run.computeOks(1, 1)[0, 0]), abs=1e-6)


def test_images_without_a_labelled_point_are_left_out_of_the_pose_metric():
    pose = keypoints.pose_of(np.array([[0.0, 0], [10, 10]]), np.array([True, True]))
    empty = keypoints.Pose(np.zeros((0, 2)), np.zeros(0, bool), 0.0)
    arrays = {"points": np.stack([pose.points, pose.points + 500])}

    found = keypoints.measure(arrays, [pose, empty], ("nose", "tail"), labelled=True)

    assert (found.value, found.n, found.images) == (1.0, 1, 2)
    assert found.of_weights(np.array([[0.0, 3.0], [1.0, 3.0]])).tolist()[1] == 1.0


def test_poses_of_another_number_of_points_are_refused():
    pose = keypoints.pose_of(np.zeros((5, 2)), np.ones(5, bool), 10.0)

    with pytest.raises(CalibrationError, match="labels 5 points of a pose, the model finds 17"):
        keypoints.measure({"points": np.zeros((1, 17, 2))}, [pose], (), labelled=True)


def test_recall_at_1_finds_the_class_of_the_nearest_and_says_the_cosine_to_the_source():
    rng = np.random.default_rng(4)
    classes = np.repeat([0, 1, 2], 10)
    vectors_ = np.eye(8)[classes] + rng.normal(0, 0.05, (30, 8))
    alone = np.concatenate([vectors_, [np.ones(8)]])

    found = vectors.recall_at_1(alone, np.append(classes, 3), ("a", "b", "c", "d"), alone)

    assert (found.value, found.n, found.images) == (1.0, 30, 31)
    assert found.more["cosine"] == pytest.approx(1.0)
    shuffled = vectors.recall_at_1(rng.normal(0, 1, (31, 8)), np.append(classes, 3), (), None)
    assert shuffled.value < 0.7


def test_embeddings_without_labels_are_judged_by_their_cosine_to_the_source():
    source = np.random.default_rng(5).normal(0, 1, (20, 16))
    judge = task.agreement("embedding", {"embedding": source}, 20, 0)

    same, opposite = judge.measure({"embedding": source * 3}), judge.measure({"embedding": -source})

    assert (same.name, same.value) == ("agreement cosine", pytest.approx(1.0))
    assert opposite.value == 0
    assert same.more["same_neighbour"] == 1.0


def test_an_error_counts_as_a_share_of_the_range_of_its_value():
    truth = np.array([[0.0, 5.0], [100.0, 5.0]])

    found = vectors.one_minus_error(np.array([[10.0, 9.0], [100.0, 5.0]]), truth, ("yaw", "roll"), labelled=True)

    assert (found.name, found.value) == ("1-MAE/range", pytest.approx(0.95))
    assert [p.name for p in found.parts] == ["yaw"]
    assert found.more["MAE"] == pytest.approx(3.5)


def test_another_number_of_values_than_the_labels_is_one_message():
    with pytest.raises(CalibrationError, match=r"labels 2 value\(s\) an image, the model gives 3"):
        vectors.one_minus_error(np.zeros((4, 3)), np.zeros((4, 2)), (), labelled=True)


def test_a_source_that_answers_always_the_same_cannot_be_agreed_with():
    with pytest.raises(ConversionError, match="gives the same values on all 4 golden images"):
        task.agreement("regression", {"values": np.ones((4, 2))}, 4, 2)
    blind = {"points": np.zeros((4, 17, 2)), "point_score": np.zeros((4, 17))}
    with pytest.raises(ConversionError, match="the source finds no point above 0.3"):
        task.agreement("keypoints", blind, 4, 17)


def values_set(rows, names=("yaw", "pitch")) -> DataSet:
    from pathlib import Path

    samples = tuple(Sample(image=Path(f"{i}.png"), values=r) for i, r in enumerate(rows))
    return DataSet(root=Path("g"), kind="values", samples=samples, names=names)


def test_labelled_values_are_put_in_the_models_order_by_name():
    judge = task.labelled("regression", values_set([(1.0, 2.0), (3.0, 4.0)]), {}, 2, ("pitch", "yaw"))

    assert judge.values.tolist() == [[2.0, 1.0], [4.0, 3.0]]


def test_labelled_values_that_never_change_are_refused():
    with pytest.raises(CalibrationError, match="every labelled value of g is the same in all 2 images"):
        task.labelled("regression", values_set([(1.0, 2.0), (1.0, 2.0)]), {}, 2, ())


def test_the_largest_labelled_person_of_an_image_is_judged():
    from pathlib import Path

    small, large = Person(((1.0, 1.0, 2.0),), 10.0), Person(((5.0, 5.0, 2.0),), 90.0)
    data = DataSet(root=Path("g"), kind="coco", samples=(Sample(image=Path("a"), poses=(small, large)),), points=("x",))

    judge = task.labelled("keypoints", data, {}, 1, ())

    assert judge.poses[0].points.tolist() == [[5.0, 5.0]]


def test_the_notes_name_a_set_of_one_class_and_classes_with_too_few_labels():
    one = task.Judge(task="classification", n=9, labelled=True, classes=np.zeros(9, int), class_count=3, names=("cat",))
    few = task.Judge(task="classification", n=9, labelled=True, classes=np.array([0] * 7 + [1] * 2), class_count=3)

    assert notes.notes(one) == ["the golden set has one class only (`cat`): a build that always answers it passes"]
    assert notes.notes(few) == [
        "1 of 2 classes have fewer than 5 labels (`1` 2): they count in the mean, but no build is refused for one of "
        "them alone"
    ]
    assert notes.notes(task.Judge(task="classification", n=9, labelled=False)) == []


def test_evidence_holds_each_part_of_source_and_build():
    classes = np.repeat([0, 1], 100)
    source, build = (
        classification.measure(probs(classes, 2, right=r), classes, ("a", "b"), labelled=True) for r in (0.95, 0.5)
    )

    rows = compare(source, build)

    assert set(rows) == {"class a", "class b"}
    assert rows["class a"]["drop"] == pytest.approx(rows["class a"]["source"] - rows["class a"]["value"], abs=1e-6)
