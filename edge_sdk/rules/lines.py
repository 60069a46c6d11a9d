"""Lines that count who crosses them, and in which direction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_sdk.rules.base import Decision, Event, Filter, Outcome, Trace, anchors, object_event, track_ids
from edge_sdk.rules.geometry import segment, sides
from edge_sdk.stage_params import LineParams
from edge_sdk.tasks.base import Detections


@dataclass(slots=True)
class _Path:
    """One tracked object seen from a line; `side` is the last side it clearly stood on, `crossed` whether the line's
    span was passed since."""

    seen_s: float
    distance: float
    along: float
    side: int = 0
    crossed: bool = False


class Line:
    """A named line that counts tracked objects; `update` takes every result of one camera in order.

    Raises:
        UsageError: both ends are the same point.
    """

    kind = "line"

    def __init__(self, name: str, params: LineParams, trace: Trace | None = None) -> None:
        self.name = name
        self.params = params
        self.start, self.end = segment(params.start, params.end, what=f"line `{name}`")
        self.trace = Trace() if trace is None else trace
        self.filter = Filter(
            classes=params.classes, min_score=params.min_score, where=params.where, where_not=params.where_not
        )
        self._paths: dict[int, _Path] = {}
        self.count_in = 0
        self.count_out = 0
        self._labels: dict[str, dict[str, int]] = {}

    def adopt(self, old: Line) -> None:
        """Go on with the counts of another line, and with the ways of objects where it is the same line."""
        self.count_in, self.count_out, self._labels = old.count_in, old.count_out, old._labels
        if np.array_equal(self.start, old.start) and np.array_equal(self.end, old.end):
            self._paths = old._paths

    def update(self, detections: Detections, t_s: float) -> Outcome:
        """Return `line_in` and `line_out` events, and `in`, `out` and `labels` since the start."""
        keep = self.filter.mask(detections)
        self.filter.trace(detections, keep, t_s, self.name, self.trace)
        tracks = track_ids(detections)
        rows = np.flatnonzero(keep & (tracks >= 0))
        distance, along = sides(anchors(detections.xyxy[rows], self.params.anchor), self.start, self.end)
        events: list[Event] = []
        for i, row in enumerate(rows.tolist()):
            event = self._follow(detections, row, float(distance[i]), float(along[i]), t_s)
            if event is not None:
                events.append(event)
        gone = [k for k, p in self._paths.items() if t_s - p.seen_s > self.params.lost_s or t_s < p.seen_s]
        for track in gone:
            del self._paths[track]
        labels = {k: dict(v) for k, v in self._labels.items()}
        return Outcome(tuple(events), {"in": self.count_in, "out": self.count_out, "labels": labels})

    def _follow(self, detections: Detections, row: int, distance: float, along: float, t_s: float) -> Event | None:
        track = int(track_ids(detections)[row])
        margin = self.params.margin
        clear = abs(distance) > margin
        now = (1 if distance > 0 else -1) if clear else 0
        path = self._paths.get(track)
        if path is None:
            self._paths[track] = _Path(t_s, distance, along, now)
            return None
        if distance != 0 and path.distance * distance < 0:
            share = path.distance / (path.distance - distance)
            place = path.along + share * (along - path.along)
            path.crossed = 0 <= place <= 1
            if not path.crossed:
                self._note("line", False, f"passed beside the line, at {place:.2f} of its length", t_s, track)
        if distance != 0:
            path.distance, path.along = distance, along
        path.seen_s = t_s
        if not clear or now == path.side:
            if path.side and path.crossed and not clear:
                why = f"over the line by {abs(distance):.1f} of {margin:g} pixels"
                if not self.trace.known(self.name, "debounce", track, False, "near"):
                    self.trace.add(Decision(t_s, self.name, "debounce", False, why, track), answer="near")
            path.crossed = path.crossed and not clear
            return None
        was, crossed = path.side, path.crossed
        path.side, path.crossed = now, False
        if was == 0 or not crossed:
            return None
        return self._count("in" if now > 0 else "out", detections, row, t_s)

    def _count(self, direction: str, detections: Detections, row: int, t_s: float) -> Event:
        if direction == "in":
            self.count_in += 1
        else:
            self.count_out += 1
        event = object_event(f"line_{direction}", self.name, detections, row, t_s)
        tally = self._labels.setdefault(event["label"], {"in": 0, "out": 0})
        tally[direction] += 1
        self._note("line", True, f"crossed {direction}", t_s, event["track"])
        return event

    def _note(self, step: str, accepted: bool, why: str, t_s: float, track: int) -> None:
        self.trace.add(Decision(t_s, self.name, step, accepted, why, track), answer=f"{why}@{t_s:.3f}")
