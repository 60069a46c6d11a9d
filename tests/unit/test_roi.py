"""A model that sees a part of the frame answers in pixels of the whole one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.errors import BackendError, ConfigError, UsageError
from edge_sdk.pipeline import Pipeline
from edge_sdk.roi import RoiModel, check_roi, in_frame
from edge_sdk.tasks.results import NO_CLASS, Geometry, Keypoints, Mask
from edge_sdk.testing import ListSource, build_artifact, color_frame, fake_model


@pytest.fixture(scope="module")
def detector(tmp_path_factory: Any) -> Path:
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "cells.edge", task="detection").path


def cells(*places: tuple[int, int]) -> Any:
    """A black 128 x 96 frame with bright squares of 8 pixels."""
    frame = np.zeros((96, 128, 3), np.uint8)
    for x, y in places:
        frame[y : y + 8, x : x + 8, 2] = 255
    return frame


def test_only_what_lies_in_the_rectangle_is_found_and_where_it_is(detector):
    frame = cells((72, 40), (8, 8))
    (item,) = Pipeline(ListSource([frame])).detect(detector, roi=[[64, 32], [96, 64]])
    assert item.detections.xyxy.tolist() == [[72.0, 40.0, 80.0, 48.0]]


def test_the_corners_of_a_rectangle_may_come_in_any_order(detector):
    frame = cells((72, 40))
    (item,) = Pipeline(ListSource([frame])).detect(detector, roi=[[96, 32], [64, 64]])
    assert item.detections.xyxy.tolist() == [[72.0, 40.0, 80.0, 48.0]]


def test_what_lies_outside_a_polygon_is_black_to_the_model(detector):
    frame = cells((64, 32), (88, 56))
    (item,) = Pipeline(ListSource([frame])).detect(detector, roi=[[64, 32], [96, 32], [64, 64]])
    assert item.detections.xyxy.tolist() == [[64.0, 32.0, 72.0, 40.0]]
    assert frame.max() == 255


def test_a_region_that_leaves_the_frame_is_cut_at_its_border():
    seen = []

    def answer(image: Any) -> list[float]:
        seen.append(image.copy())
        return [0, 0, 1]

    frame = np.zeros((96, 128, 3), np.uint8)
    frame[:, 96:] = 200
    model = RoiModel(fake_model(answer), [[96, -50], [500, 500]])
    feeds, place = model.prepare(frame)
    model.decode(model.infer(feeds), place)
    assert (seen[-1] == 200).all()


def test_tiles_and_a_region_go_together(detector):
    frame = cells((72, 40))
    tiles = {"columns": 2, "rows": 2, "overlap": 0.0, "full": False}
    (item,) = Pipeline(ListSource([frame])).detect(detector, roi=[[64, 32], [128, 96]], tiles=tiles)
    assert item.detections.xyxy.tolist() == [[72.0, 40.0, 80.0, 48.0]]


def test_a_mask_of_a_region_says_what_the_model_did_not_see():
    part = Mask(np.array([[1, 2], [3, 4]], np.uint8), Geometry(4, 4, 2, 2, 0.5, 0.5))
    whole = in_frame(part, 2, 1, 8, 6).upright()
    assert whole.shape == (6, 8)
    assert whole[1:5, 2:6].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert (whole == NO_CLASS).sum() == 48 - 16


def test_points_are_moved_and_classes_are_not():
    points = Keypoints(np.array([[1, 2]], np.float32), np.ones(1, np.float32))
    assert in_frame(points, 10, 20, 99, 99).points.tolist() == [[11, 22]]
    other = object()
    assert in_frame(other, 10, 20, 99, 99) is other


def test_a_region_outside_the_frame_fails_the_frames_and_says_so(detector):
    with pytest.raises((UsageError, BackendError), match=r"roi: \[200, 0, 300, 50\] lies outside the frame of 64 x 48"):
        Pipeline(ListSource([color_frame("red")])).detect(detector, roi=[[200, 0], [300, 50]]).run()
    with pytest.raises(UsageError, match="lies outside the frame of 64 x 48"):
        check_roi([[200, 0], [300, 50]], 64, 48)


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        ([[1, 1]], "roi: expected [x, y] points"),
        ([[1, 1], [1, 9]], "have no area between them"),
        ([[0, 0], [9, 9], [9, 0], [0, 9]], "cross"),
        ([[0, 0, 4], [9, 9, 4]], "roi: expected [x, y] points"),
        ("everything", "roi: expected an array"),
        ([[0, 0], [float("nan"), 9]], "expected a number"),
    ],
)
def test_points_that_are_no_region_are_refused(detector, roi, message):
    with pytest.raises((ConfigError, UsageError)) as caught:
        Pipeline(ListSource([color_frame("red")])).detect(detector, roi=roi).run()
    assert message in f"{caught.value.message} {' '.join(getattr(caught.value, 'problems', ()))}"
