"""COCO annotation files: boxes and poses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from converters.samples import Box, DataSet, Person, Sample
from edge_sdk.errors import CalibrationError


def find(root: Path) -> Path | None:
    """Return the first .json of the folder that looks like COCO annotations."""
    for path in sorted([*root.glob("*.json"), *(root / "annotations").glob("*.json")]):
        with path.open("rb") as file:
            head = file.read(1 << 16)
        if b'"images"' in head or b'"annotations"' in head or b'"categories"' in head:
            return path
    return None


def read(root: Path, path: Path) -> DataSet:
    """Return the set that the file describes; its images lie in `root`, in images/ or one folder deeper.

    Raises:
        CalibrationError: it is none, or names an image that is not there.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
        categories = sorted(data["categories"], key=lambda c: int(c["id"]))
        index = {int(c["id"]): i for i, c in enumerate(categories)}
        files = {int(i["id"]): str(i["file_name"]) for i in data["images"]}
        boxes: dict[int, list[Box]] = {key: [] for key in files}
        people: dict[int, list[Person]] = {key: [] for key in files}
        for number, item in enumerate(data["annotations"]):
            try:
                boxes[int(item["image_id"])].append(_box(item, index))
                if any(item.get("keypoints") or ()):
                    people[int(item["image_id"])].append(_person(item))
            except (ValueError, KeyError, TypeError) as error:
                raise CalibrationError(
                    f"{path}, annotation {number} (id {item.get('id')}): {type(error).__name__} {error}",
                    hint="expected image_id, category_id, bbox [x, y, w, h] and, for poses, keypoints [x, y, v, …]",
                ) from None
        names = tuple(str(c["name"]) for c in categories)
        points = next((tuple(str(n) for n in c["keypoints"]) for c in categories if c.get("keypoints")), ())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CalibrationError(
            f"{path} is not a COCO annotation file: {type(error).__name__} {error}",
            hint="expected images[id, file_name], annotations[image_id, category_id, bbox], categories[id, name]",
        ) from None
    places = [root, root / "images", *(p for p in [*root.glob("*/"), *(root / "images").glob("*/")])]
    samples = []
    for key, name in files.items():
        image = next((p / name for p in places if (p / name).is_file()), None)
        if image is None:
            raise CalibrationError(f"{path} names `{name}`, which is not in {root} or {root / 'images'}")
        samples.append(Sample(image=image, boxes=tuple(boxes[key]), poses=tuple(people[key]) if points else None))
    return DataSet(root=root, kind="coco", samples=tuple(samples), names=names, points=points)


def _box(item: dict[str, Any], index: dict[int, int]) -> Box:
    x, y, w, h = (float(v) for v in item["bbox"])
    if not all(math.isfinite(v) for v in (x, y, w, h)) or w < 0 or h < 0:
        raise ValueError(f"bbox {item['bbox']} is no box")
    return Box(index[int(item["category_id"])], x, y, x + w, y + h, ignore=bool(item.get("iscrowd", 0)))


def _person(item: dict[str, Any]) -> Person:
    numbers = [float(v) for v in item["keypoints"]]
    if len(numbers) % 3:
        raise ValueError(f"{len(numbers)} keypoint numbers are not (x, y, v) triples")
    points = tuple((x, y, v) for x, y, v in zip(*[iter(numbers)] * 3, strict=True))
    return Person(points, float(item.get("area") or 0.0))
