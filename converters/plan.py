"""From a recipe and a source to what is known for sure, or one error that names every flag that is missing."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from converters.frontends.base import Source
from converters.recipe import Recipe, parse_resize
from edge_sdk import tasks
from edge_sdk.errors import UsageError
from edge_sdk.schemas.manifest import InputSpec, Resize
from edge_sdk.tasks.dense import COCO_KEYPOINTS

_TASK_OF = {
    "softmax": "classification",
    "argmax_mask": "segmentation",
    "movenet": "keypoints",
    "embedding": "embedding",
    "regression": "regression",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The model as it will be converted: task, decoder, the input of the source file, labels by class id."""

    task: str
    decoder: str
    decoder_params: dict[str, Any]
    input: InputSpec
    classes: int
    labels: tuple[str, ...]
    name: str


def decide(
    recipe: Recipe,
    source: Source,
    *,
    labelled_for: str | None,
    names: tuple[str, ...],
    points: tuple[str, ...] = (),
) -> Plan:
    """Return the plan; flags win over what was recognised.

    Args:
        labelled_for: the task that the golden set's labels are for.
        names: the golden set's class names, used as labels where they are as many as the model's classes.
        points: the golden set's names of the points of a pose.

    Raises:
        UsageError: something cannot be decided (the hint names each flag), or the flags contradict the model.
    """
    missing: list[str] = []
    decoder, params = _decoder(recipe, source, labelled_for)
    if decoder is None:
        known_names = " ".join(tasks.decoders().names())
        missing.append("--decoder softmax" if recipe.task == "classification" else f"--decoder NAME ({known_names})")
    task = recipe.task or (_TASK_OF.get(decoder, "detection") if decoder else None)
    same = source.decoder is None or recipe.decoder in (None, source.decoder)
    color = recipe.color or (source.preprocess.color if same else None) or ("gray" if source.channels == 1 else None)
    resize = parse_resize(recipe.resize) if recipe.resize else (source.preprocess.resize if same else None)
    mean, std = _mean_std(recipe, source, known=same)
    missing += [] if color else ["--color rgb|bgr"]
    missing += [] if resize else ["--resize stretch|letterbox|crop"]
    missing += [] if mean is not None else ["--mean A,B,C"]
    missing += [] if std is not None else ["--std A,B,C"]
    if missing:
        known = "; ".join(source.because) or "nothing was recognised in its graph"
        if decoder is None:
            known += "; what its outputs mean is not known: "
            known += ", ".join(f"{o.name} {list(o.shape)}" for o in source.outputs)
        raise UsageError(
            f"the model does not tell {len(missing)} thing(s): {known}", hint="say them: " + ", ".join(missing)
        )
    assert decoder is not None
    assert task is not None
    assert mean is not None
    assert std is not None
    try:
        spec = InputSpec(
            name=source.input.name,
            shape=source.input.shape,
            dtype=source.input.dtype,  # type: ignore[arg-type]
            layout=source.layout,  # type: ignore[arg-type]
            color=color,  # type: ignore[arg-type]
            resize=Resize(**(resize or {})),
            mean=mean,
            std=std,
            scale=source.input.scale,
            zero=source.input.zero,
        )
    except ValueError as error:
        raise UsageError(f"the input cannot be so: {error}", hint="compare --color, --mean and --std") from None
    if _takes_pixels(source) and (any(mean) or any(s != 1 for s in std)):
        raise UsageError(
            f"the model takes {source.input.dtype} pixels, --mean and --std cannot apply", hint="leave them out"
        )
    spec = _plain(spec)
    classes = _classes(recipe, source, task)
    labels = _labels(recipe, source, classes, points if task == "keypoints" else names, decoder)
    tasks.decoders().load(decoder)(params, labels)
    return Plan(
        task=task,
        decoder=decoder,
        decoder_params=params,
        input=spec,
        classes=classes,
        labels=labels,
        name=recipe.name or slug(Path(source.path).stem),
    )


def _takes_pixels(source: Source) -> bool:
    """Return whether the input is integers without a scale: the pixels as they are (minus 128 for int8)."""
    return np.dtype(source.input.dtype).kind in "iu" and source.input.scale is None


