"""Results of a task as small typed arrays, in pixels of the upright frame, and where the model's input lies in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import BackendError

Float = NDArray[np.float32]
NO_CLASS = 255


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
        for axis, pad, scale, size in (
            (0, self.pad_x, self.scale_x, self.frame_width),
            (1, self.pad_y, self.scale_y, self.frame_height),
        ):
            values = (boxes[:, axis::2] - pad) / scale
            out[:, axis::2] = np.minimum(np.maximum(values, 0), size)
        return out

    def points_to_frame(self, points: Float) -> Float:
        """Map (n, 2) x y points from input pixels to frame pixels."""
        shift = np.array([self.pad_x, self.pad_y], np.float32)
        return ((points - shift) / np.array([self.scale_x, self.scale_y], np.float32)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Second:
    """What a second model said about one box.

    `result` is in pixels of the upright frame, but for a Mask, which is that of `crop` (x1, y1, x2, y2, whole pixels);
    `frame` is the frame it was asked about, an earlier one where the answer was carried along.
    """

    result: Any
    crop: tuple[int, int, int, int]
    frame: int
    carried: bool = False

    def labels(self) -> tuple[str, ...]:
        """Return the best class, or the labels of all boxes; nothing for other tasks."""
        return tuple(label for label, _ in self.found())

    def found(self) -> tuple[tuple[str, float], ...]:
        """Return label and score of the best class, or of all boxes; nothing for other tasks."""
        result = self.result
        if isinstance(result, Classes):
            return ((result.label(result.class_id), result.score),) if result.probs.size else ()
        if isinstance(result, Detections):
            pairs = zip(result.class_id.tolist(), result.score.tolist(), strict=True)
            return tuple((result.label(class_id), score) for class_id, score in pairs)
        return ()

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = dict(self.result.to_json())
        if isinstance(self.result, Mask):
            out["crop"] = list(self.crop)
        if self.carried:
            out["from_frame"] = self.frame
        return out


@dataclass(frozen=True, slots=True)
class Detections:
    """Boxes (n, 4) float32 x1 y1 x2 y2 in pixels of the upright frame.

    `score` is (n,) float32 in [0, 1], `class_id` (n,) int32; `then` has the answers of second models by their name, one
    a row, None where a row was not cut out or could not be answered.
    """

    xyxy: Float
    score: Float
    class_id: NDArray[np.int32]
    labels: Sequence[str] = ()
    track_id: NDArray[np.int64] | None = None
    keypoints: Float | None = None
    then: Mapping[str, tuple[Second | None, ...]] | None = None

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
            then=None if self.then is None else {k: _rows(v, index) for k, v in self.then.items()},
        )

    def moved(self, x: float, y: float) -> Detections:
        """Return them moved by x and y pixels."""
        keypoints = None if self.keypoints is None else self.keypoints + np.array([x, y], np.float32)
        return replace(self, xyxy=self.xyxy + np.array([x, y, x, y], np.float32), keypoints=keypoints)

    def label(self, class_id: int) -> str:
        return name_of(class_id, self.labels)

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
            then = {k: v[i].to_json() for k, v in (self.then or {}).items() if v[i] is not None}  # type: ignore[union-attr]
            if then:
                row["then"] = then
            rows.append(row)
        return {"detections": rows}

    def to_coco(self, image_id: int, categories: Mapping[int, int] | None = None) -> list[dict[str, Any]]:
        """Return rows of COCO's results format (`bbox` is x y width height); `categories` maps class to category id."""
        rows = []
        for (x1, y1, x2, y2), score, class_id in zip(
            self.xyxy.tolist(), self.score.tolist(), self.class_id.tolist(), strict=True
        ):
            category = class_id if categories is None else categories[class_id]
            box = [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)]
            rows.append({"image_id": image_id, "category_id": category, "bbox": box, "score": round(score, 5)})
        return rows

    def to_supervision(self) -> Any:
        """Return `supervision.Detections` with the class names under `data["class_name"]`.

        Raises:
            BackendError: supervision is not installed.
        """
        try:
            import supervision  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            raise BackendError("to_supervision needs `supervision`", hint="pip install supervision") from None
        names = np.array([self.label(int(i)) for i in self.class_id], dtype=str)
        return supervision.Detections(
            xyxy=self.xyxy,
            confidence=self.score,
            class_id=self.class_id.astype(int),
            tracker_id=self.track_id,
            data={"class_name": names},
        )


