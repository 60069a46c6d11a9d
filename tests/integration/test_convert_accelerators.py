"""Builds for accelerators: compiled by a stand-in that is a real program, or refused with the tool's name."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")
sys.path.insert(0, str(Path(__file__).resolve().parent))
import convert_parts as parts

from edge_sdk.artifact import Artifact
from edge_sdk.cli import main

PROGRAM = """#!{python}
import sys, pathlib
if sys.argv[1] == "--version":
    print("standin 3.1"); sys.exit(0)
if sys.argv[3] == "fail":
    sys.exit("op 7 is not supported")
pathlib.Path(sys.argv[2]).write_bytes(pathlib.Path(sys.argv[1]).read_bytes())
"""
PLUGIN = """
from converters.compilers.base import Tool
TOOL = Tool(
    name="standin", program="standinc", version=("standinc", "--version"),
    commands=(("standinc", "{input}", "{output}", "{mode}"),), output="{stem}_compiled.onnx", reads=".onnx",
    precisions=("fp32",), install="apt install standinc", device_only=False, options={"mode": "good"},
)
"""
PROFILE = """
name = "board"
arch = "{arch}"
[[runtime]]
name = "onnxruntime"
versions = ">=1.20,<2"
precisions = ["fp32"]

[[runtime]]
name = "onnxruntime"
versions = ">=1.20,<2"
provider = "{provider}"
precisions = ["fp32", "int8"]
{compiler}
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A classifier, its golden images, a profile file to write, and the stand-in as an installed plug-in."""
    program = tmp_path / "bin" / "standinc"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    site = tmp_path / "site"
    (site / "standin-1.0.dist-info").mkdir(parents=True)
    (site / "standin-1.0.dist-info" / "METADATA").write_text("Name: standin\nVersion: 1.0\n")
    (site / "standin-1.0.dist-info" / "entry_points.txt").write_text(
        "[edge_sdk.compiler]\nstandin = standin_tool:TOOL\n"
    )
    (site / "standin_tool.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(site))
    yield tmp_path
    sys.modules.pop("standin_tool", None)


def convert(world: Path, capsys, provider: str, compiler: str, arch: str = "any") -> tuple[int, dict]:
    (world / "board.toml").write_text(PROFILE.format(provider=provider, compiler=compiler, arch=arch))
    words = ["convert", str(parts.classifier(world / "colors.onnx")), "--profile", str(world / "board.toml")]
    words += ["--golden", str(parts.color_folders(world / "golden", 12, seed=1)), "--color", "rgb", "--std", "255"]
    words += ["--mean", "0", "--resize", "stretch", "--out", str(world / "out"), "--no-cache", "--json"]
    code = main(words)
    return code, json.loads(capsys.readouterr().out)


def rows(done: dict) -> dict[str, dict]:
    return {row.get("variant", "") + "/" + row["precision"]: row for row in done["artifacts"][0]["candidates"]}


def test_a_build_is_compiled_verified_and_may_win(world, capsys):
    code, done = convert(world, capsys, "CPUExecutionProvider", 'compiler = "standin"')

    compiled = rows(done)["CPUExecutionProvider, compiled by standin/fp32"]
    int8 = rows(done)["CPUExecutionProvider, compiled by standin/int8"]
    assert code == 0
    assert compiled["status"] in ("passed", "chosen")
    assert compiled["steps"][-1] == "standin standin 3.1: standinc MODEL OUT good"
    assert int8["reason_kind"] in ("needs_calibration", "unsupported")
    assert Artifact.open(done["artifacts"][0]["path"]).manifest.profile == "board"


def test_a_compiler_that_fails_is_one_row_and_the_other_builds_go_on(world, capsys):
    options = 'compiler = "standin"\ncompiler_options = { mode = "fail" }'
    code, done = convert(world, capsys, "CPUExecutionProvider", options)

    failed = rows(done)["CPUExecutionProvider, compiled by standin/fp32"]
    assert code == 0
    assert failed["status"] == "failed"
    assert "the compiler `standin` failed (exit 1): op 7 is not supported" in failed["reason"]
    assert done["artifacts"][0]["chosen"]["precision"] == "fp32"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("edgetpu", "needs the compiler `edgetpu_compiler`, which is not installed here"),
        ("tensorrt", "the compiler `tensorrt` runs on the device: add --on ssh://HOST"),
    ],
)
def test_a_compiler_that_is_not_here_is_named_and_the_cpu_serves(world, capsys, name, reason):
    code, done = convert(world, capsys, "accelerator", f'compiler = "{name}"')

    row = rows(done)[f"accelerator, compiled by {name}/fp32"]
    assert code == 0
    assert (row["status"], row["reason_kind"]) == ("skipped", "compiler_missing")
    assert reason in row["reason"]
    assert done["artifacts"][0]["chosen"]["precision"] == "fp32"


def test_a_provider_of_another_machine_waits_for_the_device(world, capsys):
    code, done = convert(world, capsys, "TensorrtExecutionProvider", "", arch="riscv64")

    row = rows(done)["TensorrtExecutionProvider/fp32"]
    assert code == 0
    assert (row["status"], row["reason_kind"]) == ("skipped", "convert_only")
    assert row["reason"].startswith("TensorrtExecutionProvider is on the device, not here: add --on ssh://HOST")


def test_an_unknown_compiler_is_refused_with_the_near_miss(world, capsys):
    code, said = convert(world, capsys, "x", 'compiler = "edgetpuu"')

    assert code == 2
    assert "unknown compiler `edgetpuu`" in said["error"]["message"]
    assert "edgetpu" in said["error"]["hint"]
