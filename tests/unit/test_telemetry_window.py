"""Windows hold what a device saw between two moments, in sums that can be merged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_sdk.errors import ConfigError
from edge_sdk.schemas import codec, document
from edge_sdk.schemas.telemetry import Alarm, Window
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sources.base import Frame
from edge_sdk.tasks.base import Classes
from edge_sdk.telemetry.observer import TelemetrySpec, WindowObserver, open_observer
from edge_sdk.telemetry.outbox import Outbox
from edge_sdk.telemetry.window import Latency, Moments, merge_groups, scatter_matrix

A, B = "a" * 64, "b" * 64


class Clock:
    """A clock that only moves when a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def box(tmp_path: Path) -> Outbox:
    return Outbox.open(tmp_path / "outbox.db")


def observe(box: Outbox, clock: Clock, **spec: object) -> WindowObserver:
    wanted = TelemetrySpec(outbox=box.path, **({"sample_period_s": 0.0, "window_n": 5} | spec))  # type: ignore[arg-type]
    return WindowObserver(wanted, box, model=A, clock=clock, monotonic=clock)


def answer(index: int, model: str = A, latency_ms: float = 5.0) -> FrameResult:
    image = np.full((32, 32, 3), (index * 7) % 256, np.uint8)
    result = Classes(np.array([0.8, 0.2], np.float32), ("cat", "dog"))
    return FrameResult(Frame(image, index, index / 30, 0.0, "test"), result, model, 1.0, latency_ms)


def events(path: Path) -> list[dict[str, object]]:
    with Outbox.open(path) as box:
        found = []
        for batch in box.next_batches(1000, now=1e12):
            found += codec.decode_body(*codec.read_header(batch.payload))
    return sorted(found, key=lambda e: e["seq"])


def windows(path: Path) -> list[Window]:
    return [Window.from_event(e) for e in events(path) if e["kind"] == "window"]


def test_moments_are_those_of_numpy_and_merge_like_one_window() -> None:
    rng = np.random.default_rng(0)
    data = rng.random((137, 4))
    parts = []
    for chunk in (data[:50], data[50:51], data[51:]):
        moments = Moments(("a", "b", "c", "d"))
        for row in chunk:
            moments.add(row)
        parts.append(moments.group())
    merged = merge_groups(merge_groups(parts[0], parts[1]), parts[2])
    assert merged.n == 137
    assert merged.mean == pytest.approx(data.mean(0), abs=1e-5)
    assert scatter_matrix(merged) / 136 == pytest.approx(np.cov(data.T), abs=1e-5)
    expected = np.array([np.histogram(column, bins=32, range=(0, 1))[0] for column in data.T])
    assert np.array_equal(merged.hist, expected)


def test_a_value_that_could_not_be_computed_is_missing_and_not_mixed_in() -> None:
    moments = Moments(("a", "b"))
    moments.add(np.array([0.5, np.nan]))
    moments.add(np.array([0.5, 1.0]))
    group = moments.group()
    assert (group.n, group.missing, group.mean) == (1, 1, (0.5, 1.0))
    with pytest.raises(ValueError, match="other features"):
        merge_groups(group, Moments(("a", "z")).group())


def test_latency_quantiles_are_within_their_bin() -> None:
    values = np.random.default_rng(2).lognormal(2, 0.7, 5000)
    latency = Latency()
    for value in values:
        latency.add(float(value))
    for q in (0.5, 0.95, 0.99):
        assert latency.quantile(q) == pytest.approx(np.quantile(values, q), rel=0.04)
    for odd in (0.0, -1.0, 1e9):
        latency.add(odd)
    assert Latency().summary() == {}


def feed(observer: WindowObserver, items: list[FrameResult]) -> None:
    """Hand over results one by one, each sampled before the next."""
    for item in items:
        observer.on_result(item)
        while observer._mailbox is not None:
            with observer._wake:
                observer._wake.notify()
            observer._thread.join(timeout=0.001)


def test_a_window_closes_after_its_number_of_samples(box: Outbox, clock: Clock) -> None:
    observer = observe(box, clock)
    feed(observer, [answer(i) for i in range(12)])
    observer.close()
    first, second, rest = windows(box.path)
    assert (first.n, second.n, rest.n) == (5, 5, 2)
    assert first.model == A
    assert first.labels == {"cat": 5}
    assert first.confidence == pytest.approx(0.8)
    assert set(first.groups) == {"image", "output"}
    assert first.groups["image"].n == 5
    assert sum(w.counters.processed for w in (first, second, rest)) == 12
    assert first.latency_ms["p95"] == pytest.approx(5.0, rel=0.03)


def test_a_window_never_mixes_two_models(box: Outbox, clock: Clock) -> None:
    observer = observe(box, clock, window_n=100)
    feed(observer, [answer(i) for i in range(3)] + [answer(i, B) for i in range(4)] + [answer(9)])
    observer.close()
    assert [(w.model, w.n, w.counters.processed) for w in windows(box.path)] == [(A, 3, 3), (B, 4, 4), (A, 1, 1)]


