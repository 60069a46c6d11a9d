"""Labelled and unlabelled image folders, in the layouts that `convert`, `verify` and the trainers read."""

from __future__ import annotations

import csv
import hashlib
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from converters import coco
from converters.samples import Box, DataSet, Sample
from edge_sdk.errors import CalibrationError, UsageError

__all__ = ["SUFFIXES", "Box", "DataSet", "Sample", "load", "split_in_half"]
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm"})
_CLASS_WORDS = frozenset({"label", "labels", "class", "classes", "class_id", "category", "target", "name"})
"""Columns that mean a class: a file with one of them and no class_index is no table of regressed values."""


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
    annotations = coco.find(root)
    found: DataSet | None = None
    if annotations is not None:
        found = coco.read(root, annotations)
    elif images.is_dir() and any((root / "annotations").glob("*.xml")):
        found = _voc(root)
    elif images.is_dir() and (root / "labels").is_dir():
        found = _yolo(root)
    if found is None and (root / "labels.csv").is_file():
        return _csv(root)
    if images.is_dir() and (root / "masks").is_dir():
        return _with_masks(root, found)
    if found is not None:
        return found
    folders = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".") and _images(p)]
    if folders and not _images(root) and not (len(folders) == 1 and folders[0].name == "images"):
        return _class_folders(root, folders)
    where = images if images.is_dir() else root
    return DataSet(
        root=root, kind="images", samples=tuple(Sample(image=p) for p in _images(where, deep=images.is_dir()))
    )


def _with_masks(root: Path, found: DataSet | None) -> DataSet:
    """Return images/X with masks/X.png; beside other labels images may lack a mask, without them none may."""
    masks = {p.relative_to(root / "masks").with_suffix(""): p for p in sorted((root / "masks").rglob("*.png"))}
    images = _images(root / "images", deep=True)
    samples = found.samples if found is not None else tuple(Sample(image=p) for p in images)
    keys = {s.image: s.image.relative_to(root / "images").with_suffix("") for s in samples
            if s.image.is_relative_to(root / "images")}  # fmt: skip
    lost = [s.image for s in samples if keys.get(s.image) not in masks]
    if found is None and (lost or not samples):
        named = lost[0].name if lost else "X"
        raise CalibrationError(
            f"{root / 'masks'} has no mask for {len(lost)} of the {len(samples)} images, such as {named}",
            hint="images/X.jpg needs masks/X.png, one channel of class ids, 255 where pixels do not count",
        )
    labelled = tuple(replace(s, mask=masks.get(keys[s.image]) if s.image in keys else None) for s in samples)
    if found is not None:
        return replace(found, samples=labelled)
    return DataSet(root=root, kind="masks", samples=labelled, names=_yaml_names(root))


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
    """Read labels.csv: `file,class_index` (and `name`), or `file` and columns of numbers to be regressed."""
    path = root / "labels.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CalibrationError(f"cannot read {path}: {error}", hint="it must be UTF-8 CSV") from None
    columns = [str(c).strip() for c in (rows[0] if rows else {}) if c is not None]
    others = [c for c in columns if c != "file"]
    regressed = bool(others) and not _CLASS_WORDS & {c.lower() for c in others} and _is_number(rows[0][others[0]])
    if "file" not in columns or not ("class_index" in columns or regressed):
        found = ", ".join(columns) or "nothing"
        raise CalibrationError(
            f"{path} has the columns {found}, expected file,class_index",
            hint="add a header line; for regression: file and one column of numbers for each value",
        )
    for number, row in enumerate(rows, 2):
        if not (root / (row["file"] or "")).is_file():
            raise CalibrationError(f"{path}, line {number}: no such image: {row['file']}", hint="correct the file name")
    return _csv_classes(root, rows) if "class_index" in columns else _csv_values(root, rows, columns)


def _csv_classes(root: Path, rows: Sequence[dict[str, str]]) -> DataSet:
    samples: list[Sample] = []
    names: dict[int, str] = {}
    for number, row in enumerate(rows, 2):
        if not (row["class_index"] or "").isdigit():
            raise CalibrationError(
                f"{root / 'labels.csv'}, line {number}: class_index `{row['class_index']}` is not a number from 0",
                hint="class indices count from 0",
            )
        samples.append(Sample(image=root / row["file"], class_id=int(row["class_index"])))
        if row.get("name"):
            names[int(row["class_index"])] = row["name"]
    full = tuple(names[i] for i in sorted(names)) if sorted(names) == list(range(len(names))) else ()
    return DataSet(root=root, kind="csv", samples=tuple(samples), names=full)


def _csv_values(root: Path, rows: Sequence[dict[str, str]], columns: Sequence[str]) -> DataSet:
    wanted = [c for c in columns if c != "file"]
    samples: list[Sample] = []
    for number, row in enumerate(rows, 2):
        wrong = next((c for c in wanted if not _is_number(row.get(c))), None)
        if wrong is not None:
            raise CalibrationError(
                f"{root / 'labels.csv'}, line {number}: {wrong} `{row.get(wrong)}` is not a number",
                hint="every column but file is a value to be regressed",
            )
        samples.append(Sample(image=root / row["file"], values=tuple(float(row[c]) for c in wanted)))
    return DataSet(root=root, kind="values", samples=tuple(samples), names=tuple(wanted))


def _is_number(text: str | None) -> bool:
    try:
        return math.isfinite(float(text or ""))
    except ValueError:
        return False


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
            if not (math.isfinite(x1 + y1 + x2 + y2) and x2 >= x1 and y2 >= y1):
                raise ValueError(f"bndbox {box.findtext('xmin')} … {box.findtext('ymax')} is no box")
            hard = (item.findtext("difficult") or "0").strip() == "1"
            boxes.append(((item.findtext("name") or "").strip(), Box(0, x1 - 1, y1 - 1, x2, y2, ignore=hard)))
        return boxes
    except (ET.ParseError, ValueError) as error:
        raise CalibrationError(f"{path} is not a VOC annotation: {error}", hint="correct or remove the file") from None
