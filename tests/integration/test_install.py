"""The wheel with [ort] alone, on every Python it promises that this machine has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "tensorflow", "onnx", "nncf", "fastapi", "pandas", "evidently", "scipy", "openvino", "sklearn")
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
IMPORTS_AFTER_A_RUN = """
import json, sys
from edge_sdk import Pipeline
with Pipeline({source!r}).classify({model!r}) as pipe:
    labels = [result.result.class_id for result in pipe]
print(json.dumps([labels, sorted({{m.split(".")[0] for m in sys.modules}} & set({heavy!r}))]))
"""


def interpreters() -> dict[str, str | None]:
    """Return a working interpreter for each promised version, None where the machine has none."""
    found: dict[str, str | None] = dict.fromkeys(VERSIONS)
    pyenv = sorted((Path.home() / ".pyenv" / "versions").glob("3.*/bin/python"))
    on_path = [shutil.which(f"python{v}") for v in VERSIONS]
    for path in [sys.executable, *filter(None, on_path), *map(str, pyenv)]:
        code = "import sys, ensurepip, venv; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([path, "-c", code], capture_output=True, text=True, timeout=60)
        version = done.stdout.strip()
        if done.returncode == 0 and version in found and found[version] is None:
            found[version] = path
    return found


INTERPRETERS = interpreters()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    ignore = shutil.ignore_patterns("*.egg-info", "__pycache__", ".*", "build", "demo-data")
    shutil.copytree(ROOT, source, ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny artifact that tells dark frames from bright ones, and a folder with one frame of each."""
    pytest.importorskip("onnx", reason="the test's model is made with onnx")
    from onnx import TensorProto, helper, numpy_helper, save

    from edge_sdk.artifact import write_artifact

    folder = tmp_path_factory.mktemp("material")
    weight = np.array([[-1.0, 1.0]], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0, axes=[1, 2, 3]),
            helper.make_node("Reshape", ["m", "shape"], ["r"]),
            helper.make_node("MatMul", ["r", "w"], ["y"]),
        ],
        "brightness",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 8, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([1, 1]), "shape")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "model.onnx")
    manifest = {
        "name": "brightness",
        "version": "1.0.0",
        "profile": "generic-cpu",
        "task": "classification",
        "source_sha256": "0" * 64,
        "parent": None,
        "input": {
            "name": "x",
            "shape": [1, 8, 8, 3],
            "dtype": "float32",
            "layout": "NHWC",
            "color": "bgr",
            "mean": [128.0],
            "std": [64.0],
        },
        "outputs": [{"name": "y", "shape": [1, 2], "dtype": "float32"}],
        "decoder": {"name": "softmax", "params": {}},
        "runtime": {"name": "onnxruntime", "options": {}},
    }
    entries = {"model/model.onnx": folder / "model.onnx", "labels.txt": b"dark\nbright\n"}
    write_artifact(folder / "brightness.edge", manifest=manifest, entries=entries, evidence={})
    frames = folder / "frames"
    frames.mkdir()
    for name, value in (("0.png", 10), ("1.png", 240)):
        cv2.imwrite(str(frames / name), np.full((24, 32, 3), value, np.uint8))
    return folder / "brightness.edge", frames


def environment(version: str, folder: Path, *packages: str) -> Path:
    """Make a virtual environment and return its interpreter; skip where the machine or the index cannot."""
    python = INTERPRETERS[version]
    if python is None:
        pytest.skip(f"no Python {version} with venv on this machine")
    subprocess.run([python, "-m", "venv", folder / "venv"], check=True, timeout=120)
    inside = folder / "venv" / "bin" / "python"
    command = [inside, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    if done.returncode != 0 and "No matching distribution" in done.stderr:
        pytest.skip(f"the package index has not all of {packages[1:]} for Python {version}: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr[-2000:]
    return inside


def run_inside(inside: Path, *words: str | Path) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "EDGE_"))}
    done = subprocess.run([inside, *words], capture_output=True, text=True, timeout=170, cwd="/", env=clean)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("version", "pins"),
    [
        ("3.10", ()),
        ("3.11", ()),
        ("3.11", ("numpy==1.26.4", "opencv-python-headless<4.12")),
        ("3.12", ()),
        ("3.13", ()),
    ],
    ids=["3.10", "3.11", "3.11-numpy1.26", "3.12", "3.13"],
)
def test_the_base_with_ort_runs_a_model_and_imports_nothing_heavy(version, pins, wheel, material, tmp_path):
    model, frames = material
    inside = environment(version, tmp_path, f"edge-sdk[ort] @ {wheel.as_uri()}", *pins)
    if pins:
        assert run_inside(inside, "-c", "import numpy; print(numpy.__version__)").startswith("1.26")

    out = tmp_path / "out.jsonl"
    words = ["-m", "edge_sdk", "run", "--model", model, "--source", frames, "--out", out, "--json"]
    report = json.loads(run_inside(inside, *words))
    assert (report["frames"]["in"], report["frames"]["processed"]) == (2, 2)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["classes"][0]["label"] for line in lines] == ["dark", "bright"]

    code = IMPORTS_AFTER_A_RUN.format(source=str(frames), model=str(model), heavy=HEAVY)
    assert json.loads(run_inside(inside, "-c", code)) == [[0, 1], []]
    installed = run_inside(inside, "-m", "pip", "list", "--format", "freeze").lower()
    assert not [name for name in HEAVY if f"\n{name}==" in f"\n{installed}"]
