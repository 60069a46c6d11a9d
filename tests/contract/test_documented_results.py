"""Every model of the test material that a runtime here can load gives the result that is documented for it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_sdk import runtimes
from edge_sdk.model import Model
from edge_sdk.schemas.manifest import DecoderSpec, InputSpec, Manifest, OutputSpec, Resize, RuntimeSpec
from edge_sdk.tasks import decoders

ENGINES = {".onnx": "onnxruntime", ".xml": "openvino", ".tflite": "litert"}
LETTERBOX = Resize(mode="letterbox", align="topleft", pad=114)


@pytest.fixture
def load(testdata: Path) -> Iterator[Callable[..., Model]]:
    """A function that opens a model of the test material with a decoder; the engine is the file's own by default."""
    opened: list[Model] = []

    def open_model(
        name: str, decoder: str, *, engine: str | None = None, labels: Any = (), params: Any = None, **image: Any
    ) -> Model:
        path = testdata / "models" / name
        engine = engine or ENGINES[path.suffix]
        table = runtimes.registry()
        if table.missing(engine):
            pytest.skip(f"{engine} is not installed")
        runtime = table.load(engine)(path, {})
        spec = runtime.inputs[0]
        shape = tuple(d or 1 for d in spec.shape)
        layout = "NHWC" if shape[3] in (1, 3) else "NCHW"
        manifest = Manifest(
            schema="edge.artifact/1",
            name=path.stem,
            version="1",
            profile="generic-cpu",
            task=decoders().plugin(decoder).capabilities["task"],
            source_sha256="0" * 64,
            parent=None,
            payload_digest="0" * 64,
            files={},
            input=InputSpec(name=spec.name, shape=shape, dtype=spec.dtype, layout=layout, **{"color": "rgb"} | image),
            outputs=tuple(
                OutputSpec(name=o.name, shape=tuple(d or 1 for d in o.shape), dtype=o.dtype, scale=o.scale, zero=o.zero)
                for o in runtime.outputs
            ),
            decoder=DecoderSpec(name=decoder, params=params or {}),
            runtime=RuntimeSpec(name=engine),
        )
        opened.append(Model(manifest, runtime, labels))
        return opened[-1]

    yield open_model
    for model in opened:
        model.close()


@pytest.fixture
def photo(testdata: Path) -> Callable[[str], Any]:
    def read(name: str) -> Any:
        image = cv2.imread(str(testdata / "photos" / name))
        assert image is not None
        return image

    return read


@pytest.fixture(scope="module")
def coco(testdata: Path) -> list[tuple[Any, Any]]:
    """(image, boxes (n, 5) class x1 y1 x2 y2 in pixels) of coco128."""
    folder = testdata / "datasets" / "coco128_train2017"
    pairs = []
    for file in sorted((folder / "images").iterdir()):
        image = cv2.imread(str(file))
        text = folder / "labels" / f"{file.stem}.txt"
        rows = np.loadtxt(text, ndmin=2) if text.exists() and text.stat().st_size else np.zeros((0, 5))
        height, width = image.shape[:2]
        centre, half = rows[:, 1:3] * [width, height], rows[:, 3:5] * [width, height] / 2
        pairs.append((image, np.concatenate((rows[:, :1], centre - half, centre + half), axis=1)))
    return pairs


@pytest.fixture(scope="module")
def coco_names(testdata: Path) -> tuple[str, ...]:
    text = (testdata / "datasets" / "coco128_train2017" / "classes.yaml").read_text()
    rows = [line.strip().partition(":") for line in text.splitlines() if line.strip()[:1].isdigit()]
    return tuple(name.strip() for _, _, name in rows)


def ap50(model: Model, pairs: list[tuple[Any, Any]], class_id: int) -> float:
    """Average precision at IoU 0.5 of one class, area under the monotone precision curve."""
    hits, scores, total = [], [], 0
    for image, truth in pairs:
        boxes = truth[truth[:, 0] == class_id, 1:]
        total += len(boxes)
        found = model(image)
        found = found[found.class_id == class_id]
        free = np.ones(len(boxes), bool)
        for box, score in zip(found.xyxy, found.score, strict=True):
            overlap = np.where(free, iou(box, boxes), 0) if len(boxes) else np.zeros(1)
            best = int(overlap.argmax())
            hit = bool(overlap[best] >= 0.5)
            if hit:
                free[best] = False
            hits.append(hit)
            scores.append(score)
    order = np.argsort(-np.array(scores), kind="stable")
    right = np.cumsum(np.array(hits)[order])
    precision = right / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    recall = right / total
    return float(np.sum(np.diff(np.concatenate(([0.0], recall))) * precision))


def iou(box: Any, boxes: Any) -> Any:
    size = np.clip(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0, None)
    inter = size[:, 0] * size[:, 1]
    area = (box[2] - box[0]) * (box[3] - box[1])
    return inter / (area + (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) - inter)


