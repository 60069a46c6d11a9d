"""How far two sets of predictions agree, as a share and more finely; and result-side readings that would explain it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converters.metrics import task as judges
from converters.metrics.measured import Arrays
from edge_sdk.tasks.results import Geometry

MIN_SCORE = 0.25
IOU = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """`value` in [0, 1] by the task (top-1, F1 of boxes at IoU 0.5, mIoU, OKS, cosine, 1 - error / range).

    `close` in [0, 1] also counts how near the scores or boxes are, so that it sees what `value` does not.
    """

    value: float
    close: float

    @property
    def rank(self) -> float:
        return (self.value + self.close) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A way to read the reference's results. `form`: it is only how they are written; `hint` undoes a skew."""

    name: str
    arrays: Arrays
    hint: str = ""
    form: bool = False


def agreement(task: str, reference: Arrays, model: Arrays, images: int) -> Agreement:
    """Return how far a model agrees with the reference on the same images."""
    if task == "classification":
        return _classes(reference["probs"], model["probs"])
    if task == "detection":
        return _boxes(reference, model, images)
    names = {"segmentation": "mask", "keypoints": "points", "embedding": "embedding", "regression": "values"}
    first, second = reference[names[task]], model[names[task]]
    if first.shape != second.shape:
        return Agreement(value=0.0, close=0.0)
    count = int(max(first.max(), second.max())) + 1 if task == "segmentation" else 1
    value = judges.agreement(task, reference, images, count).measure(model).value
    return Agreement(value=value, close=value)


def _classes(reference: NDArray[np.float64], model: NDArray[np.float64]) -> Agreement:
    same = float((reference.argmax(axis=1) == model.argmax(axis=1)).mean())
    whole = np.abs(reference.sum(axis=1) - 1).max() < 0.02 and (reference > 0).sum(axis=1).min() > 1
    if not whole or reference.shape != model.shape or np.abs(model.sum(axis=1) - 1).max() > 0.02:
        return Agreement(value=same, close=same)
    return Agreement(value=same, close=float(1 - np.abs(reference - model).sum(axis=1).mean() / 2))


def _boxes(reference: Arrays, model: Arrays, images: int) -> Agreement:
    """F1 of the boxes of both sides at IoU 0.5, class by class, and the same with each match weighed by its IoU."""
    known = reference["score"][reference["score"] >= MIN_SCORE]
    floor = max(MIN_SCORE, float(known.min())) if known.size else MIN_SCORE
    matches, overlap, total = 0, 0.0, 0
    for image in range(images):
        a, b = (_of_image(rows, image, floor) for rows in (reference, model))
        total += len(a[1]) + len(b[1])
        iou = overlaps(a[0], b[0]) * (a[1][:, None] == b[1][None])
        for _ in range(min(iou.shape) if iou.size else 0):
            row, column = np.unravel_index(int(iou.argmax()), iou.shape)
            best = float(iou[row, column])
            if best < IOU:
                break
            matches, overlap = matches + 1, overlap + best
            iou[row], iou[:, column] = 0, 0
    return Agreement(value=2 * matches / total, close=2 * overlap / total) if total else Agreement(value=1.0, close=1.0)


