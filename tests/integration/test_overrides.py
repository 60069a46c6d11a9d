"""Overrides and degradation of pipelines that run: what they change, say and leave alone."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.degrade import DegradeConfig
from edge_sdk.machine_load import LoadMeter
from edge_sdk.pipeline import Pipeline
from edge_sdk.pipeline.control import Rules
from edge_sdk.pipeline_config import PipelineConfig
from edge_sdk.schedule import OverrideConfig, When
from edge_sdk.testing import CollectingSink, ListSource, build_artifact, color_frame

WAIT_S = 60
DOOR = [[40, 0], [64, 0], [64, 64], [40, 64]]


@pytest.fixture(scope="module")
def detector(tmp_path_factory: Any) -> Path:
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "cells.edge", task="detection").path


class Clock:
    """A clock that a test sets; `live` gives the seconds since the epoch."""

    def __init__(self, text: str) -> None:
        self.set(text)

    def set(self, text: str) -> None:
        self.now = dt.datetime.fromisoformat(text).timestamp()

    def __call__(self) -> float:
        return self.now


def rules(clock: Clock, *overrides: OverrideConfig, **more: Any) -> Rules:
    return Rules(overrides=overrides, time_zone="Europe/Vienna", clock=clock, period_s=0.02, **more)


def night(**changes: Any) -> OverrideConfig:
    return OverrideConfig(name="night", when=When(start="20:00", end="06:00"), **changes)


def kinds(items: list[Any], *names: str) -> list[tuple[str, str]]:
    return [(e["kind"], e.get("state", "")) for i in items for e in i.events if e["kind"] in names]


class Until:
    """Takes results until something about them is true."""

    def __init__(self, pipe: Pipeline) -> None:
        self.items: list[Any] = []
        self._iter = iter(pipe)

    def __call__(self, true: Any) -> Any:
        deadline = time.monotonic() + WAIT_S
        for item in self._iter:
            self.items.append(item)
            if true(item):
                return item
            assert time.monotonic() < deadline, "it did not come true"
        raise AssertionError("the source ended")


def test_an_override_begins_and_ends_with_the_clock_and_says_so(detector: Path) -> None:
    clock = Clock("2026-07-01T19:00:00+02:00")
    pipe = Pipeline("synthetic:64x64?fps=100&live=1").detect(detector, score=0.1).zone("door", DOOR)
    pipe.go_by(rules(clock, night(stage={"detect": {"score": 0.9999999}}, off=("door",))))
    with pipe:
        until = Until(pipe)
        until(lambda i: len(i.detections) and "door" in i.counts)
        assert pipe.stats()["control"]["override"]["active"] == []
        clock.set("2026-07-01T20:00:00+02:00")
        item = until(lambda i: kinds([i], "override"))
        assert [(e["name"], e["state"]) for e in item.events if e["kind"] == "override"] == [("night", "begin")]
        until(lambda i: not len(i.detections) and "door" not in i.counts)
        assert pipe.stats()["control"]["override"]["active"] == ["night"]
        clock.set("2026-07-02T06:00:00+02:00")
        until(lambda i: len(i.detections) and "door" in i.counts)
    assert kinds(until.items, "override") == [("override", "begin"), ("override", "end")]
    control = pipe.report().to_json()["control"]
    assert control["override"]["active"] == []
    assert control["override"]["seconds"]["night"] > 0


def test_one_that_holds_at_the_start_holds_for_the_first_frame(detector: Path) -> None:
    clock = Clock("2026-07-01T22:00:00+02:00")
    images = [color_frame("red", width=64, height=64, box=(48, 16, 64, 32))] * 20
    pipe = Pipeline(ListSource(images, fps=10.0)).detect(detector).zone("door", DOOR)
    items = list(pipe.go_by(rules(clock, night(stage={"detect": {"score": 0.9999999}}, off=("door",)))))
    assert [len(i.detections) for i in items] == [0] * 20
    assert kinds(items[:1], "override") == [("override", "begin")]
    assert all("door" not in i.counts for i in items)


def test_a_change_by_hand_stays_under_the_override_and_comes_out_when_it_ends(detector: Path) -> None:
    clock = Clock("2026-07-01T22:00:00+02:00")
    pipe = Pipeline("synthetic:64x64?fps=100&live=1").detect(detector, score=0.1).zone("door", DOOR)
    with pipe.go_by(rules(clock, night(off=("door",)))):
        until = Until(pipe)
        until(lambda i: "door" not in i.counts)
        pipe.change("door", polygon=[[0, 0], [64, 0], [64, 64], [0, 64]])
        clock.set("2026-07-02T07:00:00+02:00")
        item = until(lambda i: "door" in i.counts)
        assert item.counts["door"]["inside"] == len(item.detections)


def test_darkness_is_seen_in_the_picture_with_its_hysteresis(detector: Path) -> None:
    def gray(level: int, n: int) -> list[Any]:
        return [np.full((64, 64, 3), level, np.uint8)] * n

    images = gray(200, 100) + gray(10, 100) + gray(60, 100) + gray(200, 100)
    dark = OverrideConfig(name="dark", when=When(dark=0.2, light=0.5, hold_s=2), rate=1.0)
    clock = Clock("2026-07-01T12:00:00+02:00")
    pipe = Pipeline(ListSource(images, fps=10.0), workers=1).detect(detector)
    items = list(pipe.go_by(rules(clock, dark)))
    assert len(items) == 400, "a file keeps every frame, whatever the rate"
    at = [(i.frame.t_s, e["state"]) for i in items for e in i.events if e["kind"] == "override"]
    assert [state for _, state in at] == ["begin", "end"]
    assert at[0][0] >= 12.0
    assert at[1][0] >= 32.0
    assert pipe.report().to_json()["control"]["override"]["luminance"] == pytest.approx(200 / 255, abs=0.01)


def test_a_rate_is_kept_for_a_camera_and_what_it_costs_is_counted(detector: Path) -> None:
    clock = Clock("2026-07-01T22:00:00+02:00")
    pipe = Pipeline("synthetic:64x64?fps=100&live=1").detect(detector)
    began = time.monotonic()
    with pipe.go_by(rules(clock, night(rate=10))):
        until = Until(pipe)
        until(lambda i: i.frame.index >= 100)
        report = pipe.report()
    seconds = time.monotonic() - began
    assert report.dropped["rate"] > 0
    assert 1 <= report.processed <= 10 * seconds + 2
    assert report.to_json()["control"]["rate"] == 10


def test_the_first_of_two_overrides_is_the_stronger(detector: Path) -> None:
    clock = Clock("2026-07-01T22:00:00+02:00")
    other = OverrideConfig(name="july", when=When(days=("wed",)), stage={"detect": {"score": 0.1}})
    images = [color_frame("red", width=64, height=64, box=(48, 16, 64, 32))] * 5
    for order, found in (((night(stage={"detect": {"score": 0.9999999}}), other), 0), ((other, night()), 1)):
        items = list(Pipeline(ListSource(images, fps=10.0)).detect(detector).go_by(rules(clock, *order)))
        assert [len(i.detections) for i in items] == [found] * 5


def test_an_override_that_cannot_be_applied_is_said_and_what_runs_goes_on(detector: Path) -> None:
    clock = Clock("2026-07-01T19:00:00+02:00")
    wrong = night(stage={"door": {"classes": ["cat"]}})
    pipe = Pipeline("synthetic:64x64?fps=100&live=1").detect(detector).zone("door", DOOR)
    with pipe.go_by(rules(clock, wrong)):
        until = Until(pipe)
        until(lambda i: True)
        clock.set("2026-07-01T21:00:00+02:00")
        until(lambda i: "problem" in pipe.stats()["control"])
        assert "no class `cat`" in pipe.stats()["control"]["problem"]
        until(lambda i: "door" in i.counts)


class Machine:
    """A tree of files with one sensor."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._zone = root / "sys/class/thermal/thermal_zone0"
        self._zone.mkdir(parents=True)
        (self._zone / "type").write_text("cpu-thermal\n")
        self.set(50)

    def set(self, temp_c: float) -> None:
        part = self._zone / "part"
        part.write_text(f"{round(temp_c * 1000)}\n")
        part.replace(self._zone / "temp")