DETECTORS = {
    # name: (file, decoder, params, input, documented AP50 of persons on coco128)
    "yolox": ("yolox_nano_416.onnx", "yolox", {}, {"color": "bgr", "resize": LETTERBOX}, 0.6314),
    "nanodet": (
        "nanodet_m_320.onnx",
        "nanodet",
        {},
        {
            "color": "bgr",
            "resize": Resize(mode="letterbox", pad=0),
            "mean": (103.53, 116.28, 123.675),
            "std": (57.375, 57.12, 58.395),
        },
        0.5749,
    ),
    "fastestdet": ("fastestdet_352.onnx", "fastestdet", {}, {"color": "bgr", "std": (255.0,)}, 0.4641),
    "ssd": ("ssd_mobilenet_v1_coco_quant.tflite", "ssd_pp", {}, {}, 0.3876),
    "person-retail": (
        "person-detection-retail-0013.xml",
        "ssd_pp",
        {"label_offset": -1},
        {"color": "bgr"},
        0.2852,
    ),
}


@pytest.mark.parametrize("case", DETECTORS.values(), ids=DETECTORS)
def test_a_detector_finds_the_persons_of_coco_as_well_as_documented(case: Any, load: Any, coco: Any) -> None:
    file, decoder, params, image, documented = case
    model = load(file, decoder, params={**params, "score": 0.01}, **image)
    assert ap50(model, coco, 0) == pytest.approx(documented, abs=0.05)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_yolox_finds_the_three_bottles_of_the_video_in_either_engine(engine: str, load: Any, testdata: Path) -> None:
    video = cv2.VideoCapture(str(testdata / "videos" / "bottle-detection.mp4"))
    for _ in range(60):
        assert video.grab()
    frame = video.retrieve()[1]
    model = load(
        "yolox_nano_416.onnx", "yolox", engine=engine, labels=("",) * 39 + ("bottle",), color="bgr", resize=LETTERBOX
    )
    found = model(frame)
    assert [found.label(int(i)) for i in found.class_id] == ["bottle"] * 3
    assert found.score.min() > 0.8


FACES = {
    # name: (file, decoder, params, input, documented box as fractions of the picture, documented score)
    "ultraface": (
        "ultraface_rfb_320.onnx",
        "ultraface",
        {},
        {"mean": (127.0,), "std": (128.0,)},
        (0.336, 0.201, 0.696, 0.556),
        1.0,
    ),
    "ultraface-raw": (
        "ultraface_slim_320_simplified.onnx",
        "ultraface",
        {"decoded": False},
        {"mean": (127.0,), "std": (128.0,)},
        (0.336, 0.201, 0.696, 0.556),
        1.0,
    ),
    "yunet": ("yunet_n_320.onnx", "yunet", {}, {"color": "bgr"}, (0.345, 0.169, 0.694, 0.569), 0.935),
    "blazeface": (
        "blazeface_short_range.tflite",
        "blazeface",
        {},
        {"resize": Resize(mode="letterbox", pad=0), "mean": (127.5,), "std": (127.5,)},
        (0.34, 0.20, 0.70, 0.57),
        0.946,
    ),
}


@pytest.mark.parametrize("case", FACES.values(), ids=FACES)
def test_a_face_detector_finds_the_face_where_it_is_documented(case: Any, load: Any, photo: Any) -> None:
    file, decoder, params, image, box, score = case
    frame = photo("grace_hopper.bmp")
    found = load(file, decoder, params=params, **image)(frame)
    size = np.array([frame.shape[1], frame.shape[0]] * 2)
    assert len(found) == 1
    assert found.label(0) == "face"
    assert iou(np.array(box), found.xyxy / size)[0] > 0.8
    assert float(found.score[0]) == pytest.approx(score, abs=0.03)


@pytest.mark.parametrize(("file", "decoder", "image"), [(c[0], c[1], c[3]) for c in list(FACES.values())[2:]])
def test_the_eyes_of_a_face_lie_above_its_nose(file: str, decoder: str, image: Any, load: Any, photo: Any) -> None:
    eye, other, nose = load(file, decoder, **image)(photo("grace_hopper.bmp")).keypoints[0, :3]
    assert max(eye[1], other[1]) < nose[1]
    assert eye[0] < nose[0] < other[0]


