"""Verdicts over the store: learning, quiet, drift, harm, a new model, and a fleet of devices."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from cloud_sync.drift.report import render
from cloud_sync.drift.service import Drift
from cloud_sync.policies import DriftPolicy
from edge_sdk.errors import ConfigError
from edge_sdk.schemas.telemetry import FeatureGroup

NAMES = tuple(f"f{i}" for i in range(5))
POLICY = DriftPolicy(baseline_windows=6, baseline_samples=300, baseline_span_s=0, min_n=50, enough_n=100, bootstrap=60)


class Camera:
    """Sends windows of random features; `shift` moves the image group, `confidence` the scores."""

    def __init__(self, world: Any, device: str, seed: int) -> None:
        self.world, self.device, self.rng = world, device, np.random.default_rng(seed)
        self.offset = self.rng.uniform(0.35, 0.65, len(NAMES))
        self.model, self.shift, self.confidence, self.missing = "a" * 64, 0.0, 0.8, 0

    def group(self, n: int, shift: float) -> FeatureGroup:
        rows = self.offset + shift + 0.05 * self.rng.normal(size=(n, len(NAMES)))
        mean = rows.mean(axis=0)
        away = rows - mean
        hist = [np.histogram(np.clip(rows[:, j], 0, 1), 32, (0, 1))[0] for j in range(len(NAMES))]
        return FeatureGroup(
            names=NAMES,
            n=n,
            mean=tuple(mean),
            m2=tuple((away.T @ away)[np.triu_indices(len(NAMES))]),
            hist=tuple(tuple(int(v) for v in h) for h in hist),
            missing=self.missing,
        )

    def send(self, windows: int = 1, n: int = 100) -> None:
        for _ in range(windows):
            self.world.now += 5
            groups = {"image": self.group(n, self.shift), "output": self.group(n, 0.0)} if n else {}
            score = float(np.clip(self.rng.normal(self.confidence, 0.01), 0, 1))
            self.world.window(self.device, self.model, n=n, confidence=score, groups=groups)


@pytest.fixture
def drift(world: Any) -> Drift:
    world.add_devices(["cam"])
    return Drift(world.db, "default", POLICY)


def state(drift: Drift, device: str = "cam") -> str:
    return next(str(d["state"]) for d in drift.devices() if d["device"] == device)


def test_a_device_learns_first_and_is_stable_while_nothing_changes(world: Any, drift: Drift) -> None:
    camera = Camera(world, "cam", 1)
    camera.send(5)
    assert drift.step(world.now) == 0
    assert state(drift) == "learning"
    assert drift.verdicts()[0]["p"] is None
    camera.send()
    drift.step(world.now)
    assert state(drift) == "stable"
    camera.send(12)
    assert drift.step(world.now) == 12 * 4
    assert state(drift) == "stable"
    kinds = {v["kind"]: v for v in drift.verdicts("cam")}
    assert set(kinds) == {"image", "output", "missing", "confidence"}
    assert kinds["image"]["n"] == 100
    assert drift.step(world.now) == 0


def test_one_odd_window_is_suspected_and_the_second_is_drift_of_the_input(world: Any, drift: Drift) -> None:
    camera = Camera(world, "cam", 2)
    camera.send(8)
    camera.shift = 0.05
    camera.send()
    drift.step(world.now)
    assert state(drift) == "suspected"
    camera.send()
    drift.step(world.now)
    assert state(drift) == "drifted"
    states = {v["kind"]: v["state"] for v in drift.verdicts()}
    assert states["image"] == "drifted"
    assert states["output"] == "stable"
    camera.shift = 0.0
    camera.send(3)
    drift.step(world.now)
    assert state(drift) == "stable"


def test_lost_confidence_is_likely_harm(world: Any, drift: Drift) -> None:
    camera = Camera(world, "cam", 3)
    camera.send(8)
    camera.confidence = 0.6
    camera.send(2)
    drift.step(world.now)
    assert state(drift) == "likely_harm"
    verdict = next(v for v in drift.verdicts() if v["kind"] == "confidence")
    assert verdict["statistic"] == pytest.approx(0.2, abs=0.03)


def test_small_windows_are_merged_and_windows_without_samples_say_nothing(world: Any, drift: Drift) -> None:
    camera = Camera(world, "cam", 4)
    camera.send(2, n=0)
    drift.step(world.now)
    assert state(drift) == "insufficient"
    camera.send(6)
    camera.send(3, n=30)
    assert drift.step(world.now) == 0
    camera.send(1, n=30)
    assert drift.step(world.now) == 4
    assert drift.verdicts()[0]["n"] == 120


def test_another_model_starts_another_baseline(world: Any, drift: Drift) -> None:
    camera = Camera(world, "cam", 5)
    camera.send(8)
    camera.shift = 0.05
    camera.send(2)
    drift.step(world.now)
    assert state(drift) == "drifted"
    camera.model = "b" * 64
    camera.send(6)
    drift.step(world.now)
    assert state(drift) == "stable"
    camera.send(2)
    drift.step(world.now)
    assert state(drift) == "stable"


def test_many_missing_samples_are_an_alarm_of_their_own(world: Any, drift: Drift) -> None:
    camera = Camera(world, "cam", 6)
    camera.send(8)
    camera.missing = 60
    camera.send(3)
    drift.step(world.now)
    missing = next(v for v in drift.verdicts() if v["kind"] == "missing")
    assert missing["state"] == "drifted"
    assert missing["share"] == pytest.approx(60 / 160)
    assert state(drift) == "suspected"


def test_a_killed_service_judges_every_window_exactly_once(world: Any, drift: Drift) -> None:
    camera = Camera(world, "cam", 7)
    camera.send(6)
    for _ in range(4):
        Drift(world.db, "default", POLICY).step(world.now)
        camera.send()
    Drift(world.db, "default", POLICY).step(world.now)
    series = [v for v in drift.series("cam") if v["kind"] == "image"]
    assert len(series) == 4
    assert [v["window_id"] for v in series] == sorted({v["window_id"] for v in series})


def test_healthy_devices_with_different_cameras_raise_no_alarm_and_one_that_drifts_is_found(world: Any) -> None:
    drift = Drift(world.db, "default", POLICY)
    names = [f"cam-{i}" for i in range(10)]
    world.add_devices(names)
    cameras = [Camera(world, n, 20 + i) for i, n in enumerate(names)]
    for camera in cameras:
        camera.send(6)
    for _ in range(6):
        for camera in cameras:
            camera.send()
        drift.step(world.now)
    assert {d["state"] for d in drift.devices()} <= {"stable", "suspected"}
    cameras[3].shift = 0.05
    for _ in range(2):
        for camera in cameras:
            camera.send()
        drift.step(world.now)
    assert [d["device"] for d in drift.devices() if d["state"] == "drifted"] == ["cam-3"]


def test_a_small_shift_that_the_whole_fleet_has_is_found_together(world: Any) -> None:
    drift = Drift(world.db, "default", POLICY)
    names = [f"cam-{i}" for i in range(12)]
    world.add_devices(names)
    cameras = [Camera(world, n, 50 + i) for i, n in enumerate(names)]
    for camera in cameras:
        camera.send(8)
    drift.step(world.now)
    for _ in range(3):
        for camera in cameras:
            camera.shift = 0.008
            camera.send()
        drift.step(world.now)
    pooled = {(v["pipeline"], v["kind"]): v for v in drift.verdicts() if v["device"] == "*"}
    assert pooled["fleet", "image"]["state"] == "drifted"
    assert pooled["profile:generic-cpu", "image"]["devices"] == 12
    assert pooled["fleet", "output"]["state"] != "drifted"


def test_unreadable_windows_are_left_out(world: Any, drift: Drift) -> None:
    camera = Camera(world, "cam", 8)
    camera.send(7)
    world.db.execute('UPDATE windows SET json = \'{"kind": "window"}\' WHERE id = 3')
    drift.step(world.now)
    assert state(drift) == "stable"


def test_the_report_is_one_page_with_plots_and_no_request(world: Any, drift: Drift) -> None:
    camera = Camera(world, "cam", 9)
    camera.send(8)
    camera.shift = 0.05
    camera.send(2)
    drift.step(world.now)
    page = render(drift, device=None, now=world.now)
    tags: list[str] = []
    links: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            links.extend(v or "" for k, v in attrs if k in ("src", "href"))

    Reader().feed(page)
    assert links == []
    assert "script" not in tags
    assert tags.count("svg") >= 6
    assert "input changed" in page
    assert "Reference: 6 windows, 600 samples" in page
    assert "psi" in page


def test_a_policy_that_cannot_work_is_refused() -> None:
    from edge_sdk.config import parse

    for data, message in (({"votes": 4}, "votes is 4"), ({"min_n": 200}, "min_n is 200")):
        with pytest.raises(ConfigError, match=message):
            parse(data, DriftPolicy, where="serve.toml")