def _mean_std(
    recipe: Recipe, source: Source, *, known: bool
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if _takes_pixels(source):
        return recipe.mean or (0.0,), recipe.std or (1.0,)
    found = source.preprocess
    mean = recipe.mean if recipe.mean is not None else (found.mean if known else None)
    std = recipe.std if recipe.std is not None else (found.std if known else None)
    return mean, std


def _plain(spec: InputSpec) -> InputSpec:
    """Return an integer input without mean, std and scale where its integers are the pixels (minus 128 for int8)."""
    kind = np.dtype(spec.dtype)
    if spec.scale is None or kind.itemsize != 1 or kind.kind not in "iu":
        return spec
    pixels = np.arange(256, dtype=np.float64)[:, None]
    values = (pixels - np.asarray(spec.mean)) / np.asarray(spec.std) / spec.scale + (spec.zero or 0)
    if np.abs(values - (pixels + np.iinfo(kind).min)).max() >= 0.5:
        return spec
    return replace(spec, mean=(0.0,), std=(1.0,), scale=None, zero=None)


def _decoder(recipe: Recipe, source: Source, labelled_for: str | None) -> tuple[str | None, dict[str, Any]]:
    decoder = recipe.decoder or source.decoder
    if decoder is None:
        decoder = _of_task(source, recipe.task, labelled_for)
    if decoder is None:
        return None, {}
    tasks.decoders().plugin(decoder)
    matches = decoder == source.decoder or (decoder == "softmax" and source.classes is not None)
    params = dict(source.decoder_params) if matches else {}
    params.update(recipe.decoder_params)
    if decoder == "softmax" and recipe.skip_classes:
        params["skip"] = recipe.skip_classes
    return decoder, params


def _of_task(source: Source, task: str | None, labelled_for: str | None) -> str | None:
    """Return the only decoder of the task that was named, where the outputs have its form.

    Labels of the golden set name the task too, but class labels may be for an embedding as well, so a network of bare
    logits is taken for a classifier by them and nothing else is.
    """
    shapes = [o.shape for o in source.outputs]
    flat = len(shapes) == 1 and math.prod(shapes[0]) == max(shapes[0], default=0)
    if task is None:
        return "softmax" if labelled_for == "classification" and source.classes is not None else None
    fits = {
        "classification": ("softmax", flat),
        "embedding": ("embedding", flat),
        "regression": ("regression", True),
        "segmentation": ("argmax_mask", len(shapes) == 1 and len(shapes[0]) in (3, 4)),
        "keypoints": ("movenet", len(shapes) == 1 and len(shapes[0]) > 1 and shapes[0][-1] == 3),
    }
    decoder, fit = fits.get(task, ("", False))
    return decoder if fit else None


def _classes(recipe: Recipe, source: Source, task: str) -> int:
    """Return how many labels the model has: of classes, of points, of values; 0 for an embedding."""
    if task in ("keypoints", "embedding", "regression"):
        shapes = [o.shape for o in source.outputs]
        counts = {"keypoints": shapes[0][-2] if len(shapes[0]) > 1 else 0, "embedding": 0}
        return counts.get(task, sum(math.prod(s) for s in shapes))
    if source.classes is not None and recipe.decoder in (None, source.decoder, "softmax"):
        count = source.classes
    else:
        count = int(recipe.decoder_params.get("classes", 0)) or _last_dim(source, task)
    return count - (recipe.skip_classes if task == "classification" else 0)


def _last_dim(source: Source, task: str) -> int:
    shape = source.outputs[0].shape
    if task == "classification":
        return max(shape)
    if len(source.outputs) == 1 and len(shape) == 3:
        return max(1, min(shape[1:]) - (5 if shape[2] <= shape[1] else 4))
    return max(1, shape[-1])


def _labels(recipe: Recipe, source: Source, classes: int, names: tuple[str, ...], decoder: str) -> tuple[str, ...]:
    if recipe.labels is not None:
        labels = read_labels(recipe.labels)
        if len(labels) == classes + recipe.skip_classes:
            labels = labels[recipe.skip_classes :]
        if len(labels) != classes:
            skip = len(labels) - classes if len(labels) < classes else classes - len(labels)
            more = f", or --skip-classes {-skip}" if skip < 0 else ""
            raise UsageError(
                f"{recipe.labels} has {len(labels)} labels, the model {classes} classes",
                hint=f"one label a line, in the order of the model's classes{more}",
            )
        return labels
    own = source.labels[recipe.skip_classes :]
    if own and len(own) == classes:
        return own
    if len(names) == classes:
        return names
    if decoder == "movenet" and classes == len(COCO_KEYPOINTS):
        return COCO_KEYPOINTS
    if decoder in ("ultraface", "yunet", "blazeface"):
        return ("face",)
    return tuple(str(i) for i in range(classes))


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the lines of a label file, without the empty ones at its end.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the labels {path}: {error}", hint="one label a line, UTF-8") from None
    while lines and not lines[-1].strip():
        lines.pop()
    return tuple(line.strip() for line in lines)


def slug(text: str) -> str:
    """Return an id made of `text`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9_-]+", "-", plain.lower()).strip("-_")[:63] or "model"
