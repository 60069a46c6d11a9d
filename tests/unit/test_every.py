"""Inferring one frame in so many: what costs less, and what the frames between get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.errors import ConfigError
from edge_sdk.pipeline import Pipeline
from edge_sdk.sinks.base import Origin
from edge_sdk.tasks.results import Detections
from edge_sdk.testing import ListSource, build_artifact, color_frame, fake_model
from edge_sdk.tracking import Tracker


@pytest.fixture(scope="module")
def detector(tmp_path_factory: Any) -> Path:
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "cells.edge", task="detection").path


def counted() -> tuple[Any, list[int]]:
    calls: list[int] = []

    def answer(image: Any) -> Any:
        calls.append(1)
        return image.reshape(-1, 3).mean(axis=0)

    return fake_model(answer), calls


def cell(x: int) -> Any:
    return color_frame("red", width=64, height=64, box=(x, 16, x + 16, 32))


@pytest.mark.parametrize(("every", "inferred"), [(1, 40), (2, 20), (5, 8), (7, 6), (100, 1)])
def test_only_each_nth_frame_is_inferred_and_the_answer_stands_between(every, inferred):
    model, calls = counted()
    images = [color_frame(("red", "green")[i // every % 2]) for i in range(40)]
    items = list(Pipeline(ListSource(images)).classify(model, every=every))
    assert len(calls) == inferred
    assert [i.frame.index for i in items] == list(range(40))
    assert [i.result.label(i.result.class_id) for i in items] == [("red", "green")[i // every % 2] for i in range(40)]
    assert [i.origin is Origin.INFERRED for i in items] == [i % every == 0 for i in range(40)]
    assert ("carried" in items[-1].to_json()) == (39 % every != 0)


def test_several_threads_and_bursts_infer_the_same_frames(detector):
    class Prompt(ListSource):
        prompt = True

    images = [cell(2 * (i % 20)) for i in range(80)]
    lines = []
    for source, workers in ((ListSource, 1), (Prompt, 1), (Prompt, 3)):
        pipe = Pipeline(source(images), workers=workers).detect(detector, every=4).track()
        lines.append([i.to_json() for i in pipe])
        assert pipe.report().to_json()["stages"][0]["inferred"] == 20
    assert lines[0] == lines[1] == lines[2]


def test_the_frame_after_a_quiet_time_is_inferred_at_once():
    model, calls = counted()
    still, moving = [color_frame("red")] * 12, [color_frame("green"), color_frame("blue")] * 4
    pipe = Pipeline(ListSource(still + moving)).classify(model, every=4).motion_gate(hold_s=0, refresh_s=0)
    items = list(pipe)
    origins = [i.origin for i in items]
    assert origins[0] is Origin.INFERRED
    assert set(origins[1:12]) == {Origin.GATED}
    assert origins[12] is Origin.INFERRED
    assert origins[13:16] == [Origin.CARRIED] * 3
    assert origins[16] is Origin.INFERRED
    assert len(calls) == 3
    assert pipe.report().to_json()["stages"][0]["inferred"] == 3


def box(x: float) -> Detections:
    return Detections(
        np.array([[x, 10, x + 20, 50]], np.float32), np.array([0.9], np.float32), np.zeros(1, np.int32), ("car",)
    )


def test_the_tracker_moves_a_box_on_while_nothing_is_inferred():
    tracker = Tracker(fps=10)
    for i in range(10):
        tracker.update(box(10.0 * i), i / 10)
    places = [tracker.carry((10 + i) / 10).xyxy[0, 0] for i in range(3)]
    assert places == [pytest.approx(100 + 10 * i, abs=2) for i in range(3)]
    assert tracker.carry(1.3).track_id.tolist() == [1]
    again = tracker.update(box(140), 1.4)
    assert again.track_id.tolist() == [1]


def test_a_tracker_that_has_seen_nothing_has_nothing_to_carry():
    assert Tracker().carry(1.0) is None


def test_a_box_without_a_track_stays_where_it_was():
    tracker = Tracker()
    tracker.update(box(10), 0.0)
    carried = tracker.carry(0.1)
    assert carried.xyxy.tolist() == box(10).xyxy.tolist()
    assert carried.track_id.tolist() == [-1]


def test_moved_boxes_stay_in_the_frame_and_keep_their_numbers(detector):
    images = [cell(min(48, 4 * i)) for i in range(30)]
    pipe = Pipeline(ListSource(images)).detect(detector, every=3).track(confirm=1, match=1.0, match_tentative=1.0)
    for item in pipe:
        assert item.detections.xyxy.min() >= 0
        assert item.detections.xyxy.max() <= 64
        assert item.detections.xyxy.dtype == np.float32


def test_rules_see_the_carried_frames_too(detector):
    pipe = Pipeline(ListSource([cell(16)] * 30)).detect(detector, every=10)
    items = list(pipe.track(confirm=1).zone("z", [[0, 0], [64, 0], [64, 64], [0, 64]], dwell_s=[1.0]))
    assert [e["kind"] for i in items for e in i.events] == ["zone_enter", "zone_dwell"]
    assert all(i.counts["z"]["inside"] == 1 for i in items)


@pytest.mark.parametrize("every", [0, -3, 2.5, "two"])
def test_a_number_that_makes_no_sense_is_refused(detector, every):
    with pytest.raises(ConfigError) as caught:
        Pipeline(ListSource([])).detect(detector, every=every)
    assert "every: expected" in str(caught.value.problems)
