"""The motion gate: what opens it and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_sdk.errors import UsageError
from edge_sdk.motion import MotionGate, analysis_gray
from edge_sdk.stage_params import MotionParams


def scene(*, box: tuple[int, int] | None = None, seed: int = 0) -> Any:
    image = np.full((360, 640, 3), 90, np.uint8) + np.random.default_rng(seed).integers(0, 4, (360, 640, 3), np.uint8)
    if box is not None:
        image[box[1] : box[1] + 60, box[0] : box[0] + 60] = 220
    return image


def test_a_still_scene_closes_the_gate_and_a_moving_object_opens_it() -> None:
    gate = MotionGate(MotionParams(refresh_s=0))
    still = [gate.update(scene(seed=f), f / 10) for f in range(20)]
    moving = [gate.update(scene(box=(100 + 20 * f, 100), seed=f), 2 + f / 10) for f in range(10)]
    after = [gate.update(scene(seed=f), 3 + f / 10) for f in range(30)]
    assert still[0] is True
    assert not any(still[5:])
    assert all(moving)
    assert not any(after[-10:])
    assert gate.frames == 60
    assert gate.skipped == (still + moving + after).count(False)


def test_the_gate_stays_open_for_hold_s_after_the_last_motion() -> None:
    gate = MotionGate(MotionParams(hold_s=1.0, refresh_s=0, background_s=0.01))
    opened = [gate.update(scene(box=(100, 100) if f == 20 else None), f / 10) for f in range(60)]
    assert opened[20:32] == [True] * 12
    assert not any(opened[33:])


def test_motion_outside_the_regions_does_not_open_it() -> None:
    left = ((0.0, 0.0), (300.0, 0.0), (300.0, 360.0), (0.0, 360.0))
    gate = MotionGate(MotionParams(regions=(left,), refresh_s=0))
    for f in range(10):
        gate.update(scene(seed=f), f / 10)
    assert not any(gate.update(scene(box=(400 + 10 * f, 100)), 1 + f / 10) for f in range(10))
    assert gate.update(scene(box=(100, 100)), 2.1)


def test_a_frame_passes_every_refresh_s() -> None:
    gate = MotionGate(MotionParams(refresh_s=1.0, hold_s=0))
    opened = [gate.update(scene(), f / 10) for f in range(41)]
    assert [f for f, o in enumerate(opened) if o] == [0, 10, 20, 30, 40]


def test_another_size_and_a_step_back_in_time_start_again() -> None:
    gate = MotionGate()
    for f in range(20):
        gate.update(scene(), f / 10)
    assert gate.update(scene()[::2, ::2], 2.0)
    assert not gate.update(scene()[::2, ::2], 3.0)
    assert gate.update(scene()[::2, ::2], 0.0)


def test_a_region_that_is_no_polygon_is_refused() -> None:
    with pytest.raises(UsageError, match="motion gate: region 1: expected at least 3 different corners"):
        MotionGate(MotionParams(regions=(((0, 0), (1, 1)),)))


def test_the_analysed_copy_keeps_the_proportions() -> None:
    assert analysis_gray(np.zeros((432, 768, 3), np.uint8)).shape == (90, 160)
    assert analysis_gray(np.zeros((4, 4000, 3), np.uint8)).shape == (2, 160)


def test_the_gate_skips_the_still_part_of_a_real_clip_and_none_of_the_moving_part(testdata: Path) -> None:
    capture = cv2.VideoCapture(str(testdata / "videos" / "bottle-detection.mp4"))
    gate = MotionGate()
    missed, before, index = 0, [], 0
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        opened = gate.update(frame, index / 29.83)
        before = [*before[-2:], cv2.GaussianBlur(analysis_gray(frame), (5, 5), 0)]
        moved = np.mean(cv2.absdiff(before[0], before[-1]) > 25) > 0.01
        missed += bool(moved and not opened)
        index += 1
    assert missed == 0
    assert gate.skipped / gate.frames > 0.4
