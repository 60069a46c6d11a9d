"""Which pixels of a frame a second model sees."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.pipeline.crops import Skip, crop_of
from edge_sdk.stage_params import CropParams


@pytest.mark.parametrize(
    ("box", "params", "expected"),
    [
        ((10, 20, 30, 50), {}, (10, 20, 30, 50)),
        ((10.4, 20.6, 29.5, 49.2), {}, (10, 20, 30, 50)),
        ((10.00001, 20, 29.99999, 50), {}, (10, 20, 30, 50)),
        ((20, 20, 40, 60), {"pad": 0.1}, (18, 16, 42, 64)),
        ((20, 20, 40, 60), {"square": True}, (10, 20, 50, 60)),
        ((20, 20, 40, 60), {"square": True, "pad": 0.25}, (0, 10, 60, 70)),
        ((-15, -10, 20, 30), {}, (0, 0, 20, 30)),
        ((80, 60, 130, 95), {"pad": 1.0}, (30, 25, 100, 80)),
        ((0, 0, 100, 80), {"pad": 4.0}, (0, 0, 100, 80)),
        ((92, 10, 1e30, 30), {}, (92, 10, 100, 30)),
    ],
)
def test_a_crop_is_the_box_grown_and_ended_at_the_border_of_a_100_by_80_frame(box, params, expected):
    assert crop_of(np.array(box, np.float32), CropParams(**params), 100, 80) == expected


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((100, 10, 120, 30), Skip.OUTSIDE),
        ((-20, 10, 0, 30), Skip.OUTSIDE),
        ((50, 50, 50, 70), Skip.OUTSIDE),
        ((60, 40, 40, 70), Skip.OUTSIDE),
        ((np.nan, 10, 20, 30), Skip.OUTSIDE),
        ((10, 10, np.inf, 30), Skip.OUTSIDE),
        ((10, 10, 17.9, 60), Skip.SMALL),
        ((95, 10, 160, 60), Skip.SMALL),
    ],
)
def test_a_box_that_shows_too_little_is_not_cut_out(box, reason):
    assert crop_of(np.array(box), CropParams(min_size=8), 100, 80) is reason


def test_every_crop_of_random_boxes_lies_in_the_frame_and_holds_the_visible_part_of_its_box():
    rng = np.random.default_rng(7)
    params = CropParams(min_size=1, pad=0.2)
    cut = 0
    for _ in range(2000):
        x1, y1, w, h = rng.uniform([-60, -60, 0, 0], [140, 120, 80, 80])
        box = np.array([x1, y1, x1 + w, y1 + h], np.float32)
        crop = crop_of(box, params, 100, 80)
        if isinstance(crop, Skip):
            continue
        cut += 1
        assert 0 <= crop[0] < crop[2] <= 100
        assert 0 <= crop[1] < crop[3] <= 80
        assert crop[0] <= max(box[0], 0) + 1e-3
        assert crop[1] <= max(box[1], 0) + 1e-3
        assert crop[2] >= min(box[2], 100) - 1e-3
        assert crop[3] >= min(box[3], 80) - 1e-3
    assert cut > 500
