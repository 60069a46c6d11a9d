"""Data sets in every layout, and what is wrong with broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from converters import datasets, images
from converters.masks import read_mask
from edge_sdk.errors import CalibrationError, UsageError


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(noise, (64, 48), interpolation=cv2.INTER_CUBIC))
    return path


def test_class_folders_are_numbered_in_the_order_of_their_names(tmp_path):
    picture(tmp_path / "cat/a.png")
    picture(tmp_path / "dog/b.png")

    found = datasets.load(tmp_path)

    assert (found.kind, found.names, found.task) == ("classes", ("cat", "dog"), "classification")
    assert [s.class_id for s in found.samples] == [0, 1]


def test_folders_whose_names_are_numbers_are_those_classes(tmp_path):
    for name in ("2", "10"):
        picture(tmp_path / name / "a.png")

    assert {s.class_id for s in datasets.load(tmp_path).samples} == {2, 10}


def test_labels_csv_names_files_and_classes(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,class_index,name\na.png,7,dog\n")

    assert datasets.load(tmp_path).samples[0].class_id == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,1\n", "has the columns file, label, expected file,class_index"),
        ("file,class_index\na.png,dog\n", "line 2: class_index `dog` is not a number from 0"),
        ("file,class_index\nb.png,1\n", "line 2: no such image: b.png"),
    ],
)
def test_a_wrong_labels_csv_is_named_with_its_line(tmp_path, text, message):
    picture(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(text)

    with pytest.raises(CalibrationError) as caught:
        datasets.load(tmp_path)

    assert message in caught.value.message


@pytest.mark.parametrize("nested", ["", "train2017/"])
@pytest.mark.parametrize("names", ["names: [cat, dog]", "names:\n  - cat\n  - dog", "names:\n  0: cat\n  1: 'dog'"])
def test_yolo_labels_become_boxes_in_shares_of_the_image(tmp_path, nested, names):
    picture(tmp_path / f"images/{nested}a.png")
    label = tmp_path / f"labels/{nested}a.txt"
    label.parent.mkdir(parents=True)
    label.write_text("1 0.5 0.5 0.2 0.4\n")
    (tmp_path / "classes.yaml").write_text(f"path: /elsewhere\n{names}\n")

    found = datasets.load(tmp_path)

    box = found.samples[0].boxes[0]
    assert (found.kind, found.names, box.class_id, box.relative) == ("yolo", ("cat", "dog"), 1, True)
    assert (box.x1, box.y2) == pytest.approx((0.4, 0.7))


def test_a_yolo_label_outside_the_classes_is_named_with_its_line(tmp_path):
    picture(tmp_path / "images/a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("5 0.5 0.5 0.2 0.4\n")
    (tmp_path / "classes.yaml").write_text("names: [cat, dog]\n")

    with pytest.raises(CalibrationError, match=r"a.txt, line 1: .* is outside the 2 classes"):
        datasets.load(tmp_path)


def test_voc_annotations_name_their_classes(tmp_path):
    picture(tmp_path / "images/a.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/a.xml").write_text(
        "<annotation><object><name>cell</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        "</object></annotation>"
    )

    found = datasets.load(tmp_path)

    assert (found.kind, found.names) == ("voc", ("cell",))
    assert (found.samples[0].boxes[0].x1, found.samples[0].boxes[0].x2) == (1, 9)


def test_an_annotation_with_entities_is_refused(tmp_path):
    picture(tmp_path / "images/a.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/a.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>')

    with pytest.raises(CalibrationError, match="declares XML entities"):
        datasets.load(tmp_path)


def test_coco_json_maps_category_ids_to_a_row_of_classes(tmp_path):
    picture(tmp_path / "images/a.png")
    data = {
        "images": [{"id": 4, "file_name": "a.png"}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [{"image_id": 4, "category_id": 9, "bbox": [1, 2, 3, 4], "iscrowd": 0}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(data))

    found = datasets.load(tmp_path)

    assert (found.kind, found.names, found.samples[0].boxes[0].class_id) == ("coco", ("cat", "dog"), 1)


def test_images_without_labels_have_no_task(tmp_path):
    picture(tmp_path / "a.png")

    assert datasets.load(tmp_path).task is None


def test_an_empty_folder_and_a_missing_one_are_named(tmp_path):
    with pytest.raises(CalibrationError, match="has no images"):
        datasets.load(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        datasets.load(tmp_path / "no")


def test_halves_of_a_folder_stay_when_images_are_added(tmp_path):
    for i in range(20):
        picture(tmp_path / f"{i}.png", i)
    first, second = datasets.split_in_half(datasets.load(tmp_path))
    picture(tmp_path / "new.png", 99)
    again, _ = datasets.split_in_half(datasets.load(tmp_path))

    assert {s.image for s in first.samples} <= {s.image for s in again.samples}
    assert not {s.image for s in first.samples} & {s.image for s in second.samples}
    assert len(first) + len(second) == 20


def test_copies_and_recompressed_copies_are_found_and_other_pictures_are_not(tmp_path):
    first = picture(tmp_path / "a.png", 1)
    (tmp_path / "copy.png").write_bytes(first.read_bytes())
    cv2.imwrite(str(tmp_path / "again.jpg"), cv2.imread(str(first)), [cv2.IMWRITE_JPEG_QUALITY, 85])
    picture(tmp_path / "other.png", 2)

    rows = {Path(r["image"]).name: r for r in images.scan([str(p) for p in sorted(tmp_path.iterdir())])["rows"]}
    pairs = images.shared([rows["a.png"]], [rows["copy.png"], rows["again.jpg"], rows["other.png"]])

    assert [Path(second).name for _, second in pairs] == ["copy.png", "again.jpg"]


def test_an_unreadable_image_is_a_row_with_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")

    assert images.scan([str(tmp_path / "a.png")])["rows"][0]["error"] == "cannot be decoded as an image"


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [("bccd", "voc", 60), ("cifar10_test", "classes", 600), ("coco128_train2017", "yolo", 128)],
)
def test_the_real_data_sets_are_read(testdata, name, kind, count):
    found = datasets.load(testdata / "datasets" / name)

    assert (found.kind, len(found)) == (kind, count)


def mask(path: Path, ids: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), ids.astype(np.uint8))
    return path


def palette_png(path: Path, ids: np.ndarray, bits: int = 8) -> Path:
    """A PNG of palette indices, as Pascal VOC's masks are; the palette is bright where the index is small."""
    import struct
    import zlib

    rows = ids.astype(np.uint8)
    if bits < 8:
        per_byte = 8 // bits
        shifts = np.arange(per_byte)[::-1] * bits
        rows = (rows.reshape(rows.shape[0], -1, per_byte) << shifts).sum(axis=2).astype(np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, 3, 0, 0, 0)
    colours = bytes(v for i in range(2**bits) for v in (255 - i % 256, 10, 10))
    parts = [chunk(b"IHDR", head), chunk(b"PLTE", colours), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_masks_stand_beside_their_images(tmp_path):
    picture(tmp_path / "images/a.png")
    mask(tmp_path / "masks/a.png", np.zeros((4, 4)))

    found = datasets.load(tmp_path)

    assert (found.kind, found.task, found.samples[0].mask) == ("masks", "segmentation", tmp_path / "masks/a.png")


def test_an_image_without_a_mask_is_named_unless_other_labels_stand_beside_it(tmp_path):
    for name in "ab":
        picture(tmp_path / f"images/{name}.png")
    mask(tmp_path / "masks/a.png", np.zeros((4, 4)))

    with pytest.raises(CalibrationError, match="has no mask for 1 of the 2 images, such as b.png"):
        datasets.load(tmp_path)

    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("0 .5 .5 .2 .2\n")
    found = datasets.load(tmp_path)
    assert (found.task, found.serves("segmentation")) == ("detection", True)
    assert [s.image.name for s in found.for_task("segmentation").samples] == ["a.png"]
    assert len(found.for_task("detection")) == 2


@pytest.mark.parametrize("bits", [8, 4, 1])
def test_the_indices_of_a_palette_are_the_class_ids(tmp_path, bits):
    ids = np.random.default_rng(0).integers(0, 2**bits, (16, 16))

    assert read_mask(palette_png(tmp_path / "m.png", ids, bits), 16).tolist() == ids.tolist()


def test_gray_masks_are_class_ids_and_coloured_or_broken_ones_are_refused(tmp_path):
    ids = np.random.default_rng(0).integers(0, 255, (16, 16))
    assert read_mask(mask(tmp_path / "gray.png", ids), 16).tolist() == ids.tolist()
    with pytest.raises(CalibrationError, match="has colours, expected one channel of 8-bit class ids"):
        read_mask(picture(tmp_path / "colour.png"), 16)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 30)
    with pytest.raises(CalibrationError, match="cannot read the mask"):
        read_mask(tmp_path / "broken.png", 16)


