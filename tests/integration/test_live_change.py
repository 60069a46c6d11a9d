"""A pipeline that becomes another one between two frames: in Python and by command."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.agent.process import Worker
from edge_sdk.errors import ConfigError, UsageError
from edge_sdk.pipeline import Pipeline
from edge_sdk.testing import ListSource, build_artifact, color_frame

WAIT_S = 60
RIGHT = [[40, 0], [64, 0], [64, 64], [40, 64]]
LEFT = [[0, 0], [20, 0], [20, 64], [0, 64]]


@pytest.fixture(scope="module")
def detector(tmp_path_factory: Any) -> Path:
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "cells.edge", task="detection").path


def still(n: int) -> list[Any]:
    return [color_frame("red", width=64, height=64, box=(48, 16, 64, 32)) for _ in range(n)]


def watched(detector: Path, n: int = 120) -> Pipeline:
    pipe = Pipeline(ListSource(still(n), fps=10.0), workers=1).detect(detector).track()
    return pipe.zone("door", RIGHT, anchor="center", dwell_s=[8.0]).zone("yard", LEFT, anchor="center")


def play(pipe: Pipeline, at: dict[int, Any]) -> list[Any]:
    """Run it, and do what `at` says when the result of a frame has come."""
    items = []
    with pipe:
        for item in pipe:
            items.append(item)
            if item.frame.index in at:
                at[item.frame.index]()
    return items


def events(items: list[Any], name: str) -> list[str]:
    return [e["kind"] for i in items for e in i.events if e["name"] == name]


def test_a_changed_zone_leaves_tracks_and_the_dwell_time_of_another_as_they_are(detector: Path) -> None:
    pipe = watched(detector)
    items = play(pipe, {30: lambda: pipe.change("yard", polygon=RIGHT)})
    assert [i.frame.index for i in items] == list(range(120))
    assert events(items, "door") == ["zone_enter", "zone_dwell"]
    dwell = next(e for i in items for e in i.events if e["kind"] == "zone_dwell")
    assert 8.0 <= dwell["dwell_s"] <= 8.2
    assert events(items, "yard") == ["zone_enter"]
    assert {int(t) for i in items[5:] for t in i.detections.track_id} == {1}


def test_a_changed_zone_goes_on_with_its_own_visits_and_counts(detector: Path) -> None:
    pipe = watched(detector)
    items = play(pipe, {50: lambda: pipe.change("door", dwell_s=[2.0, 10.0])})
    assert events(items, "door") == ["zone_enter", "zone_dwell"], "2 s are long past, 10 s come"
    assert [e["limit_s"] for i in items for e in i.events if e["kind"] == "zone_dwell"] == [10.0]
    assert items[-1].counts["door"]["entered"] == 1


def test_a_changed_line_keeps_its_counts_and_a_changed_alert_its_cool_down(detector: Path) -> None:
    pipe = Pipeline(ListSource(still(100), fps=10.0), workers=1).detect(detector).track()
    pipe.line("gate", (20, 0), (20, 64)).alert("any", min_frames=5, cooldown_s=5)
    changes = {30: lambda: pipe.change("any", min_frames=2), 40: lambda: pipe.change("gate", margin=1)}
    items = play(pipe, changes)
    fired = [e["t_s"] for i in items for e in i.events if e["kind"] == "alert"]
    assert fired == [0.4, 5.4]
    assert pipe.report().steps[2]["events"] == 2


def test_changed_tracking_goes_on_with_the_numbers_of_the_objects(detector: Path) -> None:
    pipe = watched(detector)
    items = play(pipe, {40: lambda: pipe.change("track", lost_s=3.0)})
    assert {int(t) for i in items[5:] for t in i.detections.track_id} == {1}


def test_a_threshold_changes_without_loading_the_model_again_and_none_takes_the_default_back(detector: Path) -> None:
    pipe = watched(detector)
    at = {30: lambda: pipe.change("detect", score=0.99999), 70: lambda: pipe.change("detect", score=None)}
    items = play(pipe, at)
    found = [len(i.detections) for i in items]
    assert found[:30] == [1] * 30
    assert found[40:70] == [0] * 30
    assert found[80:] == [1] * 40
    assert pipe.report().swaps == 0


def test_with_two_frame_threads_the_threshold_changes_for_all_frames_after_one(detector: Path) -> None:
    pipe = Pipeline(ListSource(still(400), fps=10.0), workers=2).detect(detector)
    items = play(pipe, {100: lambda: pipe.change("detect", score=0.99999)})
    found = [len(i.detections) for i in items]
    assert found == sorted(found, reverse=True)
    assert len(found) == 400
    assert found[-1] == 0


def test_tiles_and_a_swap_still_work_after_a_change(detector: Path, tmp_path: Path) -> None:
    newer = build_artifact(tmp_path / "newer.edge", task="detection", version="2.0.0")
    pipe = watched(detector)
    at = {
        20: lambda: pipe.change("detect", tiles={"columns": 2, "rows": 1}),
        40: lambda: pipe.change("detect", tiles=None, score=0.99999),
        60: lambda: pipe.swap("detect", newer.path),
    }
    items = play(pipe, at)
    assert len(items) == 120
    assert items[-1].model == newer.sha256
    assert len(items[-1].detections) == 0, "the changed threshold holds for the new model"


def test_a_zone_is_switched_off_and_on_and_its_counts_stay(detector: Path) -> None:
    pipe = watched(detector)
    at = {30: lambda: pipe.switch("door", enabled=False), 60: lambda: pipe.switch("door", enabled=True)}
    items = play(pipe, at)
    assert "door" in items[20].counts
    assert "door" not in items[45].counts
    assert items[-1].counts["door"]["entered"] == 1


def test_how_often_and_where_a_model_looks_changes_too(detector: Path) -> None:
    pipe = Pipeline(ListSource(still(120), fps=10.0), workers=1).detect(detector)
    at = {
        30: lambda: pipe.change("detect", every=4),
        60: lambda: pipe.change("detect", every=None, roi=[[0, 0], [32, 64]]),
        90: lambda: pipe.change("detect", roi=None),
    }
    items = play(pipe, at)
    assert all(i.inferred for i in items[:30])
    assert sum(i.inferred for i in items[40:60]) == 5
    assert all(i.inferred for i in items[70:])
    assert [len(items[n].detections) for n in (20, 50, 80, 119)] == [1, 1, 0, 1]
    with pytest.raises(UsageError, match="the pipeline does not run"):
        Pipeline("synthetic:64x64").detect(detector).change("detect", every=2)


def test_the_gate_and_every_change_too(detector: Path) -> None:
    pipe = Pipeline(ListSource(still(120), fps=10.0), workers=1).detect(detector)
    pipe.motion_gate(hold_s=0.1, refresh_s=0)
    items = play(pipe, {60: lambda: pipe.change("motion_gate", refresh_s=0.5)})
    assert not any(i.inferred for i in items[5:60])
    assert sum(i.inferred for i in items[70:]) == pytest.approx(10, abs=2)


@pytest.fixture
def live(detector: Path) -> Any:
    """A camera that runs, with a zone."""
    pipe = Pipeline("synthetic:64x64?fps=50&live=1").detect(detector).zone("door", RIGHT)
    with pipe.sink(Kept()):
        yield pipe


class Kept:
    """A sink whose options cannot be changed."""

    uri = "kept"

    def open(self) -> None: ...

    def write(self, item: Any) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("dor", {"min_frames": 2}, "the pipeline has no stage or sink `dor`"),
        ("door", {"min_frame": 2}, "min_frame: unknown key, did you mean `min_frames`"),
        ("door", {"polygon": [[0, 0], [1, 1]]}, "expected at least 3 different corners, found 2"),
        ("door", {"classes": ["cat"]}, "the model has no class `cat`"),
        ("detect", {"scor": 0.5}, "scor: unknown key"),
        ("detect", {"every": 0}, "every: expected 1 to 100000, found 0"),
        ("kept", {"every_s": 1}, "sink `kept`: `every_s` changes with a fresh start"),
    ],
)
def test_a_change_that_cannot_work_is_told_why_and_changes_nothing(
    live: Pipeline, name: str, params: dict[str, Any], message: str
) -> None:
    before = live.live_stages
    with pytest.raises(UsageError) as caught:
        live.change(name, **params)
    assert message in caught.value.message
    assert live.live_stages == before
    assert live.change("door", min_frames=3).changed == ("door",)


def test_the_first_model_stays_on_and_what_others_need_too(detector: Path) -> None:
    pipe = Pipeline("synthetic:64x64?fps=50&live=1").detect(detector).track().line("gate", (20, 0), (20, 64))
    with pipe:
        with pytest.raises(UsageError, match="the first model cannot be switched off"):
            pipe.switch("detect", enabled=False)
        with pytest.raises(UsageError, match="a line counts tracks"):
            pipe.switch("track", enabled=False)
        assert all(s.enabled for s in pipe.live_stages)


def test_a_pipeline_that_does_not_run_is_not_changed(detector: Path) -> None:
    with pytest.raises(UsageError, match="the pipeline does not run"):
        Pipeline("synthetic:64x64?n=5").detect(detector).change("detect", score=0.5)


def test_the_options_of_a_sink_change_while_it_writes(detector: Path, tmp_path: Path) -> None:
    pipe = Pipeline(ListSource(still(100), fps=10.0), workers=1).detect(detector)
    pipe.alert("any", min_frames=1, cooldown_s=0.5).sink(f"snapshots:{tmp_path}/shots", every_s=3600)
    at = {50: lambda: pipe.change("snapshots", every_s=0)}
    play(pipe, at)
    frames = sorted(int(path.stem[-8:]) for path in (tmp_path / "shots").glob("*.json"))
    assert frames[0] == 0
    assert len(frames) > 5
    assert all(frame >= 40 for frame in frames[1:])


# -- by command ----------------------------------------------------------------------------------------------------


class Log:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._changed = threading.Condition()

    def __call__(self, event: dict[str, Any]) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait(self, name: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: any(e["event"] == name for e in self.events), WAIT_S), self.events


def description(detector: Path, **more: Any) -> dict[str, Any]:
    zone = {"kind": "zone", "name": "door", "params": {"polygon": RIGHT}}
    stages = [{"name": "detect", "model": str(detector)}, {"kind": "track"}, zone]
    return {"source": {"uri": "synthetic:64x64?fps=50&live=1"}, "stage": stages, **more}


@pytest.fixture
def worker(detector: Path) -> Any:
    log = Log()
    worker = Worker({"pipeline": description(detector), "frames": None}, on_event=log)
    worker.start()
    log.wait("ready")
    yield worker
    worker.kill("the test is over")
    worker.wait(WAIT_S)


def test_a_worker_changes_a_stage_on_command(worker: Worker) -> None:
    assert worker.request("change", stage="door", params={"min_frames": 5})["changed"] == ["door"]
    assert worker.request("change", stage="door", params={"min_frames": 5})["changed"] == []
    assert worker.request("change", stage="door", enabled=False)["changed"] == ["door"]
    with pytest.raises(ConfigError, match="expected an integer"):
        worker.request("change", stage="door", params={"min_frames": "x"})
    with pytest.raises(UsageError, match="`change` needs `stage` or `sink`"):
        worker.request("change", params={})
    assert worker.alive


def test_a_worker_becomes_what_a_whole_description_says_and_names_what_needs_a_fresh_start(
    worker: Worker, detector: Path
) -> None:
    new = description(detector, degrade={"cpu_temp_c": 80}, workers=2)
    new["stage"][0]["params"] = {"score": 0.3}
    new["stage"].append({"kind": "alert", "name": "any"})
    new["override"] = [{"name": "always", "when": {"from": "00:00", "to": "24:00"}, "rate": 20}]
    reply = worker.request("change", pipeline=new)
    assert reply["changed"] == ["detect", "any", "override always", "degrade"]
    assert reply["restart"] == ["`workers` changes with a fresh start"]
    assert worker.request("stats")["stats"]["control"]["override"]["active"] == ["always"]
    del new["stage"][2]
    assert worker.request("change", pipeline=new | {"workers": None})["changed"] == ["door"]


def test_what_cannot_be_changed_while_it_runs_is_said_and_the_rest_is_done(worker: Worker, detector: Path) -> None:
    new = description(detector, sink=[{"uri": "jsonl:/nowhere/x.jsonl"}])
    new["source"]["uri"] = "synthetic:32x32?live=1"
    new["stage"].append({"name": "second", "model": str(detector), "after": "detect"})
    new["degrade"] = {"cpu_percent": 90}
    reply = worker.request("change", pipeline=new)
    assert reply["changed"] == ["degrade"]
    assert reply["restart"] == [
        "`source` changes with a fresh start",
        "sinks are added and taken away with a fresh start",
        "a stage with a model (`second`) cannot be added to a pipeline that runs",
    ]


def test_another_model_in_the_description_is_swapped_in(worker: Worker, detector: Path, tmp_path: Path) -> None:
    newer = build_artifact(tmp_path / "newer.edge", task="detection", version="2.0.0")
    new = description(detector)
    new["stage"][0]["model"] = str(newer.path)
    assert worker.request("change", pipeline=new)["changed"] == ["detect"]
    assert worker.request("stats")["stats"]["model"] == newer.sha256