def hot(machine: Machine, clock: Clock, **limits: Any) -> Rules:
    config = DegradeConfig(cpu_temp_c=80, hold_s=0.05, recover_s=0.05, factor=0.5, **limits)
    return rules(clock, degrade=config, meter=LoadMeter(machine.root))


def test_a_camera_is_slowed_down_while_the_device_is_hot_and_recovers(detector: Path, tmp_path: Path) -> None:
    machine, clock = Machine(tmp_path), Clock("2026-07-01T12:00:00+02:00")
    sink = CollectingSink()
    pipe = Pipeline("synthetic:64x64?fps=100&live=1").detect(detector).sink(sink)
    with pipe.go_by(hot(machine, clock, min_fps=20)):
        until = Until(pipe)
        until(lambda i: i.frame.index > 30)
        machine.set(90)
        event = until(lambda i: kinds([i], "degraded")).events[0]
        assert event["why"] == "CPU temperature 90 °C is above 80 °C"
        assert event["level"] >= 1
        until(lambda i: pipe.stats()["control"]["degrade"]["level"] >= 3)
        assert pipe.stats()["control"]["rate"] == 20
        machine.set(50)
        until(lambda i: kinds([i], "recovered") and pipe.stats()["control"]["degrade"]["level"] == 0)
        report = pipe.report()
    assert report.dropped["rate"] > 0
    assert report.to_json()["control"]["degrade"]["worst"] >= 3
    assert next(e["kind"] for i in sink.items for e in i.events) == "degraded"