def _of_image(rows: Arrays, image: int, floor: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    mine = (rows["image"] == image) & (rows["score"] >= floor - 1e-6)
    return rows["xyxy"][mine].astype(np.float64), rows["class_id"][mine].astype(np.int64)


def overlaps(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the IoU (len(a), len(b)) of x1 y1 x2 y2 boxes."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = np.clip(high - low, 0, None).prod(axis=2)
    area_a, area_b = ((v[:, 2:] - v[:, :2]).clip(0).prod(axis=1) for v in (a, b))
    union = area_a[:, None] + area_b[None] - inner
    return np.asarray(np.divide(inner, union, out=np.zeros_like(inner), where=union > 0))


def readings(task: str, reference: Arrays, model: Arrays, places: Sequence[Geometry], skip: int) -> Iterator[Reading]:
    """Yield the reference's results as they are, then in each reading that could explain a disagreement."""
    yield Reading(name="", arrays=reference)
    if task == "classification":
        yield from _class_readings(reference, model, skip)
    elif task == "detection":
        yield from _box_readings(reference, places)
        yield from _id_readings(reference, model, len(places))
    elif task == "keypoints":
        yield from _point_readings(reference, places)
    elif task == "regression":
        yield from _value_readings(reference, model)
    elif task == "segmentation":
        for shift in (1, -1):
            moved = np.clip(reference["mask"].astype(np.int16) + shift, 0, 255).astype(np.uint8)
            yield Reading(
                name=f"its class ids are one {'lower' if shift > 0 else 'higher'} than the model's",
                arrays={"mask": moved},
                hint="give both the same classes, with or without a background first",
            )


def _class_readings(reference: Arrays, model: Arrays, skip: int) -> Iterator[Reading]:
    ours, theirs = model["probs"].shape[1], reference["probs"]
    empty = np.zeros((len(theirs), 1))
    above = np.concatenate([empty, theirs], axis=1)[:, :ours]
    below = theirs[:, 1:] if theirs.shape[1] == ours + 1 else np.concatenate([theirs[:, 1:], empty], axis=1)
    yield Reading(
        name="the model's classes are one above its own: the model has a background class first",
        arrays={"probs": above},
        hint=f"--skip-classes {skip + 1}",
    )
    yield Reading(
        name="the model's classes are one below its own: the reference has a background class first",
        arrays={"probs": below},
        hint="leave --skip-classes out" if skip else "leave its first class out of what the reference returns",
    )
    if theirs.shape[1] == ours <= 200:
        order = _assign(theirs.argmax(axis=1), model["probs"].argmax(axis=1))
        moved = [k for k, v in sorted(order.items()) if k != v]
        if len(order) > 1 and moved:
            mapping = np.arange(ours)
            free = [c for c in range(ours) if c not in order.values()]
            for k in range(ours):
                mapping[k] = order[k] if k in order else free.pop(0)
            shuffled = np.zeros_like(theirs)
            shuffled[:, mapping] = theirs
            said = ", ".join(f"{k} is the model's {order[k]}" for k in moved[:3])
            yield Reading(
                name=f"its classes are in another order ({said})",
                arrays={"probs": shuffled},
                hint="name the model's classes in its own order with --labels FILE",
            )


def _assign(theirs: NDArray[np.int64], ours: NDArray[np.int64]) -> dict[int, int]:
    """Return their class -> our class, each once, by how often they meet."""
    pairs, counts = np.unique(np.stack([theirs, ours], axis=1), axis=0, return_counts=True)
    found: dict[int, int] = {}
    for row in np.argsort(-counts, kind="stable"):
        a, b = (int(v) for v in pairs[row])
        if a not in found and b not in found.values():
            found[a] = b
    return found


def _box_readings(reference: Arrays, places: Sequence[Geometry]) -> Iterator[Reading]:
    box, image = reference["xyxy"], reference["image"]
    size = np.array([[g.frame_width, g.frame_height] for g in places], np.float64)[image]
    scale = np.array([[g.scale_x, g.scale_y] for g in places])[image]
    pad = np.array([[g.pad_x, g.pad_y] for g in places])[image]
    forms = {
        "its boxes are y1 x1 y2 x2": box[:, [1, 0, 3, 2]],
        "its boxes are x y width height": np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1),
        "its boxes are centre and size": np.concatenate(
            [box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], axis=1
        ),
    }
    for name, value in forms.items():
        yield Reading(name=name, arrays=dict(reference) | {"xyxy": value}, form=True)
    for name, value in ({"its boxes": box} | forms).items():
        if value.size and np.abs(value).max() <= 2:
            named = (
                f"{name} as fractions of the frame" if name != "its boxes" else "its boxes are fractions of the frame"
            )
            yield Reading(name=named, arrays=dict(reference) | {"xyxy": value * np.tile(size, 2)}, form=True)
    back = (box - np.tile(pad, 2)) / np.tile(scale, 2)
    yield Reading(
        name="its boxes are in pixels of the model's input, not of the frame",
        arrays=dict(reference) | {"xyxy": back},
        hint="map them back: x_frame = (x_input - pad) / scale, as the artifact does",
    )
    yield Reading(
        name="its boxes are in pixels of the resized frame with its padding taken off, but not scaled back",
        arrays=dict(reference) | {"xyxy": box / np.tile(scale, 2)},
        hint="divide them by the scale of the resize",
    )
    yield Reading(
        name="its boxes are scaled back but the padding of the letterbox is still in them",
        arrays=dict(reference) | {"xyxy": box - np.tile(pad / scale, 2)},
        hint="take the padding off before scaling",
    )


def _id_readings(reference: Arrays, model: Arrays, images: int) -> Iterator[Reading]:
    ids = reference["class_id"]
    for shift in (1, -1):
        yield Reading(
            name=f"its class ids are one {'below' if shift > 0 else 'above'} the model's",
            arrays=dict(reference) | {"class_id": ids + shift},
            hint="give both the same classes, with or without a background first (--labels FILE names the model's)",
        )
    theirs, ours = [], []
    for image in range(images):
        (a, ids_a), (b, ids_b) = (_of_image(rows, image, MIN_SCORE) for rows in (reference, model))
        iou = overlaps(a, b)
        for row, column in zip(*np.nonzero(iou >= 0.7), strict=True):
            theirs.append(int(ids_a[row]))
            ours.append(int(ids_b[column]))
    order = _assign(np.array(theirs, np.int64), np.array(ours, np.int64)) if theirs else {}
    moved = [k for k, v in sorted(order.items()) if k != v]
    if moved:
        said = ", ".join(f"{k} is the model's {order[k]}" for k in moved[:3])
        mapped = np.array([order.get(int(i), int(i)) for i in ids], np.int64)
        yield Reading(
            name=f"its classes are in another order ({said})",
            arrays=dict(reference) | {"class_id": mapped},
            hint="name the model's classes in its own order with --labels FILE",
        )


def _point_readings(reference: Arrays, places: Sequence[Geometry]) -> Iterator[Reading]:
    points = reference["points"]
    size = np.array([[[g.frame_width, g.frame_height]] for g in places], np.float64)
    scale = np.array([[[g.scale_x, g.scale_y]] for g in places])
    pad = np.array([[[g.pad_x, g.pad_y]] for g in places])
    swapped = points[:, :, ::-1]
    for name, value, form in (
        ("its points are y x", swapped, True),
        ("its points are fractions of the frame", points * size, True),
        ("its points are y x, as fractions of the frame", swapped * size, True),
        ("its points are in pixels of the model's input, not of the frame", (points - pad) / scale, False),
    ):
        hint = "" if form else "map them back: x_frame = (x_input - pad) / scale, as the artifact does"
        yield Reading(name=name, arrays=dict(reference) | {"points": value}, form=form, hint=hint)


def _value_readings(reference: Arrays, model: Arrays) -> Iterator[Reading]:
    theirs, ours = reference["values"].astype(np.float64), model["values"].astype(np.float64)
    if theirs.shape != ours.shape or len(theirs) < 4:
        return
    a, b = theirs - theirs.mean(axis=0), ours - ours.mean(axis=0)
    length = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)[None]
    follows = np.divide(a.T @ b, length, out=np.zeros_like(length), where=length > 0)
    source = np.abs(follows).argmax(axis=0)
    if np.abs(follows).max(axis=0).min() < 0.95:
        return
    slope = np.array([(a[:, s] @ b[:, k]) / max(a[:, s] @ a[:, s], 1e-12) for k, s in enumerate(source)])
    offset = ours.mean(axis=0) - slope * theirs.mean(axis=0)[source]
    said = ", ".join(
        f"value {k} of the model is {slope[k]:.4g} x its value {s} {offset[k]:+.4g}" for k, s in enumerate(source[:4])
    )
    yield Reading(
        name=f"its values have another order, unit or sign ({said})",
        arrays={"values": theirs[:, source] * slope + offset},
        hint="give both the same unit, sign and order: decoder_params scale and offset in the recipe",
    )
