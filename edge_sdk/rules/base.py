"""What every rule gives back: events, counts, and why each object was counted or not."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import UsageError
from edge_sdk.registry import near_miss
from edge_sdk.stage_params import Anchor
from edge_sdk.tasks.base import Detections

Event = dict[str, Any]
TRACE_ROWS = 2048
WINDOW_S = 2.0


@dataclass(frozen=True, slots=True)
class Decision:
    """One step of the way from a detection to an event.

    `step` is gate, every, crop, answer, filter, track, zone, line, dwell, debounce or cooldown; `track` is -1 where the
    step is not about one object; `why` is a sentence with the values that decided.
    """

    t_s: float
    stage: str
    step: str
    accepted: bool
    why: str
    track: int = -1

    def to_json(self) -> dict[str, Any]:
        row = {
            "t_s": round(self.t_s, 3),
            "stage": self.stage,
            "step": self.step,
            "accepted": self.accepted,
            "why": self.why,
        }
        return row if self.track < 0 else row | {"track": self.track}


class Trace:
    """The latest decisions, bounded; a repeat of the same answer about the same object is kept once.

    With `focus_s` only those within `window_s` of that media time are kept.
    """

    def __init__(self, rows: int = TRACE_ROWS, *, focus_s: float | None = None, window_s: float = WINDOW_S) -> None:
        self._rows: deque[Decision] = deque(maxlen=rows)
        self._focus_s, self._window_s = focus_s, window_s
        self._last: dict[tuple[str, str, int], tuple[bool, str]] = {}

    def add(self, decision: Decision, *, answer: str = "") -> None:
        """Keep `decision` unless the last one of its stage, step and object had the same outcome and `answer`."""
        if self._focus_s is not None and abs(decision.t_s - self._focus_s) > self._window_s:
            return
        key = (decision.stage, decision.step, decision.track)
        value = (decision.accepted, answer)
        if self._last.get(key) == value:
            return
        if len(self._last) > 4 * TRACE_ROWS:
            self._last.clear()
        self._last[key] = value
        self._rows.append(decision)

    def known(self, stage: str, step: str, track: int, accepted: bool, answer: str) -> bool:
        """Say whether `add` would drop it, so that a caller need not build the sentence."""
        return self._last.get((stage, step, track)) == (accepted, answer)

    def around(self, t_s: float, *, window_s: float = WINDOW_S) -> tuple[Decision, ...]:
        """Return the decisions within `window_s` of `t_s`, oldest first."""
        return tuple(d for d in self._rows if abs(d.t_s - t_s) <= window_s)

    def __iter__(self) -> Any:
        return iter(tuple(self._rows))

    def __len__(self) -> int:
        return len(self._rows)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one frame did to one rule: events for sinks and counts for the result line."""

    events: tuple[Event, ...] = ()
    counts: dict[str, Any] = field(default_factory=dict)


Labels = Mapping[str, Sequence[str]]


