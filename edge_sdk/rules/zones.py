"""Polygon zones: who is inside, who came, who left, who stayed too long."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_sdk.rules.base import Decision, Event, Filter, Outcome, Trace, anchors, object_event, track_ids
from edge_sdk.rules.geometry import inside, polygon
from edge_sdk.stage_params import ZoneParams
from edge_sdk.tasks.base import Detections


@dataclass(slots=True)
class _Visit:
    """One tracked object seen from a zone; `since_s` is when it came in, `streak` frames that contradict `inside`."""

    seen_s: float
    label: str
    class_id: int
    inside: bool = False
    streak: int = 0
    streak_from_s: float = 0.0
    since_s: float = 0.0
    dwelt: int = 0


class Zone:
    """A named polygon that follows tracked objects; `update` takes every result of one camera in order.

    Raises:
        UsageError: the polygon has no area, crosses itself or has fewer than three corners.
    """

    kind = "zone"

    def __init__(self, name: str, params: ZoneParams, trace: Trace | None = None) -> None:
        self.name = name
        self.params = params
        self.corners = polygon(params.polygon, what=f"zone `{name}`: polygon")
        self.trace = Trace() if trace is None else trace
        self.filter = Filter(
            classes=params.classes, min_score=params.min_score, where=params.where, where_not=params.where_not
        )
        self._dwell = tuple(sorted(set(params.dwell_s)))
        self._visits: dict[int, _Visit] = {}
        self.entered = 0
        self.left = 0

    def adopt(self, old: Zone) -> None:
        """Go on with the visits and counts of another zone; dwell limits that a visit is past already are not said."""
        self._visits, self.entered, self.left = old._visits, old.entered, old.left
        for visit in self._visits.values():
            past = sum(visit.seen_s - visit.since_s >= limit for limit in self._dwell)
            visit.dwelt = past if visit.inside and self._dwell != old._dwell else visit.dwelt

    def update(self, detections: Detections, t_s: float) -> Outcome:
        """Return events (`zone_enter`, `zone_leave`, `zone_dwell`) and counts of one frame.

        Counts: `inside` and `labels` of this frame's boxes with their anchor in the zone, tracked or not; `entered` and
        `left` since the start, of tracked objects.
        """
        keep = self.filter.mask(detections)
        self.filter.trace(detections, keep, t_s, self.name, self.trace)
        rows = np.flatnonzero(keep)
        within = inside(anchors(detections.xyxy[rows], self.params.anchor), self.corners)
        events: list[Event] = []
        tracks = track_ids(detections)
        for row, is_in in zip(rows.tolist(), within.tolist(), strict=True):
            track = int(tracks[row])
            if track < 0:
                self._note("track", False, "has no track yet: it is counted, not followed", t_s, track)
                continue
            events += self._follow(detections, row, is_in, t_s)
        self._expire(t_s, events)
        names = Counter(detections.label(int(c)) for c in detections.class_id[rows[within]])
        counts = {
            "inside": int(within.sum()),
            "labels": dict(sorted(names.items())),
            "entered": self.entered,
            "left": self.left,
        }
        return Outcome(tuple(events), counts)

    def _follow(self, detections: Detections, row: int, is_in: bool, t_s: float) -> list[Event]:
        track = int(track_ids(detections)[row])
        visit = self._visits.get(track)
        if visit is None:
            class_id = int(detections.class_id[row])
            visit = self._visits[track] = _Visit(t_s, detections.label(class_id), class_id)
        visit.seen_s = t_s
        self._note("zone", is_in, "its anchor is inside" if is_in else "its anchor is outside", t_s, track)
        events: list[Event] = []
        if is_in == visit.inside:
            visit.streak = 0
        elif self._debounced(visit, is_in, t_s, track):
            if is_in:
                visit.inside, visit.streak, visit.dwelt = True, 0, 0
                visit.since_s = visit.streak_from_s
                self.entered += 1
                events.append(object_event("zone_enter", self.name, detections, row, t_s))
            else:
                event = object_event("zone_leave", self.name, detections, row, t_s)
                events.append(event | self._leave(visit, visit.streak_from_s))
        while visit.inside and visit.dwelt < len(self._dwell) and t_s - visit.since_s >= self._dwell[visit.dwelt]:
            limit = self._dwell[visit.dwelt]
            visit.dwelt += 1
            self._note("dwell", True, f"inside for {limit:g} s", t_s, track)
            event = object_event("zone_dwell", self.name, detections, row, t_s)
            events.append(event | {"limit_s": limit, "dwell_s": round(t_s - visit.since_s, 3)})
        return events

    def _debounced(self, visit: _Visit, is_in: bool, t_s: float, track: int) -> bool:
        """Count one more frame against `visit.inside`; say whether there were enough in a row."""
        if visit.streak == 0:
            visit.streak_from_s = t_s
        visit.streak += 1
        need = self.params.min_frames
        done = visit.streak >= need
        if need > 1:
            what = "inside" if is_in else "outside"
            self._note("debounce", done, f"{what} for {visit.streak} of {need} frames", t_s, track)
        return done

    def _leave(self, visit: _Visit, t_s: float) -> dict[str, Any]:
        visit.inside, visit.streak = False, 0
        self.left += 1
        return {"dwell_s": round(max(0.0, t_s - visit.since_s), 3)}

    def _expire(self, t_s: float, events: list[Event]) -> None:
        gone = [k for k, v in self._visits.items() if t_s - v.seen_s > self.params.lost_s or t_s < v.seen_s]
        for track in gone:
            visit = self._visits.pop(track)
            if not visit.inside:
                continue
            self._note("zone", False, f"unseen for more than {self.params.lost_s:g} s: it has left", t_s, track)
            head = {"kind": "zone_leave", "name": self.name, "t_s": round(t_s, 3), "track": track}
            body = {"label": visit.label, "class_id": visit.class_id, "lost": True}
            events.append(head | body | self._leave(visit, visit.seen_s))

    def _note(self, step: str, accepted: bool, why: str, t_s: float, track: int) -> None:
        if not self.trace.known(self.name, step, track, accepted, why):
            self.trace.add(Decision(t_s, self.name, step, accepted, why, track), answer=why)
