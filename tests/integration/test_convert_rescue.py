"""What follows a refusal of int8: a build without the base, layers in float, the last resort, or nothing."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import onnx
import pytest

pytest.importorskip("nncf")

sys.path.insert(0, str(Path(__file__).resolve().parent))
import convert_parts as parts

from edge_sdk import Artifact, cli

pytestmark = pytest.mark.slow
FLAGS = ["--color", "rgb", "--resize", "stretch", "--mean", "0", "--std", "255"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    parts.color_folders(root / "calibration", 24, seed=1)
    parts.color_folders(root / "golden", 30, seed=2)
    return root


def convert(capsys, world: Path, out: Path, model: Path, *words) -> tuple[int, dict, str]:
    data = ["--calibration", world / "calibration", "--golden", world / "golden", "--out", out, "--no-cache", *FLAGS]
    code = cli.main(["convert", *map(str, (model, *data, *words)), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def bad_throughout(path: Path, layers: int = 8) -> Path:
    """The network of `uneven` with its large unread channel passed on, so that every layer loses the others to it."""
    parts.uneven(path, layers=layers)
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if tensor.name.startswith("w") and tensor.name not in ("w", "w0"):
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[5, 5, 1, 1] = 1
            tensor.CopyFrom(parts.const(tensor.name, values))
    onnx.save(model, str(path))
    return path


def test_int8_of_openvino_that_no_layers_rescue_goes_to_its_accuracy_method_last(capsys, world, tmp_path):
    model = bad_throughout(tmp_path / "m.onnx")

    code, data, err = convert(
        capsys, world, tmp_path, model, "--profile", "x86-64-avx2", "--runtime", "openvino", "--precision", "int8"
    )

    said = [line.strip() for line in err.splitlines() if line.startswith("  openvino int8 (")]
    assert [("sensitive layers float" in line, "accuracy" in line) for line in said[1:]] == [
        (True, False), (True, False), (True, False), (False, True),
    ]  # fmt: skip
    assert all(" refused, top1 " in line for line in said[:-1])
    assert (code, "openvino int8 (accuracy) refused: collapsed" in data["error"]["message"]) == (5, True)
    assert not list(tmp_path.glob("*.edge"))


def test_a_refused_int8_that_could_not_win_is_not_rescued_and_its_row_says_why(capsys, world, tmp_path):
    # A network this small takes a third of the time in ONNX Runtime, whose calls cost less, on any machine.
    model = parts.uneven(tmp_path / "m.onnx", size=8, layers=2)
    (tmp_path / "board.toml").write_text(
        'name = "board"\narch = "x86_64"\nisa = ["avx2"]\ncores = 4\n'
        '[[runtime]]\nname = "onnxruntime"\nprecisions = ["fp32"]\n'
        '[[runtime]]\nname = "openvino"\nprecisions = ["int8"]\n'
    )

    code, data, err = convert(capsys, world, tmp_path, model, "--profile", tmp_path / "board.toml")

    assert code == 0, data
    rows = [r for r in data["artifacts"][0]["candidates"] if r["precision"] == "int8"]
    assert [(r["status"], r["reason_kind"]) for r in rows] == [("refused", "collapsed"), ("skipped", "no_gain")]
    wanted = (
        r"not rescued: with layers in float it would take ~?[\d.]+ ms or more, onnxruntime fp32 passed with ~?[\d.]+ ms"
    )
    assert re.fullmatch(wanted, rows[1]["reason"])
    assert "error of" not in err


def moved(path: Path, out: Path) -> Path:
    """The network of `uneven` after a training that put its large channel behind the third layer, not the first."""
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name == "w0":
            values[5] = 0
        if tensor.name == "w2":
            values[5, :3, 1, 1] = 4000
        tensor.CopyFrom(parts.const(tensor.name, values))
    onnx.save(model, str(out))
    return out


def test_a_build_that_the_base_spoils_is_made_again_without_it_and_both_stand_in_the_table(capsys, world, tmp_path):
    first = parts.uneven(tmp_path / "m.onnx")
    words = ["--profile", "x86-64-avx2", "--runtime", "openvino", "--precision", "int8"]
    code, data, err = convert(capsys, world, tmp_path / "v1", first, *words)
    assert code == 0, err
    base = data["artifacts"][0]["path"]

    second = moved(first, tmp_path / "n.onnx")
    code, data, err = convert(capsys, world, tmp_path / "v2", second, *words, "--base", base)

    assert code == 0, data
    rows = [r for r in data["artifacts"][0]["candidates"] if r["status"] != "skipped"]
    assert [(r["variant"], r["status"]) for r in rows] == [
        ("2 sensitive layers float", "refused"),
        ("scales of its own", "refused"),
        ("scales of its own, 2 sensitive layers float", "chosen"),
    ]
    assert rows[0]["reason"].endswith("(with the scales of --base: tried again without)")
    assert Artifact.open(data["artifacts"][0]["path"]).manifest.parent == Artifact.open(base).sha256
