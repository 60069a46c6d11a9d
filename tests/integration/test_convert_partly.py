"""`edge convert` for several profiles, of which some can have no artifact: the others do, and each is told why."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")

sys.path.insert(0, str(Path(__file__).resolve().parent))
import convert_parts as parts

from edge_sdk import Artifact, cli

pytestmark = pytest.mark.slow
FLAGS = ["--color", "rgb", "--resize", "stretch", "--mean", "0", "--std", "255"]
PROFILE = """
name = "{name}"
arch = "any"
isa = []
{limits}
[[runtime]]
name = "{runtime}"
versions = "{versions}"
precisions = ["fp32"]
io_dtypes = ["uint8", "float32"]
options = {{}}
{more}
[evidence]
"runtime" = {{ kind = "cited", source = "this test" }}
"""


def profile(path: Path, *, runtime: str = "onnxruntime", versions: str = ">=1.20,<9", limits: str = "", more: str = ""):
    path.write_text(
        PROFILE.format(name=path.stem, runtime=runtime, versions=versions, limits=limits, more=more), encoding="utf-8"
    )
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    parts.classifier(root / "m.onnx")
    parts.color_folders(root / "golden", 12, seed=2)
    profile(root / "good.toml")
    profile(root / "small.toml", limits="[limits]\nartifact_mb = 0.001")
    profile(root / "old.toml", versions=">=0.1,<0.2")
    return root


def convert(capsys, world, out, names, *words):
    profiles = [w for name in names for w in ("--profile", str(world / f"{name}.toml"))]
    given = [*profiles, "--golden", str(world / "golden"), "--out", str(out), "--no-cache", *FLAGS, *map(str, words)]
    code = cli.main(["convert", str(world / "m.onnx"), *given])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_profiles_that_can_have_no_build_do_not_keep_the_others_from_theirs(capsys, world, tmp_path):
    page = tmp_path / "r.html"
    code, out, err = convert(capsys, world, tmp_path / "out", ["old", "good", "small"], "--json", "--report", page)

    data = json.loads(out)
    assert code == data["error"]["exit"] == 5
    assert [a["profile"] for a in data["artifacts"]] == ["good"]
    assert Artifact.open(data["artifacts"][0]["path"]).manifest.profile == "good"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"m-1-good.edge"}
    why = {f["profile"]: f for f in data["failed"]}
    assert {name: f["error"]["exit"] for name, f in why.items()} == {"old": 2, "small": 5}
    assert "runs >=0.1,<0.2" in why["old"]["error"]["message"]
    assert [c["reason_kind"] for c in why["small"]["candidates"]] == ["size"]
    assert "2 of 3 profiles have no artifact" in data["error"]["message"]
    assert "the profile `old` leaves nothing to build: the others go on" in err
    assert all(f"<h2>{name}</h2>" in page.read_text(encoding="utf-8") for name in ("old", "good", "small"))


def test_people_see_the_table_of_what_was_made_and_the_reason_of_what_was_not(capsys, world, tmp_path):
    code, out, err = convert(capsys, world, tmp_path / "out", ["good", "old"])

    assert code == 2
    assert "m-1-good.edge" in out
    assert "error: 1 of 2 profiles have no artifact\nthe profile `old` leaves nothing to build" in err
    assert err.count("hint:") == 1


def test_when_no_profile_has_a_build_all_of_them_are_named_and_nothing_is_written(capsys, world, tmp_path):
    code, out, _ = convert(capsys, world, tmp_path / "out", ["small", "old"], "--json")

    data = json.loads(out)
    assert code == data["error"]["exit"] == 5
    assert set(data) == {"error"}
    assert "2 of 2 profiles have no artifact" in data["error"]["message"]
    assert "no build for `small` may be used" in data["error"]["message"]
    assert "the profile `old` leaves nothing to build" in data["error"]["message"]
    assert not list((tmp_path / "out").iterdir())


def test_the_table_has_what_may_be_used_first_and_long_reasons_once_below_it(capsys, world, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_ENVIRONMENTS", str(tmp_path / "none"))
    board = profile(world / "boards.toml", more='[[runtime]]\nname = "litert"\nversions = ">=1,<9"\n'
                    'precisions = ["fp32", "fp16"]\nio_dtypes = ["uint8", "float32"]\noptions = {}')  # fmt: skip

    page = tmp_path / "r.html"

    code, out, err = convert(capsys, world, tmp_path / "out", [board.stem], "--report", page)

    lines = out.splitlines()
    assert code == 0, err
    assert lines[2].split()[:3] == ["onnxruntime", "fp32", "chosen"]
    notes = [line for line in lines if line.startswith("[")]
    assert len(notes) == len(set(notes)) == 1
    assert [line.split()[-1] for line in lines if line.startswith("litert")] == ["[1]", "[1]"]
    assert max(len(line) for line in lines[1:5]) < 120
    assert page.read_text(encoding="utf-8").count("as above") == 1


def test_a_decoder_that_does_not_fit_the_outputs_is_a_wrong_flag(capsys, world, tmp_path):
    (world / "plain").mkdir()
    for path in sorted((world / "golden").rglob("*.png")):
        (world / "plain" / path.name).write_bytes(path.read_bytes())
    words = ["--profile", "generic-cpu", "--golden", world / "plain", "--out", tmp_path / "out", "--no-cache", *FLAGS]

    code = cli.main(["convert", *map(str, [world / "m.onnx", *words, "--decoder", "yolov8", "--json"])])

    error = json.loads(capsys.readouterr().out)["error"]
    assert (code, error["kind"]) == (2, "usage")
    assert "the model does not answer as was said: decoder `yolov8` expects one output" in error["message"]
    assert not list((tmp_path / "out").iterdir())
