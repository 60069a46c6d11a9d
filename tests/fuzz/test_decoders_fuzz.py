"""Whatever finite numbers a model puts out, its decoder gives a finite result that JSON can hold."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.tasks import decoders
from edge_sdk.tasks.base import Geometry

SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "softmax": ((1, 5),),
    "yolox": ((1, 84, 7),),
    "yolov5": ((1, 20, 7),),
    "yolov8": ((1, 6, 20),),
    "nanodet": ((1, 64, 2), (1, 16, 2), (1, 4, 2), (1, 64, 32), (1, 16, 32), (1, 4, 32)),
    "picodet": ((1, 85, 34),),
    "fastestdet": ((1, 7, 4, 4),),
    "ssd_pp": ((1, 6, 4), (1, 6), (1, 6), (1,)),
    "ultraface": ((1, 10, 2), (1, 10, 4)),
    "yunet": tuple((1, n, w) for w in (1, 1, 4, 10) for n in (64, 16, 4)),
    "blazeface": ((1, 224, 16), (1, 224, 1)),
    "argmax_mask": ((1, 8, 8, 3),),
    "movenet": ((1, 1, 17, 3),),
    "embedding": ((1, 8),),
    "regression": ((1, 3),),
}
GEOMETRIES = [
    Geometry(200, 100, 64, 64, 0.32, 0.64),
    Geometry(200, 100, 64, 64, 0.32, 0.32, 0.0, 16.0),
    Geometry(1, 1, 64, 64, 64, 64),
    Geometry(200, 100, 64, 64, 0.64, 0.64, -32.0, 0.0),
]
VALUES = st.sampled_from([0.0, 1.0, -1.0, 0.3, 0.99, 50.0, 1e-38, 1e9, -1e9, 3e38, -3e38])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", sorted(SHAPES))
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), extremes=st.lists(VALUES, min_size=1, max_size=6), which=st.integers(0, 3))
def test_a_decoder_gives_a_finite_result(name: str, seed: int, extremes: list[float], which: int) -> None:
    rng = np.random.default_rng(seed)
    outputs: dict[str, Any] = {}
    for index, shape in enumerate(SHAPES[name]):
        values = rng.normal(0, 2, shape)
        place = rng.random(shape) < 0.3
        values[place] = rng.choice(extremes, int(place.sum()))
        outputs[f"o{index}"] = values.astype(np.float32)
    geometry = GEOMETRIES[which]
    result = decoders().load(name)({}, ())(outputs, geometry)
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))
    for row in found.get("detections", ()):
        x1, y1, x2, y2 = row["box"]
        assert 0 <= x1 <= x2 <= geometry.frame_width
        assert 0 <= y1 <= y2 <= geometry.frame_height
        assert 0 <= row["score"] <= 1
