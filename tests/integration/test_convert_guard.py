"""What `edge convert` refuses, and what it says of sets and sources, for every task."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import helper

pytest.importorskip("nncf")

sys.path.insert(0, str(Path(__file__).resolve().parent))
import convert_parts as parts

from edge_sdk import Artifact, cli

pytestmark = pytest.mark.slow
INPUT = ["--resize", "stretch", "--mean", "0", "--std", "255"]
RGB = ["--color", "rgb", *INPUT]


def convert(capsys, *words) -> tuple[int, dict, str]:
    code = cli.main(["convert", *map(str, words), "--json", "--no-cache", "--profile", "generic-cpu"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("guard")
    parts.classifier(root / "m.onnx")
    parts.color_folders(root / "calibration", 24, seed=1)
    parts.color_folders(root / "golden", 30, seed=2)
    (root / "flat").mkdir()
    for path in (root / "golden").rglob("*.png"):
        (root / "flat" / path.name).write_bytes(path.read_bytes())
    (root / "mine.py").write_text(
        "import numpy as np, onnxruntime as ort\n"
        f"net = ort.InferenceSession({str(root / 'm.onnx')!r})\n"
        "def rgb(image, scale=255.0):\n"
        "    import cv2\n"
        "    x = cv2.resize(image, (32, 32))[:, :, ::-1].transpose(2, 0, 1)[None] / scale\n"
        "    return net.run(None, {'image': x.astype(np.float32)})[0][0]\n"
        "def far(image):\n"
        "    return rgb(image, 32.0)\n"
        "def other(image):\n"
        "    return np.roll(rgb(image), 1) * np.array([1, 0, 2])\n"
    )
    return root


@pytest.fixture
def beside(world, monkeypatch):
    monkeypatch.chdir(world)
    return world


def first(data: dict) -> tuple[dict, dict]:
    artifact = Artifact.open(data["artifacts"][0]["path"])
    return data["artifacts"][0]["chosen"]["metric"], artifact.evidence


def test_a_reference_that_agrees_is_said_and_stands_in_the_evidence(capsys, beside, tmp_path):
    code, data, err = convert(
        capsys, "m.onnx", "--golden", "golden", "--reference", "mine:rgb", "--out", tmp_path, *RGB
    )

    assert code == 0, err
    assert "`mine:rgb` and the model agree 1.00 on 30 images" in err
    _, evidence = first(data)
    assert evidence["reference"]["status"] == "agrees"
    assert evidence["reference"]["agreement"] == 1.0
    assert [(b["runtime"], b["agreement"]) for b in evidence["reference"]["builds"]] == [("onnxruntime", 1.0)]


@pytest.mark.parametrize(
    ("function", "flags", "message", "hint"),
    [
        ("rgb", ["--color", "bgr", *INPUT], "1.00 when the image is RGB", "--color rgb"),
        ("rgb", ["--color", "bgr", "--resize", "stretch", "--mean", "127.5", "--std", "127.5"], "is RGB", "--std 255"),
        ("nothing", RGB, "`mine` has no `nothing`", "--reference package.module:function"),
    ],
)
def test_a_skew_to_the_reference_is_refused_with_the_flags_that_end_it(
    capsys, beside, tmp_path, function, flags, message, hint
):
    code, data, _ = convert(
        capsys, "m.onnx", "--golden", "flat", "--reference", f"mine:{function}", "--out", tmp_path, *flags
    )

    assert code == (2 if function == "nothing" else 5)
    assert message in data["error"]["message"]
    assert hint in data["error"]["hint"]
    assert not list(tmp_path.glob("*.edge"))


def test_labels_that_count_a_background_class_are_told_with_the_flag(capsys, world, tmp_path):
    model = onnx.load(str(world / "m.onnx"))
    last = next(n for n in model.graph.node if n.op_type == "Softmax")
    model.graph.node.append(helper.make_node("Pad", ["probs", "pads"], ["shifted"]))
    model.graph.initializer.append(helper.make_tensor("pads", onnx.TensorProto.INT64, [4], [0, 1, 0, 0]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("shifted", onnx.TensorProto.FLOAT, [1, 4]))
    assert last.output[0] == "probs"
    onnx.save(model, str(tmp_path / "background.onnx"))
    rows = [f"{p.relative_to(world / 'golden')},{parts.COLORS.index(p.parent.name)}" for p in
            sorted((world / "golden").rglob("*.png"))]  # fmt: skip
    golden = tmp_path / "golden"
    golden.mkdir()
    for name in parts.COLORS:
        (golden / name).symlink_to(world / "golden" / name)
    (golden / "labels.csv").write_text("\n".join(["file,class_index", *rows]) + "\n")
    words = [tmp_path / "background.onnx", "--golden", golden, "--out", tmp_path, "--decoder", "softmax",
             "--task", "classification", *RGB]  # fmt: skip

    code, data, _ = convert(capsys, *words)
    assert (code, data["error"]["hint"]) == (5, "the model has a background class first: --skip-classes 1")
    assert "when its class is one above the label" in data["error"]["message"]
    code, data, err = convert(capsys, *words, "--skip-classes", "1")
    assert code == 0, err


def test_few_calibration_images_are_named_with_the_number_to_add_and_judged_by_half_of_them(capsys, world, tmp_path):
    few = parts.color_folders(tmp_path / "few", 9, seed=7)

    code, data, err = convert(
        capsys, world / "m.onnx", "--calibration", few, "--golden", world / "golden", "--precision", "int8",
        "--max-drop", "0.3", "--out", tmp_path, *RGB,
    )  # fmt: skip

    assert code == 0, err
    _, evidence = first(data)
    found = evidence["convergence"]
    assert found["ranges"]["n"] == 9
    assert ("calibration images are too few" in err) == (found["ranges"]["add"] > 0)
    assert found["metric"][0] | {"metric": 0, "of_half": 0} == {
        "runtime": "onnxruntime", "precision": "int8", "n": 9, "half": 5, "metric": 0, "of_half": 0,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["black", "copies", "empty"])
def test_calibration_images_that_show_nothing_are_refused(capsys, world, tmp_path, kind):
    root = tmp_path / "calibration"
    root.mkdir()
    picture = np.zeros((40, 40, 3), np.uint8)
    if kind == "copies":
        picture = cv2.imread(str(next((world / "calibration").rglob("*.png"))))
    for index in range(0 if kind == "empty" else 12):
        cv2.imwrite(str(root / f"{index}.png"), picture)

    code, data, _ = convert(
        capsys, world / "m.onnx", "--calibration", root, "--golden", world / "golden", "--out", tmp_path, *RGB
    )

    said = {
        "black": "12 of the 12 calibration images show one brightness all over",
        "copies": "11 of the 12 calibration images are the same picture as another one",
        "empty": "has no images",
    }
    assert (code, said[kind] in data["error"]["message"]) == (5, True), data
    assert data["error"]["hint"]


def test_an_embedding_is_judged_by_what_it_retrieves(capsys, world, tmp_path):
    code, data, err = convert(
        capsys, world / "m.onnx", "--decoder", "embedding", "--golden", world / "golden", "--out", tmp_path, *RGB
    )

    assert code == 0, err
    metric, evidence = first(data)
    assert metric["name"] == "recall@1"
    assert metric["value"] > 0.9
    assert metric["cosine"] == pytest.approx(1.0, abs=1e-4)
    assert {r["name"] for r in evidence["chosen"]["deltas"]["outputs"]} == {"probs", "embedding"}


def test_regressed_values_are_judged_by_their_error_over_the_range_of_the_labels(capsys, world, tmp_path):
    golden = tmp_path / "golden"
    golden.mkdir()
    rows = ["file,blue,green,red"]
    for path in sorted((world / "golden").rglob("*.png")):
        (golden / path.name).write_bytes(path.read_bytes())
        rows.append(f"{path.name},{','.join(str(float(path.parent.name == c)) for c in parts.COLORS)}")
    (golden / "labels.csv").write_text("\n".join(rows) + "\n")

    code, data, err = convert(
        capsys, world / "m.onnx", "--decoder", "regression", "--golden", golden, "--out", tmp_path, *RGB
    )

    assert code == 0, err
    metric, evidence = first(data)
    assert metric["name"] == "1-MAE/range"
    assert metric["value"] > 0.6
    assert set(evidence["chosen"]["deltas"]["parts"]) == {"value blue", "value green", "value red"}
    assert Artifact.open(data["artifacts"][0]["path"]).labels == parts.COLORS


def test_masks_are_judged_by_their_overlap_with_labelled_ones(capsys, tmp_path):
    rng = np.random.default_rng(0)
    weight = np.zeros((3, 3, 1, 1), np.float32)
    weight[np.arange(3), [2, 1, 0], 0, 0] = 1
    parts.save(
        tmp_path / "s.onnx",
        [helper.make_node("Conv", ["image", "w"], ["classes"])],
        [parts.const("w", weight)],
        [1, 3, 32, 32],
        [("classes", [1, 3, 32, 32])],
    )
    for folder in ("images", "masks"):
        (tmp_path / "golden" / folder).mkdir(parents=True)
    for index in range(10):
        ids = cv2.resize(rng.integers(0, 3, (4, 4), np.uint8), (32, 32), interpolation=cv2.INTER_NEAREST)
        image = (np.eye(3)[ids] * 200 + rng.integers(0, 40, (32, 32, 3))).astype(np.uint8)
        ids[0] = 255
        cv2.imwrite(str(tmp_path / f"golden/images/{index}.png"), image)
        cv2.imwrite(str(tmp_path / f"golden/masks/{index}.png"), ids)

    code, data, err = convert(
        capsys,
        tmp_path / "s.onnx",
        "--decoder",
        "argmax_mask",
        "--golden",
        tmp_path / "golden",
        "--out",
        tmp_path,
        *RGB,
    )

    assert code == 0, err
    metric, evidence = first(data)
    assert (metric["name"], metric["source"]) == ("mIoU", 1.0)
    assert set(evidence["chosen"]["deltas"]["parts"]) == {"class 0", "class 1", "class 2"}


def test_a_published_model_with_spoilt_boxes_is_refused_as_a_source(testdata, capsys, tmp_path):
    pytest.importorskip("ai_edge_litert")
    coco, golden = testdata / "datasets" / "coco128_train2017", tmp_path / "golden"
    for folder in ("images", "labels"):
        (golden / folder).mkdir(parents=True)
        for file in sorted((coco / folder).iterdir())[:40]:
            (golden / folder / file.name).symlink_to(file)
    (golden / "classes.yaml").symlink_to(coco / "classes.yaml")
    code, data, _ = convert(
        capsys, testdata / "models/yolox_nano_int8.tflite", "--profile", "x86-64-avx2", "--decoder", "yolox",
        "--golden", golden, "--color", "bgr", "--resize", "letterbox:topleft:114",
        "--mean", "0", "--std", "1", "--layout", "NCHW", "--out", tmp_path,
    )  # fmt: skip

    assert code == 5
    assert "its boxes are wrong" in data["error"]["message"]
    assert "quantizing" in data["error"]["hint"]
