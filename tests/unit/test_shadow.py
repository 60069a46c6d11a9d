"""A second model on sampled frames: what is compared, and that nothing of it reaches the pipeline."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pipeline_parts import Watcher, eventually, frames

from edge_sdk.errors import BackendError
from edge_sdk.pipeline import Pipeline
from edge_sdk.pipeline.shadow import WINDOW_PAIRS, Shadow
from edge_sdk.tasks.results import Classes
from edge_sdk.testing import (
    LABELS,
    CollectingSink,
    ListSource,
    build_artifact,
    color_frame,
    fake_model,
    tiny_classifier_onnx,
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: Any) -> Path:
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "colors.edge").path


def honest(image: Any) -> Any:
    return image.reshape(-1, 3).mean(axis=0) / 32


class Calm(ListSource):
    """A source that gives the next frame once the shadow has compared those before."""

    def __init__(self, images: Any, done: Any) -> None:
        super().__init__(images)
        self._done = done

    def grab(self) -> bool:
        eventually(lambda: self._done(self._next))
        return super().grab()


def shadow_of(pipe: Pipeline) -> dict[str, Any]:
    return pipe.report().to_json()["stages"][0]["shadow"]


def run_calmly(pipe_of: Any, images: Any, every: int, new: Any) -> tuple[Pipeline, list[Any]]:
    """Run a pipeline whose shadow keeps up; `new` answers for the shadow."""
    calls: list[int] = []

    def answer(image: Any) -> Any:
        calls.append(1)
        return new(image)

    source = Calm(images, lambda n: len(calls) >= (n + every - 1) // every)
    pipe = pipe_of(source).classify(fake_model(honest), shadow=fake_model(answer), shadow_every=every)
    return pipe, calls


def test_one_frame_in_so_many_is_compared_and_the_differences_are_in_the_report():
    pipe, calls = run_calmly(Pipeline, frames(60), 4, lambda image: honest(image) * 0.5)
    items = list(pipe)
    assert len(items) == 60
    shadow = shadow_of(pipe)
    (pairs,) = shadow["compared"]
    assert len(calls) == pairs["pairs"] == 15
    assert pairs["agreement"]["mean"] == 1.0
    assert pairs["differences"]["red"]["mean"] < -0.001
    assert (shadow["dropped"], shadow["failed"], shadow["error"], shadow["every"]) == (0, {}, None, 4)
    assert shadow["latency_ms"]["p50"] is not None
    json.dumps(shadow, allow_nan=False)


def test_a_shadow_that_says_something_else_names_the_labels_and_the_worst_frames():
    pipe, _ = run_calmly(Pipeline, frames(12), 3, lambda _: [0, 0, 9])
    list(pipe)
    (pairs,) = shadow_of(pipe)["compared"]
    assert pairs["agreement"]["mean"] == 0.0
    assert (pairs["only_old"], pairs["only_new"]) == ({"blue": 4}, {"red": 4})
    assert [row["frame"] for row in pairs["worst"]] == [0, 3, 6, 9]


def test_a_shadow_that_answers_nan_is_reported_and_touches_nothing():
    watcher, sink = Watcher(), CollectingSink()
    pipe, _ = run_calmly(Pipeline, frames(20), 2, lambda _: [np.nan, 0, 0])
    report = pipe.observe(watcher).sink(sink).run()
    assert (report.processed, dict(report.errors), dict(report.dropped)) == (20, {}, {})
    assert len(sink.items) == 20
    assert watcher.errors == []
    shadow = shadow_of(pipe)
    assert shadow["failed"] == {"nonfinite": 10}
    assert shadow["compared"] == []
    assert watcher.metrics[-1]["failed"] == {"nonfinite": 10}


def test_a_shadow_that_hangs_holds_nothing_up_and_what_it_missed_is_counted():
    hang, entered = threading.Event(), threading.Event()

    def stuck(_: Any) -> Any:
        entered.set()
        hang.wait(30)
        return [0, 0, 1]

    sink = CollectingSink()
    shadow = Shadow("classify", lambda: fake_model(stuck), every=1)
    shadow.start()
    image, answer = color_frame("red"), Classes(np.array([0, 0, 1], np.float32), LABELS)
    shadow.see(image, answer, "a", 0)
    assert entered.wait(60)
    for n in range(1, 50):
        shadow.see(image, answer, "a", n)
    assert shadow.describe()["dropped"] == 47
    shadow.finish(0.0)
    assert shadow.describe()["error"] == "it did not finish in time"
    hang.set()
    report = Pipeline(ListSource(frames(30))).classify(fake_model(honest)).sink(sink).run()
    assert report.processed == 30


@pytest.mark.parametrize("case", ["missing", "damaged", "another task", "raises"])
def test_a_shadow_that_cannot_be_loaded_or_run_is_named_and_the_pipeline_runs(artifact, tmp_path, case):
    def broken(_: Any) -> Any:
        raise BackendError("the engine is gone")

    shadow: Any = {
        "missing": tmp_path / "none.edge",
        "damaged": tmp_path / "bad.edge",
        "another task": build_artifact(tmp_path / "cells.edge", task="detection").path,
        "raises": fake_model(broken),
    }[case]
    (tmp_path / "bad.edge").write_bytes(b"nothing")
    pipe = Pipeline(ListSource(frames(9))).classify(artifact, shadow=shadow, shadow_every=1)
    report = pipe.run()
    assert (report.processed, dict(report.errors)) == (9, {})
    row = shadow_of(pipe)
    if case == "raises":
        assert row["failed"]["infer"] >= 1
    else:
        words = {"missing": "none.edge", "damaged": "not a zip", "another task": "needs a model for classification"}
        assert words[case] in row["error"]


def test_pairs_of_two_models_are_kept_apart():
    metrics: list[dict[str, Any]] = []
    shadow = Shadow("classify", lambda: fake_model(honest), every=1, on_window=metrics.append)
    shadow.start()
    answer = Classes(np.array([0, 0, 1], np.float32), LABELS)
    for n, model in enumerate(["a", "a", "b"]):
        shadow.see(color_frame("red"), answer, model, n)
        eventually(lambda n=n: sum(row["pairs"] for row in shadow.describe()["compared"]) == n + 1)
    shadow.finish(time.monotonic() + 10)
    assert [(row["model"], row["pairs"]) for row in shadow.describe()["compared"]] == [("a", 2), ("b", 1)]
    assert [(m["model"], m["pairs"]) for m in metrics] == [("a", 2), ("b", 1)]


def test_small_windows_go_to_the_observers_as_metrics():
    watcher = Watcher()
    pipe, _ = run_calmly(Pipeline, frames(WINDOW_PAIRS + 10), 1, honest)
    pipe.observe(watcher).run()
    assert [m["pairs"] for m in watcher.metrics] == [WINDOW_PAIRS, 10]
    assert {(m["name"], m["stage"]) for m in watcher.metrics} == {("shadow", "classify")}
    assert watcher.closed


def test_the_shadow_sees_the_picture_before_it_is_made_unreadable(tmp_path):
    detector = build_artifact(tmp_path / "cells.edge", task="detection").path
    image = color_frame("red", width=64, height=64, box=(16, 16, 32, 32))
    pipe = Pipeline(ListSource([image])).detect(detector, shadow=detector, shadow_every=1)
    (item,) = pipe.blur(mode="fill", grow=1.0)
    assert not item.frame.image.any()
    (pairs,) = shadow_of(pipe)["compared"]
    assert pairs["agreement"]["mean"] == 1.0
    assert pairs["iou"]["n"] == 1


def test_a_second_model_has_a_shadow_too(tmp_path, artifact):
    detector = build_artifact(tmp_path / "cells.edge", task="detection").path
    weak = build_artifact(tmp_path / "weak.edge", model=tiny_classifier_onnx(gain=4.0), golden=False).path
    images = [color_frame("red", width=64, height=64, box=(16, 16, 32, 32))] * 3
    pipe = Pipeline(ListSource(images)).detect(detector)
    list(pipe.then(artifact, name="color", shadow=weak, shadow_every=3))
    shadow = pipe.report().to_json()["stages"][1]["shadow"]
    (pairs,) = shadow["compared"]
    assert pairs["agreement"]["mean"] == 1.0
    assert pairs["differences"]["red"]["mean"] < 0


def test_pipelines_that_share_engines_leave_their_shadows_engines_of_their_own(artifact, tmp_path):
    shared: list[Any] = []

    def opened(given: Any) -> Any:
        shared.append(given)
        return given

    missing = tmp_path / "none.edge"
    pipe = Pipeline(ListSource(frames(3))).classify(artifact, shadow=missing, shadow_every=1)
    report = pipe.with_artifacts(opened).run()
    assert report.processed == 3
    assert shared == [artifact]
    assert "none.edge" in shadow_of(pipe)["error"]
