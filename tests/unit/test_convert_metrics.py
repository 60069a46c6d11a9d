"""Metrics, intervals and the guard against collapsed scores."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from converters.datasets import Box, DataSet, Sample
from converters.metrics import bootstrap, detection, scores, task
from edge_sdk.errors import CalibrationError, ConversionError


def scene(seed: int = 0, images: int = 30) -> tuple[list[detection.Truth], dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    truths, rows = [], {"image": [], "xyxy": [], "score": [], "class_id": []}
    for image in range(images):
        count = int(rng.integers(1, 5))
        corner = rng.random((count, 2)) * 300
        boxes = np.c_[corner, corner + rng.random((count, 2)) * 90 + 20]
        classes = rng.integers(0, 3, count)
        truths.append(detection.Truth(boxes, classes, np.zeros(count, bool)))
        for box, class_id in zip(boxes, classes, strict=True):
            if rng.random() < 0.8:
                rows["image"].append(image)
                rows["xyxy"].append(box + rng.normal(0, 3, 4))
                rows["score"].append(rng.random())
                rows["class_id"].append(class_id)
        rows["image"].append(image)
        rows["xyxy"].append(np.array([5.0, 5.0, 50.0, 60.0]))
        rows["score"].append(rng.random() * 0.6)
        rows["class_id"].append(0)
    return truths, {k: np.array(v) for k, v in rows.items()}


def test_the_weighted_map_of_the_bootstrap_is_pycocotools_map_at_weight_one():
    truths, rows = scene()
    found = detection.evaluate(truths, rows, 4)

    assert found.map50_of(np.ones((1, 30)))[0] == pytest.approx(found.map50, abs=1e-9)
    assert 0.2 < found.map50_95 < found.map50 < 1


def test_evaluating_in_two_threads_leaves_standard_output_alone(capsys):
    truths, rows = scene(images=60)
    before = sys.stdout
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: detection.evaluate(truths, rows, 4), range(24)))

    assert sys.stdout is before
    assert capsys.readouterr().out == ""


def test_a_weight_of_two_is_the_image_twice():
    truths, rows = scene(images=10)
    weights = np.ones((1, 10))
    weights[0, 3] = 2
    extra = {k: np.concatenate([v, v[rows["image"] == 3]]) for k, v in rows.items()}
    extra["image"] = np.concatenate([rows["image"], np.full((rows["image"] == 3).sum(), 10)])
    doubled = detection.evaluate([*truths, truths[3]], extra, 4)

    assert detection.evaluate(truths, rows, 4).map50_of(weights)[0] == pytest.approx(doubled.map50, abs=1e-6)


def test_the_interval_of_a_drop_is_paired():
    right = np.tile([1.0, 0.0], 100)

    def same(weights):
        return (weights @ right) / weights.sum(axis=1)

    assert bootstrap.interval(same, same, 200) == (0.0, 0.0)


def moved(low, high, name: str = "scores") -> dict:
    return {name: {"low": low, "high": high}}


def test_scores_that_are_one_value_are_refused_whatever_the_drop():
    source = moved([0.0, 0.0], [0.9, 0.8])

    assert "every class score is 0.5" in scores.collapse(source, moved([0.5, 0.5], [0.5, 0.5]), ())
    assert "no class score changes" in scores.collapse(source, moved([0.5, 0.1], [0.5, 0.1]), ())


def test_one_class_that_stands_still_is_named():
    source = moved([0.0, 0.0], [0.9, 0.8])
    message = scores.collapse(source, moved([0.0, 0.1], [0.9, 0.101]), ("cat", "dog"))

    assert message == "the scores of 1 class(es) stand still over the golden set: dog"


def test_an_objectness_an_embedding_or_a_value_that_stands_still_is_a_collapse_too():
    for name, words in (
        ("objectness", "every objectness is 0"),
        ("embedding", "every embedding value is 0"),
        ("values", "every regressed value is 0"),
    ):
        assert words in scores.collapse(moved([0.0], [1.0], name), moved([0.0], [0.0], name), ())


def test_scores_that_move_as_in_the_source_pass():
    source = moved([0.0, 0.0, 0.0], [0.9, 0.8, 0.001])

    assert scores.collapse(source, moved([0.0, 0.0, 0.0], [0.85, 0.7, 0.0]), ()) is None


def data(names=(), ids=(0, 1), kind="classes") -> DataSet:
    return DataSet(
        root=Path("golden"),
        kind=kind,
        names=names,
        samples=tuple(Sample(image=Path(f"{i}.png"), class_id=c) for i, c in enumerate(ids)),
    )


def test_classes_are_matched_by_name():
    judge = task.labelled("classification", data(("dog", "cat")), {}, 3, ("Cat", "cow", "dog"))

    assert judge.classes.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("golden", "classes", "labels", "message"),
    [
        (data(("a", "b")), 3, (), "golden has 2 classes, the model 3"),
        (data(("a", "b")), 3, ("0", "1", "2"), "golden has 2 classes, the model 3"),
        (data(("a", "b")), 3, ("x", "y", "z"), "has the class `a`, which is not among the 3 labels"),
        (data(ids=(0, 1000), kind="csv"), 1000, (), "has the class index 1000, the model has 1000 classes"),
    ],
)
def test_labels_that_do_not_match_are_one_clear_message(golden, classes, labels, message):
    with pytest.raises(CalibrationError) as caught:
        task.labelled("classification", golden, {}, classes, labels)

    assert message in caught.value.message


def test_a_background_class_first_is_offered_as_the_way_out():
    names = tuple(str(i) for i in range(1000))
    with pytest.raises(CalibrationError) as caught:
        task.labelled("classification", data(names), {}, 1001, ())

    assert "--skip-classes 1" in (caught.value.hint or "")


def test_labels_for_another_task_are_refused():
    with pytest.raises(CalibrationError, match="labelled for classification, the model does detection"):
        task.labelled("detection", data(("a", "b")), {}, 2, ())


def test_relative_boxes_become_pixels():
    golden = DataSet(
        root=Path("g"),
        kind="yolo",
        samples=(Sample(image=Path("a"), boxes=(Box(0, 0.1, 0.2, 0.3, 0.4, relative=True),)),),
    )
    judge = task.labelled("detection", golden, {Path("a"): (100, 50)}, 1, ())

    assert judge.truths[0].xyxy.tolist() == [[10, 10, 30, 20]]


def test_without_labels_the_source_is_the_truth():
    probs = np.eye(3)[[0, 1, 2, 0]]
    judge = task.agreement("classification", {"probs": probs}, 4, 3)

    measured = judge.measure({"probs": np.eye(3)[[0, 1, 1, 0]]})

    assert (measured.name, measured.value) == ("agreement top1", 0.75)


def test_a_source_that_detects_nothing_cannot_be_agreed_with():
    empty = {"image": np.zeros(0), "xyxy": np.zeros((0, 4)), "score": np.zeros(0), "class_id": np.zeros(0)}

    with pytest.raises(ConversionError, match="the source detects nothing"):
        task.agreement("detection", empty, 3, 1)
