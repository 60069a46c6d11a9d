"""The metric of a task on a golden set: of the source, of a candidate, and the drop between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.datasets import DataSet
from converters.metrics import bootstrap, detection
from edge_sdk.errors import CalibrationError, ConversionError

AGREE_SCORE = 0.25
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One model's metric; `of_weights` gives it for rows of image weights, for the paired bootstrap."""

    name: str
    value: float
    n: int
    more: Mapping[str, float] = field(default_factory=dict)
    of_weights: Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Compares predictions with the labels, or with the source's predictions where there are none."""

    task: str
    n: int
    labelled: bool
    classes: NDArray[np.int64] | None = None
    truths: tuple[detection.Truth, ...] = ()
    class_count: int = 1

    def measure(self, arrays: Arrays) -> Measured:
        """Return the task metric of the predictions in `arrays` (see `converters.evaluate`)."""
        if self.task == "classification":
            return self._classification(arrays)
        if self.task == "detection":
            scores = detection.evaluate(self.truths, arrays, self.class_count)
            name = "mAP50" if self.labelled else "agreement mAP50"
            return Measured(
                name=name,
                value=scores.map50,
                n=self.n,
                more={"mAP50-95": scores.map50_95},
                of_weights=scores.map50_of,
            )
        return self._segmentation(arrays)

    def _classification(self, arrays: Arrays) -> Measured:
        assert self.classes is not None
        probs = arrays["probs"]
        right = (probs.argmax(axis=1) == self.classes).astype(np.float64)
        top5 = np.argsort(-probs, axis=1, kind="stable")[:, :5]
        within = (top5 == self.classes[:, None]).any(axis=1)
        return Measured(
            name="top1" if self.labelled else "agreement top1",
            value=float(right.mean()),
            n=self.n,
            more={"top5": float(within.mean())} if probs.shape[1] > 5 else {},
            of_weights=lambda weights: (weights @ right) / weights.sum(axis=1),
        )

    def _segmentation(self, arrays: Arrays) -> Measured:
        assert self.classes is not None
        count = self.class_count
        joined = self.classes.astype(np.int64) * count + arrays["mask"].astype(np.int64)
        tables = np.stack([np.bincount(j.ravel(), minlength=count * count).reshape(count, count) for j in joined])

        def of_weights(weights: NDArray[np.float64]) -> NDArray[np.float64]:
            total = np.einsum("rn,nij->rij", weights, tables.astype(np.float64))
            hit = np.einsum("rii->ri", total)
            union = total.sum(axis=1) + total.sum(axis=2) - hit
            share = np.divide(hit, union, out=np.full_like(hit, np.nan), where=union > 0)
            return np.asarray(np.nanmean(share, axis=1))

        value = float(of_weights(np.ones((1, self.n)))[0])
        return Measured(name="agreement mIoU", value=value, n=self.n, of_weights=of_weights)


def interval(source: Measured, candidate: Measured) -> tuple[float, float]:
    """Return the 95 % interval of the drop from source to candidate."""
    return bootstrap.interval(source.of_weights, candidate.of_weights, source.n)


def labelled(
    task: str, data: DataSet, sizes: Mapping[Path, tuple[int, int]], classes: int, labels: Sequence[str]
) -> Judge:
    """Return the judge for a labelled set; classes are matched by name where both sides have names.

    Raises:
        CalibrationError: the labels are for another task, or do not fit the model's classes.
    """
    if data.task != task:
        raise CalibrationError(
            f"{data.root} is labelled for {data.task}, the model does {task}",
            hint="give a golden set for the model's task, or images without labels",
        )
    mapping = _class_map(data, classes, labels)
    if task == "classification":
        ids = np.array([mapping[s.class_id or 0] for s in data.samples], np.int64)
        return Judge(task=task, n=len(data), labelled=True, classes=ids, class_count=classes)
    truths = []
    for sample in data.samples:
        width, height = sizes[sample.image]
        boxes = sample.boxes or ()
        scale = [(width, height) if b.relative else (1, 1) for b in boxes]
        xyxy = [(b.x1 * w, b.y1 * h, b.x2 * w, b.y2 * h) for b, (w, h) in zip(boxes, scale, strict=True)]
        truths.append(
            detection.Truth(
                np.array(xyxy, np.float64).reshape(-1, 4),
                np.array([mapping[b.class_id] for b in boxes], np.int64),
                np.array([b.ignore for b in boxes], bool),
            )
        )
    return Judge(task=task, n=len(data), labelled=True, truths=tuple(truths), class_count=classes)


def agreement(task: str, source: Arrays, n: int, classes: int) -> Judge:
    """Return the judge that takes the source's own predictions as the truth.

    Raises:
        ConversionError: the source detects nothing, so that nothing can be compared.
    """
    if task == "classification":
        return Judge(task=task, n=n, labelled=False, classes=source["probs"].argmax(axis=1), class_count=classes)
    if task == "segmentation":
        return Judge(task=task, n=n, labelled=False, classes=source["mask"], class_count=classes)
    truths = []
    for image in range(n):
        rows = (source["image"] == image) & (source["score"] >= AGREE_SCORE)
        count = int(rows.sum())
        truths.append(
            detection.Truth(
                source["xyxy"][rows].astype(np.float64),
                source["class_id"][rows].astype(np.int64),
                np.zeros(count, bool),
            )
        )
    if not any(len(t.class_id) for t in truths):
        raise ConversionError(
            f"the source detects nothing above {AGREE_SCORE} on the {n} golden images",
            hint="give images with objects, or check --color, --mean, --std and --resize",
        )
    return Judge(task=task, n=n, labelled=False, truths=tuple(truths), class_count=classes)


def _class_map(data: DataSet, classes: int, labels: Sequence[str]) -> dict[int, int]:
    """Return golden class id -> model class id."""
    used = sorted(
        {s.class_id for s in data.samples if s.class_id is not None}
        | {b.class_id for s in data.samples for b in s.boxes or ()}
    )
    if labels and data.names:
        index = {_plain(name): i for i, name in enumerate(labels)}
        unknown = [data.names[i] for i in used if _plain(data.names[i]) not in index]
        if not unknown:
            return {i: index[_plain(data.names[i])] for i in used}
        if len(data.names) != len(labels):
            raise CalibrationError(
                f"{data.root} has the class `{unknown[0]}`, which is not among the {len(labels)} labels",
                hint="use the same class names in --labels and in the golden set",
            )
    known = len(data.names) or None
    if known is not None and known != classes:
        raise CalibrationError(
            f"{data.root} has {known} classes, the model {classes}",
            hint="name the model's classes with --labels FILE"
            + (
                f", or leave its first {classes - known} out with --skip-classes {classes - known}"
                if classes > known
                else ""
            ),
        )
    if used and used[-1] >= classes:
        raise CalibrationError(
            f"{data.root} has the class index {used[-1]}, the model has {classes} classes (0 to {classes - 1})",
            hint="class indices count from 0; --labels FILE matches classes by name",
        )
    return {i: i for i in used}


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ")
