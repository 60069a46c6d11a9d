"""Whatever bytes an artifact holds, opening it gives the artifact or an ArtifactError."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edge_sdk import payload, testing, zipfile_strict
from edge_sdk.artifact import Artifact, write_artifact
from edge_sdk.errors import ArtifactError, EdgeError

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MODEL = testing.tiny_classifier_onnx()


@pytest.fixture(scope="module")
def whole() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        artifact = write_artifact(
            Path(folder) / "a.edge",
            manifest=testing.tiny_manifest(),
            entries={"model/model.onnx": MODEL, "labels.txt": b"a\nb\nc\n", "card.md": b"# a\n"},
            evidence={},
        )
        return artifact.path.read_bytes()


def opens(raw: bytes, folder: Path) -> Artifact | None:
    path = folder / "fuzz.edge"
    path.write_bytes(raw)
    try:
        return Artifact.open(path)
    except ArtifactError:
        return None


@QUICK
@given(data=st.data())
def test_a_changed_byte_anywhere_is_refused_or_harmless(data: st.DataObject, whole: bytes, tmp_path: Path) -> None:
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    artifact = opens(bytes(raw), tmp_path)
    if artifact is not None:
        assert artifact.read("model/model.onnx") == MODEL


@QUICK
@given(start=st.integers(0, 10_000), length=st.integers(1, 4_000))
def test_a_piece_cut_out_is_refused(start: int, length: int, whole: bytes, tmp_path: Path) -> None:
    start %= len(whole)
    assert opens(whole[:start] + whole[start + length :], tmp_path) is None


@QUICK
@given(start=st.integers(0, 10_000), extra=st.binary(min_size=1, max_size=64))
def test_bytes_put_in_anywhere_are_refused(start: int, extra: bytes, whole: bytes, tmp_path: Path) -> None:
    start %= len(whole) + 1
    assert opens(whole[:start] + extra + whole[start:], tmp_path) is None


@QUICK
@given(raw=st.binary(max_size=400))
@example(raw=b"PK\x05\x06" + bytes(18))
@example(raw=b"PK\x03\x04" + bytes(18) + b"PK\x05\x06" + bytes(18))
def test_random_bytes_are_refused(raw: bytes, tmp_path: Path) -> None:
    assert opens(raw, tmp_path) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@QUICK
@given(data=st.data(), value=JSON)
def test_any_value_at_any_key_of_a_manifest_is_a_schema_error_or_read(
    data: st.DataObject, value: object, tmp_path: Path
) -> None:
    manifest = testing.tiny_manifest()
    place = manifest
    if data.draw(st.booleans()):
        place = manifest[data.draw(st.sampled_from(["input", "decoder", "runtime"]))]
    place[data.draw(st.sampled_from(sorted(place)))] = value
    try:
        json.dumps(manifest)
        artifact = write_artifact(
            tmp_path / "m.edge", manifest=manifest, entries={"model/model.onnx": MODEL}, evidence={}
        )
        assert Artifact.open(artifact.path).sha256 == artifact.sha256
    except ArtifactError:
        pass


@QUICK
@given(raw=st.binary(max_size=300))
def test_walking_any_bytes_as_onnx_ends(raw: bytes) -> None:
    try:
        payload.check_onnx(io.BytesIO(raw), 0, len(raw), "fuzz.onnx")
    except ArtifactError:
        pass


@QUICK
@given(data=st.data())
def test_walking_a_damaged_onnx_model_ends(data: st.DataObject) -> None:
    raw = bytearray(MODEL)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        payload.check_onnx(io.BytesIO(bytes(raw)), 0, len(raw), "fuzz.onnx")
    except ArtifactError:
        pass


@QUICK
@given(name=st.text(max_size=40))
@example(name="model/../x")
def test_a_name_that_passes_stays_in_the_folder_it_is_extracted_to(name: str) -> None:
    try:
        zipfile_strict.check_name(name)
    except EdgeError:
        return
    root = Path("/srv/model")
    assert (root / name).resolve().is_relative_to(root)


@QUICK
@given(head=st.binary(max_size=600))
def test_looking_for_pickles_in_any_bytes_ends(head: bytes) -> None:
    try:
        payload.check_head("fuzz.bin", b"\x80\x04" + head)
    except ArtifactError:
        pass
