"""A source that fails its labels, and the likely reason."""

from __future__ import annotations

import numpy as np
import pytest

from converters.metrics import detection, sanity, task


def classes_judge(truth: np.ndarray, count: int, names: tuple[str, ...] = ()) -> task.Judge:
    return task.Judge(task="classification", n=len(truth), labelled=True, classes=truth, class_count=count, names=names)


def oddity(judge: task.Judge, arrays: dict, skip: int = 0) -> sanity.Oddity | None:
    return sanity.check(judge, judge.measure(arrays), arrays, skip=skip)


TRUTH = np.random.default_rng(0).integers(0, 20, 200)


def test_a_good_source_is_not_odd():
    assert oddity(classes_judge(TRUTH, 20), {"probs": np.eye(20)[TRUTH]}) is None


@pytest.mark.parametrize(
    ("shift", "skip", "hint"),
    [
        (1, 0, "the model has a background class first: --skip-classes 1"),
        (1, 1, "the model has a background class first: --skip-classes 2"),
        (-1, 1, "leave --skip-classes out"),
        (-1, 2, "give --skip-classes 1"),
        (-1, 0, "the golden set counts a background class first that the model has not: subtract 1"),
    ],
)
def test_labels_that_are_off_by_one_are_told_with_the_flag_for_it(shift, skip, hint):
    truth = np.clip(TRUTH, 1, 18)
    found = oddity(classes_judge(truth, 20), {"probs": np.eye(20)[truth + shift]}, skip)

    assert f"when its class is one {'above' if shift > 0 else 'below'} the label" in found.message
    assert hint in found.hint


def test_classes_in_another_order_are_named():
    truth = np.repeat(np.arange(4), 25)
    order = np.array([2, 3, 1, 0])
    found = oddity(classes_judge(truth, 4, ("ant", "bee", "cat", "dog")), {"probs": np.eye(4)[order[truth]]})

    assert "1.0000 when the classes are in another order: `ant` is its class 2, `bee` is its class 3" in found.message
    assert "--labels FILE" in found.hint


def test_a_source_at_chance_is_refused_and_one_above_is_not():
    rng = np.random.default_rng(1)
    judge = classes_judge(TRUTH, 20)

    found = oddity(judge, {"probs": rng.random((200, 20))})

    assert "on 200 golden images of 20 classes, no better than always naming the commonest" in found.message
    assert "--color" in found.hint


def test_a_source_that_is_never_right_on_one_class_is_odd_too():
    found = oddity(classes_judge(np.zeros(10, int), 3), {"probs": np.eye(3)[np.full(10, 2)]})

    assert found.message == "the source itself has top1 0 on the golden set"


def scene(move: float = 0.0, shift: int = 0, order=(0, 1, 2)) -> tuple[task.Judge, dict]:
    """Forty images with one or two of three classes; the model finds them, moved and renamed."""
    rng = np.random.default_rng(2)
    truths, rows = [], {"image": [], "xyxy": [], "score": [], "class_id": []}
    for image in range(40):
        ids = rng.permutation(3)[: rng.integers(1, 3)]
        corner = rng.random((len(ids), 2)) * 200
        boxes = np.concatenate([corner, corner + 60], 1)
        truths.append(detection.Truth(boxes, ids.astype(np.int64), np.zeros(len(ids), bool)))
        for box, class_id in zip(boxes, ids, strict=True):
            rows["image"].append(image)
            rows["xyxy"].append(box + move)
            rows["score"].append(0.5 + rng.random() / 2)
            rows["class_id"].append(order[class_id] + shift)
    judge = task.Judge(task="detection", n=40, labelled=True, truths=tuple(truths), class_count=4)
    return judge, {k: np.array(v) for k, v in rows.items()}


def test_boxes_that_are_displaced_are_told_from_classes_that_are_wrong():
    assert oddity(*scene()) is None
    found = oddity(*scene(move=45))

    assert "its boxes are wrong" in found.message
    assert "quantizing" in found.hint
    assert "--resize" in found.hint


def test_detected_classes_that_are_off_by_one_or_in_another_order_are_told():
    assert "1.0000 when its class is one above the label" in oddity(*scene(shift=1)).message
    assert "when classes do not count: its classes are in another order" in oddity(*scene(order=(2, 3, 0))).message


def test_a_detector_that_finds_next_to_nothing_is_refused():
    judge, rows = scene()
    found = oddity(judge, rows | {"xyxy": np.random.default_rng(0).random((len(rows["score"]), 4))})

    assert found is not None


def test_a_mask_of_one_class_everywhere_is_no_better_than_that():
    truth = np.zeros((4, 8, 8), np.uint8)
    truth[:, :2] = 1
    judge = task.Judge(task="segmentation", n=4, labelled=True, classes=truth, class_count=3)

    assert oddity(judge, {"mask": truth}) is None
    assert "no better than one class for every pixel" in oddity(judge, {"mask": np.zeros_like(truth)}).message


def test_values_in_another_order_or_sign_are_told():
    truth = np.random.default_rng(3).normal(0, 30, (50, 2))
    judge = task.Judge(task="regression", n=50, labelled=True, values=truth, names=("yaw", "pitch"))

    assert oddity(judge, {"values": truth + 1}) is None
    found = oddity(judge, {"values": np.stack([truth[:, 1], -truth[:, 0]], axis=1)})
    assert "`yaw` follows minus the model's value 1, `pitch` follows the model's value 0" in found.message
    assert "no better than always answering the median" in oddity(judge, {"values": truth[::-1] * 3}).message


def test_embeddings_at_chance_and_sets_with_nothing_to_find_are_told():
    rng = np.random.default_rng(4)
    truth = np.repeat(np.arange(10), 5)
    judge = task.Judge(task="embedding", n=50, labelled=True, classes=truth)

    assert oddity(judge, {"embedding": np.eye(10)[truth] + rng.normal(0, 0.01, (50, 10))}) is None
    assert "no better than chance" in oddity(judge, {"embedding": np.eye(50)}).message
    alone = task.Judge(task="embedding", n=5, labelled=True, classes=np.arange(5))
    assert "no class of the golden set has two images" in oddity(alone, {"embedding": np.eye(5)}).message


def test_without_labels_nothing_is_odd():
    judge = task.agreement("classification", {"probs": np.eye(3)}, 3, 3)

    assert oddity(judge, {"probs": np.eye(3)}) is None
