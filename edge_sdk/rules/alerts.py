"""Debounced rules: an event when something is there long enough, and not again too soon."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from edge_sdk.rules.base import Decision, Event, Filter, Outcome, Trace, anchors, second_labels, track_ids
from edge_sdk.rules.geometry import inside, polygon
from edge_sdk.stage_params import AlertParams
from edge_sdk.tasks.base import Detections


class Alert:
    """A named rule that fires `alert` events; `update` takes every result of one camera in order.

    Raises:
        UsageError: the polygon has no area, crosses itself or has fewer than three corners.
    """

    kind = "alert"

    def __init__(self, name: str, params: AlertParams, trace: Trace | None = None) -> None:
        self.name = name
        self.params = params
        self.corners = polygon(params.polygon, what=f"alert `{name}`: polygon") if params.polygon else None
        self.trace = Trace() if trace is None else trace
        self.filter = Filter(
            classes=params.classes, min_score=params.min_score, where=params.where, where_not=params.where_not
        )
        self._recent: deque[bool] = deque(maxlen=params.window_frames or params.min_frames)
        self._fired_s: float | None = None
        self.fired = 0

    def adopt(self, old: Alert) -> None:
        """Go on with the frames that another rule remembers, with its cool-down and its count."""
        self._recent.extend(old._recent)
        self._fired_s, self.fired = old._fired_s, old.fired

    def update(self, detections: Detections, t_s: float) -> Outcome:
        """Return at most one `alert` event, and the counts `matching` and `fired`."""
        p = self.params
        keep = self.filter.mask(detections)
        self.filter.trace(detections, keep, t_s, self.name, self.trace)
        rows = np.flatnonzero(keep)
        if self.corners is not None:
            rows = rows[inside(anchors(detections.xyxy[rows], p.anchor), self.corners)]
        self._recent.append(len(rows) >= p.min_count)
        hits = sum(self._recent)
        events: tuple[Event, ...] = ()
        if not self._recent[-1]:
            self._note(False, "zone", f"{len(rows)} of {p.min_count} matching", t_s)
        elif hits < p.min_frames:
            self._note(False, "debounce", f"held in {hits} of {p.min_frames} frames", t_s)
        elif self._fired_s is not None and 0 <= t_s - self._fired_s < p.cooldown_s:
            self._note(False, "cooldown", f"an event was sent at {self._fired_s:.3f} s", t_s)
        else:
            self._note(True, "debounce", f"held in {hits} of {len(self._recent)} frames", t_s)
            self._fired_s = t_s
            self.fired += 1
            events = (self._event(detections, rows, t_s),)
        return Outcome(events, {"matching": len(rows), "fired": self.fired})

    def _event(self, detections: Detections, rows: NDArray[np.intp], t_s: float) -> Event:
        best = rows[int(np.argmax(detections.score[rows]))]
        tracks = track_ids(detections)[rows]
        event: Event = {
            "kind": "alert",
            "name": self.name,
            "t_s": round(t_s, 3),
            "count": len(rows),
            "label": detections.label(int(detections.class_id[best])),
            "class_id": int(detections.class_id[best]),
            "score": round(float(detections.score[best]), 4),
        }
        event |= second_labels(detections, int(best))
        followed = sorted(int(t) for t in tracks if t >= 0)
        return event | {"tracks": followed} if followed else event

    def _note(self, accepted: bool, step: str, why: str, t_s: float) -> None:
        self.trace.add(Decision(t_s, self.name, step, accepted, why), answer=why + (f"@{t_s}" if accepted else ""))
