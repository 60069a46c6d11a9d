"""The metric of a task on a golden set: of the source, of a candidate, and the drop between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.datasets import DataSet, Sample
from converters.masks import read_mask
from converters.metrics import classification, detection, keypoints, measured, segmentation, vectors
from converters.metrics.labels import class_map
from converters.metrics.measured import Arrays, Measured
from edge_sdk.errors import CalibrationError, ConversionError
from edge_sdk.tasks.dense import COCO_KEYPOINTS
from edge_sdk.tasks.results import NO_CLASS

__all__ = ["Judge", "Measured", "agreement", "interval", "labelled", "with_source"]
AGREE_SCORE = 0.25
MASK_SIDE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Compares predictions with the labels, or with the source's predictions where there are none.

    One of the fields holds the truth, by task: `classes` (n,) for classification and embedding, (n, h, w) class ids for
    segmentation; `truths` for detection; `poses` for keypoints; `values` (n, k) for regression. `source` are the
    source's own predictions. `names` are those of the classes, points or values.
    """

    task: str
    n: int
    labelled: bool
    classes: NDArray[Any] | None = None
    truths: tuple[detection.Truth, ...] = ()
    poses: tuple[keypoints.Pose, ...] = ()
    values: NDArray[np.float64] | None = None
    class_count: int = 1
    names: tuple[str, ...] = ()
    source: Arrays | None = None

    def measure(self, arrays: Arrays) -> Measured:
        """Return the task metric, in [0, 1], of the predictions in `arrays` (see `converters.evaluate`)."""
        names, said = self.names, self.labelled
        if self.task == "detection":
            return detection.measure(self.truths, arrays, self.class_count, names, labelled=said)
        if self.task == "keypoints":
            points = names or (COCO_KEYPOINTS if arrays["points"].shape[1] == len(COCO_KEYPOINTS) else ())
            return keypoints.measure(arrays, self.poses, points, labelled=said)
        if self.task == "regression":
            assert self.values is not None
            return vectors.one_minus_error(arrays["values"], self.values, names, labelled=said)
        source = None if self.source is None else self.source.get("embedding")
        if self.task == "embedding" and not said:
            assert source is not None
            return vectors.agreement_cosine(arrays["embedding"], source)
        assert self.classes is not None
        if self.task == "embedding":
            return vectors.recall_at_1(arrays["embedding"], self.classes, names, source)
        if self.task == "segmentation":
            return segmentation.measure(arrays["mask"], self.classes, self.class_count, names, labelled=said)
        return classification.measure(arrays["probs"], self.classes, names, labelled=said)


def with_source(judge: Judge, arrays: Arrays) -> Judge:
    """Return the judge with the source's predictions, from which labelled embeddings have their cosine too."""
    return replace(judge, source=arrays)


def interval(source: Measured, candidate: Measured) -> tuple[float, float]:
    """Return the 95 % interval of the drop from source to candidate."""
    return measured.interval(source, candidate, source.images or source.n)


def labelled(
    task: str, data: DataSet, sizes: Mapping[Path, tuple[int, int]], classes: int, labels: Sequence[str]
) -> Judge:
    """Return the judge for a labelled set; classes are matched by name where both sides have names.

    Raises:
        CalibrationError: the labels are for another task, or do not fit the model's classes.
    """
    if not data.serves(task):
        raise CalibrationError(
            f"{data.root} is labelled for {data.task}, the model does {task}",
            hint="give a golden set for the model's task, or images without labels",
        )
    judge = Judge(task=task, n=len(data), labelled=True, class_count=classes, names=tuple(labels))
    if task == "regression":
        return replace(judge, values=_values(data, labels), names=data.names)
    if task == "keypoints":
        return replace(judge, poses=tuple(_pose(s) for s in data.samples), names=data.points)
    if task == "embedding":
        names = {s.class_id or 0: data.names[s.class_id or 0] for s in data.samples} if data.names else {}
        top = max(names, default=-1) + 1
        own = np.array([s.class_id or 0 for s in data.samples], np.int64)
        return replace(judge, classes=own, names=tuple(names.get(i, str(i)) for i in range(top)))
    if task == "segmentation":
        return replace(judge, classes=_masks(data, classes))
    mapping = class_map(data, classes, labels)
    if task == "classification":
        ids = np.array([mapping[s.class_id or 0] for s in data.samples], np.int64)
        return replace(judge, classes=ids)
    return replace(judge, truths=tuple(_boxes(s, sizes[s.image], mapping) for s in data.samples))


