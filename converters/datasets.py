"""Labelled and unlabelled image folders, in the layouts that `convert`, `verify` and the trainers read."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edge_sdk.errors import CalibrationError, UsageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm"})
Kind = Literal["classes", "csv", "yolo", "voc", "coco", "images"]


@dataclass(frozen=True, slots=True)
class Box:
    """A labelled box x1 y1 x2 y2; in pixels, or in shares of the image where `relative`."""

    class_id: int
    x1: float
    y1: float
    x2: float
    y2: float
    relative: bool = False
    ignore: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image with its class, its boxes, or neither."""

    image: Path
    class_id: int | None = None
    boxes: tuple[Box, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Samples in the order of their file names, and the names of the classes where the folder has them."""

    root: Path
    kind: Kind
    samples: tuple[Sample, ...]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def task(self) -> str | None:
        """Return the task that the labels are for; None without labels."""
        return {"classes": "classification", "csv": "classification", "images": None}.get(self.kind, "detection")

    def keep(self, images: Iterable[Path]) -> DataSet:
        """Return the set without the samples whose image is not in `images`."""
        wanted = set(images)
        return replace(self, samples=tuple(s for s in self.samples if s.image in wanted))

    def unlabelled(self) -> DataSet:
        return replace(self, kind="images", names=(), samples=tuple(Sample(image=s.image) for s in self.samples))


def load(root: Path) -> DataSet:
    """Read the folder `root` in the first layout that fits.

    Raises:
        UsageError: it is no folder.
        CalibrationError: it has no images, or its labels are wrong; the message names the file.
    """
    if not root.exists():
        raise UsageError(f"no such folder: {root}", hint="check the path")
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder", hint="give the folder that holds the images")
    found = _detect(root)
    if not found.samples:
        raise CalibrationError(
            f"{root} has no images", hint=f"expected files such as {', '.join(sorted(SUFFIXES)[:4])} in it"
        )
    return replace(found, samples=tuple(sorted(found.samples, key=lambda s: s.image.as_posix())))


def split_in_half(data: DataSet) -> tuple[DataSet, DataSet]:
    """Return two halves by the hash of the file names, so that the split stays when images are added."""
    first = [s for s in data.samples if hashlib.sha256(s.image.name.encode()).digest()[0] % 2 == 0]
    second = [s for s in data.samples if hashlib.sha256(s.image.name.encode()).digest()[0] % 2 == 1]
    return replace(data, samples=tuple(first)), replace(data, samples=tuple(second))


def _detect(root: Path) -> DataSet:
    images = root / "images"
    coco = _coco_file(root)
    if coco is not None:
        return _coco(root, coco)
    if images.is_dir() and any((root / "annotations").glob("*.xml")):
        return _voc(root)
    if images.is_dir() and (root / "labels").is_dir():
        return _yolo(root)
    if (root / "labels.csv").is_file():
        return _csv(root)
    folders = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".") and _images(p)]
    if folders and not _images(root) and not (len(folders) == 1 and folders[0].name == "images"):
        return _class_folders(root, folders)
    where = images if images.is_dir() else root
    return DataSet(
        root=root, kind="images", samples=tuple(Sample(image=p) for p in _images(where, deep=images.is_dir()))
    )


def _images(folder: Path, *, deep: bool = False) -> list[Path]:
    walk = folder.rglob("*") if deep else folder.iterdir()
    return sorted(p for p in walk if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith("."))


def _class_folders(root: Path, folders: Sequence[Path]) -> DataSet:
    if all(f.name.isdigit() for f in folders):
        folders = sorted(folders, key=lambda f: int(f.name))
        ids = {f: int(f.name) for f in folders}
        names = tuple(str(i) for i in range(max(ids.values()) + 1))
    else:
        ids = {f: i for i, f in enumerate(folders)}
        names = tuple(f.name for f in folders)
    samples = tuple(Sample(image=p, class_id=ids[f]) for f in folders for p in _images(f, deep=True))
    return DataSet(root=root, kind="classes", samples=samples, names=names)


def _csv(root: Path) -> DataSet:
    path = root / "labels.csv"
    samples: list[Sample] = []
    names: dict[int, str] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CalibrationError(f"cannot read {path}: {error}", hint="it must be UTF-8 CSV") from None
    if not rows or not {"file", "class_index"} <= set(rows[0]):
        found = ", ".join(rows[0]) if rows else "nothing"
        raise CalibrationError(f"{path} has the columns {found}, expected file,class_index", hint="add a header line")
    for number, row in enumerate(rows, 2):
        image = root / (row["file"] or "")
        if not (row["class_index"] or "").isdigit():
            raise CalibrationError(
                f"{path}, line {number}: class_index `{row['class_index']}` is not a number from 0",
                hint="class indices count from 0",
            )
        if not image.is_file():
            raise CalibrationError(f"{path}, line {number}: no such image: {row['file']}", hint="correct the file name")
        samples.append(Sample(image=image, class_id=int(row["class_index"])))
        if row.get("name"):
            names[int(row["class_index"])] = row["name"]
    full = tuple(names[i] for i in sorted(names)) if sorted(names) == list(range(len(names))) else ()
    return DataSet(root=root, kind="csv", samples=tuple(samples), names=full)


def _yolo(root: Path) -> DataSet:
    names = _yaml_names(root)
    samples = []
    for image in _images(root / "images", deep=True):
        label = (root / "labels" / image.relative_to(root / "images")).with_suffix(".txt")
        if not label.is_file():
            label = root / "labels" / f"{image.stem}.txt"
        samples.append(Sample(image=image, boxes=_yolo_boxes(label, len(names)) if label.is_file() else ()))
    if not any(s.boxes for s in samples) and samples:
        raise CalibrationError(
            f"{root / 'labels'} labels none of the {len(samples)} images",
            hint="each images/X.jpg needs a labels/X.txt with lines `class cx cy w h`",
        )
    return DataSet(root=root, kind="yolo", samples=tuple(samples), names=names)


def _yolo_boxes(path: Path, classes: int) -> tuple[Box, ...]:
    boxes = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            class_id, (x, y, w, h) = int(float(words[0])), (float(v) for v in words[1:5])
        except ValueError:
            raise CalibrationError(
                f"{path}, line {number}: expected `class cx cy w h`, found `{line[:60]}`",
                hint="positions and sizes are shares of the image, 0 to 1",
            ) from None
        if class_id < 0 or (classes and class_id >= classes) or not all(-0.01 <= v <= 1.01 for v in (x, y, w, h)):
            raise CalibrationError(
                f"{path}, line {number}: `{line[:60]}` is outside the {classes or '?'} classes or the image",
                hint="classes count from 0; positions and sizes are shares of the image, 0 to 1",
            )
        boxes.append(Box(class_id, x - w / 2, y - h / 2, x + w / 2, y + h / 2, relative=True))
    return tuple(boxes)


def _yaml_names(root: Path) -> tuple[str, ...]:
    """Return the `names` of the first .yaml of the folder: an inline list, a block list or a block map."""
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        text = path.read_text(encoding="utf-8", errors="replace")
        match = re.search(r"^names:[ \t]*(.*)$", text, re.MULTILINE)
        if match is None:
            continue
        inline = match.group(1).split("#")[0].strip()
        if inline.startswith("["):
            body = text[match.start(1) : text.index("]", match.start(1))].lstrip("[ ")
            return tuple(_unquote(w) for w in body.replace("\n", " ").split(",") if w.strip())
        out: list[str] = []
        for line in text[match.end() :].splitlines():
            if line.strip() and not line.startswith((" ", "\t", "-")):
                break
            item = re.match(r"\s*(?:-|\d+\s*:)\s*(.+)$", line)
            if item:
                out.append(_unquote(item.group(1).split(" #")[0]))
        if out:
            return tuple(out)
    return ()


def _unquote(word: str) -> str:
    return word.strip().strip("'\"")


def _voc(root: Path) -> DataSet:
    parsed: list[tuple[Path, list[tuple[str, Box]]]] = []
    by_stem = {p.stem: p for p in _images(root / "images", deep=True)}
    for path in sorted((root / "annotations").glob("*.xml")):
        image = by_stem.get(path.stem)
        if image is not None:
            parsed.append((image, _voc_boxes(path)))
    if not parsed:
        raise CalibrationError(
            f"no file of {root / 'annotations'} has an image of the same name", hint="X.xml belongs to images/X.jpg"
        )
    names = _yaml_names(root) or tuple(sorted({name for _, boxes in parsed for name, _ in boxes}))
    index = {name: i for i, name in enumerate(names)}
    samples = []
    for image, boxes in parsed:
        unknown = next((name for name, _ in boxes if name not in index), None)
        if unknown is not None:
            raise CalibrationError(f"{image.stem}.xml has the class `{unknown}`, which the .yaml does not name")
        samples.append(Sample(image=image, boxes=tuple(replace(b, class_id=index[name]) for name, b in boxes)))
    return DataSet(root=root, kind="voc", samples=tuple(samples), names=names)


def _voc_boxes(path: Path) -> list[tuple[str, Box]]:
    raw = path.read_bytes()
    if b"<!ENTITY" in raw or b"<!DOCTYPE" in raw:
        raise CalibrationError(f"{path} declares XML entities", hint="a VOC annotation needs none: remove them")
    try:
        boxes = []
        for item in ET.fromstring(raw).iter("object"):
            box = item.find("bndbox")
            if box is None:
                raise ValueError("an object without bndbox")
            x1, y1, x2, y2 = (float(box.findtext(k) or "nan") for k in ("xmin", "ymin", "xmax", "ymax"))
            hard = (item.findtext("difficult") or "0").strip() == "1"
            boxes.append(((item.findtext("name") or "").strip(), Box(0, x1 - 1, y1 - 1, x2, y2, ignore=hard)))
        return boxes
    except (ET.ParseError, ValueError) as error:
        raise CalibrationError(f"{path} is not a VOC annotation: {error}", hint="correct or remove the file") from None


def _coco_file(root: Path) -> Path | None:
    for path in sorted([*root.glob("*.json"), *(root / "annotations").glob("*.json")]):
        with path.open("rb") as file:
            head = file.read(1 << 16)
        if b'"images"' in head or b'"annotations"' in head or b'"categories"' in head:
            return path
    return None


def _coco(root: Path, path: Path) -> DataSet:
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
        categories = sorted(data["categories"], key=lambda c: int(c["id"]))
        index = {int(c["id"]): i for i, c in enumerate(categories)}
        boxes: dict[int, list[Box]] = {int(i["id"]): [] for i in data["images"]}
        for item in data["annotations"]:
            x, y, w, h = (float(v) for v in item["bbox"])
            crowd = bool(item.get("iscrowd", 0))
            box = Box(index[int(item["category_id"])], x, y, x + w, y + h, ignore=crowd)
            boxes[int(item["image_id"])].append(box)
        files = {int(i["id"]): str(i["file_name"]) for i in data["images"]}
        names = tuple(str(c["name"]) for c in categories)
    except (ValueError, KeyError, TypeError) as error:
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
        samples.append(Sample(image=image, boxes=tuple(boxes[key])))
    return DataSet(root=root, kind="coco", samples=tuple(samples), names=names)
