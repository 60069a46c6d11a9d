"""Is the source itself any good on the golden set, and if not, what is the likely reason: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from converters.metrics import detection
from converters.metrics.classification import average_precision
from converters.metrics.measured import Arrays, Measured, at_one
from converters.metrics.task import Judge
from converters.metrics.vectors import one_minus_error
from edge_sdk.tasks.results import NO_CLASS

CLEAR = 0.3
"""An explanation counts when the metric under it is at least this, and twice what it is without."""
DISPLACED = 0.25
"""Boxes are wrong when mAP50 is less than this share of how well the classes of an image are found."""
NOTHING = 0.1
"""A pose whose similarity to the truth is below this is as good as none."""
_GENERAL = "check --color, --mean, --std, --resize, and that the labels are for this model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Oddity:
    """What is wrong with the source on the golden set, and what to do."""

    message: str
    hint: str


def check(judge: Judge, measured: Measured, arrays: Arrays, *, skip: int = 0) -> Oddity | None:
    """Return why a labelled source cannot be what builds are compared with, or None.

    Args:
        skip: leading classes of the model that are left out already.
    """
    if not judge.labelled:
        return None
    looks: Mapping[str, Callable[[], Oddity | None]] = {
        "classification": lambda: _classes(judge, measured, arrays, skip),
        "detection": lambda: _boxes(judge, measured, arrays),
        "segmentation": lambda: _mask(judge, measured),
        "embedding": lambda: _embedding(judge, measured),
        "regression": lambda: _values(judge, measured, arrays),
        "keypoints": lambda: _poses(measured),
    }
    found = looks[judge.task]()
    if found is None and measured.value <= 0:
        return Oddity(message=f"the source itself has {measured.name} 0 on the golden set", hint=_GENERAL)
    return found


def chance(shares: NDArray[np.float64], images: int) -> float:
    """Return what always naming the commonest class would reach, with two standard errors on top."""
    best = float(shares.max())
    return float(min(1.0, best + 2 * (best * (1 - best) / images) ** 0.5))


def _classes(judge: Judge, measured: Measured, arrays: Arrays, skip: int) -> Oddity | None:
    assert judge.classes is not None
    guess, truth = arrays["probs"].argmax(axis=1), judge.classes
    known = len(np.unique(truth))
    order, reordered = _best_order(guess, truth) if len(truth) >= 5 * known else ({}, 0.0)
    for shift in (1, -1):
        value = float((guess == truth + shift).mean())
        if value >= max(CLEAR, 2 * measured.value, reordered - 0.05):
            return _shifted(measured, value, shift, skip)
    counts = np.bincount(truth, minlength=judge.class_count)
    if (counts > 0).sum() < 2 or measured.value > chance(counts / len(truth), len(truth)):
        return None
    if reordered >= max(CLEAR, 2 * measured.value) and len(order) > 1:
        moved = [(k, v) for k, v in sorted(order.items()) if k != v][:3]
        said = ", ".join(f"`{_name(judge, k)}` is its class {v}" for k, v in moved)
        return Oddity(
            message=f"the source has {measured.name} {measured.value:.4f} on the golden set, but {reordered:.4f} when "
            f"the classes are in another order: {said}",
            hint="name the model's classes in its own order with --labels FILE",
        )
    return Oddity(
        message=f"the source has {measured.name} {measured.value:.4f} on {len(truth)} golden images of {known} "
        "classes, no better than always naming the commonest",
        hint=_GENERAL,
    )


def _shifted(measured: Measured, value: float, shift: int, skip: int) -> Oddity:
    where = "above" if shift > 0 else "below"
    if shift > 0:
        hint = f"the model has a background class first: --skip-classes {skip + 1}"
    elif skip > 0:
        left = f"give --skip-classes {skip - 1}" if skip > 1 else "leave --skip-classes out"
        hint = f"the model has no class for the {skip} that are skipped: {left}"
    else:
        hint = (
            "the golden set counts a background class first that the model has not: subtract 1 from its class indices"
        )
    return Oddity(
        message=f"the source has {measured.name} {measured.value:.4f} on the golden set, but {value:.4f} when its "
        f"class is one {where} the label",
        hint=hint,
    )


def _best_order(guess: NDArray[np.int64], truth: NDArray[np.int64]) -> tuple[dict[int, int], float]:
    """Return label -> model class, each used once, chosen greedily by how often they meet, and the top-1 under it."""
    pairs, counts = np.unique(np.stack([truth, guess], axis=1), axis=0, return_counts=True)
    order: dict[int, int] = {}
    hits = 0
    for row in np.argsort(-counts, kind="stable"):
        label, own = (int(v) for v in pairs[row])
        if label not in order and own not in order.values():
            order[label] = own
            hits += int(counts[row])
    return order, hits / len(truth)


def _name(judge: Judge, class_id: int) -> str:
    return judge.names[class_id] if class_id < len(judge.names) else str(class_id)


def _boxes(judge: Judge, measured: Measured, arrays: Arrays) -> Oddity | None:
    if measured.value >= CLEAR:
        return None
    one = tuple(replace(t, class_id=np.zeros_like(t.class_id)) for t in judge.truths)
    merged = dict(arrays) | {"class_id": np.zeros_like(arrays["class_id"])}
    without = detection.evaluate(one, merged, 1).map50
    for shift in (1, -1):
        moved = dict(arrays) | {"class_id": arrays["class_id"] - shift}
        keep = (moved["class_id"] >= 0) & (moved["class_id"] < judge.class_count)
        value = detection.evaluate(judge.truths, {k: v[keep] for k, v in moved.items()}, judge.class_count).map50
        if value >= max(0.2, 2 * measured.value):
            return Oddity(
                message=f"the source has mAP50 {measured.value:.4f} on the golden set, but {value:.4f} when its class "
                f"is one {'above' if shift > 0 else 'below'} the label",
                hint="give the classes in the model's own order with --labels FILE (with a line for each class it has)",
            )
    if without >= CLEAR and without >= 4 * measured.value:
        return Oddity(
            message=f"the source has mAP50 {measured.value:.4f} on the golden set, but {without:.4f} when classes do "
            "not count: its classes are in another order",
            hint="name the model's classes in its own order with --labels FILE",
        )
    found, base = presence(judge.truths, arrays, judge.class_count)
    if found - base >= CLEAR * (1 - base) and measured.value < DISPLACED * found:
        return Oddity(
            message=f"the source has mAP50 {measured.value:.4f} on the golden set, although it tells which classes an "
            f"image holds with {found:.4f} average precision: its boxes are wrong",
            hint="check --resize, --size and --decoder; if they are right, the model's boxes were spoilt, as by "
            "quantizing them with the scores: convert the float model",
        )
    if measured.value < 0.01:
        return Oddity(
            message=f"the source has mAP50 {measured.value:.4f} on the golden set: it finds next to nothing",
            hint=_GENERAL + ", and --decoder",
        )
    return None


def presence(truths: Sequence[detection.Truth], arrays: Arrays, classes: int) -> tuple[float, float]:
    """Return how well "which classes does an image hold" is told, by the highest score of each class.

    The mean average precision over the classes, and what it is by chance: the mean share of images that hold a class.
    """
    images = len(truths)
    best = np.zeros((images, classes))
    inside = arrays["class_id"] < classes
    np.maximum.at(best, (arrays["image"][inside], arrays["class_id"][inside]), arrays["score"][inside])
    holds = np.zeros((images, classes), bool)
    for image, truth in enumerate(truths):
        holds[image, truth.class_id[~truth.ignore]] = True
    known = np.flatnonzero(holds.any(axis=0) & ~holds.all(axis=0))
    if known.size == 0:
        return 0.0, 1.0
    figures = [at_one(average_precision(best[:, c], holds[:, c]), images) for c in known]
    return float(np.mean(figures)), float(holds[:, known].mean())


def _mask(judge: Judge, measured: Measured) -> Oddity | None:
    assert judge.classes is not None
    pixels = judge.classes[judge.classes != NO_CLASS]
    shares = np.bincount(pixels.reshape(-1), minlength=1) / max(pixels.size, 1)
    floor = float(shares.max()) / max(int((shares > 0).sum()), 1)
    if measured.value > floor or (shares > 0).sum() < 2:
        return None
    return Oddity(
        message=f"the source has mIoU {measured.value:.4f} on the golden set, no better than one class for every pixel "
        f"({floor:.4f})",
        hint=_GENERAL,
    )


def _embedding(judge: Judge, measured: Measured) -> Oddity | None:
    assert judge.classes is not None
    shares = np.bincount(judge.classes) / len(judge.classes)
    floor = float((shares**2).sum())
    floor += 2 * (floor * (1 - floor) / max(measured.n, 1)) ** 0.5
    if measured.n == 0:
        return Oddity(
            message="no class of the golden set has two images, so that nothing can be retrieved",
            hint="give at least two images a class",
        )
    if measured.value > floor:
        return None
    return Oddity(
        message=f"the source has recall@1 {measured.value:.4f} on the golden set, no better than chance ({floor:.4f})",
        hint=_GENERAL,
    )


def _values(judge: Judge, measured: Measured, arrays: Arrays) -> Oddity | None:
    assert judge.values is not None
    truth, found = judge.values, arrays["values"].astype(np.float64)
    flat = np.broadcast_to(np.median(truth, axis=0), truth.shape)
    floor = one_minus_error(flat, truth, (), labelled=True).value
    if measured.value > floor:
        return None
    message = (
        f"the source has {measured.name} {measured.value:.4f} on the golden set, no better than always answering the "
        f"median ({floor:.4f})"
    )
    follows = _correlations(truth, found)
    best = np.abs(follows).argmax(axis=1)
    if np.abs(follows[np.arange(len(best)), best]).min() >= 0.8:
        said = []
        for k, own in enumerate(best.tolist()):
            sign = "minus " if follows[k, own] < 0 else ""
            name = judge.names[k] if k < len(judge.names) else str(k)
            said.append(f"`{name}` follows {sign}the model's value {own}")
        return Oddity(
            message=f"{message}; but {', '.join(said)}",
            hint="order the columns of labels.csv as the model's values, in its unit and sign",
        )
    return Oddity(message=message, hint=_GENERAL)


def _correlations(truth: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (labels, values) correlations; 0 where one stands still."""
    a, b = truth - truth.mean(axis=0), found - found.mean(axis=0)
    length = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)[None]
    return np.asarray(np.divide(a.T @ b, length, out=np.zeros_like(length), where=length > 0))


def _poses(measured: Measured) -> Oddity | None:
    if measured.n == 0:
        return Oddity(message="the golden set labels no point of any pose", hint="give COCO keypoints with v of 1 or 2")
    if measured.value >= NOTHING:
        return None
    return Oddity(
        message=f"the source has {measured.name} {measured.value:.4f} on the golden set: its points are nowhere near",
        hint=_GENERAL + " (model and labels must have the same points in the same order)",
    )
