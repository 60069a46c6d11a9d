"""Run one model file over a set of images, in its own runtime, as the device will. Runs in a worker process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from converters.images import read
from converters.metrics import outputs as raw
from converters.metrics import scores
from converters.metrics.task import MASK_SIDE
from edge_sdk.errors import ConversionError, GuardrailError, NonFiniteError
from edge_sdk.model import Model
from edge_sdk.schemas.manifest import Manifest
from edge_sdk.tasks.base import Classes, Detections, Embedding, Keypoints, Mask, Values

METRIC_PARAMS = {"detection": {"score": 0.001, "max_detections": 100}}
"""What metrics read: every candidate, not only those above the threshold of the device."""
KEPT_IMAGES, KEPT_BYTES = 16, 24 << 20
"""How much of the source's raw outputs is kept to compare those of builds with."""


def open_model(manifest: Mapping[str, Any], model: str, labels: Sequence[str], *, metric: bool = False) -> Model:
    """Open a model file by the manifest it will have; with `metric`, the decoder keeps weak detections too."""
    parsed = Manifest.from_json(json.dumps(manifest))
    params = METRIC_PARAMS.get(parsed.task, {}) if metric else {}
    return Model.open_files(parsed, Path(model), labels, decoder_params=params)


def predict(
    manifest: dict[str, Any],
    model: str,
    labels: list[str],
    images: list[str],
    *,
    out: str,
    keep: str | None = None,
    against: str | None = None,
) -> dict[str, Any]:
    """Write the predictions on `images` to the .npz `out`.

    Args:
        keep: .npz for the raw outputs of the first images, in groups of channels.
        against: such a file of the source, to compare the raw outputs with.

    Returns:
        `n` images, `channels` (how the watched ones moved), `outputs` (the errors of each output and group).

    Raises:
        GuardrailError: an output holds NaN or infinity on an image.
        ConversionError: an image cannot be read, or the task has no predictions that can be compared.
    """
    rows: list[Any] = []
    channels = scores.Channels()
    compared = _Compared(keep, against)
    with open_model(manifest, model, labels, metric=True) as opened:
        for name in images:
            feeds, geometry = opened.prepare(_image(name))
            outputs = opened.infer(feeds)
            try:
                rows.append(opened.decode(outputs, geometry))
            except NonFiniteError as error:
                raise GuardrailError(f"{error.message}, on {Path(name).name}", hint=error.hint) from None
            channels.add(scores.of(opened.manifest, outputs))
            compared.add(opened.manifest, outputs)
        task = opened.manifest.task
    np.savez(out, allow_pickle=False, **arrays_of(task, rows))
    return {"n": len(rows), "channels": channels.to_json(), "outputs": compared.close()}


def _image(name: str) -> NDArray[np.uint8]:
    image = read(name)
    if image is None:
        raise ConversionError(f"cannot read the image {name}", hint="remove it or copy it again")
    return image


class _Compared:
    """Keeps a source's raw outputs in `keep`, or compares a build's with those in `against`."""

    def __init__(self, keep: str | None, against: str | None) -> None:
        self._keep = keep
        self._kept: dict[str, NDArray[Any]] = {}
        self._bytes = 0
        self._at = 0
        self._source = np.load(against, allow_pickle=False) if against else None
        self._errors = raw.Errors()

    def add(self, manifest: Manifest, outputs: Mapping[str, NDArray[Any]]) -> None:
        index, self._at = self._at, self._at + 1
        if index >= KEPT_IMAGES:
            return
        if self._keep is not None and self._bytes < KEPT_BYTES:
            found = {f"{index}:{k}": np.array(v, np.float32) for k, v in raw.named(manifest, outputs).items()}
            self._kept |= found
            self._bytes += sum(v.nbytes for v in found.values())
        if self._source is not None:
            for name, value in raw.named(manifest, outputs).items():
                if f"{index}:{name}" in self._source:
                    self._errors.add(name, self._source[f"{index}:{name}"], value)

    def close(self) -> list[dict[str, Any]]:
        """Write what was kept, and return the errors that were found."""
        if self._keep is not None:
            np.savez(self._keep, allow_pickle=False, **self._kept)
        if self._source is not None:
            self._source.close()
        return self._errors.rows()


def arrays_of(task: str, rows: Sequence[Any]) -> dict[str, NDArray[Any]]:
    """Return the results of a set of images as arrays, which the judges of `converters.metrics.task` read.

    Raises:
        ConversionError: nothing of these results can be compared.
    """
    first = rows[0] if rows else None
    if isinstance(first, Detections):
        return {
            "image": np.repeat(np.arange(len(rows)), [len(r) for r in rows]).astype(np.int64),
            "xyxy": np.concatenate([r.xyxy for r in rows]).reshape(-1, 4),
            "score": np.concatenate([r.score for r in rows]),
            "class_id": np.concatenate([r.class_id for r in rows]),
        }
    if isinstance(first, Classes):
        return {"probs": np.stack([r.probs for r in rows])}
    if isinstance(first, Mask):
        return {"mask": np.stack([small_mask(r.upright()) for r in rows])}
    if isinstance(first, Keypoints):
        return {"points": np.stack([r.points for r in rows]), "point_score": np.stack([r.score for r in rows])}
    if isinstance(first, Embedding):
        return {"embedding": np.stack([r.vector for r in rows])}
    if isinstance(first, Values):
        return {"values": np.stack([r.values for r in rows])}
    raise ConversionError(f"the task {task} has no metric", hint="its decoder gives none of the known results")


def small_mask(ids: NDArray[Any]) -> NDArray[np.uint8]:
    """Return class ids of the upright frame on the grid on which masks are compared, each the nearest."""
    return np.asarray(cv2.resize(ids, (MASK_SIDE, MASK_SIDE), interpolation=cv2.INTER_NEAREST), np.uint8)
