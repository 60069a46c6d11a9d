"""What the annotated picture shows."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from edge_sdk.sinks.base import FrameResult, Overlay
from edge_sdk.sinks.draw import draw
from edge_sdk.sources.base import Frame
from edge_sdk.tasks.results import Classes, Detections, Geometry, Keypoints, Mask, Second, Values

GRAY = np.full((200, 300, 3), 90, np.uint8)


def item(result: Any, **more: Any) -> FrameResult:
    return FrameResult(Frame(GRAY.copy(), 0, 0.0, time.monotonic(), "x"), result, "m", 0.0, 0.0, **more)


def changed(picture: Any) -> Any:
    return (picture != GRAY).any(axis=2)


def boxes(**more: Any) -> Detections:
    found = Detections(
        np.array([[100, 80, 180, 180]], np.float32), np.array([0.9], np.float32), np.zeros(1, np.int32), ("person",)
    )
    return replace(found, **more)


def test_the_frame_itself_stays_as_it_is():
    one = item(boxes())
    assert changed(draw(one)).any()
    assert (one.frame.image == GRAY).all()


def test_a_second_models_label_stands_with_the_box():
    classes = Second(Classes(np.array([0.2, 0.8], np.float32), ("helmet", "bare")), (100, 80, 180, 180), 0)
    plain, more = changed(draw(item(boxes()))), changed(draw(item(boxes(then={"ppe": (classes,)}))))
    assert more.sum() > plain.sum() + 200
    assert (more & ~plain)[:80].any()


def test_boxes_points_and_masks_of_a_second_model_are_drawn_where_they_are():
    inner = Second(replace(boxes(), xyxy=np.array([[120, 100, 140, 120]], np.float32)), (100, 80, 180, 180), 0)
    points = Second(Keypoints(np.array([[150, 150]], np.float32), np.ones(1, np.float32)), (100, 80, 180, 180), 0)
    mask = Second(
        Mask(np.ones((4, 4), np.uint8), Geometry(80, 100, 4, 4, 0.05, 0.04), ("bg", "vest")), (100, 80, 180, 180), 0
    )
    seen = changed(draw(item(boxes(then={"parts": (inner,), "pose": (points,)}))))
    assert seen[120, 130]
    assert seen[150, 150]
    assert not seen[140, 125]
    tinted = changed(draw(item(boxes(then={"cloth": (mask,)}))))
    assert tinted[82:178, 102:178].all()
    assert not tinted[:, 200:].any()


def test_a_mask_tints_every_class_but_the_background():
    ids = np.zeros((200, 300), np.uint8)
    ids[100:, :] = 1
    ids[:, 290:] = 255
    picture = changed(draw(item(Mask(ids, Geometry(300, 200, 300, 200, 1.0, 1.0), ("background", "road")))))
    assert picture[120:, :290].all()
    assert not picture[60:100, 150:].any()
    assert not picture[:, 290:].any()


def test_zones_and_lines_are_drawn_with_what_they_count():
    overlays = (
        Overlay("zone", "door", ((20.0, 100.0), (80.0, 100.0), (80.0, 180.0), (20.0, 180.0))),
        Overlay("line", "gate", ((200.0, 150.0), (290.0, 150.0))),
    )
    bare = changed(draw(item(boxes(), overlays=overlays)))
    assert bare[180, 50]
    assert bare[150, 210]
    assert bare[157, 245], "the arrow points to `in`, downwards"
    assert not bare[143, 240:250].any()
    counted = changed(
        draw(item(boxes(), overlays=overlays, counts={"door": {"inside": 3}, "gate": {"in": 1, "out": 2}}))
    )
    assert counted.sum() > bare.sum()


def test_results_without_boxes_are_drawn_too():
    for result in (
        Classes(np.array([0.2, 0.8], np.float32), ("a", "b")),
        Keypoints(np.tile(np.array([[50.0, 60.0]], np.float32), (17, 1)), np.ones(17, np.float32)),
        Values(np.array([1.5], np.float32), ("yaw",)),
    ):
        assert changed(draw(item(result))).any()


def test_what_is_not_a_number_or_outside_the_frame_is_left_out():
    wild = replace(boxes(), xyxy=np.array([[np.nan, 0, 10, 10]], np.float32))
    assert not changed(draw(item(wild))).any()
    points = Keypoints(np.array([[np.inf, 0], [1e9, 1e9]], np.float32), np.ones(2, np.float32))
    draw(item(points))
    draw(item(replace(boxes(), xyxy=np.array([[-1e9, -1e9, 1e9, 1e9]], np.float32))))