def test_movenet_gives_the_reference_pose(load: Any, photo: Any, testdata: Path) -> None:
    frame = photo("squat.bmp")
    with (testdata / "labels" / "movenet_reference.csv").open() as file:
        rows = [(float(r["keypoint_x"]), float(r["keypoint_y"])) for r in csv.DictReader(file)]
    pose = load("movenet_lightning_ptq.tflite", "movenet")(frame)
    off = np.abs(pose.points / [frame.shape[1], frame.shape[0]] - np.array(rows))
    assert off.max() < 0.031
    assert np.median(off) < 0.01
    assert pose.to_json()["keypoints"][0]["name"] == "nose"


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_deeplab_sees_the_documented_share_of_bird(engine: str, load: Any, photo: Any, testdata: Path) -> None:
    labels = (testdata / "labels" / "pascal_voc_labels.txt").read_text().split("\n")
    image = {"mean": (127.5,), "std": (127.5,)}
    mask = load("deeplabv3_float_257.onnx", "argmax_mask", engine=engine, labels=labels, **image)(
        photo("bird_segmentation.bmp")
    )
    segments = {s["label"]: s["share"] for s in mask.to_json()["mask"]["segments"]}
    assert segments["bird"] == pytest.approx(0.196, abs=0.003)
    assert sum(segments.values()) == pytest.approx(1.0, abs=0.001)


def test_quantized_deeplab_overlaps_the_drawn_mask_as_documented(load: Any, photo: Any) -> None:
    found = load("deeplabv3_mnv2_dm05_quant.tflite", "argmax_mask")(photo("bird_segmentation.bmp")).upright() == 3
    drawn = photo("bird_segmentation_mask.bmp").max(axis=2) == 3
    assert (found & drawn).sum() / (found | drawn).sum() == pytest.approx(0.819, abs=0.02)


def test_the_road_lies_in_the_lower_half_of_the_lane_video(load: Any, testdata: Path) -> None:
    frame = cv2.VideoCapture(str(testdata / "videos" / "carnd_test_video.mp4")).read()[1]
    road = load("road_segmentation_adas.onnx", "argmax_mask", color="bgr")(frame).upright() == 1
    half = len(road) // 2
    assert road[half:].mean() > 0.45
    assert road[:half].mean() < 0.01


def test_the_head_pose_turns_with_a_mirrored_face(load: Any, photo: Any) -> None:
    face = photo("grace_hopper.bmp")[101:341, 176:355]
    model = load(
        "headpose_fsanet_1x1.onnx",
        "regression",
        labels=("yaw", "pitch", "roll"),
        color="bgr",
        mean=(127.5,),
        std=(128.0,),
    )
    straight, mirrored = (model(f).to_json()["values"] for f in (face, np.ascontiguousarray(face[:, ::-1])))
    assert straight["yaw"] - mirrored["yaw"] == pytest.approx(20.9, abs=5)


@pytest.mark.parametrize(
    ("file", "image", "documented"),
    [
        ("mobilenet_v1_0.25_224_float.tflite", {"mean": (127.5,), "std": (127.5,)}, 0.551),
        ("mobilenet_v1_0.25_224_quant.tflite", {}, 0.536),
        ("mobilenet_v1_0.25_128_quant.tflite", {}, 0.474),
        ("mobilenet_v2_1.0_224_quant.tflite", {}, 0.868),
    ],
)
def test_an_imagenet_classifier_is_as_right_as_documented(
    file: str, image: Any, documented: float, load: Any, testdata: Path
) -> None:
    folder = testdata / "datasets" / "imagenet_eval380"
    with (folder / "labels.csv").open() as lines:
        rows = list(csv.DictReader(lines))[::2]
    model = load(file, "softmax", params={"logits": False, "skip": 1}, **image)
    right = 0
    for row in rows:
        picture = cv2.imread(str(folder / row["file"]))[16:240, 16:240]
        right += model(picture).class_id == int(row["class_index"])
    assert right / len(rows) == pytest.approx(documented, abs=0.06)


@pytest.mark.parametrize(
    ("file", "documented"), [("mlperf_resnet8_cifar10_f.tflite", 0.764), ("mlperf_resnet8_cifar10_int8.tflite", 0.7615)]
)
def test_resnet8_is_as_right_on_cifar_as_documented(file: str, documented: float, load: Any, testdata: Path) -> None:
    model = load(file, "softmax", params={"logits": False})
    right = total = 0
    for class_id, folder in enumerate(sorted((testdata / "datasets" / "cifar10_test").iterdir())):
        for picture in sorted(folder.iterdir())[:40]:
            right += model(cv2.imread(str(picture))).class_id == class_id
            total += 1
    assert right / total == pytest.approx(documented, abs=0.05)


@pytest.mark.parametrize(("file", "std"), [("vww_96_float.tflite", 255.0), ("vww_96_int8.tflite", 1.0)])
def test_visual_wake_words_tells_persons_in_coco_photos(file: str, std: float, load: Any, coco: Any) -> None:
    model = load(file, "softmax", params={"logits": False}, std=(std,))
    right = [model(image).class_id == int((truth[:, 0] == 0).any()) for image, truth in coco]
    assert np.mean(right) > 0.75


def test_the_published_int8_yolox_is_as_broken_as_documented(load: Any, coco: Any) -> None:
    model = load("yolox_nano_int8.tflite", "yolox", params={"score": 0.01}, color="bgr", resize=LETTERBOX)
    assert ap50(model, coco[:24], 0) < 0.15
