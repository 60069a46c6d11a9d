"""The manifest, evidence and labels inside an `.edge` file that are refused, and those of newer versions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from artifact_parts import MODEL, refused, rezip, tiny

from edge_sdk.artifact import Artifact
from edge_sdk.errors import SchemaError


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return tiny(tmp_path / "tiny.edge")


def with_manifest(path: Path, **changes: Any) -> Path:
    def change(entries: dict[str, bytes]) -> None:
        data = json.loads(entries["manifest.json"]) | changes
        entries["manifest.json"] = json.dumps(data).encode()

    return rezip(path, change)


@pytest.mark.parametrize("schema", ["edge.artifact/2", "edge.artifact/11", "other/1", "", None])
def test_an_unknown_major_schema_is_refused(artifact: Artifact, schema: Any) -> None:
    refused(with_manifest(artifact.path, schema=schema), "this version reads `edge.artifact/1`", SchemaError)


def test_a_newer_minor_schema_is_read(artifact: Artifact) -> None:
    assert Artifact.open(with_manifest(artifact.path, schema="edge.artifact/1.7", hint="new")).manifest.extra["hint"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "expected an object"),
        (b'{"schema": "edge.artifact/1", "metric": NaN}', "NaN is not a JSON number"),
        (b'{"schema": "edge.artifact/1", "schema": "x"}', "appears twice"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested more than"),
    ],
)
def test_a_manifest_that_is_no_strict_json_is_refused(artifact: Artifact, raw: bytes, message: str) -> None:
    rezip(artifact.path, lambda e: e.update({"manifest.json": raw}))
    refused(artifact.path, message, SchemaError)


def test_infinity_in_the_evidence_is_refused(artifact: Artifact) -> None:
    rezip(artifact.path, lambda e: e.update({"evidence.json": b'{"x": Infinity}'}), manifest=True)
    refused(artifact.path, "Infinity is not a JSON number", SchemaError)


def test_labels_that_are_no_text_are_refused(artifact: Artifact) -> None:
    rezip(artifact.path, lambda e: e.update({"labels.txt": b"\xff\xff"}), manifest=True)
    refused(artifact.path, r"`labels\.txt` is not UTF-8")


def test_two_models_for_one_runtime_are_refused(artifact: Artifact) -> None:
    rezip(artifact.path, lambda e: e.update({"model/other.onnx": MODEL}), manifest=True)
    refused(artifact.path, "has model files model/model.onnx, model/other.onnx, onnxruntime opens .onnx")
