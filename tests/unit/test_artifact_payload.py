"""What may not travel in an artifact: pickles, external data, damaged models."""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from artifact_parts import ENTRIES, MODEL, refused, rezip, tiny

from edge_sdk import payload, testing
from edge_sdk.artifact import Artifact, write_artifact
from edge_sdk.errors import ArtifactError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiny.edge"


@pytest.fixture
def artifact(path: Path) -> Artifact:
    return tiny(path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".PTH", ".joblib", ".npz"])
def test_a_pickle_by_name_is_refused(artifact: Artifact, suffix: str) -> None:
    rezip(artifact.path, lambda e: e.update({f"model/weights{suffix}": b"harmless"}), manifest=True)
    refused(artifact.path, "is a pickle by its name")


def torch_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"w": 1}))
    return buffer.getvalue()


def object_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        *[(pickle.dumps({"w": list(range(10))}, protocol=p), "is a pickle") for p in (2, 3, 4, 5)],
        (pickle.dumps(list(range(100_000)), protocol=2), "is a pickle"),
        (torch_file(), "a zip archive"),
        (object_array(), "array of objects"),
        (b"\x1f\x8b\x08" + bytes(20), "a gzip archive"),
    ],
)
def test_a_pickle_by_content_is_refused(artifact: Artifact, raw: bytes, message: str) -> None:
    rezip(artifact.path, lambda e: e.update({"model/weights.bin": raw}), manifest=True)
    refused(artifact.path, message)


def test_plain_arrays_and_raw_weights_are_no_pickles(path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(4))
    entries = {**ENTRIES, "model/a.npy": buffer.getvalue(), "model/b.bin": b"\x80\x02" + bytes(range(256)) * 8}
    write_artifact(path, manifest=testing.tiny_manifest(), entries=entries, evidence={})


def external(model: bytes, *, by_location: bool) -> bytes:
    """Return the model with one tensor more in its graph, whose data lies elsewhere."""
    key_value = testing._bytes(1, b"location") + testing._bytes(2, b"../../etc/passwd")
    tensor = testing._int(1, 1) + testing._int(2, 1) + testing._bytes(8, b"w")
    tensor += testing._int(14, 1) if by_location else testing._bytes(13, key_value)
    return model + testing._bytes(7, testing._bytes(5, tensor))


@pytest.mark.parametrize("by_location", [True, False])
def test_onnx_external_data_is_refused(artifact: Artifact, by_location: bool) -> None:
    raw = external(MODEL, by_location=by_location)
    rezip(artifact.path, lambda e: e.update({"model/model.onnx": raw}), manifest=True)
    refused(artifact.path, "keeps weights in another file")


def test_external_data_in_an_attribute_of_a_subgraph_is_refused(artifact: Artifact) -> None:
    tensor = testing._bytes(8, b"w") + testing._int(14, 1)
    constant = testing._bytes(4, b"Constant") + testing._bytes(
        5, testing._bytes(1, b"value") + testing._bytes(5, tensor)
    )
    branch = testing._bytes(5, testing._bytes(1, b"then_branch") + testing._bytes(6, testing._bytes(1, constant)))
    raw = MODEL + testing._bytes(7, testing._bytes(1, testing._bytes(4, b"If") + branch))
    rezip(artifact.path, lambda e: e.update({"model/model.onnx": raw}), manifest=True)
    refused(artifact.path, "keeps weights in another file")


def test_what_the_onnx_package_saves_as_external_data_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_model_from_string(MODEL)
    onnx.save_model(model, tmp_path / "e.onnx", save_as_external_data=True, size_threshold=0, location="weights.bin")
    raw = (tmp_path / "e.onnx").read_bytes()
    rezip(artifact.path, lambda e: e.update({"model/model.onnx": raw}), manifest=True)
    refused(artifact.path, "keeps weights in another file")


@pytest.mark.parametrize("raw", [b"", b"no protobuf", MODEL[: len(MODEL) // 2], b"\x08\x08", b"\xff" * 64])
def test_an_onnx_file_that_is_damaged_is_refused(artifact: Artifact, raw: bytes) -> None:
    rezip(artifact.path, lambda e: e.update({"model/model.onnx": raw}), manifest=True)
    refused(artifact.path, "is not a readable ONNX model")


@pytest.mark.parametrize("name", ["mtcnn_pnet.pt", "mtcnn_rnet.pt", "blazeface.pth", "fastestdet_280e.pth"])
def test_a_real_torch_file_is_refused_under_any_name(path: Path, testdata: Path, name: str) -> None:
    entries = {**ENTRIES, "model/weights.bin": testdata / "models" / name}
    with pytest.raises(ArtifactError, match="is a pickle|a zip archive"):
        write_artifact(path, manifest=testing.tiny_manifest(), entries=entries, evidence={})


@pytest.mark.parametrize("pattern", ["*.onnx", "*.bin", "*.tflite", "*.xml"])
def test_no_real_model_is_mistaken_for_a_pickle(testdata: Path, pattern: str) -> None:
    for file in (testdata / "models").glob(pattern):
        with file.open("rb") as stream:
            payload.check_head(file.name, stream.read(payload.HEAD_BYTES))
            if pattern == "*.onnx":
                payload.check_onnx(stream, 0, file.stat().st_size, file.name)
