"""Zones, lines and alerts: geometry at its edges, hysteresis, counts, and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import UsageError
from edge_sdk.rules import Alert, Decision, Line, Trace, Zone
from edge_sdk.rules.base import class_ids
from edge_sdk.rules.geometry import inside, polygon, sides
from edge_sdk.stage_params import AlertParams, Anchor, LineParams, ZoneParams
from edge_sdk.tasks.base import Detections

SQUARE = ((0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0))
DOOR = ((100.0, 100.0), (200.0, 100.0), (200.0, 200.0), (100.0, 200.0))
LABELS = ("person", "car")


def seen(*rows: tuple[int, float, float], label: str = "person", score: float = 0.9) -> Detections:
    """Return detections of (track, x, y): y is the lower edge of the box."""
    n = len(rows)
    boxes = np.array([(x - 5, y - 20, x + 5, y) for _, x, y in rows], np.float32).reshape(-1, 4)
    return Detections(
        boxes,
        np.full(n, score, np.float32),
        np.full(n, LABELS.index(label), np.int32),
        LABELS,
        np.array([track for track, _, _ in rows], np.int64),
    )


def kinds(events: Any) -> list[str]:
    return [e["kind"] for e in events]


# -- geometry -------------------------------------------------------------------------------------------------------


def test_the_border_and_the_corners_of_a_polygon_belong_to_it() -> None:
    points = np.array([(0, 0), (10, 10), (5, 0), (0, 5), (10, 3), (5, 5), (-0.01, 5), (10.01, 5), (5, 10.01), (11, 0)])
    assert inside(points.astype(float), polygon(SQUARE)).tolist() == [True] * 6 + [False] * 4


def test_a_hollow_polygon_holds_its_arms_and_not_its_bay() -> None:
    corners = polygon([(0, 0), (10, 0), (10, 10), (6, 10), (6, 4), (4, 4), (4, 10), (0, 10)])
    points = np.array([(2.0, 8.0), (8.0, 8.0), (5.0, 8.0), (5.0, 2.0)])
    assert inside(points, corners).tolist() == [True, True, False, True]


@given(st.lists(st.tuples(st.integers(-3, 13), st.integers(-3, 13)), min_size=1, max_size=20), st.booleans())
def test_points_on_a_grid_are_inside_a_square_whichever_way_round_it_is_given(points: Any, turned: bool) -> None:
    corners = polygon(SQUARE[::-1] if turned else SQUARE)
    expected = [0 <= x <= 10 and 0 <= y <= 10 for x, y in points]
    assert inside(np.array(points, float), corners).tolist() == expected


def test_a_repeated_corner_and_a_closed_outline_are_taken_as_meant() -> None:
    assert len(polygon([(0, 0), (10, 0), (10, 0), (10, 10), (0, 0)])) == 3


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([(0, 0), (1, 1)], "expected at least 3 different corners, found 2"),
        ([(5, 5)] * 4, "expected at least 3 different corners, found 1"),
        ([(0, 0), (5, 5), (10, 10)], "cross|lie on one line"),
        ([(0, 0), (10, 10), (10, 0), (0, 10)], "the edges from corner 1 and from corner 3 cross"),
        ([(0, 0), (10, 0), (5, 0), (5, 8)], "cross"),
        ([(0, 0), (1, float("nan")), (2, 2)], "expected finite coordinates"),
        ([(0, 0, 0), (1, 1, 1), (2, 0, 0)], r"expected a list of \[x, y\] points"),
        ("door", r"expected a list of \[x, y\] points, found 'door'"),
        ([(0, 0), (1,), (2, 2)], r"expected a list of \[x, y\] points"),
        ([(i, i * i) for i in range(300)], "expected at most 256 corners, found 300"),
    ],
)
def test_a_polygon_without_an_area_or_with_crossing_edges_is_refused(points: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        polygon(points)


def test_the_error_of_a_zone_names_the_zone() -> None:
    with pytest.raises(UsageError, match="zone `door`: polygon: expected at least 3"):
        Zone("door", ZoneParams(polygon=((0, 0), (1, 1))))


def test_right_of_a_walk_over_the_picture_is_positive() -> None:
    distance, along = sides(np.array([(5.0, 3.0), (5.0, -3.0), (20.0, 0.0)]), np.zeros(2), np.array([10.0, 0.0]))
    assert distance.tolist() == [3.0, -3.0, 0.0]
    assert along.tolist() == [0.5, 0.5, 2.0]


# -- zones ----------------------------------------------------------------------------------------------------------


def test_a_visit_enters_dwells_and_leaves_once() -> None:
    zone = Zone("door", ZoneParams(polygon=DOOR, dwell_s=(1.0, 2.0)))
    events: list[Any] = []
    for f in range(60):
        x = 50 if f < 10 or f >= 40 else 150
        outcome = zone.update(seen((7, x, 150)), f / 10)
        events += outcome.events
    assert kinds(events) == ["zone_enter", "zone_dwell", "zone_dwell", "zone_leave"]
    assert [e.get("limit_s") for e in events] == [None, 1.0, 2.0, None]
    assert events[-1]["dwell_s"] == 3.0
    assert events[0]["track"] == 7
    assert events[0]["label"] == "person"
    assert outcome.counts == {"inside": 0, "labels": {}, "entered": 1, "left": 1}


def test_an_object_that_trembles_on_the_border_neither_enters_nor_leaves() -> None:
    zone = Zone("door", ZoneParams(polygon=DOOR, min_frames=3))
    events: list[Any] = []
    for f in range(40):
        events += zone.update(seen((1, 99 if f % 2 else 101, 150)), f / 10).events
    assert events == []


def test_an_object_that_vanishes_inside_has_left_and_the_event_says_lost() -> None:
    zone = Zone("door", ZoneParams(polygon=DOOR, lost_s=1.0))
    events: list[Any] = []
    for f in range(50):
        events += zone.update(seen((1, 150, 150)) if f < 20 else seen(), f / 10).events
    assert kinds(events) == ["zone_enter", "zone_leave"]
    assert events[1]["lost"] is True
    assert events[1]["dwell_s"] == pytest.approx(1.9)


def test_the_anchor_decides_what_is_inside() -> None:
    found = seen((1, 150, 210))  # the box reaches from 190 to 210
    counts = [
        Zone("door", ZoneParams(polygon=DOOR, anchor=a)).update(found, 0.0).counts["inside"]
        for a in (Anchor.BOTTOM, Anchor.CENTER, Anchor.TOP)
    ]
    assert counts == [0, 1, 1]


def test_boxes_without_a_track_are_counted_and_not_followed() -> None:
    zone = Zone("door", ZoneParams(polygon=DOOR))
    found = Detections(*(getattr(seen((0, 150, 150)), k) for k in ("xyxy", "score", "class_id", "labels")))
    for f in range(5):
        outcome = zone.update(found, f / 10)
    assert outcome.events == ()
    assert outcome.counts["inside"] == 1
    assert any(d.step == "track" and "has no track yet" in d.why for d in zone.trace)


def test_classes_and_scores_that_do_not_count_are_left_out_with_the_reason() -> None:
    zone = Zone("door", ZoneParams(polygon=DOOR, classes=("car",), min_score=0.5))
    assert zone.update(seen((1, 150, 150)), 0.0).counts["inside"] == 0
    assert zone.update(seen((2, 150, 150), label="car", score=0.4), 0.1).counts["inside"] == 0
    assert zone.update(seen((3, 150, 150), label="car"), 0.2).counts["labels"] == {"car": 1}
    why = [d.why for d in zone.trace if d.step == "filter"]
    assert why == ["person is not one of car", "car 0.40 is below the score 0.5", "car 0.90 takes part"]


def test_a_zone_forgets_objects_that_are_gone() -> None:
    zone = Zone("door", ZoneParams(polygon=DOOR))
    for f in range(2000):
        zone.update(seen((f, 150, 150)), f / 10)
    assert len(zone._visits) < 30
    assert len(zone.trace) <= 2048


def test_dwell_times_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="dwell_s: expected seconds above 0"):
        ZoneParams(polygon=DOOR, dwell_s=(0.0,))


# -- lines ----------------------------------------------------------------------------------------------------------


def walk(line: Line, ys: Any, *, x: float = 50, track: int = 1) -> list[str]:
    events: list[Any] = []
    for i, y in enumerate(ys):
        events += line.update(seen((track, x, y + 10)), i / 10).events
    return [e["kind"] for e in events]


@pytest.fixture
def gate() -> Line:
    """A line from left to right at y = 100; the default anchor is the centre of the box, 10 above its lower edge."""
    return Line("gate", LineParams(start=(0, 100), end=(100, 100)))


def test_a_way_down_counts_in_and_a_way_up_counts_out(gate: Line) -> None:
    assert walk(gate, range(80, 121, 4)) == ["line_in"]
    assert walk(gate, range(120, 79, -4), track=2) == ["line_out"]
    assert (gate.count_in, gate.count_out) == (1, 1)


def test_one_long_step_over_the_line_counts(gate: Line) -> None:
    assert walk(gate, [20, 180]) == ["line_in"]


def test_an_object_that_trembles_on_the_line_counts_once(gate: Line) -> None:
    assert walk(gate, [80, 97, 102, 98, 101, 99, 103, 97, 120, 103, 97, 102, 125]) == ["line_in"]


def test_who_turns_round_on_the_line_is_not_counted_and_the_trace_says_why(gate: Line) -> None:
    assert walk(gate, [80, 97, 102, 103, 97, 80]) == []
    assert [d.why for d in gate.trace if d.step == "debounce"] == ["over the line by 2.0 of 4 pixels"]


def test_points_exactly_on_the_line_belong_to_no_side(gate: Line) -> None:
    assert walk(gate, [80, 100, 100, 80]) == []
    assert walk(gate, [80, 100, 100, 120], track=2) == ["line_in"]


def test_who_passes_beside_the_line_is_not_counted(gate: Line) -> None:
    assert walk(gate, range(80, 121, 4), x=130) == []
    assert any("passed beside the line, at 1.30 of its length" in d.why for d in gate.trace)


def test_a_line_counts_by_label(gate: Line) -> None:
    for i, y in enumerate((80, 120)):
        outcome = gate.update(seen((9, 50, y + 10), label="car"), i / 10)
    assert outcome.counts == {"in": 1, "out": 0, "labels": {"car": {"in": 1, "out": 0}}}


def test_a_line_without_length_is_refused() -> None:
    with pytest.raises(UsageError, match=r"line `gate`: both ends are \[3, 4\]"):
        Line("gate", LineParams(start=(3, 4), end=(3, 4)))


# -- alerts ---------------------------------------------------------------------------------------------------------


def fire(alert: Alert, found: Any, *, start: int = 0, n: int = 10) -> list[float]:
    out = []
    for f in range(start, start + n):
        out += [e["t_s"] for e in alert.update(found, f / 10).events]
    return out


def test_an_alert_needs_enough_frames_and_then_waits_out_its_cooldown() -> None:
    alert = Alert("person", AlertParams(classes=("person",), min_frames=3, cooldown_s=1.0))
    assert fire(alert, seen((1, 5, 5)), n=25) == [0.2, 1.2, 2.2]
    steps = {(d.step, d.accepted) for d in alert.trace if d.step in ("debounce", "cooldown")}
    assert steps == {("debounce", False), ("debounce", True), ("cooldown", False)}


def test_one_missing_frame_starts_the_count_again_unless_a_window_is_given() -> None:
    strict = Alert("a", AlertParams(min_frames=3))
    loose = Alert("b", AlertParams(min_frames=3, window_frames=5))
    frames = [seen((1, 5, 5)), seen((1, 5, 5)), seen(), seen((1, 5, 5)), seen()]
    fired = [[bool(a.update(f, i / 10).events) for i, f in enumerate(frames)] for a in (strict, loose)]
    assert fired == [[False] * 5, [False, False, False, True, False]]


def test_an_alert_event_has_the_count_the_tracks_and_the_best_score() -> None:
    alert = Alert("crowd", AlertParams(min_count=2, min_frames=1, polygon=DOOR))
    assert fire(alert, seen((1, 150, 150), (2, 300, 150)), n=3) == []
    (event,) = alert.update(seen((4, 150, 150), (3, 160, 150)), 1.0).events
    assert event["count"] == 2
    assert event["tracks"] == [3, 4]
    assert event["score"] == pytest.approx(0.9)
    assert alert.trace.around(1.0, window_s=0.1)[-1].why == "held in 1 of 1 frames"


def test_a_window_shorter_than_the_frames_it_must_hold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"window_frames \(2\) must be 0 or at least 3"):
        AlertParams(min_frames=3, window_frames=2)


# -- classes and the trace ------------------------------------------------------------------------------------------


def test_a_class_that_the_model_does_not_know_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="the model has no class `persn`") as caught:
        class_ids(("persn",), LABELS)
    assert caught.value.hint == "did you mean `person`?"
    assert class_ids(("car", "0"), LABELS) == [1, 0]


def test_the_trace_keeps_a_repeated_answer_once_and_stays_bounded() -> None:
    trace = Trace(rows=3)
    for f in range(10):
        trace.add(Decision(f, "door", "zone", True, "inside", 1), answer="in")
    assert len(trace) == 1
    for f in range(10):
        trace.add(Decision(f, "door", "zone", bool(f % 2), f"{f}", 1))
    assert [d.why for d in trace] == ["7", "8", "9"]
    assert trace.around(9, window_s=0.5)[0].to_json() == {
        "t_s": 9,
        "stage": "door",
        "step": "zone",
        "accepted": True,
        "why": "9",
        "track": 1,
    }