def test_at_the_floor_fewer_frames_are_inferred(detector: Path, tmp_path: Path) -> None:
    machine, clock = Machine(tmp_path), Clock("2026-07-01T12:00:00+02:00")
    pipe = Pipeline("synthetic:64x64?fps=100&live=1").detect(detector)
    with pipe.go_by(hot(machine, clock, min_fps=50)):
        until = Until(pipe)
        until(lambda i: i.frame.index > 30)
        machine.set(90)
        until(lambda i: not i.inferred)
        machine.set(50)
        until(lambda i: pipe.stats()["control"]["degrade"]["level"] == 0)
        until(lambda i: i.inferred)


def test_a_file_keeps_every_frame_however_hot_it_is(detector: Path, tmp_path: Path) -> None:
    machine, clock = Machine(tmp_path), Clock("2026-07-01T12:00:00+02:00")
    machine.set(100)
    pipe = Pipeline("synthetic:64x64?n=300").detect(detector).go_by(hot(machine, clock))
    report = pipe.run()
    assert report.processed == 300
    assert report.dropped == {}


def test_telemetry_hears_of_a_device_that_is_too_hot(detector: Path, tmp_path: Path) -> None:
    from edge_sdk.telemetry.observer import open_observer

    machine, clock = Machine(tmp_path), Clock("2026-07-01T12:00:00+02:00")
    box = tmp_path / "outbox.db"
    pipe = Pipeline("synthetic:64x64?fps=100&live=1").detect(detector)
    pipe.observe(open_observer({"outbox": str(box)}, model="m"))
    with pipe.go_by(hot(machine, clock)):
        until = Until(pipe)
        until(lambda i: i.frame.index > 20)
        machine.set(90)
        until(lambda i: kinds([i], "degraded"))
    rows = [json.loads(text) for (text,) in sqlite3.connect(box).execute("SELECT json FROM events")]
    assert "degraded" in [r.get("name") for r in rows if r["kind"] == "alarm"]
    assert next(r["level"] for r in rows if r["kind"] == "metric" and r["name"] == "degrade") == 1


