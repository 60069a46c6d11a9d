"""Small artifacts and ways to spoil them, for the tests of reading and writing."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_sdk import testing
from edge_sdk.artifact import Artifact, write_artifact
from edge_sdk.artifact_write import compute_payload_digest
from edge_sdk.errors import ArtifactError

MODEL = testing.tiny_classifier_onnx()
ENTRIES: dict[str, Any] = {"model/model.onnx": MODEL, "labels.txt": b"blue\ngreen\nred\n", "card.md": b"# tiny\n"}


def tiny(path: Path) -> Artifact:
    """Write the small classifier that the tests spoil."""
    return write_artifact(path, manifest=testing.tiny_manifest(), entries=ENTRIES, evidence={"n": 1})


def rezip(path: Path, change: Callable[[dict[str, bytes]], None], *, manifest: bool = False, **info: Any) -> Path:
    """Write the entries again with Python's zipfile; `manifest` lists them anew, so that only the change is wrong."""
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    change(entries)
    if manifest:
        data = json.loads(entries["manifest.json"])
        listed = {n: b for n, b in entries.items() if n != "manifest.json"}
        data["files"] = {n: {"sha256": hashlib.sha256(b).hexdigest(), "size": len(b)} for n, b in listed.items()}
        data["payload_digest"] = compute_payload_digest({n: (f["sha256"], f["size"]) for n, f in data["files"].items()})
        entries["manifest.json"] = json.dumps(data).encode()
    with zipfile.ZipFile(path, "w", compression=info.get("compression", zipfile.ZIP_STORED)) as new:
        for name, raw in entries.items():
            new.writestr(name, raw)
    return path


def refused(path: Path, message: str, kind: type[ArtifactError] = ArtifactError) -> None:
    with pytest.raises(kind, match=message) as caught:
        Artifact.open(path)
    assert caught.value.exit_code == 4
    assert caught.value.hint
