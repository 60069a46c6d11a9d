"""Run one model file over a set of images, in its own runtime, as the device will. Runs in a worker process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.images import read
from converters.metrics import scores
from edge_sdk.errors import ConversionError, GuardrailError, NonFiniteError
from edge_sdk.model import Model
from edge_sdk.schemas.manifest import Manifest
from edge_sdk.tasks.base import Classes, Detections, Mask

METRIC_PARAMS = {"detection": {"score": 0.001, "max_detections": 100}}
"""What metrics read: every candidate, not only those above the threshold of the device."""
MASK_SIDE = 256


def open_model(manifest: Mapping[str, Any], model: str, labels: Sequence[str], *, metric: bool = False) -> Model:
    """Open a model file by the manifest it will have; with `metric`, the decoder keeps weak detections too."""
    parsed = Manifest.from_json(json.dumps(manifest))
    params = METRIC_PARAMS.get(parsed.task, {}) if metric else {}
    return Model.open_files(parsed, Path(model), labels, decoder_params=params)


def predict(manifest: dict[str, Any], model: str, labels: list[str], images: list[str], out: str) -> dict[str, Any]:
    """Write the predictions on `images` to the .npz `out` and return how the score channels moved.

    Raises:
        GuardrailError: an output holds NaN or infinity on an image.
        ConversionError: an image cannot be read, or the task has no predictions that can be compared.
    """
    rows: list[Any] = []
    channels = scores.Channels()
    with open_model(manifest, model, labels, metric=True) as opened:
        for name in images:
            image = read(name)
            if image is None:
                raise ConversionError(f"cannot read the image {name}", hint="remove it or copy it again")
            feeds, geometry = opened.prepare(image)
            outputs = opened.infer(feeds)
            try:
                rows.append(opened.decode(outputs, geometry))
            except NonFiniteError as error:
                raise GuardrailError(f"{error.message}, on {Path(name).name}", hint=error.hint) from None
            channels.add(scores.of(opened.manifest, outputs))
        task = opened.manifest.task
    np.savez(out, allow_pickle=False, **_arrays(task, rows))
    return {"n": len(rows), "channels": channels.to_json()}


def _arrays(task: str, rows: Sequence[Any]) -> dict[str, NDArray[Any]]:
    if rows and isinstance(rows[0], Detections):
        return {
            "image": np.repeat(np.arange(len(rows)), [len(r) for r in rows]).astype(np.int64),
            "xyxy": np.concatenate([r.xyxy for r in rows]).reshape(-1, 4),
            "score": np.concatenate([r.score for r in rows]),
            "class_id": np.concatenate([r.class_id for r in rows]),
        }
    if rows and isinstance(rows[0], Classes):
        return {"probs": np.stack([r.probs for r in rows])}
    if rows and isinstance(rows[0], Mask):
        import cv2

        side = min(MASK_SIDE, *rows[0].ids.shape)
        small = [cv2.resize(r.ids, (side, side), interpolation=cv2.INTER_NEAREST) for r in rows]
        return {"mask": np.stack(small).astype(np.int32)}
    raise ConversionError(f"the task {task} has no metric in this version", hint="classification and detection have")
