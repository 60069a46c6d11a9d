"""Whatever stands in label files: an error that names the file, or a set that can be judged, never a traceback."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converters import datasets
from converters.masks import read_mask
from converters.metrics import task
from edge_sdk.errors import EdgeError

PICTURE = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
words = st.sampled_from(
    ["a.png", "file", "class_index", "yaw", "0", "1", "-1", "nan", "1e9", ",", "\n", '"', "\0", "é"]
)
lines = st.lists(words, max_size=30).map("".join)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 1 << 40), st.floats(), st.sampled_from(["a.png", "person", ""])
)
KEYS = (
    "images",
    "annotations",
    "categories",
    "id",
    "file_name",
    "bbox",
    "image_id",
    "category_id",
    "keypoints",
    "name",
)
keys = st.sampled_from(KEYS)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=6)),
    max_leaves=20,
)


def folder(name: str, content: bytes) -> Path:
    root = Path(tempfile.mkdtemp())
    for place in (root, root / "images"):
        place.mkdir(exist_ok=True)
        (place / "a.png").write_bytes(PICTURE)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)
    return root


def loads_or_says_why(root: Path) -> None:
    with contextlib.suppress(EdgeError):
        found = datasets.load(root)
        if found.task is not None:
            sizes = {s.image: (4, 4) for s in found.samples}
            task.labelled(found.task, found, sizes, 3, ("person", "dog", "cat"))
    shutil.rmtree(root)


@quick
@given(lines)
def test_any_labels_csv(text):
    loads_or_says_why(folder("labels.csv", text.encode()))


@quick
@given(lines)
def test_any_yolo_file(text):
    loads_or_says_why(folder("labels/a.txt", text.encode()))


@quick
@given(values)
def test_any_coco_file(document):
    raw = json.dumps({"images": [{"id": 1, "file_name": "a.png"}], "annotations": [document], "categories": document})
    loads_or_says_why(folder("coco.json", raw.encode()))
    loads_or_says_why(folder("coco.json", json.dumps({"images": document}).encode()))


@quick
@given(st.binary(max_size=80), st.integers(0, 200), st.booleans())
def test_any_mask(noise, cut, palette):
    ids = np.arange(64, dtype=np.uint8).reshape(8, 8)
    raw = bytearray(cv2.imencode(".png", ids)[1].tobytes())
    raw[25] = 3 if palette else raw[25]
    raw[cut : cut + len(noise)] = noise
    root = folder("masks/a.png", bytes(raw))
    with contextlib.suppress(EdgeError):
        read_mask(root / "masks/a.png", 8)
    loads_or_says_why(root)
