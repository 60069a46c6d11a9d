"""Whatever stands in a pipeline file is read or refused by name; whatever boxes come, cascades go on."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import ConfigError
from edge_sdk.pipeline.cascade import Cascade
from edge_sdk.pipeline.models import ModelSet
from edge_sdk.pipeline_config import PipelineConfig, StageConfig
from edge_sdk.rules import Trace
from edge_sdk.sinks.base import FrameResult, Origin
from edge_sdk.sinks.draw import draw
from edge_sdk.sources.base import Frame
from edge_sdk.stage_params import CropParams
from edge_sdk.tasks.results import Detections
from edge_sdk.testing import fake_model

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.floats(), st.sampled_from(["detect", "ppe", "a", ""])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
)
STAGE = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["detect", "ppe", "z"]) | SCALARS,
        "kind": st.sampled_from(["detect", "classify", "track", "zone", "alert"]) | SCALARS,
        "model": st.sampled_from(["a.edge", "slot"]) | SCALARS,
        "after": st.sampled_from(["detect", "ppe"]) | SCALARS,
        "every": SCALARS,
        "roi": VALUES,
        "crop": st.dictionaries(st.sampled_from(["pad", "min_size", "classes", "padd"]), VALUES, max_size=3) | VALUES,
        "shadow": SCALARS,
        "shadow_every": SCALARS,
        "params": st.dictionaries(st.sampled_from(["where", "where_not", "polygon"]), VALUES, max_size=3) | VALUES,
    },
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STAGE, max_size=4))
def test_any_stages_are_read_or_refused_with_the_place_of_each_problem(stages: list[Any]) -> None:
    config, problems = read(stages)
    assert (config is None) == bool(problems)
    assert all(":" in line for line in problems)
    assert config is None or PipelineConfig.from_mapping(config.to_json()) == config


def read(stages: list[Any]) -> tuple[PipelineConfig | None, tuple[str, ...]]:
    try:
        return PipelineConfig.from_mapping({"source": {"uri": "0"}, "stage": stages}), ()
    except ConfigError as error:
        return None, tuple(error.problems)


NUMBER = st.one_of(st.floats(-50, 150, width=32), st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0, 64.0]))
FRAMES = st.lists(st.lists(st.tuples(NUMBER, NUMBER, NUMBER, NUMBER), max_size=6), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(FRAMES, st.booleans(), st.floats(0, 4), st.integers(1, 4), st.integers(1, 3), st.randoms(use_true_random=False))
def test_any_boxes_are_cut_out_or_counted(
    frames: list[Any], square: bool, pad: float, most: int, refresh: int, random: Any
) -> None:
    seen: list[tuple[int, ...]] = []

    def answer(image: Any) -> list[float]:
        seen.append(image.shape)
        if random.random() < 0.2:
            raise RuntimeError("now and then")
        return [0, 1, 2]

    crop = CropParams(square=square, pad=pad, max_per_frame=most, refresh_frames=refresh, min_size=2)
    cascade = Cascade("c", "classify", ModelSet((fake_model(answer),)), StageConfig(crop=crop), Trace())
    asked = 0
    for n, boxes in enumerate(frames):
        count = len(boxes)
        found = Detections(
            np.array(boxes, np.float32).reshape(-1, 4),
            np.full(count, 0.5, np.float32),
            np.zeros(count, np.int32),
            ("thing",),
            np.array([random.choice([-1, 1, 2]) for _ in boxes], np.int64),
        )
        frame = Frame(np.zeros((64, 64, 3), np.uint8), n, n / 10, time.monotonic(), "x")
        origin = Origin.INFERRED if n == 0 or random.random() < 0.7 else Origin.CARRIED
        item = FrameResult(frame, found, "m", 0.0, 0.0, origin=origin)
        before = len(seen)
        cascade.apply(item)
        assert len(item.detections.then["c"]) == count
        assert len(seen) - before <= most
        asked += len(seen) - before
        for second in item.detections.then["c"]:
            if second is not None:
                x1, y1, x2, y2 = second.crop
                assert 0 <= x1 < x2 <= 64
                assert 0 <= y1 < y2 <= 64
        draw(item)
    assert cascade.describe()["crops"] == asked
