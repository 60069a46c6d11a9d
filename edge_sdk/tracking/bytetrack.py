"""ByteTrack (Zhang et al., arXiv 2110.06864): every detection box is associated, the weak ones second."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import UsageError
from edge_sdk.stage_params import TrackParams
from edge_sdk.tasks.base import Detections
from edge_sdk.tracking.assignment import Index, assign
from edge_sdk.tracking.boxes import iou
from edge_sdk.tracking.kalman import TICKS_PER_S, Kalman, to_centres

FORBIDDEN = 1e6
TENTATIVE, TRACKED, LOST = 0, 1, 2
_SAME_TRACK_IOU = 0.85


class Tracker:
    """Numbers objects through time; feed it every result of one camera, in order.

    Args:
        params: thresholds.
        fps: nominal rate, used for the step when a time stamp does not advance.
    """

    def __init__(self, params: TrackParams | None = None, *, fps: float = 30.0) -> None:
        if not (math.isfinite(fps) and fps > 0):
            raise UsageError(f"tracker: expected a frame rate above 0, found {fps}")
        self.params = params or TrackParams()
        self.fps = fps
        self.reset()

    def reset(self) -> None:
        """Forget every track; numbers start at 1 again."""
        self._kalman = Kalman.at(np.zeros((0, 4)))
        self._id = np.zeros(0, np.int64)
        self._class = np.zeros(0, np.int32)
        self._state = np.zeros(0, np.int8)
        self._hits = np.zeros(0, np.int64)
        self._born_s = np.zeros(0)
        self._seen_s = np.zeros(0)
        self._next_id = 1
        self._t_s: float | None = None
        self._clock = 0.0
        self._usual_step_s = 0.0
        self._last: Detections | None = None

    def adopt(self, old: Tracker) -> None:
        """Go on with the tracks and numbers of another tracker."""
        for name, value in vars(old).items():
            if name not in ("params", "fps"):
                setattr(self, name, value)

    def __len__(self) -> int:
        """Return how many tracks are alive, the unseen ones included."""
        return len(self._id)

    @property
    def total(self) -> int:
        """How many objects got a number so far."""
        return self._next_id - 1

    def update(self, detections: Detections, t_s: float) -> Detections:
        """Return the same detections with `track_id`; -1 where a box belongs to no confirmed track.

        Args:
            detections: one frame's boxes; rows with a box or score that is not finite are left out of tracking.
            t_s: the frame's time in seconds; a step back or a repeat counts as one frame at `fps`.
        """
        p = self.params
        now = self._advance(t_s)
        score = np.asarray(detections.score, np.float64)
        boxes = np.asarray(detections.xyxy, np.float64)
        usable = np.isfinite(boxes).all(axis=1) & (score >= p.low)
        high = np.flatnonzero(usable & (score >= p.high))
        weak = np.flatnonzero(usable & (score < p.high))
        centres = to_centres(boxes)
        ids = np.full(len(score), -1, np.int64)

        if len(self._id):
            predicted = self._kalman.boxes()
            known = np.flatnonzero(self._state != TENTATIVE)
            pairs, left_tracks, high = self._associate(
                predicted, known, boxes, high, detections, limit=p.match, fuse=True
            )
            seen = left_tracks[self._state[left_tracks] == TRACKED]
            more, missed, _ = self._associate(predicted, seen, boxes, weak, detections, limit=p.match_low, fuse=False)
            fresh = np.flatnonzero(self._state == TENTATIVE)
            third, stale, high = self._associate(
                predicted, fresh, boxes, high, detections, limit=p.match_tentative, fuse=True
            )
            tracks, rows = (np.concatenate(part) for part in zip(pairs, more, third, strict=True))
            self._state[missed] = LOST
            self._match(tracks, rows, centres, now)
            ids[rows] = self._id[tracks]
            self._forget(stale, now)
        self._start(high[score[high] >= p.new], centres, detections, ids, now)
        self._last = replace(detections, track_id=ids)
        return self._last

    def carry(self, t_s: float) -> Detections | None:
        """Return the last frame's detections with the boxes of its tracks where they are expected at `t_s`.

        A box without a track stays where it was; keypoints move with their box. None before the first `update`.
        """
        last = self._last
        if last is None or last.track_id is None:
            return None
        self._advance(t_s)
        rows = np.flatnonzero(last.track_id >= 0)
        index = {track: i for i, track in enumerate(self._id.tolist()) if track >= 0}
        rows = rows[[track in index for track in last.track_id[rows].tolist()]] if len(rows) else rows
        if not len(rows):
            return last
        xyxy = last.xyxy.copy()
        xyxy[rows] = self._kalman.boxes()[[index[track] for track in last.track_id[rows].tolist()]]
        keypoints = last.keypoints
        if keypoints is not None:
            keypoints = keypoints + (xyxy[:, None, :2] - last.xyxy[:, None, :2])
        return replace(last, xyxy=xyxy, keypoints=keypoints)

    def _advance(self, t_s: float) -> float:
        """Move every track to the new time; return the tracker's own clock."""
        step = math.nan if self._t_s is None else t_s - self._t_s
        if not (math.isfinite(step) and step > 0):
            step = 1 / self.fps
        if math.isfinite(t_s):
            self._t_s = t_s
        self._clock += step
        usual = self._usual_step_s or step
        self._usual_step_s = usual + (step - usual) / 4
        if step > max(self.params.lost_s, 3 * usual):
            self._keep(np.zeros(len(self._id), bool))
        if len(self._id):
            self._kalman.vel[self._state == LOST, 2:] = 0
            self._kalman.predict(step * TICKS_PER_S)
        return self._clock

    def _associate(
        self,
        predicted: NDArray[Any],
        tracks: Index,
        boxes: NDArray[Any],
        rows: Index,
        detections: Detections,
        *,
        limit: float,
        fuse: bool,
    ) -> tuple[tuple[Index, Index], Index, Index]:
        """Return the matched (tracks, rows), the tracks left and the rows left."""
        if not len(tracks) or not len(rows):
            none = np.zeros(0, np.intp)
            return (none, none), tracks, rows
        likeness = iou(predicted[tracks], boxes[rows])
        cost = 1 - (likeness * detections.score[rows] if fuse else likeness)
        if self.params.class_aware:
            cost[self._class[tracks][:, None] != detections.class_id[rows]] = FORBIDDEN
        i, j = assign(cost, limit)
        left_tracks, left_rows = np.ones(len(tracks), bool), np.ones(len(rows), bool)
        left_tracks[i], left_rows[j] = False, False
        return (tracks[i], rows[j]), tracks[left_tracks], rows[left_rows]

    def _match(self, tracks: Index, rows: Index, centres: NDArray[Any], now: float) -> None:
        if not len(tracks):
            return
        self._kalman.update(tracks, centres[rows])
        self._hits[tracks] += 1
        self._seen_s[tracks] = now
        confirmed = tracks[self._hits[tracks] >= self.params.confirm]
        self._state[confirmed] = TRACKED
        for track in confirmed[self._id[confirmed] < 0]:
            self._id[track] = self._new_id()

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _start(self, rows: Index, centres: NDArray[Any], detections: Detections, ids: Any, now: float) -> None:
        if not len(rows):
            return
        n = len(rows)
        at_once = self.params.confirm == 1
        fresh = np.array([self._new_id() if at_once else -1 for _ in range(n)], np.int64)
        self._kalman = self._kalman.joined(Kalman.at(centres[rows]))
        self._id = np.concatenate([self._id, fresh])
        self._class = np.concatenate([self._class, detections.class_id[rows].astype(np.int32)])
        self._state = np.concatenate([self._state, np.full(n, TRACKED if at_once else TENTATIVE, np.int8)])
        self._hits = np.concatenate([self._hits, np.ones(n, np.int64)])
        self._born_s = np.concatenate([self._born_s, np.full(n, now)])
        self._seen_s = np.concatenate([self._seen_s, np.full(n, now)])
        ids[rows] = fresh

    def _forget(self, stale: Index, now: float) -> None:
        """Drop tentative tracks that were not seen again, tracks unseen for too long and doubles of others."""
        lost = self._state == LOST
        keep = np.ones(len(self._id), bool)
        keep[stale] = False
        if lost.any():
            keep &= ~(lost & (now - self._seen_s > self.params.lost_s))
            self._drop_doubles(keep)
        self._keep(keep)

    def _keep(self, keep: NDArray[np.bool_]) -> None:
        if keep.all():
            return
        self._kalman = self._kalman.select(keep)
        for name in ("_id", "_class", "_state", "_hits", "_born_s", "_seen_s"):
            setattr(self, name, getattr(self, name)[keep])

    def _drop_doubles(self, keep: NDArray[np.bool_]) -> None:
        """Of a seen and an unseen track on the same spot, keep the older."""
        seen, lost = np.flatnonzero(keep & (self._state == TRACKED)), np.flatnonzero(keep & (self._state == LOST))
        if not len(seen) or not len(lost):
            return
        boxes = self._kalman.boxes()
        same = iou(boxes[seen], boxes[lost]) > _SAME_TRACK_IOU
        same &= self._class[seen][:, None] == self._class[lost]
        for s, o in zip(*np.nonzero(same), strict=True):
            older_seen = self._born_s[seen[s]] <= self._born_s[lost[o]]
            keep[lost[o] if older_seen else seen[s]] = False
