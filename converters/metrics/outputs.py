"""A model's raw outputs as groups of channels that belong together, and how far a build's are from the source's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.runtimes.base import dequantize
from edge_sdk.schemas.manifest import Manifest

Array = NDArray[Any]
Groups = dict[str, Array]
UNALIGNED = frozenset({"ssd_pp"})
"""Decoders whose rows the graph has sorted: row i of a build need not be row i of the source."""


def real(manifest: Manifest, outputs: Mapping[str, Array]) -> list[Array]:
    """Return the outputs in the manifest's order, quantized ones as the floats they stand for."""
    return [dequantize(np.asarray(outputs[o.name]), o) for o in manifest.outputs]


def groups(manifest: Manifest, arrays: Sequence[Array]) -> Groups:
    """Return each group of channels as (rows, channels), by what it is: scores, objectness, boxes, landmarks, …

    Empty for a decoder that is not known here, or outputs that are not as it expects.
    """
    split = _SPLIT.get(manifest.decoder.name)
    if split is None or not arrays:
        return {}
    found = split(arrays, manifest.decoder.params)
    return {name: np.asarray(value) for name, value in found.items() if value.size}


def _flat(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)


def _row(name: str) -> Callable[[Sequence[Array], Mapping[str, Any]], Groups]:
    def split(arrays: Sequence[Array], params: Mapping[str, Any]) -> Groups:  # noqa: ARG001 (one form for all)
        return {name: np.concatenate([a.reshape(1, -1) for a in arrays], axis=1)}

    return split


def _columns(arrays: Sequence[Array], params: Mapping[str, Any]) -> Groups:  # noqa: ARG001
    """YOLOX and YOLOv5: 5 + c columns, in one output, or split as (5, c), (4, 1 + c) or (4, 1, c)."""
    if len({a.shape[:-1] for a in arrays}) != 1:
        return {}
    table = np.concatenate([_flat(a) for a in arrays], axis=1)
    return {"boxes": table[:, :4], "objectness": table[:, 4:5], "scores": table[:, 5:]}


def _yolov8(arrays: Sequence[Array], params: Mapping[str, Any]) -> Groups:
    count = int(params.get("classes") or 0)
    rows: list[Array] = [a.reshape(a.shape[-2:]) for a in arrays if a.ndim >= 2]
    if len(rows) == 1:
        table = rows[0]
        channels = 4 + count if count else min(table.shape)
        table = table.T if table.shape[0] == channels else table
        return {"boxes": table[:, :4], "scores": table[:, 4:]}
    if len(rows) == 2:
        boxes, classes = (r.T if r.shape[0] < r.shape[1] else r for r in rows)
        return {"boxes": boxes, "scores": classes}
    return {}


def _distributions(default: int) -> Callable[[Sequence[Array], Mapping[str, Any]], Groups]:
    """NanoDet and PicoDet: class scores and 4 (reg_max + 1) columns of box distributions, in one output or many."""

    def split(arrays: Sequence[Array], params: Mapping[str, Any]) -> Groups:
        width = 4 * (int(params.get("reg_max", default)) + 1)
        if len(arrays) == 1:
            table = _flat(arrays[0])
            return {"boxes": table[:, -width:], "scores": table[:, :-width]}
        half = len(arrays) // 2
        boxes = [a for a in arrays if a.shape[-1] == width]
        classes = [a for a in arrays if a.shape[-1] != width]
        if not classes:
            classes, boxes = list(arrays[:half]), list(arrays[half:])
        by_rows = {"boxes": boxes, "scores": classes}
        return {
            k: np.concatenate([_flat(a) for a in sorted(v, key=lambda a: -a.size)]) for k, v in by_rows.items() if v
        }

    return split


def _by_width(names: Mapping[int, str]) -> Callable[[Sequence[Array], Mapping[str, Any]], Groups]:
    def split(arrays: Sequence[Array], params: Mapping[str, Any]) -> Groups:  # noqa: ARG001
        found: dict[str, list[Array]] = {}
        for array in sorted((_flat(a) for a in arrays), key=lambda a: -len(a)):
            if array.shape[1] in names:
                found.setdefault(names[array.shape[1]], []).append(array)
        return {name: np.concatenate(parts) for name, parts in found.items()}

    return split


def _ultraface(arrays: Sequence[Array], params: Mapping[str, Any]) -> Groups:
    found = _by_width({2: "scores", 4: "boxes"})(arrays, params)
    return found | ({"scores": found["scores"][:, 1:]} if "scores" in found else {})


def _blazeface(arrays: Sequence[Array], params: Mapping[str, Any]) -> Groups:
    found = _by_width({1: "scores", 16: "boxes"})(arrays, params)
    if "boxes" in found:
        found |= {"boxes": found["boxes"][:, :4], "landmarks": found["boxes"][:, 4:]}
    return found


