"""Two sets of predictions side by side: how far they agree, and what would explain that they do not."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from converters import reference, reference_forms, user_code
from converters.metrics.agree import agreement, readings
from edge_sdk.errors import ConversionError, UsageError
from edge_sdk.tasks.base import Geometry

PLACES = [Geometry(640, 480, 320, 320, 0.5, 0.5, 0.0, 40.0)] * 20


def boxes(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    corner = rng.random((40, 2)) * 300
    return {
        "image": np.repeat(np.arange(20), 2),
        "xyxy": np.concatenate([corner, corner + 60 + rng.random((40, 2)) * 80], axis=1),
        "score": rng.random(40) / 2 + 0.5,
        "class_id": rng.integers(0, 5, 40),
    }


def best(task: str, theirs: dict, ours: dict, places=PLACES, skip: int = 0):
    rows = [(r, agreement(task, r.arrays, ours, len(places))) for r in readings(task, theirs, ours, places, skip)]
    return max(rows, key=lambda pair: pair[1].rank)


def test_equal_boxes_agree_wholly_and_moved_ones_less_and_less():
    ours = boxes()
    near, far = (agreement("detection", ours | {"xyxy": ours["xyxy"] + d}, ours, 20) for d in (4.0, 200.0))

    assert agreement("detection", ours, ours, 20).rank == 1
    assert near.value == 1
    assert near.close < 1
    assert far.value < 0.2


def test_a_lower_threshold_of_the_model_is_no_disagreement():
    ours = boxes()
    strong = {k: v[ours["score"] >= 0.6] for k, v in ours.items()}

    assert agreement("detection", strong, ours, 20).value == 1


@pytest.mark.parametrize(
    ("change", "name", "form"),
    [
        (lambda b: b[:, [1, 0, 3, 2]], "its boxes are y1 x1 y2 x2", True),
        (lambda b: np.c_[b[:, :2], b[:, 2:] - b[:, :2]], "its boxes are x y width height", True),
        (lambda b: b / [640, 480, 640, 480], "its boxes are fractions of the frame", True),
        (lambda b: b * 0.5 + [0, 40, 0, 40], "its boxes are in pixels of the model's input, not of the frame", False),
        (lambda b: b + np.array([0, 80, 0, 80]), "the padding of the letterbox is still in them", False),
    ],
)
def test_boxes_written_or_scaled_otherwise_are_recognised(change, name, form):
    ours = boxes()
    found, figure = best("detection", ours | {"xyxy": change(ours["xyxy"])}, ours)

    assert name in found.name
    assert (found.form, figure.value) == (form, 1.0)
    assert form or found.hint


def test_box_classes_that_are_shifted_or_shuffled_are_recognised():
    ours = boxes()
    order = np.array([3, 4, 2, 0, 1])

    assert "one below the model's" in best("detection", ours | {"class_id": ours["class_id"] - 1}, ours)[0].name
    shuffled, figure = best("detection", ours | {"class_id": order[ours["class_id"]]}, ours)
    assert "its classes are in another order" in shuffled.name
    assert figure.value == 1


def probs(count: int = 6, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.eye(count)[rng.integers(0, count, 60)] * 3 + rng.random((60, count))
    return rows / rows.sum(axis=1, keepdims=True)


def test_a_background_class_on_one_side_is_recognised_with_its_flag():
    theirs = probs()
    with_background = np.concatenate([np.zeros((60, 1)), theirs], axis=1)

    model, figure = best("classification", {"probs": theirs}, {"probs": with_background}, PLACES * 3)
    assert (model.hint, figure.value) == ("--skip-classes 1", 1.0)
    user, figure = best("classification", {"probs": with_background}, {"probs": theirs}, PLACES * 3)
    assert ("the reference has a background class first" in user.name, figure.value) == (True, 1.0)


def test_class_probabilities_in_another_order_are_recognised():
    theirs = probs()
    order = [5, 3, 1, 0, 2, 4]
    ours = np.zeros_like(theirs)
    ours[:, order] = theirs

    found, figure = best("classification", {"probs": theirs}, {"probs": ours}, PLACES * 3)

    assert "another order (0 is the model's 5, 1 is the model's 3" in found.name
    assert figure.close == pytest.approx(1.0)


def test_probabilities_that_differ_show_although_the_best_class_is_the_same():
    theirs = probs()
    flat = theirs**0.3 / (theirs**0.3).sum(axis=1, keepdims=True)
    found = agreement("classification", {"probs": theirs}, {"probs": flat}, 60)

    assert found.value == 1
    assert found.close < 0.9


def test_points_and_values_in_other_units_are_recognised():
    points = np.random.default_rng(1).random((20, 17, 2)) * 400
    ours = {"points": points, "point_score": np.ones((20, 17))}
    swapped = ours | {"points": points[:, :, ::-1] / [480, 640]}
    assert best("keypoints", swapped, ours)[0].name == "its points are y x, as fractions of the frame"
    degrees = {"values": np.random.default_rng(2).normal(0, 30, (20, 2))}
    found, figure = best("regression", {"values": np.radians(degrees["values"][:, ::-1])}, degrees)
    assert "value 0 of the model is 57.3 x its value 1" in found.name
    assert figure.value == pytest.approx(1.0)


def figures(agree: float, explained: float, *causes: str) -> dict:
    rows = [{"kind": k, "name": f"the {k} is other", "hint": f"--{k} x"} for k in causes]
    return {"n": 32, "agreement": agree, "close": agree, "explained": explained, "causes": rows}


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (figures(0.99, 0.99), "agrees"),
        (figures(0.99, 0.99, "form"), "agrees"),
        (figures(0.7, 0.99, "color"), "refuses"),
        (figures(0.93, 0.99, "resize"), "refuses"),
        (figures(0.9, 0.99, "filter"), "warns"),
        (figures(0.9, 0.9), "warns"),
        (figures(0.3, 0.3), "refuses"),
        (figures(0.3, 0.4, "color"), "refuses"),
    ],
)
def test_a_skew_is_refused_a_filter_is_said_and_what_nothing_explains_is_refused_when_it_is_grave(found, status):
    assert reference.judge(found, "pkg:fn").status == status


def test_the_same_classes_with_other_scores_are_said():
    verdict = reference.judge(figures(1.0, 1.0) | {"close": 0.2}, "pkg:fn")

    assert verdict.status == "warns"
    assert "agree 1.00 on 32 images, but on scores or places only 0.20" in verdict.message
    assert "softmax" in verdict.hint


def test_the_message_names_what_parts_them_and_the_flags():
    verdict = reference.judge(figures(0.66, 1.0, "resize", "color"), "pkg:fn")

    assert verdict.message == (
        "`pkg:fn` and the model agree 0.66 on 32 images, 1.00 when the resize is other and the color is other"
    )
    assert verdict.hint == "--resize x --color x"


LABELS = ("cat", "dog", "cow")


def test_probabilities_that_rounding_lifts_above_one_are_no_logits():
    found = reference_forms._classification(np.array([0.0, 1.0000002, 0.0]), LABELS, 3)["probs"]

    assert found.max() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("value", "best_class"),
    [
        ([0.1, 0.7, 0.2], 1),
        (np.array([[2.0, 9.0, -3.0]]), 1),
        ({"dog": 0.9, "cat": 0.1}, 1),
        ([("Cow", 0.8), ("cat", 0.2)], 2),
        ("dog", 1),
        (np.int64(2), 2),
    ],
)
def test_classification_may_be_returned_in_the_usual_forms(value, best_class):
    found = reference_forms._classification(value, LABELS, 3)["probs"]

    assert found.argmax() == best_class
    assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize(
    "value",
    [
        np.array([[1, 2, 3, 4, 0.5, 1]]),
        [{"box": [1, 2, 3, 4], "score": 0.5, "label": "dog"}],
        [{"bbox": [1, 2, 3, 4], "score": 0.5, "class_id": 1}],
        {"boxes": np.array([[1, 2, 3, 4]]), "scores": np.array([0.5]), "labels": np.array([1])},
    ],
)
def test_detections_may_be_returned_in_the_usual_forms(value):
    found = reference_forms._rows(value, LABELS, 3)

    assert found["xyxy"].tolist() == [[1, 2, 3, 4]]
    assert (found["score"].tolist(), found["class_id"].tolist()) == ([0.5], [1])


def module(tmp_path, monkeypatch, text: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mine", None)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "mine", "--reference `mine` names no function"),
        ("", "mine:f", "`mine` has no `f`"),
        ("f = 3", "mine:f", "`mine:f` is a int, expected a function"),
        ("import nothing_of_this_name", "mine:f", "cannot import `mine` of --reference mine:f: ModuleNotFoundError"),
        ("raise SystemExit(3)", "mine:f", "cannot import `mine` of --reference mine:f: SystemExit: 3"),
    ],
)
def test_a_function_that_cannot_be_had_is_one_message(tmp_path, monkeypatch, text, name, message):
    module(tmp_path, monkeypatch, text)

    with pytest.raises(UsageError) as caught:
        user_code.load(name, "--reference")

    assert message in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("task", "text", "error", "message"),
    [
        ("classification", "def f(i): return [][1]", ConversionError, "the reference `mine:f` failed on"),
        ("classification", "def f(i): return {'horse': 1}", UsageError, "returned dict for a model of classification"),
        ("detection", "def f(i): return [[1, 2, 3]]", UsageError, "returned list for a model of detection"),
        ("detection", "def f(i): return []", ConversionError, "detects nothing on 3 golden images"),
        ("embedding", "n = [3]\ndef f(i):\n n[0] += 1\n return [1.0] * n[0]", UsageError, "results of different sizes"),
        ("segmentation", "def f(i): return i", UsageError, "shape (40, 40, 3) is not (h, w)"),
    ],
)
def test_a_function_that_fails_or_answers_in_another_form_is_one_message(
    tmp_path, monkeypatch, task, text, error, message
):
    import cv2

    module(tmp_path, monkeypatch, text)
    names = []
    for index in range(3):
        names.append(str(tmp_path / f"{index}.png"))
        cv2.imwrite(names[-1], np.full((40, 40, 3), index * 40, np.uint8))

    with pytest.raises(error) as caught:
        reference_forms.run("mine:f", task, names, LABELS, 3, out=str(tmp_path / "out.npz"))

    assert message in caught.value.message
    assert caught.value.hint
