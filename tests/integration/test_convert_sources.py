"""`edge convert` from PyTorch, Keras, TFLite and OpenVINO files: the guide's commands, and what is refused."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nncf")

sys.path.insert(0, str(Path(__file__).resolve().parent))
import convert_parts as parts
import cv2

from edge_sdk import Artifact, cli

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--color", "rgb", "--resize", "stretch", "--mean", "0", "--std", "255"]


def run(*words, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=170
    )


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    """The folder that the guide's example makes."""
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp("guide") / "colors"
    done = run(ROOT / "examples/make_models.py", folder, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


def commands() -> list[str]:
    """The guide's `edge convert` commands for what its example made."""
    text = (ROOT / "docs/guides/convert.md").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    edge convert ")]
    return [line for line in lines if "colors." in line]


@pytest.mark.parametrize("command", commands(), ids=lambda c: c.split()[2])
def test_the_guides_commands_make_artifacts_that_answer_rightly(colors, tmp_path, command):
    done = run("-m", "edge_sdk", *shlex.split(command)[1:], "--json", "--out", tmp_path, cwd=colors)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["artifacts"]
    artifact = Artifact.open(found["path"])

    assert found["chosen"]["metric"]["value"] >= 0.98
    assert "same answers" in done.stderr
    assert artifact.labels == parts.COLORS
    assert any("same answers" in line for line in artifact.evidence["source"]["recognised"])
    with artifact.load() as model:
        for color in parts.COLORS:
            frame = cv2.imread(str(next((colors / "photos/golden" / color).iterdir())))
            assert artifact.labels[model(frame).class_id] == color


def test_the_guide_has_a_command_for_each_kind_of_file():
    assert [c.split()[2] for c in commands()] == ["nets:build", "colors.keras", "colors.tflite"]


def test_an_openvino_ir_becomes_openvino_builds_and_says_why_there_are_no_others(tmp_path, capsys):
    import openvino as ov

    parts.classifier(tmp_path / "m.onnx")
    ov.save_model(ov.convert_model(str(tmp_path / "m.onnx")), str(tmp_path / "m.xml"))
    golden = parts.color_folders(tmp_path / "golden", 24, seed=2)
    words = ["convert", tmp_path / "m.xml", "--profile", "x86-64-avx2", "--golden", golden, *FLAGS, "--json"]
    code = cli.main([str(w) for w in [*words, "--out", tmp_path]])
    (found,) = json.loads(capsys.readouterr().out)["artifacts"]

    assert code == 0
    assert found["chosen"]["runtime"] == "openvino"
    reasons = {c["runtime"]: c["reason"] for c in found["candidates"] if c["precision"] == "fp32"}
    assert reasons["onnxruntime"] == "an OpenVINO IR cannot be turned back into ONNX"


def test_a_factory_runs_in_a_process_of_its_own_and_its_end_is_an_error_with_nothing_written(tmp_path, capsys):
    pytest.importorskip("torch")
    (tmp_path / "crashing.py").write_text("import os\n\ndef net():\n    os._exit(7)\n")
    (tmp_path / "onnxscript.py").write_text("raise RuntimeError('a file of the user hides a package')\n")
    golden = parts.color_folders(tmp_path / "golden", 12, seed=2)
    done = run(
        *("-m", "edge_sdk", "convert", "crashing:net", "--weights", "none", "--size", "32x32", "--json"),
        *("--profile", "generic-cpu", "--golden", golden, "--out", tmp_path / "out", *FLAGS),
        cwd=tmp_path,
    )
    error = json.loads(done.stdout)["error"]

    assert (done.returncode, error["exit"]) == (6, 6)
    assert "the worker process died in the inspect step of model (exit 7)" in error["message"]
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("bad/coral_model_invoking_error.tflite", 3, "unresolved custom op: fake-op-double"),
        ("bad/person_detect_micro_badquant.tflite", 6, "quantized_dimension must be in range"),
        ("bad/ir_v4_unsupported.xml", 3, "an OpenVINO IR of version 4"),
        ("models/blazeface.pth", 2, "holds 74 tensors and no network"),
    ],
)
def test_models_that_cannot_be_read_end_with_one_message_and_their_exit_code(
    testdata, tmp_path, capsys, name, code, message
):
    golden = parts.color_folders(tmp_path / "golden", 9, seed=2)
    words = ["convert", testdata / name, "--profile", "x86-64-avx2", "--golden", golden, "--out", tmp_path / "out"]
    found = cli.main([*map(str, words), "--json"])
    error = json.loads(capsys.readouterr().out)["error"]

    assert (found, error["exit"]) == (code, code)
    assert message in error["message"]
    assert error["hint"]
    assert list((tmp_path / "out").glob("*")) == []


def test_a_network_whose_weights_are_all_alike_is_refused_as_collapsed_not_converted(testdata, capsys, tmp_path):
    golden = parts.color_folders(tmp_path / "golden", 12, seed=2)
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in golden.rglob("*.png"):
        path.rename(photos / path.name)
    words = [testdata / "bad" / "light_squeezenet_const.onnx", "--profile", "generic-cpu", "--golden", photos]

    code = cli.main(["convert", *map(str, (*words, "--out", tmp_path / "out", "--json", *FLAGS))])

    error = json.loads(capsys.readouterr().out)["error"]
    assert (code, error["kind"]) == (5, "guardrail")
    assert error["message"] == "the source model itself has collapsed: every class score is 0.001 on every golden image"
    assert "--mean" in error["hint"]
