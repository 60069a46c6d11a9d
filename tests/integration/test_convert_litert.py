"""`edge convert` to LiteRT: from TFLite, Keras and ONNX sources, with the real tools."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("ai_edge_quantizer")
pytest.importorskip("nncf")

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import convert_parts
import tflite_parts as parts

from converters.environments import READY, environment
from edge_sdk import Artifact

pytestmark = pytest.mark.slow
RGB = ("--color", "rgb", "--resize", "stretch", "--mean", "0", "--std", "255")
PROFILE = """
name = "board"
arch = "any"

[[runtime]]
name = "litert"
versions = ">=2.0,<3"
precisions = {precisions}
io_dtypes = {takes}
int8 = {{ activation = "int8", weight = "int8" }}
"""
STAND_IN = """
import os, shutil
__version__ = "0.0 (a stand-in)"
def convert(input_onnx_file_path, output_folder_path, **options):
    assert options["copy_onnx_input_output_names_to_tflite"]
    os.makedirs(output_folder_path, exist_ok=True)
    shutil.copy({file!r}, os.path.join(output_folder_path, "model_float32.tflite"))
"""


def convert(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_sdk", "convert", *map(str, words), "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=170, env=os.environ | environment)


def profile(path: Path, *, precisions=("fp32", "fp16", "int8", "dynamic"), takes=("uint8", "float32", "int8")) -> Path:
    path.write_text(PROFILE.format(precisions=json.dumps(list(precisions)), takes=json.dumps(list(takes))))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    parts.color_classifier(root / "m.tflite")
    convert_parts.color_folders(root / "calibration", 24, seed=1)
    convert_parts.color_folders(root / "golden", 30, seed=2)
    (root / "none").mkdir()
    return root


def images(world: Path) -> tuple[object, ...]:
    return ("--calibration", world / "calibration", "--golden", world / "golden", "--cache", world / "cache")


def rightly(path: str, golden: Path) -> float:
    """Return the share of golden images that the artifact names rightly."""
    with Artifact.open(path).load() as model:
        found = [
            convert_parts.COLORS[model(cv2.imread(str(p))).class_id] == p.parent.name
            for p in sorted(golden.rglob("*.png"))
        ]
    return float(np.mean(found))


@pytest.fixture(scope="module")
def boards(world):
    """Profiles that differ in the dtypes that the device takes."""
    takes = {"any": ("uint8", "float32", "int8"), "pixels": ("uint8", "float32"), "int": ("int8",)}
    paths = {name: profile(world / f"{name}.toml", takes=kinds) for name, kinds in takes.items()}
    for name, path in paths.items():
        path.write_text(path.read_text().replace('"board"', f'"{name}"'))
    return paths


@pytest.fixture(scope="module")
def made(world, boards, tmp_path_factory):
    """One conversion of a TFLite file for all the boards, by the name of the board."""
    out = tmp_path_factory.mktemp("made")
    wanted = [w for path in boards.values() for w in ("--profile", path)]
    done = convert(world / "m.tflite", *wanted, *images(world), "--out", out, *RGB)
    assert done.returncode == 0, done.stderr
    return {a["profile"]: a for a in json.loads(done.stdout)["artifacts"]}


def test_a_tflite_file_becomes_every_precision_that_the_profile_has(made):
    rows = {(c["precision"], c.get("variant")): c["status"] for c in made["any"]["candidates"]}

    assert set(rows) == {("fp32", None), ("fp16", None), ("int8", None), ("dynamic", None), ("dynamic", "legacy")}
    assert set(rows.values()) <= {"passed", "chosen"}
    assert made["any"]["chosen"]["precision"] in ("fp32", "int8", "fp16", "dynamic")


def test_the_artifact_takes_and_gives_what_the_device_does_and_answers_rightly(world, boards, tmp_path):
    wanted = [w for path in boards.values() for w in ("--profile", path)]

    done = convert(
        world / "m.tflite", *wanted, *images(world)[:4], "--no-cache", "--precision", "int8", "--out", tmp_path, *RGB
    )

    assert done.returncode == 0, done.stderr
    found = {a["profile"]: a for a in json.loads(done.stdout)["artifacts"]}
    for name, given, returned in (("any", "int8", "float32"), ("pixels", "uint8", "float32"), ("int", "int8", "int8")):
        manifest = Artifact.open(found[name]["path"]).manifest
        assert (manifest.input.dtype, [o.dtype for o in manifest.outputs]) == (given, [returned])
        assert manifest.runtime.distribution == "ai-edge-litert"
        assert rightly(found[name]["path"], world / "golden") == found[name]["chosen"]["metric"]["value"]


def test_an_old_keras_file_becomes_a_verified_int8_artifact(testdata, tmp_path):
    sets = {"golden": "coco128_train2017/images", "calibration": "imagenet_calib160"}
    for name, folder in sets.items():
        (tmp_path / name).mkdir()
        for photo in sorted((testdata / "datasets" / folder).rglob("*.jp*g"))[:32]:
            (tmp_path / name / photo.name).write_bytes(photo.read_bytes())

    done = convert(
        testdata / "models" / "vww_96.h5", "--profile", "raspberry-pi-5", "--runtime", "litert", "--precision", "int8",
        "--backend", "tensorflow", "--calibration", tmp_path / "calibration", "--golden", tmp_path / "golden",
        "--max-drop", "0.05", "--decoder", "softmax", "--out", tmp_path, "--no-cache", *RGB,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    artifact = json.loads(done.stdout)["artifacts"][0]
    assert (artifact["chosen"]["runtime"], artifact["chosen"]["precision"]) == ("litert", "int8")
    assert any("tensorflow TFLiteConverter: int8" in s for c in artifact["candidates"] for s in c.get("steps", ()))
    assert artifact["chosen"]["metric"]["value"] >= 0.95
    verified = subprocess.run(
        [sys.executable, "-m", "edge_sdk", "verify", artifact["path"], "--json"], capture_output=True, text=True
    )
    assert json.loads(verified.stdout)["ok"], verified.stdout


@pytest.fixture(scope="module")
def stand_in(world, tmp_path_factory):
    """A folder with the environment of onnx2tf, in which a stand-in gives the TFLite twin under other names."""
    twin = parts.color_classifier(world / "twin.tflite", name="Identity")
    wanted = environment("onnx2tf")
    root = tmp_path_factory.mktemp("envs")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / wanted.key)], check=True, timeout=60)
    packages = next((root / wanted.key / "lib").glob("python3*/site-packages"))
    (packages / "onnx2tf.py").write_text(STAND_IN.format(file=str(twin)))
    (packages / "numpy.py").write_text("float32 = 'f4'\nzeros = lambda *a: b''\nsave = lambda *a: None\n")
    (root / wanted.key / READY).write_text("{}")
    return root


def test_onnx_goes_to_litert_through_an_environment_that_is_there(world, stand_in, tmp_path):
    source = parts.onnx_twin(tmp_path / "m.onnx")
    board = profile(tmp_path / "board.toml", precisions=("fp32", "int8"))

    done = convert(source, "--profile", board, *images(world), "--out", tmp_path, *RGB, EDGE_ENVIRONMENTS=str(stand_in))

    assert done.returncode == 0, done.stderr
    artifact = json.loads(done.stdout)["artifacts"][0]
    manifest = Artifact.open(artifact["path"]).manifest
    assert "onnx2tf 0.0 (a stand-in): ONNX to TFLite, NHWC; bridge to TFLite: same answers" in done.stderr
    assert [o.name for o in manifest.outputs] == ["probs"]
    assert (manifest.input.layout, manifest.input.name) == ("NHWC", "image")
    assert rightly(artifact["path"], world / "golden") >= 0.95


def test_a_bridge_whose_model_answers_otherwise_is_refused(world, stand_in, tmp_path):
    source = parts.onnx_twin(tmp_path / "m.onnx", gain=-20.0)
    board = profile(tmp_path / "board.toml", precisions=("fp32",))

    done = convert(source, "--profile", board, *images(world), "--out", tmp_path, *RGB, EDGE_ENVIRONMENTS=str(stand_in))

    assert done.returncode == 2, done.stderr
    message = json.loads(done.stdout)["error"]["message"]
    assert "litert fp32: onnx2tf: the source's output `probs` is like none of the converted file's outputs" in message


def test_without_the_environment_the_row_says_how_to_make_it(world, tmp_path):
    source = parts.onnx_twin(tmp_path / "m.onnx")
    board = profile(tmp_path / "board.toml", precisions=("fp32",))

    done = convert(
        source, "--profile", board, *images(world), "--out", tmp_path, *RGB, EDGE_ENVIRONMENTS=str(world / "none")
    )

    assert done.returncode == 2, done.stderr
    message = json.loads(done.stdout)["error"]["message"]
    assert "onnx2tf (ONNX to LiteRT, through TensorFlow) runs in an environment of its own of 2.7 GB" in message
    assert "add --make-environments, or make it once with `python -m converters.environments onnx2tf`" in message


def test_a_quantized_file_is_kept_as_it_came_and_needs_no_calibration(testdata, tmp_path):
    golden = testdata / "datasets" / "cifar10_test"
    board = profile(tmp_path / "board.toml", precisions=("fp32", "int8"))

    done = convert(
        testdata / "models" / "mlperf_resnet8_cifar10_int8.tflite", "--profile", board, "--golden", golden,
        "--color", "rgb", "--resize", "stretch", "--out", tmp_path, "--no-cache",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    artifact = json.loads(done.stdout)["artifacts"][0]
    rows = {c["precision"]: (c["status"], c["reason"]) for c in artifact["candidates"]}
    assert rows["int8"][0] == "chosen"
    assert rows["fp32"] == ("skipped", "the source is int8 already: litert keeps it so")
    assert artifact["chosen"]["metric"]["drop"] == 0
    assert artifact["chosen"]["metric"]["value"] > 0.7