class Filter:
    """Which detections take part: by label, score, and by what second models said about them.

    With `where` only those to which the named second model gave one of the labels, with `where_not` only those that it
    answered without any of them: a box that it has not been asked about takes part in neither.
    """

    def __init__(
        self,
        *,
        classes: tuple[str, ...] = (),
        min_score: float = 0.0,
        where: Labels | None = None,
        where_not: Labels | None = None,
    ) -> None:
        self.classes = classes
        self.min_score = min_score
        self.where, self.where_not = where or {}, where_not or {}
        self._ids: tuple[Sequence[str] | None, list[int]] = (None, [])

    def ids(self, labels: Sequence[str]) -> list[int]:
        """Return the class ids of `classes`.

        Raises:
            UsageError: the model has no such label.
        """
        if self._ids[0] is not labels:
            self._ids = (labels, class_ids(self.classes, labels))
        return self._ids[1]

    def mask(self, detections: Detections) -> NDArray[np.bool_]:
        """Say which rows take part."""
        keep: NDArray[np.bool_] = detections.score >= self.min_score
        if self.classes:
            keep = keep & np.isin(detections.class_id, self.ids(detections.labels))
        if self.where or self.where_not:
            keep = keep.copy()
            for row in np.flatnonzero(keep).tolist():
                keep[row] = self._refusal(detections, row) is None
        return keep

    def check_seconds(self, seconds: Labels) -> None:
        """Refuse second models, or labels of theirs, that do not exist; `seconds` has the labels by model.

        Raises:
            UsageError: one is unknown.
        """
        for name, labels in (*self.where.items(), *self.where_not.items()):
            if name not in seconds:
                hint = near_miss(name, seconds) or "put a second model of that name before it"
                raise UsageError(f"no second model `{name}` before it", hint=hint)
            unknown = [label for label in labels if seconds[name] and label not in seconds[name]]
            if unknown:
                hint = near_miss(unknown[0], seconds[name]) or f"it knows {_some(seconds[name])}"
                raise UsageError(f"the second model `{name}` has no class `{unknown[0]}`", hint=hint)

    def _refusal(self, detections: Detections, row: int) -> str | None:
        """Say why what second models said keeps a detection out; None when it does not."""
        for names, wanted in ((self.where, True), (self.where_not, False)):
            for name, labels in names.items():
                answers = (detections.then or {}).get(name)
                second = answers[row] if answers is not None else None
                if second is None:
                    return f"{name} has not answered"
                given = second.labels()
                if any(label in labels for label in given) is not wanted:
                    return f"{name} says {', '.join(sorted(set(given))) or 'nothing'}"
        return None

    def trace(self, detections: Detections, keep: NDArray[np.bool_], t_s: float, stage: str, trace: Trace) -> None:
        """Note for each detection why it takes part or not."""
        tracks = track_ids(detections)
        for i, ok in enumerate(keep.tolist()):
            track = int(tracks[i])
            label = detections.label(int(detections.class_id[i]))
            score = float(detections.score[i])
            low = score < self.min_score
            refusal = None if ok or low or not (self.where or self.where_not) else self._refusal(detections, i)
            answer = label + ("<" if low else refusal or "")
            if track >= 0 and trace.known(stage, "filter", track, ok, answer):
                continue
            if ok:
                why = f"{label} {score:.2f} takes part"
            elif low:
                why = f"{label} {score:.2f} is below the score {self.min_score:g}"
            elif refusal is not None and (not self.classes or detections.class_id[i] in self.ids(detections.labels)):
                why = f"{label} {score:.2f}: {refusal}"
            else:
                why = f"{label} is not one of {', '.join(self.classes)}"
            trace.add(Decision(t_s, stage, "filter", ok, why, track), answer=answer)


def class_ids(classes: Sequence[str], labels: Sequence[str]) -> list[int]:
    """Return the class ids of label names; a number stands for itself.

    Raises:
        UsageError: the model has no such label.
    """
    index = {label: i for i, label in enumerate(labels)}
    ids = []
    for name in classes:
        if name in index:
            ids.append(index[name])
        elif name.isdecimal():
            ids.append(int(name))
        else:
            hint = near_miss(name, labels) or (f"it knows {_some(labels)}" if labels else "give the class number")
            raise UsageError(f"the model has no class `{name}`", hint=hint)
    return ids


def track_ids(detections: Detections) -> NDArray[np.int64]:
    """Return the track numbers (n,), -1 where there are none."""
    if detections.track_id is None:
        return np.full(len(detections), -1, np.int64)
    return detections.track_id


def anchors(xyxy: NDArray[Any], anchor: Anchor) -> NDArray[np.float64]:
    """Return the (n, 2) points of boxes that stand for the objects."""
    out = np.empty((len(xyxy), 2))
    out[:, 0] = (xyxy[:, 0] + xyxy[:, 2]) / 2
    if anchor is Anchor.BOTTOM:
        out[:, 1] = xyxy[:, 3]
    elif anchor is Anchor.TOP:
        out[:, 1] = xyxy[:, 1]
    else:
        out[:, 1] = (xyxy[:, 1] + xyxy[:, 3]) / 2
    return out


def second_labels(detections: Detections, row: int) -> Event:
    """Return `then`, what second models said about a row: labels by model; empty when there are none."""
    then = {name: list(rows[row].labels()) for name, rows in (detections.then or {}).items() if rows[row] is not None}  # type: ignore[union-attr]
    return {"then": then} if then else {}


def object_event(kind: str, name: str, detections: Detections, row: int, t_s: float) -> Event:
    """Return the keys that every event about one object has."""
    class_id = int(detections.class_id[row])
    event: Event = {
        "kind": kind,
        "name": name,
        "t_s": round(t_s, 3),
        "track": int(track_ids(detections)[row]),
        "label": detections.label(class_id),
        "class_id": class_id,
        "score": round(float(detections.score[row]), 4),
    }
    return event | second_labels(detections, row) if detections.then else event


def _some(labels: Iterable[str], limit: int = 8) -> str:
    names = list(labels)
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