def test_columns_of_numbers_are_values_to_be_regressed(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,yaw,pitch\na.png,-12.5,3\n")

    found = datasets.load(tmp_path)

    assert (found.kind, found.task, found.names) == ("values", "regression", ("yaw", "pitch"))
    assert found.samples[0].values == (-12.5, 3.0)


def test_a_value_that_is_no_number_is_named_with_its_line(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,yaw\na.png,1\na.png,nan\n")

    with pytest.raises(CalibrationError, match="line 3: yaw `nan` is not a number"):
        datasets.load(tmp_path)


def coco_poses(tmp_path: Path, keypoints: list[float]) -> Path:
    picture(tmp_path / "images/a.png")
    person = {"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 50, "keypoints": keypoints}
    document = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "person", "keypoints": ["nose", "tail"]}],
        "annotations": [person],
    }
    (tmp_path / "poses.json").write_text(json.dumps(document))
    return tmp_path


def test_coco_keypoints_are_poses_with_the_names_of_their_points(tmp_path):
    found = datasets.load(coco_poses(tmp_path, [1, 2, 2, 3, 4, 0]))

    assert found.serves("keypoints")
    assert found.serves("detection")
    assert found.points == ("nose", "tail")
    assert found.samples[0].poses[0].points == ((1.0, 2.0, 2.0), (3.0, 4.0, 0.0))


