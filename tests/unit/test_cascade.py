"""A second model that is asked about the boxes of the first."""

from __future__ import annotations

import csv
import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pipeline_parts import Watcher

from edge_sdk.errors import ArtifactError, ConfigError, UsageError
from edge_sdk.pipeline import Pipeline
from edge_sdk.testing import (
    CollectingSink,
    ListSource,
    build_artifact,
    color_frame,
    fake_model,
    tiny_classifier_onnx,
)

EVERYWHERE = [[0, 0], [64, 0], [64, 64], [0, 64]]


@pytest.fixture(scope="module")
def detector(tmp_path_factory: Any) -> Path:
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "cells.edge", task="detection").path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: Any) -> Path:
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "colors.edge").path


def cell(color: str = "red", x: int = 16, y: int = 16) -> Any:
    """A black 64 x 64 frame with a bright cell that the tiny detector finds exactly."""
    return color_frame(color, width=64, height=64, box=(x, y, x + 16, y + 16))


def two_cells() -> Any:
    return np.maximum(cell("red", 0, 0), cell("green", 32, 32))


class Prompt(ListSource):
    """A source whose frames wait for nothing, so that threads take several at once."""

    prompt = True


def says(item: Any, name: str = "color") -> list[str | None]:
    """The best label of the second model for each box."""
    return [s.labels()[0] if s is not None else None for s in item.detections.then[name]]


@pytest.mark.parametrize("source", [ListSource, Prompt])
@pytest.mark.parametrize("workers", [1, 3])
def test_every_box_gets_the_second_models_answer_frame_by_frame_and_in_bursts(detector, classifier, source, workers):
    colors = [("red", "green", "blue")[i % 3] for i in range(60)]
    images = [cell(color, 16 * (i % 4)) for i, color in enumerate(colors)]
    sink = CollectingSink()
    pipe = Pipeline(source(images), workers=workers).detect(detector).then(classifier, name="color").sink(sink)
    report = pipe.run().to_json()
    assert [i.frame.index for i in sink.items] == list(range(60))
    assert [says(i) for i in sink.items] == [[color] for color in colors]
    row = report["stages"][1]
    assert (row["name"], row["kind"], row["crops"], row["skipped"]) == ("color", "classify", 60, {})
    assert report["results"]["color: red"]["count"] == 20


def test_the_answer_stands_beside_the_fixed_keys_of_a_detection(detector, classifier):
    (item,) = Pipeline(ListSource([cell()])).detect(detector).then(classifier, name="color", params={"top": 1})
    (row,) = json.loads(json.dumps(item.to_json(), allow_nan=False))["detections"]
    assert set(row) == {"box", "score", "class_id", "label", "then"}
    assert row["then"]["color"]["classes"][0]["label"] == "red"
    assert len(row["then"]["color"]["classes"]) == 1


def test_boxes_that_a_detector_finds_in_a_crop_are_in_pixels_of_the_frame(detector):
    pipe = Pipeline(ListSource([cell("red", 32, 16)])).detect(detector)
    (item,) = pipe.then(detector, name="parts", pad=0.5)
    (second,) = item.detections.then["parts"]
    assert second.crop == (24, 8, 56, 40)
    # The crop is 32 x 32, the size of the model's input: the cell lies at 8 to 24 of it, in four of its cells.
    boxes = second.result.xyxy
    assert boxes[:, :2].min(axis=0).tolist() == [32.0, 16.0]
    assert boxes[:, 2:].max(axis=0).tolist() == [48.0, 32.0]


def test_only_the_chosen_classes_scores_and_sizes_are_cut_out(detector, classifier):
    images = [two_cells()]
    (item,) = Pipeline(ListSource(images)).detect(detector).then(classifier, name="color", classes=["green"])
    assert sorted(zip([item.detections.label(c) for c in item.detections.class_id], says(item), strict=True)) == [
        ("green", "green"),
        ("red", None),
    ]
    pipe = Pipeline(ListSource(images)).detect(detector).then(classifier, name="color", min_size=17)
    (item,) = pipe
    assert says(item) == [None, None]
    assert pipe.report().to_json()["stages"][1]["skipped"] == {"small": 2}


def test_boxes_beyond_the_limit_of_a_frame_are_counted_and_have_no_answer(detector, classifier):
    pipe = Pipeline(ListSource([two_cells()])).detect(detector).then(classifier, name="color", max_per_frame=1)
    (item,) = pipe
    assert sorted(map(str, says(item))) in (["None", "green"], ["None", "red"])
    assert pipe.report().to_json()["stages"][1]["skipped"] == {"limit": 1}


def test_a_tracked_object_keeps_its_answer_for_so_many_frames(detector, classifier):
    images = [cell("red")] * 4 + [cell("red")] * 8
    pipe = Pipeline(ListSource(images)).detect(detector).track(confirm=1)
    items = list(pipe.then(classifier, name="color", refresh_frames=5))
    seconds = [i.detections.then["color"][0] for i in items]
    assert [s.carried for s in seconds] == [False, True, True, True, True] * 2 + [False, True]
    assert [s.frame for s in seconds] == [0] * 5 + [5] * 5 + [10] * 2
    assert items[3].to_json()["detections"][0]["then"]["color"]["from_frame"] == 0
    row = pipe.report().to_json()["stages"][2]
    assert (row["crops"], row["carried"]) == (3, 9)


