"""`edge convert` from a model file to artifacts, with the real tools."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("nncf")

sys.path.insert(0, str(Path(__file__).resolve().parent))
import convert_parts as parts
from support import children_of, is_running

from converters.workers import Workshop
from edge_sdk import Artifact, cli
from edge_sdk.errors import ConversionError

pytestmark = pytest.mark.slow
ANY = """
name = "any"
arch = "any"
[[runtime]]
name = "onnxruntime"
precisions = ["fp32"]
[[runtime]]
name = "openvino"
precisions = ["int8"]
"""
FLAGS = ["--color", "rgb", "--resize", "stretch", "--mean", "0", "--std", "255"]


def convert(capsys, *words) -> tuple[int, dict, str]:
    code = cli.main(["convert", *map(str, words), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    parts.classifier(root / "m.onnx")
    parts.color_folders(root / "calibration", 24, seed=1)
    parts.color_folders(root / "golden", 30, seed=2)
    return root


@pytest.fixture(scope="module")
def two(world, tmp_path_factory):
    """One conversion for two profiles."""
    out = tmp_path_factory.mktemp("two")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "edge_sdk", "convert", world / "m.onnx", "--json", "--out", out, *FLAGS),
            *("--profile", "generic-cpu", "--profile", "x86-64-avx2"),
            *("--calibration", world / "calibration", "--golden", world / "golden"),
        ],
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["artifacts"]


def test_one_artifact_per_profile_with_every_candidate_and_its_reason(two):
    assert [a["profile"] for a in two] == ["generic-cpu", "x86-64-avx2"]
    pairs = [{(c["runtime"], c["precision"]) for c in a["candidates"]} for a in two]
    assert pairs[0] == {("onnxruntime", "fp32"), ("onnxruntime", "int8")}
    assert pairs[1] >= pairs[0] | {("openvino", p) for p in ("fp32", "fp16", "int8")}
    for artifact in two:
        chosen = artifact["chosen"]
        assert {"runtime", "precision", "latency_ms", "size_bytes", "metric"} <= set(chosen)
        assert {"p50", "p95"} <= set(chosen["latency_ms"])
        assert {"name", "source", "value", "drop", "n"} <= set(chosen["metric"])
        assert [c["status"] for c in artifact["candidates"]].count("chosen") == 1
        assert all(c["reason"] for c in artifact["candidates"] if c["status"] != "chosen")


def test_the_artifact_takes_uint8_frames_answers_rightly_and_carries_its_papers(two, world):
    artifact = Artifact.open(two[1]["path"])
    spec = artifact.manifest.input

    assert artifact.sha256 == two[1]["digest"]
    assert (spec.dtype, spec.layout, spec.shape, spec.color) == ("uint8", "NHWC", (1, 32, 32, 3), "rgb")
    assert artifact.labels == parts.COLORS
    assert {"card.md", "bom.cdx.json", "evidence.json", "golden/golden.json"} <= set(artifact.names)
    assert artifact.evidence["golden"]["n"] == 30
    assert artifact.evidence["machine"]["isa"]
    import cv2

    with artifact.load() as model:
        answers = [
            parts.COLORS[model(cv2.imread(str(p))).class_id] == p.parent.name
            for p in sorted((world / "golden").rglob("*.png"))
        ]
    assert np.mean(answers) == two[1]["chosen"]["metric"]["value"]


def test_the_bill_of_materials_says_model_data_and_tools_in_cyclonedx(two):
    bom = json.loads(Artifact.open(two[0]["path"]).read("bom.cdx.json"))

    assert (bom["bomFormat"], bom["specVersion"], bom["version"]) == ("CycloneDX", "1.6", 1)
    component = bom["metadata"]["component"]
    assert component["type"] == "machine-learning-model"
    assert component["modelCard"]["modelParameters"]["task"] == "image-classification"
    refs = {c["bom-ref"] for c in bom["components"]}
    assert {d["ref"] for d in component["modelCard"]["modelParameters"]["datasets"]} == refs
    assert "onnxruntime" in {t["name"] for t in bom["metadata"]["tools"]["components"]}


@pytest.mark.parametrize(("runtime", "precision"), [("onnxruntime", "fp32"), ("openvino", "int8")])
def test_equal_inputs_give_equal_payloads(capsys, world, tmp_path, runtime, precision):
    # For no machine in particular, so that the payload has no number of threads, which is measured.
    (tmp_path / "any.toml").write_text(ANY)
    digests = set()
    for name in ("a", "b"):
        code, data, err = convert(
            capsys, world / "m.onnx", "--profile", tmp_path / "any.toml", "--runtime", runtime,
            "--precision", precision, "--no-cache",
            "--calibration", world / "calibration", "--golden", world / "golden", "--out", tmp_path / name,
            "--max-drop", "0.2", *FLAGS,
        )  # fmt: skip
        assert code == 0, err
        digests.add(data["artifacts"][0]["payload_digest"])
        assert {c["precision"] for c in data["artifacts"][0]["candidates"] if c["status"] != "skipped"} == {precision}

    assert len(digests) == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--golden", "{golden}"], 2, "no device profile given"),
        (["--profile", "generic-cpu"], 2, "no images to verify the builds on"),
        (["--profile", "generic-gpu", "--golden", "{golden}"], 2, "unknown profile `generic-gpu`"),
        (["--profile", "generic-cpu", "--golden", "{golden}"], 2, "the model does not tell 4 thing(s)"),
        (["--profile", "generic-cpu", "--golden", "{golden}", "--precision", "int8", *FLAGS], 2, "nothing to build"),
        (["--profile", "generic-cpu", "--golden", "{none}"], 2, "no such folder"),
        (["--profile", "generic-cpu", "--golden", "{golden}", "--runtime", "rt"], 2, "unknown runtime `rt`"),
        (["--profile", "generic-cpu", "--golden", "{golden}", "--decoder", "yolo"], 2, "unknown decoder `yolo`"),
        (["--profile", "generic-cpu", "--golden", "{golden}", "--mean", "a"], 2, "--mean `a` is not numbers"),
        (["--profile", "generic-cpu", "--golden", "{golden}", "--labels", "{two}", *FLAGS], 2, "has 2 labels"),
        (["--profile", "generic-cpu", "--golden", "{golden}", "--budget-s", "0", *FLAGS], 6, "--budget-s was spent"),
    ],
)  # fmt: skip
def test_what_cannot_be_decided_or_done_is_one_message_and_its_code(capsys, world, tmp_path, words, code, message):
    (tmp_path / "two.txt").write_text("a\nb\n")
    names = {"golden": world / "golden", "none": tmp_path / "none", "two": tmp_path / "two.txt"}
    filled = [str(w).format(**names) for w in words]

    found, data, err = convert(capsys, world / "m.onnx", "--out", tmp_path, *filled)

    assert (found, message in data["error"]["message"]) == (code, True), data
    assert data["error"]["hint"]
    assert "Traceback" not in err
    assert not list(tmp_path.glob("*.edge"))


def test_a_metric_below_the_limit_is_refused_with_each_candidates_reason(capsys, world, tmp_path):
    noisy = parts.color_folders(tmp_path / "golden", 9, seed=5)
    (noisy / "blue" / "5_1.png").write_bytes((noisy / "green" / "5_1.png").read_bytes())

    code, data, _ = convert(
        capsys, world / "m.onnx", "--profile", "generic-cpu", "--golden", noisy, "--min-metric", "0.95",
        "--out", tmp_path, *FLAGS,
    )  # fmt: skip

    assert code == 5
    assert "onnxruntime fp32 refused: top1 is 0.9000, --min-metric asks for 0.95" in data["error"]["message"]
    both = "onnxruntime int8 skipped, onnxruntime int8 (nncf) skipped: int8 needs --calibration"
    assert both in data["error"]["message"]


def test_sets_that_share_images_are_refused_and_one_folder_for_both_is_split(capsys, world, tmp_path):
    mixed = parts.color_folders(tmp_path / "mixed", 12, seed=9)
    (mixed / "red" / "copy.png").write_bytes(next((world / "golden" / "red").glob("*.png")).read_bytes())
    words = [world / "m.onnx", "--profile", "generic-cpu", "--out", tmp_path, *FLAGS]

    code, data, _ = convert(capsys, *words, "--golden", world / "golden", "--calibration", mixed)
    assert code == 5
    assert "1 image(s) stand in both the calibration and the golden set, such as copy.png" in data["error"]["message"]

    both = ["--golden", world / "golden", "--calibration", world / "golden", "--precision", "fp32"]
    code, data, err = convert(capsys, *words, *both)
    assert code == 0
    assert "serves as both sets" in err
    assert data["artifacts"][0]["chosen"]["metric"]["n"] < 30


def test_one_image_is_too_few_and_unreadable_ones_are_named(capsys, world, tmp_path):
    parts.color_folders(tmp_path / "one", 1, seed=3)
    (tmp_path / "broken").mkdir()
    for i in range(9):
        (tmp_path / "broken" / f"{i}.png").write_bytes(b"nothing")
    words = [world / "m.onnx", "--profile", "generic-cpu", "--out", tmp_path, *FLAGS, "--golden"]

    code, data, _ = convert(capsys, *words, tmp_path / "one")
    assert (code, "has 1 image(s), it needs at least 8" in data["error"]["message"]) == (5, True)
    code, data, _ = convert(capsys, *words, tmp_path / "broken")
    assert (code, "none of the 9 images" in data["error"]["message"]) == (5, True)


def test_images_without_labels_judge_by_agreement_and_say_so(capsys, world, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (world / "golden").rglob("*.png"):
        (flat / path.name).write_bytes(path.read_bytes())

    code, data, err = convert(
        capsys, world / "m.onnx", "--profile", "generic-cpu", "--golden", flat, "--out", tmp_path, *FLAGS
    )

    assert code == 0
    assert "no labels: builds are judged by their agreement with the source" in err
    assert data["artifacts"][0]["chosen"]["metric"]["name"] == "agreement top1"
    assert "agrees with the source" in Artifact.open(data["artifacts"][0]["path"]).read("card.md").decode()


def test_every_bad_file_is_one_message_with_an_exit_code(testdata, capsys, world, tmp_path):
    codes = {}
    for path in sorted((testdata / "bad").iterdir()):
        code, data, err = convert(
            capsys, path, "--profile", "generic-cpu", "--golden", world / "golden", "--out", tmp_path
        )
        codes[path.name] = (code, data["error"]["kind"])
        assert data["error"]["message"]
        assert data["error"]["hint"]
        assert "Traceback" not in err
    assert {code for code, _ in codes.values()} <= {2, 3, 4, 5, 6}
    assert codes["lfs_pointer_yunet.onnx"] == (6, "conversion")
    assert codes["superres_needs_ort_extensions.onnx"] == (3, "backend")
    assert codes["light_squeezenet_const.onnx"][0] == 2


def test_a_worker_that_takes_too_long_is_stopped_and_a_dead_one_is_reported(tmp_path):
    slow = Workshop("onnxruntime", job_limit_s=0, memory_mb=8192)
    with pytest.raises(ConversionError, match="took longer than 0 s and was stopped"):
        slow.call("scan", images=[])
    slow.stop()
    small = Workshop("onnxruntime", job_limit_s=60, memory_mb=8192)
    assert small.call("scan", images=[]) == {"rows": []}
    small.memory_mb = 1
    with pytest.raises(ConversionError, match="the limit is 1"):
        small.call("scan", images=[])
    small.stop()
    killed = Workshop("onnxruntime", job_limit_s=60, memory_mb=8192)
    killed.call("scan", images=[])
    os.kill(killed._process.pid, signal.SIGKILL)
    killed._process.wait()
    assert killed.call("scan", images=[]) == {"rows": []}
    killed.stop()


def test_ctrl_c_leaves_no_artifact_and_no_worker_behind(world, tmp_path):
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "edge_sdk", "convert", world / "m.onnx", "--profile", "x86-64-avx2", *FLAGS),
            *("--calibration", world / "calibration", "--golden", world / "golden", "--out", tmp_path / "out"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert any("source: top1" in line for line in process.stderr)
    children = children_of(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert children
    assert not any(map(is_running, children))
    assert not list((tmp_path / "out").iterdir())
    assert not list(tmp_path.glob("edge-convert-*"))
    process.stdout.close()
    process.stderr.close()


def test_a_model_whose_own_scores_have_collapsed_is_refused(capsys, world, tmp_path):
    model = onnx.load(str(world / "m.onnx"))
    for tensor in model.graph.initializer:
        if tensor.name == "w3":
            tensor.CopyFrom(parts.const("w3", np.zeros((3, 6))))
    onnx.save(model, str(tmp_path / "flat.onnx"))

    code, data, _ = convert(
        capsys,
        tmp_path / "flat.onnx",
        "--profile",
        "generic-cpu",
        "--golden",
        world / "golden",
        "--out",
        tmp_path,
        *FLAGS,
    )

    assert (code, "the source model itself has collapsed" in data["error"]["message"]) == (5, True)


def test_a_source_that_never_agrees_with_the_labels_is_not_a_reference(capsys, world, tmp_path):
    for index, name in enumerate(parts.COLORS):
        target = tmp_path / "golden" / parts.COLORS[index - 1]
        target.mkdir(parents=True)
        for path in (world / "golden" / name).iterdir():
            (target / path.name).write_bytes(path.read_bytes())

    code, data, _ = convert(
        capsys, world / "m.onnx", "--profile", "generic-cpu", "--golden", tmp_path / "golden", "--out", tmp_path, *FLAGS
    )

    assert (code, "1.0000 when the classes are in another order: `blue` is its class" in data["error"]["message"]) == (
        5,
        True,
    )
