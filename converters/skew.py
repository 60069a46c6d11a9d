"""Where a model and its user's own predict part: other preprocessing, or other readings of results, tried in turn.

Runs in a worker process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from converters.evaluate import METRIC_PARAMS, arrays_of, open_model
from converters.images import read
from converters.metrics.agree import Agreement, Reading, agreement, readings
from converters.metrics.measured import Arrays
from edge_sdk.errors import ConversionError, EdgeError
from edge_sdk.model import Model
from edge_sdk.schemas.manifest import InputSpec, Resize
from edge_sdk.tasks.base import Detections, Geometry, Keypoints

ENOUGH = 0.95
"""From this agreement on nothing more is looked for."""
PLAIN = 0.99
"""From here on a change is the cause, no other needs to be tried."""
GAIN = 0.02
"""A change must raise the agreement by at least this much to count as a cause."""
ROUNDS = 3
"""How many causes may come together."""
_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_SCALES = (
    ((0.0,), (1.0,)),
    ((0.0,), (255.0,)),
    ((127.5,), (127.5,)),
    ((127.0,), (128.0,)),
    ((128.0,), (1.0,)),
    _IMAGENET,
    (_IMAGENET[0][::-1], _IMAGENET[1][::-1]),
)
_FILTERS = {
    "nearest": cv2.INTER_NEAREST,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "Lanczos": cv2.INTER_LANCZOS4,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Another preprocessing; `kind` is tried once in a chain, `hint` are the flags that make it the model's."""

    kind: str
    name: str
    hint: str
    spec: InputSpec
    filter: str | None = None


def compare(
    *, manifest: dict[str, Any], model: str, labels: list[str], images: list[str], reference: str, skip: int
) -> dict[str, Any]:
    """Return how far the model agrees with the reference's results in the .npz `reference`, and what parts them.

    Results that are only written in another form, as boxes by centre and size, are written back in this SDK's.

    Returns:
        `agreement` and `close` as things stand, `explained` after the changes of `causes` [{kind, name, hint}].

    Raises:
        ConversionError: an image cannot be read.
    """
    frames = [_frame(name) for name in images]
    with open_model(manifest, model, labels, metric=True) as opened:
        found, theirs = _Look(opened, labels, frames, skip).all(_load(reference))
    np.savez(reference, allow_pickle=False, **theirs)
    return found


def beside(
    *, manifest: dict[str, Any], model: str, labels: list[str], images: list[str], reference: str
) -> dict[str, float]:
    """Return the `agreement` and `close` of a build with the reference's results, as it is.

    Raises:
        ConversionError: an image cannot be read.
    """
    frames = [_frame(name) for name in images]
    with open_model(manifest, model, labels, metric=True) as opened:
        ours, _ = _Look(opened, labels, frames, 0).run(opened.manifest.input, None)
        found = agreement(opened.manifest.task, _load(reference), ours, len(frames))
    return {"agreement": round(found.value, 6), "close": round(found.close, 6)}


def _load(path: str) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as data:
        return {k: data[k] for k in data.files}


def _frame(name: str) -> NDArray[np.uint8]:
    image = read(name)
    if image is None:
        raise ConversionError(f"cannot read the image {name}", hint="remove it or copy it again")
    return image