@dataclass(frozen=True, slots=True)
class Classes:
    """Probabilities (c,) float32 over all classes."""

    probs: Float
    labels: Sequence[str] = ()
    top: int = 5

    def label(self, class_id: int) -> str:
        return name_of(class_id, self.labels)

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


@dataclass(frozen=True, slots=True)
class Mask:
    """Class ids (h, w) uint8 on the model's output grid; `upright` brings them to the frame.

    `NO_CLASS` (255) marks pixels of the frame that the model did not see.
    """

    ids: NDArray[np.uint8]
    geometry: Geometry
    labels: Sequence[str] = ()

    def label(self, class_id: int) -> str:
        return name_of(class_id, self.labels)

    def upright(self) -> NDArray[np.uint8]:
        """Return class ids (frame_height, frame_width) uint8, each the nearest of the grid."""
        geometry = self.geometry
        rows, columns = self.ids.shape
        scale_x, scale_y = columns / geometry.input_width, rows / geometry.input_height
        a, d = geometry.scale_x * scale_x, geometry.scale_y * scale_y
        # Pixel centres: grid + 0.5 = ((frame + 0.5) * scale + pad) * grid scale.
        matrix = np.array(
            [
                [a, 0, 0.5 * a + geometry.pad_x * scale_x - 0.5],
                [0, d, 0.5 * d + geometry.pad_y * scale_y - 0.5],
            ]
        )
        cropped = geometry.pad_x < 0 or geometry.pad_y < 0
        return np.asarray(
            cv2.warpAffine(
                self.ids,
                matrix,
                (geometry.frame_width, geometry.frame_height),
                flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_CONSTANT if cropped else cv2.BORDER_REPLICATE,
                borderValue=(NO_CLASS,),
            ),
            np.uint8,
        )

    def to_json(self) -> dict[str, Any]:
        """Return one segment a class: its share of the frame and COCO's uncompressed run lengths.

        The runs go down the columns and start with pixels outside the class.
        """
        ids = self.upright()
        flat = ids.T.reshape(-1)
        starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
        ends = np.concatenate((starts[1:], [len(flat)]))
        owners = flat[starts]
        segments = []
        for class_id in np.unique(owners):
            if class_id == NO_CLASS:
                continue
            mine = owners == class_id
            edges = np.stack((starts[mine], ends[mine]), axis=1).reshape(-1)
            counts = np.diff(np.concatenate(([0], edges, [len(flat)])))
            counts = counts[:-1] if counts[-1] == 0 else counts
            pixels = int((ends[mine] - starts[mine]).sum())
            segments.append(
                {
                    "class_id": int(class_id),
                    "label": self.label(int(class_id)),
                    "share": round(pixels / len(flat), 4),
                    "counts": counts.tolist(),
                }
            )
        return {"mask": {"size": [int(s) for s in ids.shape], "segments": segments}}


@dataclass(frozen=True, slots=True)
class Keypoints:
    """One figure's points (k, 2) float32 x y in frame pixels and scores (k,) float32 in [0, 1]."""

    points: Float
    score: Float
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.score)

    def moved(self, x: float, y: float) -> Keypoints:
        """Return it moved by x and y pixels."""
        return replace(self, points=self.points + np.array([x, y], np.float32))

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                "name": name_of(i, self.names),
                "x": round(float(self.points[i, 0]), 2),
                "y": round(float(self.points[i, 1]), 2),
                "score": round(float(self.score[i]), 4),
            }
            for i in range(len(self))
        ]
        return {"keypoints": rows}


@dataclass(frozen=True, slots=True)
class Values:
    """Numbers (n,) float32 by name, in the units of the model (degrees for a head pose)."""

    values: Float
    names: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        return {"values": {name_of(i, self.names): round(float(v), 5) for i, v in enumerate(self.values)}}


@dataclass(frozen=True, slots=True)
class Embedding:
    """A vector (d,) float32 whose distances mean likeness."""

    vector: Float

    def to_json(self) -> dict[str, Any]:
        return {"embedding": [round(float(v), 6) for v in self.vector]}


def _rows(values: tuple[Any, ...], index: Any) -> tuple[Any, ...]:
    return tuple(values[i] for i in np.arange(len(values))[index])


def name_of(index: int, names: Sequence[str]) -> str:
    """Return the name at `index`, the number itself where there is none."""
    return names[index] if 0 <= index < len(names) else str(index)