def test_frames_are_sampled_at_the_period_and_all_of_them_counted(box: Outbox, clock: Clock) -> None:
    observer = observe(box, clock, sample_period_s=10.0)
    for i in range(40):
        clock.now += 1.0
        feed(observer, [answer(i)])
    observer.on_drop("latest", 7)
    observer.on_drop("infer", 1)
    observer.on_drop("jsonl", 3)
    observer.on_error("infer", "engine said no")
    observer.on_error("nonfinite", "NaN in `scores`")
    observer.close()
    (window,) = windows(box.path)
    assert window.n == 4
    counters = window.counters
    assert (counters.frames, counters.processed, counters.dropped) == (49, 40, 7)
    assert (counters.errors, counters.nonfinite) == (2, 1)


def test_a_silent_camera_still_gives_windows(box: Outbox, clock: Clock) -> None:
    observer = observe(box, clock, max_window_s=30.0)
    clock.now += 31
    observer.on_drop("latest", 1)
    while not windows(box.path):
        clock.now += 0.1
        observer._thread.join(timeout=0.02)
    observer.close()
    first = windows(box.path)[0]
    assert (first.n, first.counters.processed, first.groups) == (0, 0, {})


def test_slow_frames_are_counted_against_the_models_before(box: Outbox, clock: Clock) -> None:
    observer = observe(box, clock, window_n=1000, sample_period_s=1e9)
    for i in range(300):
        observer.on_result(answer(i, latency_ms=5.0))
    for i in range(300):
        observer.on_result(answer(i, B, latency_ms=11.0 if i % 2 else 9.0))
    observer.close()
    assert [w.counters.slow for w in windows(box.path)] == [0, 150]


def test_an_alarm_is_stored_at_once_and_repeated_ones_are_counted(box: Outbox, clock: Clock) -> None:
    observer = observe(box, clock)
    for _ in range(4):
        observer.on_error("source", "camera 0 is gone")
    while not events(box.path):
        observer._thread.join(timeout=0.02)
    while observer._alarms:
        observer._thread.join(timeout=0.02)
    clock.now += 61
    observer.on_error("source", "camera 0 is gone")
    observer.close()
    alarms = [Alarm.from_event(e) for e in events(box.path) if e["kind"] == "alarm"]
    assert [(a.name, a.count) for a in alarms] == [("source_failed", 1), ("source_failed", 4)]
    assert alarms[0].message == "camera 0 is gone"


def test_alerts_and_camera_problems_of_results_become_alarms(box: Outbox, clock: Clock) -> None:
    observer = observe(box, clock)
    item = answer(0)
    alert = {"kind": "alert", "count": 2, "label": "person", "score": 0.91, "t_s": 0.0}
    item.events = [
        {"kind": "zone_enter", "name": "door", "t_s": 0.0},
        alert | {"name": "door"},
        alert | {"name": "yard"},
        {"kind": "camera", "name": "camera", "problem": "black", "state": "begin", "why": "99 % is dark"},
        {"kind": "camera", "name": "camera", "problem": "covered", "state": "end"},
    ]
    observer.on_result(item)
    observer.close()
    alarms = [Alarm.from_event(e) for e in events(box.path) if e["kind"] == "alarm"]
    assert [(a.name, a.message) for a in alarms] == [
        ("alert", "`door`: 2 matching, best person 0.91"),
        ("alert", "`yard`: 2 matching, best person 0.91"),
        ("camera_black", "`camera`: 99 % is dark"),
    ]


def test_a_frame_without_features_counts_as_missing(box: Outbox, clock: Clock) -> None:
    observer = observe(box, clock)
    item = answer(0)
    item.frame.image = np.zeros((4, 4, 3), np.uint8)
    feed(observer, [item])
    observer.close()
    (window,) = windows(box.path)
    assert (window.groups["image"].n, window.groups["image"].missing) == (0, 1)


def test_results_are_sent_when_a_period_is_set(box: Outbox, clock: Clock) -> None:
    observer = observe(box, clock, result_period_s=1.0)
    feed(observer, [answer(0), answer(1)])
    observer.close()
    (result,) = [e for e in events(box.path) if e["kind"] == "result"]
    assert (result["frame"], result["model"]) == (0, A)


def test_a_window_of_the_largest_groups_fits_into_one_event(box: Outbox, clock: Clock) -> None:
    observer = observe(box, clock, window_n=40)
    feed(observer, [answer(i) for i in range(40)])
    observer.close()
    (window,) = windows(box.path)
    assert len(document.dumps(window.to_event())) < 8 * 1024


def test_the_spec_of_an_observer_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sample_periods: unknown key, did you mean `sample_period_s`"):
        open_observer({"outbox": str(tmp_path / "o.db"), "sample_periods": 3}, model=A)
    observer = open_observer({"outbox": str(tmp_path / "o.db"), "restarts": 2}, model=A)
    feed(observer, [answer(0)])
    observer.close()
    assert windows(tmp_path / "o.db")[0].counters.restarts == 2
