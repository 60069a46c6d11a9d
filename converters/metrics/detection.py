"""COCO average precision: the point by pycocotools, the weights of the bootstrap on its matches."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.metrics.measured import MIN_SUPPORT, Measured, Part, at_one

Rows = Mapping[str, NDArray[Any]]
_QUIET = threading.Lock()
"""pycocotools prints; standard output belongs to the whole process, so one thread at a time puts it aside."""
_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, slots=True)
class Truth:
    """Labelled boxes of one image: xyxy (n, 4) in pixels, class_id (n,), ignore (n,)."""

    xyxy: NDArray[np.float64]
    class_id: NDArray[np.int64]
    ignore: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ClassMatches:
    """One class at IoU 0.5: detections by falling score (image, hit), ignored ones left out, and truths per image."""

    class_id: int
    image: NDArray[np.int64]
    hit: NDArray[np.bool_]
    truths: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scores:
    map50: float
    map50_95: float
    matches: tuple[ClassMatches, ...]

    def map50_of(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return mAP50 for each row of image weights (rounds, images)."""
        total = np.zeros(len(weights))
        count = np.zeros(len(weights))
        for matches in self.matches:
            precision = weighted_ap(matches, weights)
            known = np.isfinite(precision)
            total[known] += precision[known]
            count[known] += 1
        return np.asarray(np.divide(total, count, out=np.full(len(weights), np.nan), where=count > 0))


def measure(truths: Sequence[Truth], rows: Rows, classes: int, names: Sequence[str], *, labelled: bool) -> Measured:
    """Return mAP50 with mAP50-95 beside it and AP50 of each class that has at least 5 truths."""
    found = evaluate(truths, rows, classes)
    parts = []
    for matches in found.matches:
        if matches.truths.sum() >= MIN_SUPPORT:
            own = partial(weighted_ap, matches)
            name = names[matches.class_id] if matches.class_id < len(names) else str(matches.class_id)
            parts.append(
                Part(
                    kind="class",
                    name=name,
                    measure="AP50",
                    value=at_one(own, len(truths)),
                    n=int(matches.truths.sum()),
                    of_weights=own,
                )
            )
    return Measured(
        name="mAP50" if labelled else "agreement mAP50",
        value=found.map50,
        n=len(truths),
        more={"mAP50-95": found.map50_95},
        of_weights=found.map50_of,
        parts=tuple(parts),
    )


def evaluate(truths: Sequence[Truth], rows: Rows, classes: int) -> Scores:
    """Return mAP50 and mAP50-95 of the detections `rows` (image, xyxy, score, class_id) against the truths."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with _QUIET, contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = _truth_json(truths, classes)
        truth.createIndex()
        found = COCO()
        found.dataset = _detections_json(truth.dataset, rows)
        found.createIndex()
        run = COCOeval(truth, found, "bbox")
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][:, :, :, 0, -1]
    return Scores(
        map50=_mean(precision[0]), map50_95=_mean(precision), matches=tuple(_matches(run, len(truths), classes))
    )


def _mean(values: NDArray[np.float64]) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else 0.0


def _truth_json(truths: Sequence[Truth], classes: int) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image, truth in enumerate(truths):
        for box, class_id, ignore in zip(truth.xyxy, truth.class_id, truth.ignore, strict=True):
            w, h = float(box[2] - box[0]), float(box[3] - box[1])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(class_id),
                    "bbox": [float(box[0]), float(box[1]), w, h],
                    "area": w * h,
                    "iscrowd": int(ignore),
                }
            )
    return {
        "images": [{"id": i} for i in range(len(truths))],
        "categories": [{"id": c, "name": str(c)} for c in range(classes)],
        "annotations": annotations,
    }


def _detections_json(truth: Mapping[str, Any], rows: Rows) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for k in range(len(rows["score"])):
        x1, y1, x2, y2 = (float(v) for v in rows["xyxy"][k])
        annotations.append(
            {
                "id": k + 1,
                "image_id": int(rows["image"][k]),
                "category_id": int(rows["class_id"][k]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "score": float(rows["score"][k]),
                "iscrowd": 0,
            }
        )
    return {"images": truth["images"], "categories": truth["categories"], "annotations": annotations}


def _matches(run: Any, images: int, classes: int) -> Any:
    """Yield the matches at IoU 0.5 of each class that has a truth, from pycocotools' own per-image records."""
    areas = len(run.params.areaRng)
    for index in range(classes):
        records = run.evalImgs[index * areas * images : index * areas * images + images]
        truths = np.zeros(images)
        image_ids, scores, hits = [], [], []
        for image, record in enumerate(records):
            if record is None:
                continue
            truths[image] = float((np.asarray(record["gtIgnore"]) == 0).sum())
            keep = ~np.asarray(record["dtIgnore"][0], bool)
            hits.append(np.asarray(record["dtMatches"][0])[keep] > 0)
            scores.append(np.asarray(record["dtScores"])[keep])
            image_ids.append(np.full(int(keep.sum()), image, np.int64))
        if truths.sum() == 0:
            continue
        order = np.argsort(-np.concatenate(scores), kind="mergesort")
        yield ClassMatches(index, np.concatenate(image_ids)[order], np.concatenate(hits)[order], truths)


def weighted_ap(matches: ClassMatches, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the 101-point average precision for each row of image weights; NaN where no truth was drawn."""
    total = weights @ matches.truths
    out = np.where(total > 0, 0.0, np.nan)
    if matches.image.size == 0:
        return out
    each = weights[:, matches.image]
    hits = np.cumsum(each * matches.hit, axis=1)
    seen = np.cumsum(each, axis=1)
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    for row in np.flatnonzero(total > 0):
        at = np.searchsorted(hits[row] / total[row], _RECALLS, side="left")
        out[row] = np.where(at < precision.shape[1], precision[row][np.minimum(at, precision.shape[1] - 1)], 0.0).mean()
    return out