def test_a_wrong_annotation_is_named_by_its_number_and_id(tmp_path):
    with pytest.raises(CalibrationError) as caught:
        datasets.load(coco_poses(tmp_path, [1, 2, 2, 3]))

    assert "annotation 0 (id 7): ValueError 4 keypoint numbers are not (x, y, v) triples" in caught.value.message
    assert "keypoints [x, y, v, …]" in caught.value.hint


def test_boxes_without_a_corner_or_turned_round_are_named(tmp_path):
    root = coco_poses(tmp_path / "coco", [])
    text = (root / "poses.json").read_text()
    (root / "poses.json").write_text(text.replace("[1, 2, 3, 4]", "[1, 2, -3, 4]"))
    with pytest.raises(CalibrationError, match=r"annotation 0 \(id 7\): ValueError bbox \[1, 2, -3, 4\] is no box"):
        datasets.load(root)
    picture(tmp_path / "voc/images/a.png")
    (tmp_path / "voc/annotations").mkdir()
    (tmp_path / "voc/annotations/a.xml").write_text(
        "<a><object><name>x</name><bndbox><xmin>9</xmin><ymin>1</ymin><xmax>3</xmax></bndbox></object></a>"
    )
    with pytest.raises(CalibrationError, match="a.xml is not a VOC annotation: bndbox 9"):
        datasets.load(tmp_path / "voc")
