"""The self-test of an artifact: frames with the results that the converter got, and how far a device may be off."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ArtifactError, EdgeError
from edge_sdk.model import Model
from edge_sdk.schemas import document

FOLDER = "golden/"
INDEX = "golden/golden.json"
FAMILY, MAJOR = "edge.golden", 1
MAX_CASES = 64
MAX_PIXELS = 34_000_000

# How far the result of another machine may be from the converter's, by the key of the result.
TOLERANCES: Mapping[str, Mapping[str, float]] = {
    "classes": {"score": 0.1},
    "detections": {"score": 0.1, "iou": 0.6},
    "mask": {"agreement": 0.95},
    "keypoints": {"distance": 0.03, "score": 0.2},
    "values": {"absolute": 0.05, "relative": 0.1},
    "embedding": {"cosine": 0.98},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenCase:
    """A BGR uint8 `frame`, the `expected` result as JSON and the `tolerance` by name (see `TOLERANCES`)."""

    name: str
    frame: NDArray[np.uint8]
    expected: Mapping[str, Any]
    tolerance: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of `edge verify`."""

    name: str
    ok: bool
    detail: str

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "ok": self.ok, "detail": self.detail}


def golden_entries(model: Model, frames: Sequence[NDArray[Any]]) -> dict[str, bytes]:
    """Return the entries under `golden/` for `frames`, with what `model` answers on them now.

    Frames longer than the model's input and 320 pixels are made smaller first, to keep the artifact small.
    """
    reference = model.reference()
    limit = max(320, model.manifest.input.width, model.manifest.input.height)
    entries: dict[str, bytes] = {}
    cases = []
    for index, frame in enumerate(frames[:MAX_CASES]):
        small = _shrink(frame, limit)
        name = f"{index:03d}.png"
        ok, png = cv2.imencode(".png", small, [cv2.IMWRITE_PNG_COMPRESSION, 9])
        if not ok:
            raise ArtifactError(f"golden frame {index} cannot be written as PNG", hint="give uint8 BGR frames")
        entries[FOLDER + name] = png.tobytes()
        result = reference(small)
        cases.append(
            {"frame": name, "expected": result.to_json(), "tolerance": _tolerance(result.to_json(), reference)}
        )
    entries[INDEX] = document.dumps_pretty({"schema": f"{FAMILY}/{MAJOR}", "cases": cases})
    return entries


def read_golden(names: Iterable[str], read: Callable[[str], bytes]) -> tuple[GoldenCase, ...]:
    """Return the cases of an artifact that has entries `names`; none when it has no `golden/golden.json`.

    Raises:
        SchemaError: the index has not the form.
        ArtifactError: a frame is missing, no PNG, or too large.
    """
    known = set(names)
    if INDEX not in known:
        return ()
    data = document.loads_object(read(INDEX), where=INDEX)
    document.check_schema(data.get("schema"), FAMILY, MAJOR, where=INDEX)
    rows = data.get("cases")
    if not isinstance(rows, list) or len(rows) > MAX_CASES:
        raise ArtifactError(f"{INDEX} has not a list of at most {MAX_CASES} `cases`", hint="convert the model again")
    cases = []
    for number, row in enumerate(rows):
        shaped = isinstance(row, dict) and isinstance(row.get("expected"), dict) and isinstance(row.get("frame"), str)
        tolerance = row.get("tolerance", {}) if shaped else None
        if not isinstance(tolerance, dict) or not all(type(v) in (int, float) for v in tolerance.values()):
            raise ArtifactError(
                f"case {number} of {INDEX} has not `frame`, `expected` and `tolerance`", hint="convert the model again"
            )
        name = FOLDER + row["frame"]
        if name not in known:
            raise ArtifactError(
                f"{INDEX} names `{row['frame'][:80]}`, which the artifact has not", hint="convert again"
            )
        frame = _read_png(read(name), name)
        cases.append(GoldenCase(name=name, frame=frame, expected=row["expected"], tolerance=tolerance))
    return tuple(cases)


