"""Tiles: they cover the frame, and what two of them saw is one object."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.stage_params import TilesParams
from edge_sdk.tasks.base import Detections
from edge_sdk.tiling import merge, tiles


@given(
    st.integers(32, 4000),
    st.integers(32, 3000),
    st.integers(1, 6),
    st.integers(1, 6),
    st.floats(0, 0.6),
)
def test_tiles_cover_every_pixel_are_of_one_size_and_overlap(
    w: int, h: int, columns: int, rows: int, part: float
) -> None:
    cut = tiles(w, h, TilesParams(columns=columns, rows=rows, overlap=part, full=False))
    xs = sorted({(int(t[0]), int(t[2])) for t in cut})
    ys = sorted({(int(t[1]), int(t[3])) for t in cut})
    assert len(cut) == len(xs) * len(ys)
    for spans, length in ((xs, w), (ys, h)):
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        assert len({b - a for a, b in spans}) == 1
        size = spans[0][1]
        for (_, end), (start, _) in pairwise(spans):
            assert end - start >= part * size - 2


def test_the_whole_frame_comes_last_unless_it_is_the_only_tile() -> None:
    assert tiles(100, 50, TilesParams(columns=2))[-1].tolist() == [0, 0, 100, 50]
    assert tiles(100, 50, TilesParams(columns=1)).tolist() == [[0, 0, 100, 50]]


def found(*rows: tuple[list[float], float, int]) -> Detections:
    boxes, scores, classes = zip(*rows, strict=True)
    return Detections(np.array(boxes, np.float32), np.array(scores, np.float32), np.array(classes, np.int32))


def test_an_object_that_a_tile_border_cut_becomes_one_box_around_its_parts() -> None:
    parts = found(([40, 10, 60, 30], 0.8, 0), ([45, 10, 80, 30], 0.9, 0), ([44, 9, 62, 31], 0.5, 1))
    joined = merge(parts, TilesParams(merge="ios", limit=0.5))
    assert joined.xyxy.tolist() == [[40, 10, 80, 30], [44, 9, 62, 31]]
    assert joined.score.tolist() == pytest.approx([0.9, 0.5])
    assert joined.class_id.tolist() == [0, 1]


def test_merging_by_iou_keeps_the_strongest_box_as_it_is() -> None:
    parts = found(([0, 0, 10, 10], 0.7, 0), ([1, 0, 11, 10], 0.9, 0), ([30, 0, 40, 10], 0.8, 0))
    joined = merge(parts, TilesParams(merge="iou", limit=0.5))
    assert joined.xyxy.tolist() == [[1, 0, 11, 10], [30, 0, 40, 10]]


def test_nothing_merges_to_nothing() -> None:
    assert len(merge(Detections.empty(), TilesParams())) == 0