class _Look:
    def __init__(self, opened: Model, labels: Sequence[str], frames: Sequence[NDArray[np.uint8]], skip: int) -> None:
        self.opened = opened
        self.labels = labels
        self.frames = frames
        self.skip = skip
        self.task = opened.manifest.task

    def all(self, reference: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Return what `compare` returns, and the reference's results in this SDK's form."""
        spec, filter_name = self.opened.manifest.input, None
        ours, places = self.run(spec, filter_name)
        first = now = agreement(self.task, reference, ours, len(self.frames))
        causes: list[dict[str, Any]] = []
        form, after = self.best(reference, ours, places, forms=True)
        if form.name and after.rank > now.rank + GAIN:
            reference, first, now = form.arrays, after, after
            causes.append({"kind": "form", "name": form.name, "hint": ""})
        written = reference
        tried: set[str] = set()
        while min(now.value, now.close) < ENOUGH and len(causes) < ROUNDS:
            step = self.step(reference, spec, filter_name, tried, now)
            if step is None:
                break
            cause, reference, spec, filter_name, now = step
            tried.add(str(cause["kind"]))
            causes.append(cause)
        found = {
            "n": len(self.frames),
            "agreement": round(first.value, 6),
            "close": round(first.close, 6),
            "explained": round(now.value, 6),
            "causes": causes,
        }
        return found, written

    def step(
        self, reference: Arrays, spec: InputSpec, filter_name: str | None, tried: set[str], now: Agreement
    ) -> tuple[dict[str, Any], Arrays, InputSpec, str | None, Agreement] | None:
        """Return the change or reading that raises the agreement most, or None when none does."""
        found = None
        first, *rest = changes(spec, filter_name)
        color = [first] if first.kind == "color" else []
        for change in (*color, None, *(rest if color else (first, *rest))):
            if found is not None and now.rank >= PLAIN:
                break
            if change is None:
                ours, places = self.run(spec, filter_name)
                reading, after = self.best(reference, ours, places, forms=False)
                if reading.name and "result" not in tried and after.rank > now.rank + GAIN:
                    cause = {"kind": "result", "name": reading.name, "hint": reading.hint}
                    found, now = (cause, reading.arrays, spec, filter_name, after), after
            elif change.kind not in tried:
                other = self.changed(reference, change)
                if other is not None and other.rank > now.rank + GAIN:
                    cause = {"kind": change.kind, "name": change.name, "hint": change.hint}
                    found, now = (cause, reference, change.spec, change.filter, other), other
        return found

    def changed(self, reference: Arrays, change: Change) -> Agreement | None:
        """Return the agreement under another preprocessing, or None where the model cannot be run so."""
        try:
            ours, _ = self.run(change.spec, change.filter)
        except EdgeError:
            return None
        return agreement(self.task, reference, ours, len(self.frames))

    def best(
        self, reference: Arrays, ours: Arrays, places: Sequence[Geometry], *, forms: bool
    ) -> tuple[Reading, Agreement]:
        rows = [
            (r, agreement(self.task, r.arrays, ours, len(self.frames)))
            for r in readings(self.task, reference, ours, places, self.skip)
            if not r.name or r.form == forms
        ]
        return max(rows, key=lambda pair: pair[1].rank)

    def run(self, spec: InputSpec, filter_name: str | None) -> tuple[Arrays, list[Geometry]]:
        """Return the model's results and where its input lay in each frame, with another preprocessing."""
        opened = self.opened
        model = Model(
            replace(opened.manifest, input=spec),
            opened.runtime,
            self.labels,
            decoder_params=METRIC_PARAMS.get(self.task, {}),
        )
        rows, places = [], []
        for frame in self.frames:
            small = frame if filter_name is None else shrunk(frame, spec, _FILTERS[filter_name])
            feeds, place = model.prepare(small)
            result = model.decode(model.infer(feeds), place)
            ratio = np.array([frame.shape[1] / small.shape[1], frame.shape[0] / small.shape[0]])
            rows.append(_enlarged(result, ratio) if filter_name else result)
            places.append(place)
        return arrays_of(self.task, rows), places


def shrunk(frame: NDArray[np.uint8], spec: InputSpec, flag: int) -> NDArray[np.uint8]:
    """Return the frame resized by another filter to the size that the model's own resize brings it to."""
    height, width = frame.shape[:2]
    scale_x, scale_y = spec.width / width, spec.height / height
    if spec.resize.mode != "stretch":
        scale_x = scale_y = (min if spec.resize.mode == "letterbox" else max)(scale_x, scale_y)
    size = (max(1, round(width * scale_x)), max(1, round(height * scale_y)))
    return np.asarray(cv2.resize(frame, size, interpolation=flag), np.uint8)


def _enlarged(result: Any, ratio: NDArray[np.float64]) -> Any:
    if isinstance(result, Detections):
        return replace(result, xyxy=(result.xyxy * np.tile(ratio, 2)).astype(np.float32))
    if isinstance(result, Keypoints):
        return replace(result, points=(result.points * ratio).astype(np.float32))
    return result


def changes(spec: InputSpec, filter_name: str | None) -> Iterator[Change]:
    """Yield other preprocessings of the same model: colour order, resize, filter, scale and offset."""
    if spec.color != "gray":
        other: Any = "bgr" if spec.color == "rgb" else "rgb"
        yield Change(
            kind="color",
            name=f"the image is {other.upper()}",
            hint=f"--color {other}",
            spec=replace(spec, color=other),
            filter=filter_name,
        )
    for resize in _resizes(spec.resize):
        words: list[str] = [resize.mode]
        words += [resize.align, str(resize.pad)] if resize.mode == "letterbox" else []
        yield Change(
            kind="resize",
            name=f"the image is resized as {':'.join(words)}",
            hint=f"--resize {':'.join(words)}",
            spec=replace(spec, resize=resize),
            filter=filter_name,
        )
    for name in _FILTERS:
        if name != filter_name:
            yield Change(
                kind="filter",
                name=f"the image is resized with the {name} filter",
                hint="devices resize with the bilinear filter: use it in training and in the reference too",
                spec=spec,
                filter=name,
            )
    if np.dtype(spec.dtype).kind == "f" or spec.scale is not None:
        yield from _scaled(spec, filter_name)


def _resizes(now: Resize) -> Iterator[Resize]:
    options = [Resize(mode="stretch"), Resize(mode="crop")]
    options += [
        Resize(mode="letterbox", align=align, pad=pad) for align in ("center", "topleft") for pad in (0, 114, 128)
    ]
    for option in options:
        same = option.mode == now.mode and (
            option.mode != "letterbox" or (option.align, option.pad) == (now.align, now.pad)
        )
        if not same:
            yield option


def _scaled(spec: InputSpec, filter_name: str | None) -> Iterator[Change]:
    for mean, std in _SCALES:
        if len(mean) > 1 and spec.channels != len(mean):
            continue
        old = tuple(np.broadcast_to(np.asarray(v, float), (spec.channels,)).tolist() for v in (spec.mean, spec.std))
        new = tuple(np.broadcast_to(np.asarray(v, float), (spec.channels,)).tolist() for v in (mean, std))
        if np.allclose(old, new):
            continue
        flags = " ".join(f"--{k} {','.join(f'{x:g}' for x in v)}" for k, v in (("mean", mean), ("std", std)))
        yield Change(
            kind="scale",
            name=f"the pixels are {_range(mean, std)}",
            hint=flags,
            spec=replace(spec, mean=mean, std=std),
            filter=filter_name,
        )


def _range(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    if len(mean) > 1:
        return "scaled by ImageNet's mean and deviation" + (" in BGR order" if mean[0] < mean[-1] else "")
    low, high = (0 - mean[0]) / std[0], (255 - mean[0]) / std[0]
    return f"{low:.3g} to {high:.3g}"