def test_an_answer_that_is_not_sure_is_asked_for_again_at_once(detector):
    asked = []

    def unsure_at_first(image: Any) -> list[float]:
        asked.append(1)
        return [0.1, 0.0, 0.0] if len(asked) <= 3 else [9.0, 0.0, 0.0]

    pipe = Pipeline(ListSource([cell()] * 10)).detect(detector).track(confirm=1)
    items = list(pipe.then(fake_model(unsure_at_first), name="color", refresh_frames=100, refresh_below=0.5))
    assert [i.detections.then["color"][0].carried for i in items] == [False] * 4 + [True] * 6


def test_in_frames_that_are_not_inferred_the_last_answers_stand(detector, classifier):
    pipe = Pipeline(ListSource([cell()] * 12)).detect(detector, every=4).then(classifier, name="color")
    items = list(pipe)
    assert [says(i) for i in items] == [["red"]] * 12
    assert [i.detections.then["color"][0].carried for i in items] == [False, True, True, True] * 3
    assert pipe.report().to_json()["stages"][1]["crops"] == 3


def test_behind_a_closed_motion_gate_no_crop_is_asked_about(detector, classifier):
    pipe = Pipeline(ListSource([cell()] * 30)).detect(detector).motion_gate(hold_s=0, refresh_s=0)
    items = list(pipe.then(classifier, name="color"))
    assert [says(i) for i in items] == [["red"]] * 30
    assert pipe.report().to_json()["stages"][2]["crops"] == 1


def test_a_rule_counts_only_what_the_second_model_said(detector, classifier):
    images = [cell("red")] * 6 + [cell("green")] * 6
    pipe = Pipeline(ListSource(images)).detect(detector).then(classifier, name="color")
    pipe.zone("reds", EVERYWHERE, where={"color": ["red"]}).zone("others", EVERYWHERE, where_not={"color": ["red"]})
    items = list(pipe.alert("bare", where_not={"color": ["red", "blue"]}, min_frames=2))
    assert [i.counts["reds"]["inside"] for i in items] == [1] * 6 + [0] * 6
    assert [i.counts["others"]["inside"] for i in items] == [0] * 6 + [1] * 6
    (event,) = [e for i in items for e in i.events]
    assert (event["name"], event["t_s"], event["then"]) == ("bare", 0.7, {"color": ["green"]})


def test_a_box_that_was_never_asked_about_breaks_no_rule(detector, classifier):
    pipe = Pipeline(ListSource([cell()] * 10)).detect(detector).then(classifier, name="color", min_size=60)
    items = list(pipe.alert("bare", where_not={"color": ["blue"]}, min_frames=1))
    assert not any(i.events for i in items)
    why = [d.why for d in pipe.explain(0.5) if d.stage == "bare" and d.step == "filter"]
    assert why[0] == "red 1.00: color has not answered"


def test_the_trace_says_what_the_second_model_saw_and_said(detector, classifier):
    pipe = Pipeline(ListSource([cell()] * 3)).detect(detector).then(classifier, name="color", pad=0.25)
    list(pipe.alert("bare", where={"color": ["blue"]}))
    rows = {(d.stage, d.step, d.accepted, d.why) for d in pipe.explain(0.0)}
    assert ("color", "answer", True, "red 0.94, of 24x24 pixels") in rows
    assert ("bare", "filter", False, "red 1.00: color says red") in rows


def test_a_second_model_that_answers_nan_is_counted_and_the_frames_go_on(detector):
    def answer(image: Any) -> list[float]:
        return [np.nan, 0, 0] if image[16, 16, 1] > 128 else [0, 0, 9]

    watcher, sink = Watcher(), CollectingSink()
    images = [cell("green" if i % 3 == 0 else "red") for i in range(9)]
    pipe = Pipeline(ListSource(images)).detect(detector).then(fake_model(answer), name="color")
    report = pipe.observe(watcher).sink(sink).run()
    assert (report.processed, dict(report.dropped), dict(report.errors)) == (9, {}, {"nonfinite": 3})
    assert [says(i) for i in sink.items] == [[None], ["red"], ["red"]] * 3
    assert report.to_json()["stages"][1]["errors"] == {"nonfinite": 3}
    kind, detail = watcher.errors[0]
    assert kind == "nonfinite"
    assert detail.startswith("frame 0: stage `color`: output `logits` holds 1 of 3 values that are NaN")


def test_a_tracked_object_keeps_its_answer_over_a_failure(detector):
    calls = []

    def answer(image: Any) -> list[float]:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("the engine is gone")
        return [0, 0, 9]

    pipe = Pipeline(ListSource([cell()] * 5)).detect(detector).track(confirm=1).then(fake_model(answer), name="color")
    items = list(pipe)
    assert [says(i) for i in items] == [["red"]] * 5
    assert items[4].detections.then["color"][0].frame == 0
    assert dict(pipe.report().errors) == {"infer": 4}