def check_golden(model: Model, cases: Iterable[GoldenCase]) -> list[Check]:
    """Return one check a case: does the model answer here as it did where it was converted?

    The manifest's own decoder params are used, whatever the model was opened with.
    """
    reference = model.reference()
    checks = []
    for case in cases:
        try:
            problem = compare(case.expected, reference(case.frame).to_json(), case.tolerance)
        except EdgeError as error:
            problem = error.message
        checks.append(Check(name=case.name, ok=problem is None, detail=problem or "as expected"))
    return checks


def compare(expected: Mapping[str, Any], found: Mapping[str, Any], tolerance: Mapping[str, float]) -> str | None:
    """Return why `found` is not the `expected` result within `tolerance`, None when it is."""
    for key, defaults in TOLERANCES.items():
        if key not in expected:
            continue
        if key not in found:
            return f"expected {key}, found {', '.join(found) or 'nothing'}"
        try:
            return _COMPARE[key](expected[key], found[key], {**defaults, **tolerance})
        except (KeyError, TypeError, ValueError, IndexError) as error:
            return f"the expected {key} cannot be read: {error!r}"
    return None if expected == found else "the result differs"


def _compare_classes(expected: Any, found: Any, tolerance: Mapping[str, float]) -> str | None:
    limit = tolerance["score"]
    scores = {row["class_id"]: row["score"] for row in found}
    floor = min(scores.values(), default=0.0)
    for row in expected:
        score = scores.get(row["class_id"], min(floor, row["score"]))
        if abs(score - row["score"]) > limit:
            return f"`{row['label']}` scores {score:.3f}, expected {row['score']:.3f} within {limit:g}"
    wanted = {row["class_id"]: row["score"] for row in expected}
    best, top = found[0], expected[0]
    if best["class_id"] != top["class_id"] and top["score"] - wanted.get(best["class_id"], 0.0) > limit:
        return f"the best class is `{best['label']}`, expected `{top['label']}`"
    return None


def _compare_detections(expected: Any, found: Any, tolerance: Mapping[str, float]) -> str | None:
    """Match greedily, strongest first; what is within `score` of the threshold (`floor`) may come or go."""
    floor = tolerance.get("floor", 0.0)
    left = list(found)
    for row in expected:
        overlaps = [(_iou(row["box"], other["box"]), i) for i, other in enumerate(left)]
        same = [(iou, i) for iou, i in overlaps if left[i]["class_id"] == row["class_id"]]
        iou, index = max(same, default=(0.0, -1))
        if iou < tolerance["iou"]:
            if row["score"] >= floor:
                return f"no `{row['label']}` at {_box(row)}, expected one with score {row['score']:.3f}"
            continue
        other = left.pop(index)
        if abs(other["score"] - row["score"]) > tolerance["score"]:
            wanted = f"expected {row['score']:.3f} within {tolerance['score']:g}"
            return f"`{row['label']}` at {_box(row)} scores {other['score']:.3f}, {wanted}"
    for other in left:
        if other["score"] >= floor:
            return f"unexpected `{other['label']}` at {_box(other)} with score {other['score']:.3f}"
    return None


def _compare_mask(expected: Any, found: Any, tolerance: Mapping[str, float]) -> str | None:
    if expected["size"] != found["size"]:
        return f"the mask is {found['size']}, expected {expected['size']}"
    pixels = int(np.prod(expected["size"]))
    wanted, got = (_mask_ids(mask, pixels) for mask in (expected, found))
    agreement = float((wanted == got).mean())
    if agreement < tolerance["agreement"]:
        return f"{agreement:.1%} of the mask agrees, expected {tolerance['agreement']:.1%}"
    return None


