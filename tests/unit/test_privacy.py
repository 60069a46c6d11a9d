"""Privacy: what is hidden cannot be read, what is not stays as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_sdk.privacy import Privacy, hide_boxes
from edge_sdk.stage_params import BlurParams
from edge_sdk.tasks.base import Detections, Geometry, Mask

LABELS = ("person", "car")


def picture() -> Any:
    return np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)


def found(*rows: tuple[int, list[float]], score: float = 0.9) -> Detections:
    boxes = np.array([box for _, box in rows], np.float32).reshape(-1, 4)
    return Detections(boxes, np.full(len(rows), score, np.float32), np.array([c for c, _ in rows], np.int32), LABELS)


@pytest.mark.parametrize("mode", ["pixelate", "blur", "fill"])
def test_a_person_is_hidden_in_place_and_a_car_is_not(mode: Any) -> None:
    image, before = picture(), picture()
    privacy = Privacy(params=BlurParams(classes=("person",), mode=mode, grow=0))
    count = privacy.hide(image, found((0, [20, 20, 60, 100]), (1, [100, 20, 140, 100])), 0.0)
    assert count == 1
    inner = image[20:100, 20:60].astype(int)
    assert (
        np.abs(np.diff(inner, axis=1)).mean() < 0.25 * np.abs(np.diff(before[20:100, 20:60].astype(int), axis=1)).mean()
    )
    outside = np.ones((120, 160), bool)
    outside[20:100, 20:60] = False
    assert np.array_equal(image[outside], before[outside])


def test_pixelation_leaves_no_more_than_the_stated_blocks() -> None:
    image = picture()
    hide_boxes(image, np.array([[0, 0, 160, 120]], np.float32), BlurParams(blocks=8, grow=0))
    assert len(np.unique(image.reshape(-1, 3), axis=0)) <= 8 * 6


def test_a_box_grows_and_is_cut_at_the_border_of_the_image() -> None:
    image = picture()
    assert hide_boxes(image, np.array([[-50, 10, 10, 20]], np.float32), BlurParams(mode="fill", grow=0.5)) == 1
    assert not image[5:25, 0:40].any()
    assert image[:, 41:].any()


@pytest.mark.parametrize("box", [[200, 10, 300, 20], [50, 50, 50, 50], [60, 60, 40, 40]])
def test_a_box_outside_the_image_or_without_area_changes_nothing(box: list[float]) -> None:
    image = picture()
    assert hide_boxes(image, np.array([box], np.float32), BlurParams(mode="fill")) == 0
    assert np.array_equal(image, picture())


def test_a_box_that_is_no_number_hides_the_whole_image() -> None:
    image = picture()
    hide_boxes(image, np.array([[np.nan, 0, 10, 10]], np.float32), BlurParams(mode="fill"))
    assert not image.any()


def test_a_person_that_the_detector_loses_stays_hidden_for_keep_s() -> None:
    privacy = Privacy(params=BlurParams(mode="fill", keep_s=0.5))
    privacy.hide(picture(), found((0, [20, 20, 60, 100])), 0.0)
    hidden = [privacy.hide(picture(), found(), t) for t in (0.2, 0.4, 0.6)]
    assert hidden == [1, 1, 0]


def test_a_mask_hides_the_pixels_of_its_classes() -> None:
    ids = np.zeros((12, 16), np.uint8)
    ids[:, :8] = 1
    mask = Mask(ids, Geometry(160, 120, 16, 12, 0.1, 0.1), ("background", "person"))
    image = picture()
    hidden = Privacy(params=BlurParams(classes=("person",), mode="fill")).hide(image, mask, 0.0)
    assert hidden == 120 * 80
    assert not image[:, :80].any()
    assert np.array_equal(image[:, 80:], picture()[:, 80:])