def test_a_second_model_is_swapped_by_its_name_between_two_frames(detector, classifier, tmp_path):
    step = threading.Semaphore(3)

    class Stepped(ListSource):
        def grab(self) -> bool:
            step.acquire()
            return super().grab()

    other = build_artifact(tmp_path / "green.edge", model=tiny_classifier_onnx(gain=-8.0), golden=False).path
    with Pipeline(Stepped([cell()] * 20), workers=1).detect(detector).then(classifier, name="color") as pipe:
        found = []
        for item in pipe:
            found.append(says(item)[0])
            if len(found) == 2:
                assert pipe.models()[1]["name"] == "color"
                before = pipe.models()
                pipe.swap("color", other)
                assert pipe.models()[0] == before[0]
                assert pipe.models()[1]["model"] != before[1]["model"]
                step.release(100)
    assert len(found) == 20
    assert found[0] == "red"
    assert found[-1] == "blue"
    assert found == ["red"] * found.index("blue") + ["blue"] * (20 - found.index("blue"))
    assert pipe.report().swaps == 1


def test_a_swap_of_the_second_model_that_cannot_work_keeps_the_old_one(detector, classifier, tmp_path):
    bad = build_artifact(tmp_path / "bad.edge", model=tiny_classifier_onnx(constant=0.0)).path
    with Pipeline("synthetic:64x64?fps=50&live=1").detect(detector).then(classifier, name="color") as pipe:
        results = iter(pipe)
        next(results)
        with pytest.raises(ArtifactError, match="self-tests on this machine"):
            pipe.swap("color", bad)
        with pytest.raises(ConfigError, match="needs a model for classification"):
            pipe.swap("color", detector)
        with pytest.raises(UsageError, match="no stage `colour`") as caught:
            pipe.swap("colour", classifier)
        assert caught.value.hint == "stages with a model: `detect`, `color`"
        next(results)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p, c: p.then(c, name="detect"), "two stages are called `detect`"),
        (lambda p, c: p.then(c, classes=["persn"]), "stage `classify`: crop: the model has no class `persn`"),
        (lambda p, c: p.then(c, refresh_frames=5), "stage `model`: an answer is kept for a tracked object"),
        (lambda p, c: p.then(c, padd=1), "then.crop.padd: unknown key, did you mean `pad`?"),
        (lambda p, c: p.then(c, pad=9), "crop.pad: expected 0 to 4, found 9"),
        (lambda p, c: p.then(c, kind="detect"), "stage kind `detect` needs a model for detection"),
        (
            lambda p, c: p.then(c, name="color").alert("a", where={"colour": ["red"]}),
            "stage `a`: no second model `colour` before it",
        ),
        (
            lambda p, c: p.alert("a", where={"color": ["red"]}).then(c, name="color"),
            "stage `a`: no second model `color` before it",
        ),
        (
            lambda p, c: p.then(c, name="color").alert("a", where_not={"color": ["rde"]}),
            "stage `a`: the second model `color` has no class `rde`",
        ),
    ],
)
def test_a_second_model_that_cannot_work_is_refused_before_the_source_is_opened(detector, classifier, build, message):
    source = ListSource([cell()])
    with pytest.raises((UsageError, ConfigError)) as caught:
        build(Pipeline(source).detect(detector), classifier).run()
    text = f"{caught.value.message} {' '.join(getattr(caught.value, 'problems', ()))}"
    assert message in text or message.removeprefix("then.") in text
    assert not source.opened


def test_a_second_model_needs_boxes_and_a_model_before_it(classifier):
    with pytest.raises(UsageError, match="works on boxes and needs a model for detection before it"):
        Pipeline(ListSource([cell()])).classify(classifier).then(classifier, name="again").run()
    with pytest.raises(UsageError, match="there is no detector yet"):
        Pipeline(ListSource([cell()])).then(classifier)


def test_what_the_crops_were_goes_to_the_observers_as_a_metric(detector, classifier):
    watcher = Watcher()
    Pipeline(ListSource([cell("red")] * 5)).detect(detector).then(classifier, name="color").observe(watcher).run()
    (metric,) = watcher.metrics
    assert (metric["name"], metric["stage"], metric["crops"], metric["labels"]) == ("second", "color", 5, {"red": 5})


def test_a_csv_has_what_second_models_said_in_its_last_column(detector, classifier, tmp_path):
    pipe = Pipeline(ListSource([two_cells()])).detect(detector).then(classifier, name="color", classes=["green"])
    pipe.then(detector, name="parts", classes=["green"]).sink(f"csv:{tmp_path / 'o.csv'}").run()
    rows = list(csv.DictReader((tmp_path / "o.csv").read_text().splitlines()))
    said = {row["label"]: row["then"] for row in rows}
    assert said["red"] == ""
    assert said["green"].startswith("color=green:0.9")
    assert ";parts=green:" in said["green"]
