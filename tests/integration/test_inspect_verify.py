"""`edge inspect` and `edge verify` as a user runs them: what they print and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_sdk import testing
from edge_sdk.artifact import write_artifact
from edge_sdk.errors import ArtifactError

pytest.importorskip("onnxruntime")


def edge(*words: str | Path, path: Path | None = None) -> tuple[int, str, str]:
    run = subprocess.run(
        [sys.executable, "-m", "edge_sdk", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | ({"PYTHONPATH": str(path)} if path else {}),
    )
    assert "Traceback" not in run.stderr
    return run.returncode, run.stdout, run.stderr


def edge_json(*words: str | Path, path: Path | None = None) -> tuple[int, Any]:
    code, out, _ = edge(*words, "--json", path=path)
    return code, json.loads(out)


def test_verify_runs_the_golden_inputs_of_a_good_artifact(tmp_path: Path) -> None:
    artifact = testing.build_artifact(tmp_path / "a.edge", task="detection")
    code, found = edge_json("verify", artifact.path)
    assert (code, found["ok"], found["digest"]) == (0, True, artifact.sha256)
    assert [c["name"] for c in found["checks"]] == ["form", "load", *(f"golden/00{i}.png" for i in range(3))]
    assert all(set(c) == {"name", "ok", "detail"} and c["ok"] for c in found["checks"])
    assert "error" not in found


def test_verify_ends_with_5_when_the_model_answers_otherwise(tmp_path: Path) -> None:
    artifact = testing.build_artifact(tmp_path / "a.edge", model=testing.tiny_classifier_onnx(constant=0))
    code, found = edge_json("verify", artifact.path)
    assert (code, found["ok"], found["error"]["exit"], found["error"]["kind"]) == (5, False, 5, "guardrail")
    assert [c["ok"] for c in found["checks"]] == [True, True, False, False, False]
    code, out, err = edge("verify", artifact.path)
    assert code == 5
    assert "FAIL  golden/000.png: `blue` scores 0.333" in out
    assert "does not answer as expected on this machine" in err


def test_verify_ends_with_5_when_the_outputs_are_nan(tmp_path: Path) -> None:
    artifact = testing.build_artifact(tmp_path / "a.edge", model=testing.tiny_classifier_onnx(constant=float("nan")))
    code, found = edge_json("verify", artifact.path)
    assert code == 5
    assert "NaN or infinite" in found["checks"][2]["detail"]


def test_verify_ends_with_3_when_the_runtime_is_not_there(tmp_path: Path) -> None:
    artifact = testing.build_artifact(tmp_path / "a.edge", runtime={"name": "hailo"}, golden=False)
    code, found = edge_json("verify", artifact.path)
    assert (code, found["ok"], found["digest"]) == (3, False, artifact.sha256)
    assert "needs runtime `hailo`" in found["error"]["message"]


def test_verify_says_when_there_was_nothing_to_run(tmp_path: Path) -> None:
    code, found = edge_json("verify", testing.build_artifact(tmp_path / "a.edge", golden=False).path)
    assert (code, found["checks"][-1]["detail"]) == (0, "the artifact has no golden inputs, nothing was run")


@pytest.fixture
def odd_engines(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with an installed plug-in: runtimes that crash, hang and print."""
    folder = tmp_path / "site"
    info = folder / "odd_engines-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-engines\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[edge_sdk.runtime]\ncrash = odd_engines:Crash\nhang = odd_engines:Hang\nchatty = odd_engines:Chatty\n"
    )
    (folder / "odd_engines.py").write_text(
        "import os, time\n"
        "from edge_sdk.runtimes.ort import OrtRuntime\n"
        "class Crash(OrtRuntime):\n"
        "    def infer(self, feeds): os.abort()\n"
        "class Hang(OrtRuntime):\n"
        "    def infer(self, feeds): time.sleep(600)\n"
        "class Chatty(OrtRuntime):\n"
        "    def infer(self, feeds): print('hello'); return super().infer(feeds)\n"
    )
    return folder


@pytest.mark.parametrize(
    ("engine", "words", "message"),
    [
        ("crash", (), "the engine took its process down: SIGABRT"),
        ("hang", ("--timeout-s", "5"), "the engine did not answer within 5 s"),
    ],
)
def test_an_engine_that_dies_or_hangs_is_an_answer(
    engine: str, words: tuple[str, ...], message: str, odd_engines: Path, tmp_path: Path
) -> None:
    artifact = testing.build_artifact(tmp_path / "a.edge", runtime={"name": engine}, golden=False)
    genuine = testing.build_artifact(tmp_path / "g.edge")
    entries = {n: genuine.read(n) for n in genuine.names if n not in ("manifest.json", "evidence.json")}
    write_artifact(artifact.path, manifest=artifact.manifest, entries=entries, evidence={})
    code, found = edge_json("verify", artifact.path, *words, path=odd_engines)
    assert (code, found["ok"], found["error"]["kind"]) == (6, False, "worker")
    assert message in found["error"]["message"]


