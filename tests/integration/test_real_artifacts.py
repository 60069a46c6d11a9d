"""Real models packed for each runtime: written, opened, loaded, run and verified."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_sdk import runtimes, testing
from edge_sdk.artifact import Artifact, check_golden, golden_entries, write_artifact
from edge_sdk.cli import main
from edge_sdk.model import Model
from edge_sdk.schemas import document
from edge_sdk.schemas.manifest import Manifest

CASES: dict[str, dict[str, Any]] = {
    "onnxruntime": {
        "files": {"model/model.onnx": "yunet_n_320.onnx"},
        "decoder": {"name": "yunet"},
        "input": {"color": "bgr"},
    },
    "openvino": {
        "files": {
            "model/model.xml": "person-detection-retail-0013.xml",
            "model/model.bin": "person-detection-retail-0013.bin",
        },
        "decoder": {"name": "ssd_pp", "params": {"label_offset": -1}},
        "input": {"color": "bgr"},
    },
    "litert": {
        "files": {"model/model.tflite": "blazeface_short_range.tflite"},
        "decoder": {"name": "blazeface"},
        "input": {"color": "rgb", "mean": [127.5], "std": [127.5]},
    },
}


def pack(name: str, testdata: Path, path: Path) -> tuple[Artifact, Any]:
    """Write the artifact of a case and return it with a frame on which it finds something."""
    case = CASES[name]
    table = runtimes.registry()
    if table.missing(name):
        pytest.skip(f"{name} is not installed")
    files = {entry: testdata / "models" / file for entry, file in case["files"].items()}
    main_file = next(iter(files.values()))
    runtime = table.load(name)(main_file, {})
    spec = runtime.inputs[0]
    layout = "NHWC" if spec.shape[3] == 3 else "NCHW"
    image = {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype, "layout": layout, **case["input"]}
    outputs = [{"name": o.name, "shape": list(o.shape), "dtype": o.dtype} for o in runtime.outputs]
    runtime.close()
    manifest = testing.tiny_manifest(
        "detection", name=f"real-{name}", input=image, outputs=outputs, decoder=case["decoder"], runtime={"name": name}
    )
    frame = cv2.imread(str(testdata / "photos" / "grace_hopper.bmp"))
    if name == "openvino":
        video = cv2.VideoCapture(str(testdata / "videos" / "asl_help.mkv"))
        ok, read = video.read()
        frame = read if ok else frame
    with Model.open_files(Manifest.from_json(document.dumps(manifest)), main_file, ("face",)) as model:
        golden = golden_entries(model, [frame])
    entries: dict[str, Any] = {**files, **golden, "labels.txt": b"face\n"}
    return write_artifact(path, manifest=manifest, entries=entries, evidence={}), frame


@pytest.mark.parametrize("name", CASES)
def test_a_real_model_answers_from_its_artifact_as_before(
    name: str, testdata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact, frame = pack(name, testdata, tmp_path / "real.edge")
    with artifact.load() as model:
        model.warm()
        first = model(frame).to_json()
        for _ in range(3):
            assert model(frame).to_json() == first
        assert all(check.ok for check in check_golden(model, artifact.golden()))
    assert main(["verify", str(artifact.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [c["name"] for c in found["checks"]] == ["form", "load", "golden/000.png"]


def test_opening_a_large_artifact_holds_no_more_than_a_few_chunks_of_it(tmp_path: Path) -> None:
    big = tmp_path / "weights.bin"
    big.write_bytes(np.random.default_rng(0).bytes(48 * 1024 * 1024))
    entries: dict[str, Any] = {"model/model.onnx": testing.tiny_classifier_onnx(), "model/weights.bin": big}
    tracemalloc.start()
    try:
        artifact = write_artifact(tmp_path / "b.edge", manifest=testing.tiny_manifest(), entries=entries, evidence={})
        artifact.extract_model(tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "out" / "weights.bin").stat().st_size == 48 * 1024 * 1024
    assert peak < 8 * 1024 * 1024
