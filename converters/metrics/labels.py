"""From the classes of a golden set to those of a model, and what is odd about the labels."""

from __future__ import annotations

from collections.abc import Sequence

from converters.datasets import DataSet
from edge_sdk.errors import CalibrationError

FEW_PER_CLASS = 5


def class_map(data: DataSet, classes: int, labels: Sequence[str]) -> dict[int, int]:
    """Return golden class id -> model class id.

    Raises:
        CalibrationError: a class has no counterpart; the hint says what would give it one.
    """
    used = sorted(
        {s.class_id for s in data.samples if s.class_id is not None}
        | {b.class_id for s in data.samples for b in s.boxes or ()}
    )
    if labels and data.names:
        index = {_plain(name): i for i, name in enumerate(labels)}
        unknown = [data.names[i] for i in used if _plain(data.names[i]) not in index]
        if not unknown:
            return {i: index[_plain(data.names[i])] for i in used}
        if len(data.names) != len(labels) and not all(label.isdigit() for label in labels):
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
                ", or leave a background class that comes first out with --skip-classes 1"
                if classes == known + 1
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