def _fastestdet(arrays: Sequence[Array], params: Mapping[str, Any]) -> Groups:  # noqa: ARG001
    grid = arrays[0]
    table = grid.reshape(grid.shape[1], -1).T
    return {"objectness": table[:, :1], "boxes": table[:, 1:5], "scores": table[:, 5:]}


def _ssd(arrays: Sequence[Array], params: Mapping[str, Any]) -> Groups:
    if len(arrays) == 1 and arrays[0].shape[-1] == 7:
        return {"scores": _flat(arrays[0])[:, 2:3], "boxes": _flat(arrays[0])[:, 3:]}
    lists = [a for a in arrays if a.ndim == 2]
    boxes = next((a for a in arrays if a.ndim == 3 and a.shape[-1] == 4), None)
    if len(lists) != 2 or boxes is None:
        return {}
    return {"scores": lists[0 if params.get("scores_first") else 1].reshape(-1, 1), "boxes": _flat(boxes)}


def _movenet(arrays: Sequence[Array], params: Mapping[str, Any]) -> Groups:  # noqa: ARG001
    rows = arrays[0].reshape(-1, 3)
    return {"points": rows[:, :2].reshape(1, -1), "scores": rows[:, 2].reshape(1, -1)}


def _mask(arrays: Sequence[Array], params: Mapping[str, Any]) -> Groups:
    grid = arrays[0].reshape(arrays[0].shape[1:]) if arrays[0].ndim > 2 else arrays[0]
    if grid.ndim != 3 or 1 in (grid.shape[0], grid.shape[2]):
        return {}
    layout = params.get("layout") or ("NCHW" if grid.shape[0] < grid.shape[2] else "NHWC")
    return {"scores": grid.reshape(len(grid), -1).T if layout == "NCHW" else _flat(grid)}


_SPLIT: dict[str, Callable[[Sequence[Array], Mapping[str, Any]], Groups]] = {
    "softmax": _row("scores"),
    "yolox": _columns,
    "yolov5": _columns,
    "yolov8": _yolov8,
    "nanodet": _distributions(7),
    "picodet": _distributions(7),
    "fastestdet": _fastestdet,
    "ssd_pp": _ssd,
    "ultraface": _ultraface,
    "yunet": _by_width({1: "scores", 4: "boxes", 10: "landmarks"}),
    "blazeface": _blazeface,
    "argmax_mask": _mask,
    "movenet": _movenet,
    "embedding": _row("embedding"),
    "regression": _row("values"),
}


class Errors:
    """Sums over images from which signal-to-noise ratio, cosine and correlation of one array to another follow."""

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._images: dict[str, int] = {}

    def add(self, name: str, source: Array, build: Array) -> None:
        """Add one image's array of both models; arrays of different sizes are left out."""
        if source.size != build.size or source.size == 0:
            return
        s, b = (np.asarray(v, np.float64).reshape(-1) for v in (source, build))
        row = np.array([s.size, s.sum(), b.sum(), s @ s, b @ b, s @ b, ((s - b) ** 2).sum(), np.abs(s - b).max()])
        old = self._sums.get(name)
        if old is not None:
            row[:7] += old[:7]
            row[7] = max(row[7], old[7])
        self._sums[name] = row
        self._images[name] = self._images.get(name, 0) + 1

    def rows(self) -> list[dict[str, Any]]:
        """Return {name, group, images, sqnr_db, cosine, correlation, max_error} of each output and channel group.

        `correlation` is None where either side stands still.
        """
        return [self._figures(name, row) for name, row in self._sums.items()]

    def _figures(self, name: str, sums: NDArray[np.float64]) -> dict[str, Any]:
        n, s, b, ss, bb, sb, ee, top = sums.tolist()
        kind, _, plain = name.partition(":")
        var_s, var_b = ss / n - (s / n) ** 2, bb / n - (b / n) ** 2
        still = min(var_s, var_b) <= 1e-12 * max(ss, bb) / n
        return {
            "name": plain,
            "group": kind == "group",
            "images": self._images[name],
            "sqnr_db": round(float(np.clip(10 * np.log10(max(ss, 1e-30) / max(ee, 1e-30)), -200, 200)), 2),
            "cosine": round(sb / (ss * bb) ** 0.5, 6) if ss > 0 and bb > 0 else 0.0,
            "correlation": None if still else round((sb / n - s * b / n**2) / (var_s * var_b) ** 0.5, 6),
            "max_error": round(top, 6),
        }


def named(manifest: Manifest, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return what `Errors` compares of one image: `output:NAME` and `group:NAME` -> array.

    Empty for a decoder whose rows the graph has sorted.
    """
    if manifest.decoder.name in UNALIGNED:
        return {}
    arrays = real(manifest, outputs)
    whole = {f"output:{o.name}": a for o, a in zip(manifest.outputs, arrays, strict=True)}
    return whole | {f"group:{name}": a for name, a in groups(manifest, arrays).items()}