def test_what_an_engine_prints_does_not_spoil_the_answer(odd_engines: Path, tmp_path: Path) -> None:
    genuine = testing.build_artifact(tmp_path / "g.edge")
    manifest = testing.tiny_manifest(runtime={"name": "chatty"})
    entries = {n: genuine.read(n) for n in genuine.names if n not in ("manifest.json", "evidence.json")}
    write_artifact(tmp_path / "a.edge", manifest=manifest, entries=entries, evidence={})
    code, found = edge_json("verify", tmp_path / "a.edge", path=odd_engines)
    assert (code, found["ok"]) == (0, True)


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_a_corrupt_artifact_ends_with_4(tmp_path: Path, verb: str) -> None:
    path = testing.build_artifact(tmp_path / "a.edge").path
    path.write_bytes(path.read_bytes()[:-100])
    code, found = edge_json(verb, path)
    assert (code, found["ok"], found["error"]["exit"]) == (4, False, 4)
    assert [(c["name"], c["ok"]) for c in found["checks"]] == [("form", False)]
    assert len(found["digest"]) == 64
    code, out, err = edge(verb, path)
    assert code == 4
    assert "cut short" in out
    assert "hint:" in err


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_a_missing_file_is_bad_usage(tmp_path: Path, verb: str) -> None:
    code, found = edge_json(verb, tmp_path / "absent.edge")
    assert (code, found["error"]["kind"]) == (2, "usage")


def test_inspect_prints_the_manifest_and_the_evidence(tmp_path: Path) -> None:
    artifact = testing.build_artifact(tmp_path / "a.edge", evidence={"machine": "here"})
    code, found = edge_json("inspect", artifact.path)
    assert (code, found["digest"], found["ok"]) == (0, artifact.sha256, True)
    assert found["manifest"]["runtime"]["name"] == "onnxruntime"
    assert found["evidence"] == {"machine": "here"}
    code, out, _ = edge("inspect", artifact.path)
    assert code == 0
    assert "tiny-classification 1.0.0" in out
    assert "model/model.onnx" in out


def test_inspect_sends_no_control_characters_to_the_terminal(tmp_path: Path) -> None:
    artifact = testing.build_artifact(tmp_path / "a.edge", name="evil\x1b[2J", golden=False)
    assert "\x1b" not in edge("inspect", artifact.path)[1]


def test_every_broken_input_of_the_test_material_ends_with_4(testdata: Path) -> None:
    code = (
        "import sys, io\n"
        "from pathlib import Path\n"
        "from edge_sdk.cli import main\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    for verb in ('inspect', 'verify'):\n"
        "        print(path.name, verb, main([verb, str(path)]), file=sys.__stdout__)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, testdata / "bad"], capture_output=True, text=True, timeout=120, check=True
    )
    ends = [line.split() for line in run.stdout.splitlines() if line.endswith((" 4", " 0", " 1", " 2", " 3"))]
    assert len(ends) == 2 * len(list((testdata / "bad").iterdir()))
    assert {end[-1] for end in ends} == {"4"}


BAD_MODELS = {
    "coral_model_invoking_error.tflite": ("litert", 3, "fake-op-double"),
    "person_detect_micro_badquant.tflite": ("litert", 4, "quantized_dimension"),
    "superres_needs_ort_extensions.onnx": ("onnxruntime", 3, "DecodeImage"),
    "lfs_pointer_yunet.onnx": ("onnxruntime", 4, "not a readable ONNX"),
    "light_squeezenet_const.onnx": ("onnxruntime", 4, "the manifest has one"),
    "keras_lstm_mnist_ptq.tflite": ("litert", 4, "the manifest has one"),
    "ir_v4_unsupported.xml": ("openvino", 3, "IR of version 4"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_an_artifact_around_a_broken_model_is_refused_with_its_reason(
    name: str, testdata: Path, tmp_path: Path
) -> None:
    runtime, exit_code, message = BAD_MODELS[name]
    pytest.importorskip({"litert": "ai_edge_litert"}.get(runtime, runtime))
    files = {f"model/model{Path(name).suffix}": testdata / "bad" / name}
    if name.endswith(".xml"):
        files["model/model.bin"] = testdata / "bad" / name.replace(".xml", ".bin")
    manifest = testing.tiny_manifest(runtime={"name": runtime})
    path = tmp_path / "bad.edge"
    try:
        write_artifact(path, manifest=manifest, entries=files, evidence={})
    except ArtifactError as error:
        refused, found = error.exit_code, error.message
    else:
        refused, report = edge_json("verify", path)
        found = report["error"]["message"]
    assert (refused, message in found) == (exit_code, True), found