def _boxes(sample: Sample, size: tuple[int, int], mapping: Mapping[int, int]) -> detection.Truth:
    boxes = sample.boxes or ()
    scale = [size if b.relative else (1, 1) for b in boxes]
    xyxy = [(b.x1 * w, b.y1 * h, b.x2 * w, b.y2 * h) for b, (w, h) in zip(boxes, scale, strict=True)]
    return detection.Truth(
        np.array(xyxy, np.float64).reshape(-1, 4),
        np.array([mapping[b.class_id] for b in boxes], np.int64),
        np.array([b.ignore for b in boxes], bool),
    )


def _pose(sample: Sample) -> keypoints.Pose:
    """Return the pose of the largest labelled person of an image; one without seen points where there is none."""
    people = sample.poses or ()
    if not people:
        return keypoints.Pose(np.zeros((0, 2)), np.zeros(0, bool), 0.0)
    best = max(people, key=lambda p: p.area)
    rows = np.array(best.points, np.float64)
    return keypoints.pose_of(rows[:, :2], rows[:, 2] > 0, best.area or None)


def _values(data: DataSet, labels: Sequence[str]) -> NDArray[np.float64]:
    """Return the labelled values in the order of the model's names where these are known."""
    table = np.array([s.values for s in data.samples], np.float64)
    if labels and set(labels) == set(data.names):
        table = table[:, [data.names.index(name) for name in labels]]
    if not (vectors.spread(table) > 0).any():
        raise CalibrationError(
            f"every labelled value of {data.root} is the same in all {len(data)} images",
            hint="an error is judged by the range of the values: give images with different ones",
        )
    return table


def _masks(data: DataSet, classes: int) -> NDArray[np.uint8]:
    """Return (n, side, side) class ids; the ids of the files are the model's."""
    rows = []
    for sample in data.samples:
        assert sample.mask is not None
        ids = read_mask(sample.mask, MASK_SIDE)
        top = int(np.where(ids == NO_CLASS, 0, ids).max())
        if top >= classes:
            raise CalibrationError(
                f"{sample.mask} has the class id {top}, the model has {classes} classes (0 to {classes - 1})",
                hint="a mask holds the model's class ids, 255 where pixels do not count",
            )
        rows.append(ids)
    return np.stack(rows)


def agreement(task: str, source: Arrays, n: int, classes: int, names: Sequence[str] = ()) -> Judge:
    """Return the judge that takes the source's own predictions as the truth.

    Raises:
        ConversionError: the source finds nothing or answers always the same, so that nothing can be compared.
    """
    judge = Judge(task=task, n=n, labelled=False, class_count=classes, names=tuple(names), source=source)
    if task == "classification":
        return replace(judge, classes=source["probs"].argmax(axis=1))
    if task == "segmentation":
        return replace(judge, classes=source["mask"])
    if task == "embedding":
        return judge
    if task == "regression":
        if not (vectors.spread(source["values"]) > 0).any():
            raise ConversionError(
                f"the source gives the same values on all {n} golden images",
                hint="give images that differ, or check --color, --mean, --std and --resize",
            )
        return replace(judge, values=source["values"].astype(np.float64))
    if task == "keypoints":
        poses = keypoints.poses_of_model(source)
        if not any(p.seen.any() for p in poses):
            raise _finds_nothing("finds no point", keypoints.SEEN_SCORE, n)
        return replace(judge, poses=poses)
    truths = tuple(_detected(source, image) for image in range(n))
    if not any(len(t.class_id) for t in truths):
        raise _finds_nothing("detects nothing", AGREE_SCORE, n)
    return replace(judge, truths=truths)


def _detected(source: Arrays, image: int) -> detection.Truth:
    rows = (source["image"] == image) & (source["score"] >= AGREE_SCORE)
    return detection.Truth(
        source["xyxy"][rows].astype(np.float64),
        source["class_id"][rows].astype(np.int64),
        np.zeros(int(rows.sum()), bool),
    )


def _finds_nothing(what: str, score: float, n: int) -> ConversionError:
    return ConversionError(
        f"the source {what} above {score} on the {n} golden images",
        hint="give images with objects, or check --color, --mean, --std and --resize",
    )
