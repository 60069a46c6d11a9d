"""How two models' answers to one picture differ, and what many such pairs say together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge_sdk.tasks.results import NO_CLASS, Classes, Detections, Embedding, Keypoints, Mask, Values
from edge_sdk.tracking.boxes import iou

MATCH_IOU = 0.5
NEAR_SHARE = 0.1
_LABELS_KEPT = 40
_WORST_KEPT = 10


@dataclass(frozen=True, slots=True)
class Pair:
    """One picture seen by an old and a new model.

    `agreement` is in [0, 1], None where the task has no such thing; `differences` are new minus old, of scores by label
    or of values by name; `ious` are those of matched boxes or of classes of a mask; `only_old` and `only_new` count
    labels that one model alone gave.
    """

    agreement: float | None
    differences: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    ious: tuple[float, ...] = ()
    only_old: Mapping[str, int] = field(default_factory=dict)
    only_new: Mapping[str, int] = field(default_factory=dict)


def compare(old: Any, new: Any) -> Pair:
    """Compare two results of one task; labels are compared by name.

    Agreement is, by task: the same best class; twice the boxes matched by label and IoU >= 0.5 over all boxes; the
    share of equal pixels; the share of points that lie within a tenth of the figure's larger side; the cosine of two
    embeddings.
    """
    if isinstance(old, Detections):
        return _boxes(old, new)
    if isinstance(old, Classes):
        return _classes(old, new)
    if isinstance(old, Mask):
        return _masks(old, new)
    if isinstance(old, Keypoints):
        return _points(old, new)
    if isinstance(old, Values):
        named = dict(zip(new.names, new.values.tolist(), strict=False))
        pairs = zip(old.names, old.values.tolist(), strict=False)
        return Pair(None, {name: (named[name] - value,) for name, value in pairs if name in named})
    if isinstance(old, Embedding):
        a, b = old.vector.astype(np.float64), new.vector.astype(np.float64)
        length = float(np.linalg.norm(a) * np.linalg.norm(b))
        same = a.shape == b.shape and length > 0
        return Pair(float(np.clip(np.dot(a, b) / length, 0, 1)) if same else 0.0)
    return Pair(None)


def _boxes(old: Detections, new: Detections) -> Pair:
    names_old = [old.label(int(c)) for c in old.class_id]
    names_new = [new.label(int(c)) for c in new.class_id]
    alike = iou(old.xyxy.astype(np.float64), new.xyxy.astype(np.float64))
    alike = np.where(np.array(names_old, object)[:, None] == np.array(names_new, object)[None, :], alike, 0.0)
    differences: dict[str, tuple[float, ...]] = {}
    ious: list[float] = []
    left_old, left_new = set(range(len(old))), set(range(len(new)))
    for flat in np.argsort(-alike, axis=None, kind="stable").tolist():
        i, j = divmod(flat, len(new))
        if alike[i, j] < MATCH_IOU:
            break
        if i in left_old and j in left_new:
            left_old.remove(i)
            left_new.remove(j)
            ious.append(float(alike[i, j]))
            name = names_old[i]
            differences[name] = (*differences.get(name, ()), float(new.score[j]) - float(old.score[i]))
    total = len(old) + len(new)
    return Pair(
        2 * len(ious) / total if total else 1.0,
        differences,
        tuple(ious),
        Counter(names_old[i] for i in left_old),
        Counter(names_new[j] for j in left_new),
    )


def _classes(old: Classes, new: Classes) -> Pair:
    best_old, best_new = old.label(old.class_id), new.label(new.class_id)
    scores_old, scores_new = _scores(old, (best_old, best_new)), _scores(new, (best_old, best_new))
    differences = {n: (scores_new[n] - scores_old[n],) for n in scores_old if n in scores_new}
    if best_old == best_new:
        return Pair(1.0, differences)
    return Pair(0.0, differences, (), {best_old: 1}, {best_new: 1})


def _scores(result: Classes, labels: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for label in labels:
        if label in result.labels:
            found[label] = float(result.probs[list(result.labels).index(label)])
        elif label.isdecimal() and int(label) < result.probs.size:
            found[label] = float(result.probs[int(label)])
    return found


def _masks(old: Mask, new: Mask) -> Pair:
    a, b = old.upright(), new.upright()
    seen = (a != NO_CLASS) & (b != NO_CLASS)
    total = int(np.count_nonzero(seen))
    if not total:
        return Pair(None)
    a, b = a[seen], b[seen]
    names_old = {old.label(int(c)): a == c for c in np.unique(a)}
    names_new = {new.label(int(c)): b == c for c in np.unique(b)}
    ious, equal = [], 0
    for name in names_old.keys() & names_new.keys():
        both = int(np.count_nonzero(names_old[name] & names_new[name]))
        equal += both
        ious.append(both / int(np.count_nonzero(names_old[name] | names_new[name])))
    only_old = dict.fromkeys(names_old.keys() - names_new.keys(), 1)
    only_new = dict.fromkeys(names_new.keys() - names_old.keys(), 1)
    return Pair(equal / total, {}, tuple(ious), only_old, only_new)


def _points(old: Keypoints, new: Keypoints) -> Pair:
    n = min(len(old), len(new))
    if not n:
        return Pair(None)
    size = float(np.ptp(old.points, axis=0).max())
    away = np.linalg.norm(old.points[:n] - new.points[:n], axis=1)
    names = [old.names[i] if i < len(old.names) else str(i) for i in range(n)]
    differences = {name: (float(new.score[i] - old.score[i]),) for i, name in enumerate(names)}
    return Pair(float(np.mean(away <= NEAR_SHARE * size)), differences)


@dataclass(slots=True)
class Moments:
    """Count, mean and standard deviation of values that come one by one (Welford)."""

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def add(self, value: float) -> None:
        self.n += 1
        step = value - self.mean
        self.mean += step / self.n
        self.m2 += step * (value - self.mean)

    def to_json(self) -> dict[str, Any]:
        std = math.sqrt(self.m2 / (self.n - 1)) if self.n > 1 else None
        return {"n": self.n, "mean": round(self.mean, 5), "std": None if std is None else round(std, 5)}


class Pairs:
    """What the pairs of one old and one new model say together."""

    def __init__(self) -> None:
        self.n = 0
        self._agreement, self._iou = Moments(), Moments()
        self._differences: dict[str, Moments] = {}
        self._only_old: Counter[str] = Counter()
        self._only_new: Counter[str] = Counter()
        self._worst: list[tuple[float, int]] = []

    def add(self, pair: Pair, frame: int) -> None:
        """Count the pair that `frame` gave."""
        self.n += 1
        for value in pair.ious:
            self._iou.add(value)
        for label, values in pair.differences.items():
            if label in self._differences or len(self._differences) < _LABELS_KEPT:
                moments = self._differences.setdefault(label, Moments())
                for value in values:
                    moments.add(value)
        for mine, others in ((self._only_old, pair.only_old), (self._only_new, pair.only_new)):
            for label, count in others.items():
                if label in mine or len(mine) < _LABELS_KEPT:
                    mine[label] += count
        if pair.agreement is not None:
            self._agreement.add(pair.agreement)
            if pair.agreement < 1:
                self._worst = sorted([*self._worst, (pair.agreement, frame)])[:_WORST_KEPT]

    def to_json(self) -> dict[str, Any]:
        """Return `pairs`, `agreement`, `iou`, `differences` by label, `only_old`, `only_new` and the `worst` frames."""
        worst = [{"frame": frame, "agreement": round(agreement, 4)} for agreement, frame in self._worst]
        return {
            "pairs": self.n,
            "agreement": self._agreement.to_json(),
            "iou": self._iou.to_json(),
            "differences": {k: v.to_json() for k, v in sorted(self._differences.items())},
            "only_old": dict(self._only_old),
            "only_new": dict(self._only_new),
            "worst": worst,
        }
