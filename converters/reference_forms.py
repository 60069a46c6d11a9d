"""What a user's own `predict` may return, by task, and its way into the arrays that judges read. Runs in a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.evaluate import small_mask
from converters.images import read
from converters.user_code import load, said
from edge_sdk.errors import ConversionError, UsageError

FORMS = {
    "classification": "probabilities (c,), {label: score}, [(label, score), …], or the class (index or label)",
    "detection": "rows (n, 6) x1 y1 x2 y2 score class, a list of {box, score, class_id or label}, {boxes, scores, "
    "labels}, or an object with xyxy, confidence (or score) and class_id",
    "segmentation": "class ids (h, w) of the frame",
    "keypoints": "points (k, 2) x y or (k, 3) x y score, in frame pixels",
    "embedding": "a vector (d,)",
    "regression": "numbers (k,), or {name: number}",
}
ROUNDING = 1e-3
"""Scores this far outside [0, 1] are still probabilities, not logits."""
Arrays = dict[str, NDArray[Any]]


def run(
    function: str, task: str, images: Sequence[str], labels: Sequence[str], classes: int, *, out: str
) -> dict[str, Any]:
    """Call the user's `function(image_bgr)` on each image and write what it returns to the .npz `out`.

    Raises:
        UsageError: it cannot be imported, or returns what is not among `FORMS`.
        ConversionError: it raises, or finds nothing on any image.
    """
    call = load(function, "--reference")
    rows = []
    for name in images:
        image = read(name)
        if image is None:
            raise ConversionError(f"cannot read the image {name}", hint="remove it or copy it again")
        try:
            value = call(image.copy())
        except BaseException as error:
            raise ConversionError(
                f"the reference `{function}` failed on {name}: {said(error)}",
                hint="it is called with one BGR uint8 image (h, w, 3)",
            ) from None
        try:
            rows.append(_READ[task](value, labels, classes))
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise UsageError(
                f"the reference `{function}` returned {_shown(value)} for a model of {task}: {said(error)}",
                hint=f"return {FORMS[task]}",
            ) from None
    try:
        arrays = _detections(rows) if task == "detection" else {k: np.stack([r[k] for r in rows]) for k in rows[0]}
    except ValueError:
        raise UsageError(
            f"the reference `{function}` returns results of different sizes", hint=f"return {FORMS[task]}"
        ) from None
    if task == "detection" and not (arrays["score"] > 0).any():
        raise ConversionError(
            f"the reference `{function}` detects nothing on {len(images)} golden images",
            hint="give images with objects, or lower its threshold",
        )
    np.savez(out, allow_pickle=False, **arrays)
    return {"n": len(images)}


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} {tuple(shape)}" if shape is not None else type(value).__name__


def _plain(value: Any) -> NDArray[Any]:
    """Return an array, also from a tensor that must leave its device first."""
    for method in ("detach", "cpu"):
        value = getattr(value, method)() if hasattr(value, method) else value
    return np.asarray(value)


def _class_of(label: Any, labels: Sequence[str]) -> int:
    if isinstance(label, str):
        known = [name.strip().lower() for name in labels]
        if label.strip().lower() not in known:
            raise ValueError(f"`{label}` is not among the {len(labels)} labels")
        return known.index(label.strip().lower())
    return int(label)


def _classification(value: Any, labels: Sequence[str], classes: int) -> Arrays:
    if hasattr(value, "probs"):
        value = value.probs
    if isinstance(value, (str, int, np.integer)):
        value = {value: 1.0}
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple)):
        probs = np.zeros(classes)
        for label, score in value:
            probs[_class_of(label, labels)] = float(score)
        return {"probs": probs}
    probs = _plain(value).astype(np.float64)
    probs = probs.reshape(-1) if probs.ndim == 2 and 1 in probs.shape else probs
    if probs.ndim != 1 or len(probs) < 2:
        raise ValueError(f"shape {probs.shape} is not (c,)")
    if probs.min() < -ROUNDING or probs.max() > 1 + ROUNDING:
        probs = np.exp(probs - probs.max()) / np.exp(probs - probs.max()).sum()
    return {"probs": probs}


def _rows(value: Any, labels: Sequence[str], classes: int) -> Arrays:  # noqa: ARG001 (one form for all tasks)
    if isinstance(value, Mapping):
        boxes, ids = value["boxes"], value.get("labels", value.get("class_id"))
        scores = value.get("scores", value.get("score"))
    elif hasattr(value, "xyxy"):
        boxes, ids = value.xyxy, value.class_id
        scores = getattr(value, "confidence", None) if hasattr(value, "confidence") else value.score
    elif isinstance(value, (list, tuple)) and (not value or isinstance(value[0], Mapping)):
        boxes = [row.get("box", row.get("bbox")) for row in value]
        ids = [row["class_id"] if "class_id" in row else row["label"] for row in value]
        scores = [row.get("score", 1.0) for row in value]
    else:
        table = _plain(value).reshape(-1, 6)
        boxes, scores, ids = table[:, :4], table[:, 4], table[:, 5]
    boxes = _plain(boxes).astype(np.float64).reshape(-1, 4)
    scores = np.ones(len(boxes)) if scores is None else _plain(scores).astype(np.float64)
    ids = np.zeros(len(boxes)) if ids is None else [_class_of(i, labels) for i in ids]
    if not len(boxes) == len(scores) == len(ids):
        raise ValueError(f"{len(boxes)} boxes, {len(scores)} scores, {len(ids)} classes")
    return {"xyxy": boxes, "score": scores, "class_id": np.asarray(ids, np.int64)}


def _detections(rows: Sequence[Arrays]) -> Arrays:
    found = {k: np.concatenate([r[k] for r in rows]) for k in ("xyxy", "score", "class_id")}
    return found | {"image": np.repeat(np.arange(len(rows)), [len(r["score"]) for r in rows])}


def _mask(value: Any, labels: Sequence[str], classes: int) -> Arrays:  # noqa: ARG001
    ids = value.upright() if hasattr(value, "upright") else _plain(value)
    if ids.ndim != 2:
        raise ValueError(f"shape {ids.shape} is not (h, w)")
    return {"mask": small_mask(ids.astype(np.uint8))}


def _points(value: Any, labels: Sequence[str], classes: int) -> Arrays:  # noqa: ARG001
    if hasattr(value, "points"):
        value = np.concatenate([value.points, np.asarray(value.score)[:, None]], axis=1)
    points = _plain(value).astype(np.float64)
    if points.ndim != 2 or points.shape[1] not in (2, 3):
        raise ValueError(f"shape {points.shape} is not (k, 2) or (k, 3)")
    return {"points": points[:, :2], "point_score": points[:, 2] if points.shape[1] == 3 else np.ones(len(points))}


def _embedding(value: Any, labels: Sequence[str], classes: int) -> Arrays:  # noqa: ARG001
    return {"embedding": _plain(getattr(value, "vector", value)).astype(np.float64).reshape(-1)}


def _values(value: Any, labels: Sequence[str], classes: int) -> Arrays:  # noqa: ARG001
    value = getattr(value, "values", value) if not isinstance(value, Mapping) else value
    if isinstance(value, Mapping):
        known = set(labels) == set(value)
        value = [value[name] for name in labels] if known else list(value.values())
    return {"values": _plain(value).astype(np.float64).reshape(-1)}


_READ = {
    "classification": _classification,
    "detection": _rows,
    "segmentation": _mask,
    "keypoints": _points,
    "embedding": _embedding,
    "regression": _values,
}
