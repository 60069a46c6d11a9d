"""Tracks: assignment, prediction, and what happens to numbers when objects cross, hide and come back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import UsageError
from edge_sdk.stage_params import TrackParams
from edge_sdk.tasks.base import Detections
from edge_sdk.tracking import Tracker, assign, solve
from edge_sdk.tracking.kalman import Kalman

SIZE = np.array([40.0, 80.0])


def boxes_at(*centres: tuple[float, float], score: float | list[float] = 0.9, class_id: Any = 0) -> Detections:
    points = np.array(centres, np.float64).reshape(-1, 2)
    n = len(points)
    return Detections(
        np.concatenate([points - SIZE / 2, points + SIZE / 2], axis=1).astype(np.float32),
        np.broadcast_to(np.asarray(score, np.float32), (n,)).copy(),
        np.broadcast_to(np.asarray(class_id, np.int32), (n,)).copy(),
    )


def ids(found: Detections) -> list[int]:
    assert found.track_id is not None
    return found.track_id.tolist()


@settings(max_examples=150, deadline=None)
@given(n=st.integers(0, 9), m=st.integers(0, 9), seed=st.integers(0, 10**6), whole=st.booleans())
def test_the_assignment_costs_as_little_as_scipys(n: int, m: int, seed: int, whole: bool) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(seed)
    cost = rng.integers(-3, 4, (n, m)).astype(float) if whole else rng.normal(size=(n, m))
    rows, columns = solve(cost)
    r, c = optimize.linear_sum_assignment(cost)
    # Equal costs leave a choice of rows where there are more of them than columns: what must agree is the sum.
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == len(r)
    assert len(set(columns.tolist())) == len(columns)
    assert cost[rows, columns].sum() == pytest.approx(cost[r, c].sum())


@settings(max_examples=150, deadline=None)
@given(n=st.integers(0, 9), m=st.integers(0, 9), seed=st.integers(0, 10**6), limit=st.floats(-1, 1))
def test_an_assignment_with_a_limit_gains_as_much_as_possible(n: int, m: int, seed: int, limit: float) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    cost = np.random.default_rng(seed).normal(size=(n, m))
    rows, columns = assign(cost, limit)
    gain = np.minimum(cost - limit, 0)
    best = gain[optimize.linear_sum_assignment(gain)].sum()
    assert (cost[rows, columns] < limit).all()
    assert gain[rows, columns].sum() == pytest.approx(best)
    assert len(set(rows.tolist())) == len(rows) == len(set(columns.tolist()))


def test_the_filter_is_the_eight_dimensional_one_of_deepsort() -> None:
    rng = np.random.default_rng(1)
    first = np.array([[100.0, 60.0, 40.0, 80.0]])
    ours = Kalman.at(first)
    scale = np.array([40.0, 80.0, 40.0, 80.0])
    mean = np.concatenate([first[0], np.zeros(4)])
    cov = np.diag(np.concatenate([(2 * scale / 20) ** 2, (10 * scale / 160) ** 2]))
    step = np.eye(8)
    step[:4, 4:] = np.eye(4)
    look = np.eye(4, 8)
    for _ in range(20):
        size = mean[[2, 3, 2, 3]]
        noise = np.diag(np.concatenate([(size / 20) ** 2, (size / 160) ** 2]))
        mean, cov = step @ mean, step @ cov @ step.T + noise
        ours.predict(1.0)
        size = mean[[2, 3, 2, 3]]
        seen = first[0] + rng.normal(0, 2, 4)
        s = look @ cov @ look.T + np.diag((size / 20) ** 2)
        gain = cov @ look.T @ np.linalg.inv(s)
        mean, cov = mean + gain @ (seen - look @ mean), cov - gain @ s @ gain.T
        ours.update(np.array([0]), seen[None])
    np.testing.assert_allclose(ours.pos[0], mean[:4], rtol=1e-9)
    np.testing.assert_allclose(ours.vel[0], mean[4:], rtol=1e-9)


def test_one_prediction_over_three_ticks_is_three_predictions_of_one() -> None:
    start = np.array([[100.0, 60.0, 40.0, 80.0]])
    once, thrice = Kalman.at(start), Kalman.at(start)
    once.predict(3.0)
    for _ in range(3):
        thrice.predict(1.0)
    for a, b in zip(once.arrays(), thrice.arrays(), strict=True):
        np.testing.assert_allclose(a, b)


def test_an_object_gets_its_number_with_the_second_sighting_and_keeps_it() -> None:
    tracker = Tracker()
    seen = [ids(tracker.update(boxes_at((100 + 3 * f, 200)), f / 30)) for f in range(60)]
    assert seen == [[-1]] + [[1]] * 59
    assert tracker.total == 1


def test_two_objects_that_cross_keep_their_numbers() -> None:
    tracker = Tracker()
    for f in range(80):
        found = tracker.update(boxes_at((100 + 5 * f, 200), (500 - 5 * f, 215)), f / 30)
    assert ids(found) == [1, 2]
    assert tracker.total == 2


def test_an_object_hidden_for_half_a_second_comes_back_with_its_number() -> None:
    tracker = Tracker()
    for f in range(60):
        centres = [] if 25 <= f < 40 else [(100 + 4 * f, 200)]
        found = tracker.update(boxes_at(*centres), f / 30)
    assert ids(found) == [1]


def test_an_object_away_for_longer_than_lost_s_is_a_new_one() -> None:
    tracker = Tracker(TrackParams(lost_s=0.5))
    for f in range(80):
        centres = [] if 20 <= f < 50 else [(300, 200)]
        found = tracker.update(boxes_at(*centres), f / 30)
    assert ids(found) == [2]


def test_a_weak_detection_continues_a_track_and_starts_none() -> None:
    tracker = Tracker()
    for f in range(30):
        score = [0.9 if f < 10 else 0.2, 0.2]
        found = tracker.update(boxes_at((100 + 3 * f, 200), (500, 200), score=score), f / 30)
    assert ids(found) == [1, -1]


def test_a_track_stays_within_its_class_unless_told_otherwise() -> None:
    strict, loose = Tracker(), Tracker(TrackParams(class_aware=False))
    for f in range(20):
        found = boxes_at((100, 200), class_id=0 if f < 10 else 1)
        last = [ids(t.update(found, f / 30)) for t in (strict, loose)]
    assert last == [[2], [1]]


def test_a_camera_of_five_frames_a_second_keeps_numbers_too() -> None:
    tracker = Tracker(fps=5)
    seen = [ids(tracker.update(boxes_at((100 + 20 * f, 200), (900 - 20 * f, 400)), f / 5)) for f in range(25)]
    assert seen[1:] == [[1, 2]] * 24


def test_a_gap_of_a_minute_starts_new_tracks() -> None:
    tracker = Tracker()
    for t_s in [f / 30 for f in range(20)] + [60 + f / 30 for f in range(20)]:
        found = tracker.update(boxes_at((100, 200)), t_s)
    assert ids(found) == [2]


@pytest.mark.parametrize("times", [[0.0] * 10, [5 - f / 10 for f in range(10)], [float("nan")] * 10])
def test_time_that_stands_still_runs_back_or_is_no_number_counts_as_frames(times: list[float]) -> None:
    tracker = Tracker()
    for t_s in times:
        found = tracker.update(boxes_at((100, 200)), t_s)
    assert ids(found) == [1]


def test_boxes_that_are_no_numbers_are_left_out_and_harm_nothing() -> None:
    tracker = Tracker()
    for f in range(10):
        found = boxes_at((100, 200), (300, 200))
        found.xyxy[1, 0] = np.nan if f % 2 else np.inf
        found = tracker.update(found, f / 30)
    assert ids(found) == [1, -1]


def test_a_frame_without_detections_has_an_empty_answer() -> None:
    assert ids(Tracker().update(Detections.empty(), 0.0)) == []


def test_the_order_of_the_rows_does_not_change_who_is_who() -> None:
    rng = np.random.default_rng(3)
    starts, speed = rng.uniform(100, 900, (8, 2)), rng.uniform(-4, 4, (8, 2))
    tracker = Tracker()
    who: dict[int, set[int]] = {i: set() for i in range(8)}
    for f in range(40):
        order = rng.permutation(8)
        found = tracker.update(boxes_at(*(starts + f * speed)[order]), f / 30)
        for i, track in zip(order.tolist(), ids(found), strict=True):
            who[i].add(track)
    lone = [who[i] - {-1} for i in range(8)]
    assert sum(len(tracks) for tracks in lone) <= 9


def test_memory_does_not_grow_with_objects_that_left() -> None:
    tracker = Tracker()
    for f in range(2000):
        tracker.update(boxes_at((100 + 300 * (f // 4 % 50), 200)), f / 30)
    assert len(tracker) < 20
    assert tracker.total > 100


def test_a_frame_rate_of_zero_is_refused() -> None:
    with pytest.raises(UsageError, match="expected a frame rate above 0, found 0"):
        Tracker(fps=0)


def test_a_low_threshold_above_the_high_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"low \(0.6\) must not be above high \(0.5\)"):
        TrackParams(low=0.6)