def _compare_keypoints(expected: Any, found: Any, tolerance: Mapping[str, float]) -> str | None:
    if len(expected) != len(found):
        return f"{len(found)} keypoints, expected {len(expected)}"
    points = np.array([[row["x"], row["y"]] for row in expected], np.float64)
    reach = float(np.hypot(*(points.max(axis=0) - points.min(axis=0)))) if len(points) else 0.0
    limit = tolerance["distance"] * max(reach, tolerance.get("diagonal", 0.0), 1.0)
    for row, other in zip(expected, found, strict=True):
        off = float(np.hypot(row["x"] - other["x"], row["y"] - other["y"]))
        if row["score"] >= 0.3 and off > limit:
            return f"`{row['name']}` is {off:.1f} pixels off, expected at most {limit:.1f}"
        if abs(row["score"] - other["score"]) > tolerance["score"]:
            return f"`{row['name']}` scores {other['score']:.3f}, expected {row['score']:.3f}"
    return None


def _compare_values(expected: Any, found: Any, tolerance: Mapping[str, float]) -> str | None:
    if list(expected) != list(found):
        return f"values {', '.join(found)}, expected {', '.join(expected)}"
    for name, value in expected.items():
        limit = tolerance["absolute"] + tolerance["relative"] * abs(value)
        if abs(found[name] - value) > limit:
            return f"`{name}` is {found[name]:.4g}, expected {value:.4g} within {limit:.3g}"
    return None


def _compare_embedding(expected: Any, found: Any, tolerance: Mapping[str, float]) -> str | None:
    wanted, got = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    if wanted.shape != got.shape:
        return f"{got.size} values, expected {wanted.size}"
    norm = float(np.linalg.norm(wanted) * np.linalg.norm(got))
    cosine = float(wanted @ got) / norm if norm else float(np.array_equal(wanted, got))
    return None if cosine >= tolerance["cosine"] else f"cosine {cosine:.4f}, expected {tolerance['cosine']:g}"


_COMPARE: Mapping[str, Callable[[Any, Any, Mapping[str, float]], str | None]] = {
    "classes": _compare_classes,
    "detections": _compare_detections,
    "mask": _compare_mask,
    "keypoints": _compare_keypoints,
    "values": _compare_values,
    "embedding": _compare_embedding,
}


def _tolerance(result: Mapping[str, Any], model: Model) -> dict[str, float]:
    for key, defaults in TOLERANCES.items():
        if key in result:
            tolerance = dict(defaults)
            threshold = getattr(getattr(model.decoder, "params", None), "score", None)
            if key == "detections" and isinstance(threshold, float):
                tolerance["floor"] = round(threshold + tolerance["score"], 6)
            return tolerance
    return {}


def _mask_ids(mask: Mapping[str, Any], pixels: int) -> NDArray[np.int32]:
    """Return class ids, column by column, of a mask's segments; -1 where there is none."""
    ids = np.full(pixels, -1, np.int32)
    for segment in mask["segments"]:
        counts = np.asarray(segment["counts"], np.int64)
        if counts.size == 0 or counts.min() < 0 or counts.sum() != pixels:
            raise ValueError(f"counts of class {segment['class_id']} do not cover the mask")
        ids[np.repeat(np.arange(len(counts)) % 2 == 1, counts)] = int(segment["class_id"])
    return ids


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def _box(row: Mapping[str, Any]) -> str:
    return "[" + ", ".join(f"{v:.0f}" for v in row["box"]) + "]"


def _shrink(frame: NDArray[Any], limit: int) -> NDArray[Any]:
    height, width = frame.shape[:2]
    scale = limit / max(height, width)
    if scale >= 1:
        return frame
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))


def _read_png(raw: bytes, name: str) -> NDArray[np.uint8]:
    width, height = struct.unpack(">II", raw[16:24]) if raw[:8] == b"\x89PNG\r\n\x1a\n" and len(raw) > 24 else (0, 0)
    if not 0 < width * height <= MAX_PIXELS:
        raise ArtifactError(
            f"`{name}` is {width}x{height} pixels or no PNG, the limit is {MAX_PIXELS}", hint="convert the model again"
        )
    image = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ArtifactError(f"`{name}` cannot be read as PNG", hint="convert the model again")
    return np.asarray(image, np.uint8)
