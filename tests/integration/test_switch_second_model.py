"""Second models that are switched off and on while the pipeline runs: by hand, from the start, by the hour."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pipeline_parts import eventually

from edge_sdk.agent.process import Worker
from edge_sdk.errors import UsageError
from edge_sdk.pipeline import Pipeline
from edge_sdk.pipeline.control import Rules
from edge_sdk.pipeline_config import PipelineConfig
from edge_sdk.schedule import OverrideConfig, When
from edge_sdk.testing import ListSource, build_artifact, color_frame, tiny_classifier_onnx


@pytest.fixture(scope="module")
def detector(tmp_path_factory: Any) -> Path:
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "cells.edge", task="detection").path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: Any) -> Path:
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "colors.edge").path


def picture() -> Any:
    return color_frame("red", width=64, height=64, box=(16, 16, 32, 32))


def said(item: Any, name: str = "color") -> Any:
    """The best label of the second model for the one box; None when it was not asked."""
    then = item.detections.then or {}
    return then[name][0].labels()[0] if name in then else None


class Steps(ListSource):
    """Gives 20 frames, and does what a test wants before some of them, when those before are through."""

    def __init__(self, doing: dict[int, Any]) -> None:
        super().__init__([picture()] * 20)
        self._doing = doing
        self.pipe: Any = None

    def grab(self) -> bool:
        do = self._doing.get(self._next)
        if do is not None:
            eventually(lambda: self.pipe.stats()["processed"] == self._next)
            do(self.pipe)
        return super().grab()


def run(detector: Path, classifier: Path, doing: dict[int, Any]) -> tuple[Any, list[Any]]:
    source = Steps(doing)
    pipe = source.pipe = Pipeline(source, workers=1).detect(detector).track(confirm=1).then(classifier, name="color")
    return pipe, list(pipe)


def test_a_second_model_is_switched_off_and_on_between_two_frames_and_stays_loaded(detector, classifier):
    doing = {
        5: lambda p: p.switch("color", enabled=False),
        10: lambda p: p.switch("color", enabled=True),
    }
    pipe, items = run(detector, classifier, doing)
    assert [said(i) for i in items] == ["red"] * 5 + [None] * 5 + ["red"] * 10
    row = pipe.report().to_json()["stages"][2]
    assert (row["crops"], "enabled" in row) == (15, False)


def test_one_that_is_off_is_swapped_and_changed_like_one_that_works(detector, classifier, tmp_path):
    other = build_artifact(tmp_path / "blue.edge", model=tiny_classifier_onnx(gain=-8.0), golden=False).path
    doing = {
        3: lambda p: p.switch("color", enabled=False),
        6: lambda p: (p.swap("color", other), p.change("color", crop={"min_size": 4})),
        9: lambda p: p.switch("color", enabled=True),
    }
    pipe, items = run(detector, classifier, doing)
    assert [said(i) for i in items] == ["red"] * 3 + [None] * 6 + ["blue"] * 11
    assert pipe.report().swaps == 1


def test_what_a_rule_asks_for_cannot_be_switched_off(detector, classifier):
    refused: list[str] = []

    def switch(pipe: Any) -> None:
        with pytest.raises(UsageError) as caught:
            pipe.switch("color", enabled=False)
        refused.append(caught.value.message)

    source = Steps({3: switch})
    pipe = source.pipe = Pipeline(source, workers=1).detect(detector).then(classifier, name="color")
    items = list(pipe.alert("red", where={"color": ["red"]}))
    assert refused
    assert "stage `red`" in refused[0]
    assert "`color`" in refused[0]
    assert [said(i) for i in items] == ["red"] * 20


def test_one_that_is_off_in_the_file_is_switched_on_by_its_override(detector, classifier):
    night = OverrideConfig(name="night", when=When(start="20:00", end="06:00"), on=("color",))
    now = [dt.datetime.fromisoformat("2026-07-01T12:00:00+00:00").timestamp()]
    config = PipelineConfig.from_mapping(
        {
            "source": {"uri": "synthetic:64x64?fps=100&live=1"},
            "stage": [
                {"name": "detect", "model": str(detector), "params": {"score": 0.1}},
                {"name": "color", "model": str(classifier), "after": "detect", "enabled": False},
            ],
        }
    )
    pipe = Pipeline.from_config(config)
    pipe.go_by(Rules(overrides=(night,), time_zone="UTC", clock=lambda: now[0], period_s=0.02))
    asked: list[bool] = []
    with pipe:
        row = pipe.report().to_json()["stages"][1]
        assert (row["enabled"], row["crops"]) == (False, 0)
        for item in pipe:
            if not len(item.detections):
                continue
            asked.append(bool(item.detections.then))
            now[0] = dt.datetime.fromisoformat("2026-07-01T22:00:00+00:00").timestamp()
            if asked[-1]:
                break
            assert len(asked) < 20_000
    assert not asked[0]
    assert asked[-1]


def test_a_worker_switches_its_second_model_by_command(detector, classifier):
    stages = [
        {"name": "detect", "model": str(detector)},
        {"name": "color", "model": str(classifier), "after": "detect"},
    ]
    events: list[dict[str, Any]] = []
    pipeline = {"source": {"uri": "synthetic:64x64?fps=50&live=1"}, "stage": stages}
    worker = Worker({"pipeline": pipeline}, on_event=events.append)
    worker.start()
    try:
        eventually(lambda: any(e["event"] == "ready" for e in events))
        for enabled in (False, True):
            reply = worker.request("change", stage="color", enabled=enabled, timeout_s=60)
            assert reply["changed"] == ["color"]
        with pytest.raises(Exception, match="the first model cannot be switched off"):
            worker.request("change", stage="detect", enabled=False, timeout_s=60)
    finally:
        worker.kill("the test is over")
        worker.wait(10)