def test_clips_and_snapshots_are_of_rules_not_of_the_pipeline_itself(detector: Path, tmp_path: Path) -> None:
    clock = Clock("2026-07-01T22:00:00+02:00")
    images = [color_frame("red", width=64, height=64, box=(48, 16, 64, 32))] * 20
    pipe = Pipeline(ListSource(images, fps=10.0)).detect(detector).go_by(rules(clock, night()))
    items = list(pipe.sink(f"clips:{tmp_path}/clips").sink(f"snapshots:{tmp_path}/shots"))
    assert kinds(items, "override") == [("override", "begin")]
    assert list((tmp_path / "clips").iterdir()) == list((tmp_path / "shots").iterdir()) == []


FILE = """
time_zone = "Europe/Vienna"
[source]
uri = "synthetic:64x64?{source}"
[[stage]]
kind = "detect"
model = "{model}"
[[stage]]
kind = "zone"
name = "door"
params = {{ polygon = [[0, 0], [64, 0], [64, 64]] }}
[[override]]
name = "always"
when = {{ from = "00:00", to = "24:00" }}
stage.detect = {{ score = 0.3 }}
stage.door.{door}
[[override]]
name = "dusk"
when = {{ dark = 0.15 }}
off = ["door"]
[degrade]
cpu_temp_c = 80
[serve]
port = 0
tokens = ["abc"]
"""


def edge(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edge_sdk", *words], capture_output=True, text=True, check=False)


def test_check_says_which_overrides_hold_now_and_builds_each(detector: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(FILE.format(source="n=5", model=detector, door="min_frames = 3"))
    done = edge("run", str(path), "--check")
    assert done.returncode == 0, done.stderr
    assert "override always: 00:00 to 24:00: active now" in done.stdout
    assert "override dusk: luminance below 0.15: now, when it is dark" in done.stdout
    done = edge("run", str(path))
    assert done.returncode == 0, done.stderr
    assert "override always: held for 0 s, holds" in done.stdout
    path.write_text(FILE.format(source="n=5", model=detector, door='classes = ["cat"]'))
    done = edge("run", str(path), "--check")
    assert done.returncode == 2
    assert "override `always`: stage `door`: the model has no class `cat`" in done.stderr


def test_the_service_of_the_file_asks_for_its_token_and_shows_what_holds(detector: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(FILE.format(source="fps=50&live=1", model=detector, door="min_frames = 3"))
    words = [sys.executable, "-m", "edge_sdk", "run", str(path)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        with process.stderr as stderr:
            url = next(line.split()[1] for line in stderr if line.startswith("service:"))
            threading.Thread(target=lambda: [None for _ in stderr], daemon=True).start()
            asked = urllib.request.Request(url + "metrics", headers={"Authorization": "Bearer abc"})
            with urllib.request.urlopen(asked, timeout=20) as answer:
                text = answer.read().decode()
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(url + "metrics", timeout=20)
            process.terminate()
            assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        process.wait()
    assert 'edge_override_active{name="always"} 1' in text
    assert 'edge_override_active{name="dusk"} 0' in text
    assert "edge_degrade_level 0" in text


def test_the_same_in_python_and_in_the_file(detector: Path) -> None:
    text = {"source": {"uri": "0"}, "stage": [{"kind": "detect", "model": str(detector)}]}
    when = {"from": "20:00", "to": "06:00"}
    text["override"] = [{"name": "night", "when": when, "rate": 5}]  # type: ignore[assignment]
    text["degrade"] = {"cpu_temp_c": 80}  # type: ignore[assignment]
    config = PipelineConfig.from_mapping(text)
    pipe = Pipeline("synthetic:64x64?n=5").detect(detector).override("night", when=when, rate=5).degrade(cpu_temp_c=80)
    assert pipe._rules.overrides == config.overrides
    assert pipe._rules.degrade == config.degrade
