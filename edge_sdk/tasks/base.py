"""Results of a task as small typed arrays, and what a decoder is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ArtifactError, UsageError
from edge_sdk.parsing import read_dataclass

T = TypeVar("T")

Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the model's input lies in the frame: `x_frame = (x_input - pad_x) / scale_x`, the same for y; pixels."""

    frame_width: int
    frame_height: int
    input_width: int
    input_height: int
    scale_x: float
    scale_y: float
    pad_x: float = 0.0
    pad_y: float = 0.0

    def boxes_to_frame(self, boxes: Float) -> Float:
        """Map (n, 4) x1 y1 x2 y2 boxes from input pixels to frame pixels, clipped to the frame."""
        out = np.empty((len(boxes), 4), np.float32)
        out[:, 0::2] = np.clip((boxes[:, 0::2] - self.pad_x) / self.scale_x, 0, self.frame_width)
        out[:, 1::2] = np.clip((boxes[:, 1::2] - self.pad_y) / self.scale_y, 0, self.frame_height)
        return out

    def points_to_frame(self, points: Float) -> Float:
        """Map (n, 2) x y points from input pixels to frame pixels."""
        shift = np.array([self.pad_x, self.pad_y], np.float32)
        return ((points - shift) / np.array([self.scale_x, self.scale_y], np.float32)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Detections:
    """Boxes (n, 4) float32 x1 y1 x2 y2 in pixels of the upright frame.

    `score` is (n,) float32 in [0, 1], `class_id` (n,) int32.
    """

    xyxy: Float
    score: Float
    class_id: NDArray[np.int32]
    labels: Sequence[str] = ()
    track_id: NDArray[np.int64] | None = None
    keypoints: Float | None = None

    def __len__(self) -> int:
        return len(self.score)

    @classmethod
    def empty(cls, labels: Sequence[str] = ()) -> Detections:
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), labels)

    def __getitem__(self, index: Any) -> Detections:
        """Select rows by a slice, a boolean mask or an index array."""
        return replace(
            self,
            xyxy=self.xyxy[index],
            score=self.score[index],
            class_id=self.class_id[index],
            track_id=None if self.track_id is None else self.track_id[index],
            keypoints=None if self.keypoints is None else self.keypoints[index],
        )

    def label(self, class_id: int) -> str:
        return self.labels[class_id] if 0 <= class_id < len(self.labels) else str(class_id)

    def to_json(self) -> dict[str, Any]:
        rows = []
        for i in range(len(self)):
            cid = int(self.class_id[i])
            row: dict[str, Any] = {
                "box": [round(float(v), 2) for v in self.xyxy[i]],
                "score": round(float(self.score[i]), 4),
                "class_id": cid,
                "label": self.label(cid),
            }
            if self.track_id is not None and self.track_id[i] >= 0:
                row["track"] = int(self.track_id[i])
            if self.keypoints is not None:
                row["keypoints"] = [[round(float(x), 2), round(float(y), 2)] for x, y in self.keypoints[i]]
            rows.append(row)
        return {"detections": rows}


@dataclass(frozen=True, slots=True)
class Classes:
    """Probabilities (c,) float32 over all classes."""

    probs: Float
    labels: Sequence[str] = ()
    top: int = 5

    def label(self, class_id: int) -> str:
        return self.labels[class_id] if 0 <= class_id < len(self.labels) else str(class_id)

    @property
    def class_id(self) -> int:
        return int(np.argmax(self.probs))

    @property
    def score(self) -> float:
        return float(self.probs.max())

    def to_json(self) -> dict[str, Any]:
        order = np.argsort(-self.probs, kind="stable")[: self.top]
        rows = [
            {"class_id": int(i), "label": self.label(int(i)), "score": round(float(self.probs[i]), 4)} for i in order
        ]
        return {"classes": rows}


class Result(Protocol):
    """One frame's answer of one model."""

    def to_json(self) -> dict[str, Any]: ...


class Decoder(Protocol):
    """Turns a model's float32 outputs into a result.

    A constructor takes `(params: Mapping[str, Any], labels: Sequence[str])` and raises UsageError on unknown or wrong
    params.
    """

    task: str

    def __init__(self, params: Mapping[str, Any], labels: Sequence[str]) -> None: ...

    def __call__(self, outputs: Mapping[str, NDArray[Any]], geometry: Geometry) -> Result: ...


def read_params(params: Mapping[str, Any], cls: type[T], decoder: str) -> T:
    """Read a decoder's params as the dataclass `cls`.

    Raises:
        UsageError: params are unknown or wrong; all of them are named.
    """
    value, problems = read_dataclass(params, cls)
    if value is None:
        raise UsageError(
            f"params of decoder `{decoder}`: " + "; ".join(problems),
            hint="they stand in the manifest's decoder, and in the stage's params",
        )
    return value


def wrong_outputs(decoder: str, expected: str, outputs: Mapping[str, NDArray[Any]]) -> ArtifactError:
    """Return the error of a decoder that does not fit the model it is given."""
    found = ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items()) or "no outputs"
    return ArtifactError(
        f"decoder `{decoder}` expects {expected}, the model gives {found}",
        hint="name the model's decoder when converting",
    )
