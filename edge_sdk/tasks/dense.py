"""Everything that is not boxes or classes: masks, keypoints, embeddings, regressed values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from edge_sdk.tasks.base import Embedding, Geometry, Keypoints, Mask, Values, read_params, wrong_outputs
from edge_sdk.tasks.boxes import bounded
from edge_sdk.tasks.results import NO_CLASS

Outputs = Mapping[str, NDArray[Any]]
_PAIRS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_KEYPOINTS = ("nose", *(f"{side}_{part}" for part in _PAIRS for side in ("left", "right")))


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskParams:
    """`layout`: where the classes of a score output are (default: the shorter of both places); `classes`: how many."""

    layout: Literal["NHWC", "NCHW"] | None = None
    classes: int | None = field(default=None, metadata={"min": 1, "max": NO_CLASS})


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypointParams:
    """`names` of the points (default: the labels, else COCO's 17)."""

    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingParams:
    """`normalize`: scale the vector to length 1."""

    normalize: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionParams:
    """`names` of the values (default: the labels); each value becomes `value * scale + offset`."""

    names: tuple[str, ...] = ()
    scale: float = 1.0
    offset: float = 0.0


class ArgmaxMask:
    """Class scores (1, h, w, c) or (1, c, h, w), or class ids (1, h, w) or (1, h, w, 1), of at most 255 classes."""

    task: ClassVar[str] = "segmentation"

    def __init__(self, params: Mapping[str, Any], labels: Sequence[str]) -> None:
        self.params = read_params(params, MaskParams, "argmax_mask")
        self.labels = tuple(labels)

    def __call__(self, outputs: Outputs, geometry: Geometry) -> Mask:
        value = next(iter(outputs.values())) if len(outputs) == 1 else None
        if value is None or value.ndim not in (3, 4) or value.shape[0] != 1:
            raise wrong_outputs("argmax_mask", "one output [1, h, w, c], [1, c, h, w] or [1, h, w]", outputs)
        grid = value[0]
        if grid.ndim == 3 and 1 in (grid.shape[0], grid.shape[2]):
            grid = grid.reshape(grid.shape[1:] if grid.shape[0] == 1 else grid.shape[:2])
        if grid.ndim == 2:
            return Mask(np.clip(grid, 0, NO_CLASS).astype(np.uint8), geometry, self.labels)
        planes = grid if self._classes_first(grid) else np.moveaxis(grid, 2, 0)
        if planes.shape[0] > NO_CLASS or self.params.classes not in (None, planes.shape[0]):
            raise wrong_outputs("argmax_mask", f"{self.params.classes or f'at most {NO_CLASS}'} classes", outputs)
        return Mask(_argmax(planes), geometry, self.labels)

    def _classes_first(self, grid: NDArray[Any]) -> bool:
        if self.params.layout is not None:
            return self.params.layout == "NCHW"
        wanted = self.params.classes or len(self.labels)
        if wanted and (grid.shape[0] == wanted) != (grid.shape[2] == wanted):
            return bool(grid.shape[0] == wanted)
        return bool(grid.shape[0] < grid.shape[2])


class MoveNet:
    """Points (1, 1, k, 3) or (1, k, 3): y, x as fractions of the input, score."""

    task: ClassVar[str] = "keypoints"

    def __init__(self, params: Mapping[str, Any], labels: Sequence[str]) -> None:
        self.params = read_params(params, KeypointParams, "movenet")
        self.names = self.params.names or tuple(labels)

    def __call__(self, outputs: Outputs, geometry: Geometry) -> Keypoints:
        value = next(iter(outputs.values())) if len(outputs) == 1 else None
        if value is None or value.ndim < 2 or value.shape[-1] != 3 or value.size != value.shape[-2] * 3:
            raise wrong_outputs("movenet", "one output [1, 1, k, 3]", outputs)
        rows = bounded(value.reshape(-1, 3))
        size = np.array([geometry.input_width, geometry.input_height], np.float32)
        names = self.names or (COCO_KEYPOINTS if len(rows) == len(COCO_KEYPOINTS) else ())
        points = geometry.points_to_frame(rows[:, 1::-1] * size)
        return Keypoints(points, np.clip(rows[:, 2], 0, 1), names)


class VectorEmbedding:
    """One output of d values, with any number of dimensions of size 1 around it."""

    task: ClassVar[str] = "embedding"

    def __init__(self, params: Mapping[str, Any], labels: Sequence[str]) -> None:  # noqa: ARG002 (the protocol's)
        self.params = read_params(params, EmbeddingParams, "embedding")

    def __call__(self, outputs: Outputs, geometry: Geometry) -> Embedding:  # noqa: ARG002 (the protocol's)
        value = next(iter(outputs.values())) if len(outputs) == 1 else None
        if value is None or value.size == 0 or max(value.shape, default=0) != value.size:
            raise wrong_outputs("embedding", "one output of d values", outputs)
        vector = value.reshape(-1).astype(np.float64)
        length = float(np.linalg.norm(vector)) if self.params.normalize else 0.0
        return Embedding((vector / length if length > 0 else vector).astype(np.float32))


class Regression:
    """Every value of every output, in order."""

    task: ClassVar[str] = "regression"

    def __init__(self, params: Mapping[str, Any], labels: Sequence[str]) -> None:
        self.params = read_params(params, RegressionParams, "regression")
        self.names = self.params.names or tuple(labels)

    def __call__(self, outputs: Outputs, geometry: Geometry) -> Values:  # noqa: ARG002 (the protocol's)
        values = np.concatenate([value.reshape(-1).astype(np.float32) for value in outputs.values()])
        if self.names and len(self.names) != len(values):
            raise wrong_outputs("regression", f"{len(self.names)} values ({', '.join(self.names)})", outputs)
        scaled = values * np.float32(self.params.scale) + np.float32(self.params.offset)
        return Values(scaled.astype(np.float32), self.names)


def _argmax(planes: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the index of the highest plane of (c, h, w) at each pixel; the first of equals.

    Class after class, which is several times faster than argmax along a short last axis.
    """
    best = np.ascontiguousarray(planes[0])
    ids = np.zeros(best.shape, np.uint8)
    for index in range(1, len(planes)):
        plane = np.ascontiguousarray(planes[index])
        ids[plane > best] = index
        best = np.maximum(best, plane)
    return ids
