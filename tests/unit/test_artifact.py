"""Reading, writing and refusing `.edge` files."""

from __future__ import annotations

import json
import os
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from artifact_parts import ENTRIES, MODEL, refused, rezip, tiny

from edge_sdk import testing
from edge_sdk.artifact import Artifact, write_artifact
from edge_sdk.artifact_write import compute_payload_digest
from edge_sdk.errors import ArtifactError, BackendError, SchemaError, UsageError
from edge_sdk.schemas import document


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiny.edge"


@pytest.fixture
def artifact(path: Path) -> Artifact:
    return tiny(path)


def test_an_artifact_reads_back_what_was_written(artifact: Artifact) -> None:
    assert artifact.labels == ("blue", "green", "red")
    assert artifact.evidence == {"n": 1}
    assert artifact.read("model/model.onnx") == MODEL
    assert artifact.manifest.name == "tiny-classification"
    assert artifact.names == ("manifest.json", "evidence.json", "model/model.onnx", "labels.txt", "card.md")


def test_equal_entries_give_an_equal_file_whatever_their_order(artifact: Artifact, tmp_path: Path) -> None:
    reverse = dict(reversed(ENTRIES.items()))
    again = write_artifact(tmp_path / "b.edge", manifest=testing.tiny_manifest(), entries=reverse, evidence={"n": 1})
    assert again.path.read_bytes() == artifact.path.read_bytes()
    assert again.sha256 == artifact.sha256


def test_the_bytes_of_an_artifact_are_the_same_on_every_machine_and_version(tmp_path: Path) -> None:
    fixed = write_artifact(
        tmp_path / "f.edge",
        manifest=testing.tiny_manifest(),
        entries={"model/model.onnx": testing.tiny_detector_onnx(), "labels.txt": b"a\n"},
        evidence={},
    )
    assert fixed.manifest.payload_digest == "f8b13a8a292b4c6a7c11ab13d4c77efc2990db84d4d310adb211dcedd4bc0766"


def test_timings_change_the_file_but_not_the_payload_digest(artifact: Artifact, tmp_path: Path) -> None:
    other = write_artifact(
        tmp_path / "b.edge", manifest=testing.tiny_manifest(), entries=ENTRIES, evidence={"latency_ms": 3.5}
    )
    assert other.sha256 != artifact.sha256
    assert other.manifest.payload_digest == artifact.manifest.payload_digest


@pytest.mark.parametrize("name", ["model/model.onnx", "labels.txt", "golden/golden.json"])
def test_the_payload_digest_covers_what_decides_the_answers(name: str) -> None:
    files = {"model/model.onnx": ("a" * 64, 1), "labels.txt": ("b" * 64, 2), "golden/golden.json": ("c" * 64, 3)}
    assert compute_payload_digest(files) != compute_payload_digest({**files, name: ("d" * 64, 9)})
    assert compute_payload_digest(files) == compute_payload_digest({**files, "card.md": ("d" * 64, 9)})


def test_any_zip_reader_can_read_an_artifact(artifact: Artifact) -> None:
    with zipfile.ZipFile(artifact.path) as file:
        assert file.testzip() is None
        assert {i.compress_type for i in file.infolist()} == {zipfile.ZIP_STORED}
        assert {i.date_time for i in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {stat.filemode(i.external_attr >> 16) for i in file.infolist()} == {"-rw-r--r--"}


def test_entries_may_come_from_files(tmp_path: Path, artifact: Artifact) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(MODEL)
    again = write_artifact(
        tmp_path / "b.edge",
        manifest=testing.tiny_manifest(),
        entries={**ENTRIES, "model/model.onnx": source},
        evidence={"n": 1},
    )
    assert again.sha256 == artifact.sha256


def test_unknown_keys_of_a_manifest_survive(tmp_path: Path) -> None:
    manifest = testing.tiny_manifest(vendor={"note": [1, 2]})
    manifest["input"]["gamma"] = 2.2
    first = write_artifact(tmp_path / "a.edge", manifest=manifest, entries=ENTRIES, evidence={})
    again = write_artifact(tmp_path / "b.edge", manifest=first.manifest, entries=ENTRIES, evidence={})
    assert again.manifest.extra["vendor"] == {"note": [1, 2]}
    assert again.manifest.input.extra["gamma"] == 2.2
    assert again.sha256 == first.sha256


def test_a_failed_write_leaves_the_old_artifact_and_no_other_file(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError):
        write_artifact(
            artifact.path, manifest=testing.tiny_manifest(), entries={"model/x.onnx": b"broken"}, evidence={}
        )
    assert Artifact.open(artifact.path).sha256 == artifact.sha256
    assert [p.name for p in artifact.path.parent.iterdir()] == [artifact.path.name]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model/../../etc/passwd": b"x"}, "leaves the artifact by its name"),
        ({"/model/model.onnx": b"x"}, "absolute name"),
        ({"model/model.pt": b"x"}, "pickle by its name"),
        ({"manifest.json": b"{}"}, "leave it out of the entries"),
        ({"model/model.onnx": Path("/no/such/file")}, "cannot read"),
        ({}, "model files none"),
    ],
)
def test_the_packer_refuses_what_the_reader_would(path: Path, entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        write_artifact(path, manifest=testing.tiny_manifest(), entries=entries, evidence={})
    assert not path.exists()


@pytest.mark.parametrize("evidence", [{"latency": float("nan")}, {"when": object()}])
def test_evidence_that_json_cannot_hold_is_a_schema_error(path: Path, evidence: dict[str, Any]) -> None:
    with pytest.raises(SchemaError, match="cannot be written as JSON"):
        write_artifact(path, manifest=testing.tiny_manifest(), entries=ENTRIES, evidence=evidence)
    assert not path.exists()


def test_a_manifest_that_lacks_keys_is_refused_with_all_of_them(path: Path) -> None:
    manifest = testing.tiny_manifest()
    del manifest["task"], manifest["decoder"]
    with pytest.raises(SchemaError, match="task: missing; decoder: missing"):
        write_artifact(path, manifest=manifest, entries=ENTRIES, evidence={})


def test_opening_needs_no_engine_and_no_numpy(artifact: Artifact) -> None:
    code = (
        "import sys; from edge_sdk.artifact import Artifact; Artifact.open(sys.argv[1])\n"
        "print([m for m in ('numpy', 'cv2', 'onnxruntime') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code, artifact.path], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "absent.edge", "no such artifact")


def test_a_folder_or_a_pipe_is_no_artifact(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        refused(path, "is no regular file")


def test_an_entry_that_does_not_exist_is_named(artifact: Artifact) -> None:
    with pytest.raises(UsageError, match="has no entry `model/x`"):
        artifact.read("model/x")


@pytest.mark.parametrize("content", [b"", b"PK", b"hello " * 100, b"\x7fELF" + bytes(200)])
def test_a_file_that_is_no_zip_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(path, "is no artifact: it is not a zip file")


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.95])
def test_a_truncated_artifact_is_refused(artifact: Artifact, keep: float) -> None:
    raw = artifact.path.read_bytes()
    artifact.path.write_bytes(raw[: int(len(raw) * keep)])
    refused(artifact.path, "cut short")


def test_bytes_after_the_end_are_refused(artifact: Artifact) -> None:
    artifact.path.write_bytes(artifact.path.read_bytes() + b"x")
    refused(artifact.path, "cut short or has bytes after its end")


def test_a_zip_without_a_manifest_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/model.onnx", MODEL)
    refused(path, r"without manifest\.json")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil", "leaves the artifact by its name"),
        ("model/../../evil", "leaves the artifact by its name"),
        ("model/./evil", "leaves the artifact by its name"),
        ("/etc/passwd", "absolute name"),
        ("C:/evil", "absolute name"),
        ("model\\evil", "backslash"),
        ("model//evil", "not plain"),
        ("model/", "not plain"),
        ("model/e\nvil", "not plain"),
        ("model/a b", "not plain"),
        ("model/é", "not ASCII"),
        ("model/con", "reserve"),
        ("model/" + "a" * 300, "not plain"),
        ("model/model.onnx/x", "as a file and a folder"),
    ],
)
def test_a_hostile_name_is_refused(artifact: Artifact, name: str, message: str) -> None:
    raw = zip_of([*stored(artifact), (name.encode(), b"x", {})])
    artifact.path.write_bytes(raw)
    refused(artifact.path, message)


def stored(artifact: Artifact) -> list[tuple[bytes, bytes, dict[str, Any]]]:
    with zipfile.ZipFile(artifact.path) as file:
        return [(n.encode(), file.read(n), {}) for n in file.namelist()]


def zip_of(entries: list[tuple[bytes, bytes, dict[str, Any]]], *, gap: bytes = b"") -> bytes:
    """Write a zip by hand; an entry's changes: flags, method, mode, size, stored, crc, local_name, offset, extra."""
    data, directory = bytearray(gap), bytearray()
    for name, raw, change in entries:
        crc = change.get("crc", zlib.crc32(raw))
        size, held = change.get("size", len(raw)), change.get("stored", len(raw))
        flags, method, extra = change.get("flags", 0), change.get("method", 0), change.get("extra", b"")
        local = change.get("local_name", name)
        offset = change.get("offset", len(data))
        local_size = change.get("local_size", size)
        data += struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, flags, method, 0, 33, crc, held, local_size, len(local), 0)
        data += local + raw
        mode = change.get("mode", stat.S_IFREG | 0o644)
        common = (20, flags, method, 0, 33, crc, held, size, len(name), len(extra), 0, 0, 0, mode << 16, offset)
        directory += struct.pack("<4s6H3L5H2L", b"PK\x01\x02", (3 << 8) | 20, *common) + name + extra
    count = len(entries)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(data), 0)
    return bytes(data + directory + end)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": stat.S_IFLNK | 0o777}, "is a link"),
        ({"mode": stat.S_IFDIR | 0o755}, "not a regular file"),
        ({"mode": stat.S_IFIFO | 0o644}, "not a regular file"),
        ({"flags": 0x1}, "is encrypted"),
        ({"flags": 0x8}, "unusual form"),
        ({"method": 8}, "is compressed"),
        ({"size": 1 << 30}, "is compressed"),
        ({"size": 1 << 30, "stored": 1 << 30}, "declares 1073741824 bytes, more than the file has"),
        ({"local_name": b"model/evil.md"}, "local header that contradicts"),
        ({"local_size": 1}, "local header that contradicts"),
        ({"extra": b"\x01\x00\x00\x00"}, "unusual form"),
        ({"offset": 0}, "overlaps the one before"),
        ({"crc": 1}, "has not the CRC"),
    ],
)
def test_an_entry_of_another_form_is_refused(artifact: Artifact, change: dict[str, Any], message: str) -> None:
    entries = stored(artifact)
    entries[-1] = (*entries[-1][:2], change)
    artifact.path.write_bytes(zip_of(entries))
    refused(artifact.path, message)


def test_a_name_that_appears_twice_is_refused(artifact: Artifact) -> None:
    artifact.path.write_bytes(zip_of([*stored(artifact), (b"card.md", b"other", {})]))
    refused(artifact.path, "has the name `card.md` twice")


def test_names_that_differ_in_case_only_are_refused(artifact: Artifact) -> None:
    artifact.path.write_bytes(zip_of([*stored(artifact), (b"CARD.md", b"other", {})]))
    refused(artifact.path, "twice")


def test_bytes_between_entries_are_refused(artifact: Artifact) -> None:
    raw = zip_of(stored(artifact), gap=b"PK\x03\x04 hidden")
    artifact.path.write_bytes(raw)
    refused(artifact.path, "leaves a gap")


def test_an_overlapping_zip_bomb_is_refused(path: Path) -> None:
    """Many directory entries that point at one local header, as in Fifield's quoted-overlap bombs."""
    one = (b"manifest.json", b"{}", {})
    path.write_bytes(zip_of([one, *[(f"model/{i}".encode(), b"", {"offset": 0}) for i in range(50)]]))
    refused(path, "overlaps the one before")


def test_too_many_entries_are_refused(path: Path) -> None:
    path.write_bytes(zip_of([(f"model/{i}".encode(), b"", {}) for i in range(5000)]))
    refused(path, "unusual form")


def test_a_changed_byte_of_the_model_is_refused(artifact: Artifact) -> None:
    entries = stored(artifact)
    raw = bytearray(entries[2][1])
    raw[-1] ^= 1
    entries[2] = (entries[2][0], bytes(raw), {})
    artifact.path.write_bytes(zip_of(entries))
    refused(artifact.path, "`model/model.onnx` has SHA-256 .*, the manifest says")


def test_a_wrong_size_is_refused(artifact: Artifact) -> None:
    rezip(artifact.path, lambda e: e.update({"card.md": e["card.md"] + b"more"}))
    refused(artifact.path, "`card.md` is 11 bytes, the manifest says 7")


def test_an_entry_that_the_manifest_does_not_list_is_refused(artifact: Artifact) -> None:
    rezip(artifact.path, lambda e: e.update({"model/extra.bin": b"x"}))
    refused(artifact.path, r"has `model/extra\.bin`, which its manifest does not list")


def test_a_listed_file_that_is_absent_is_refused(artifact: Artifact) -> None:
    rezip(artifact.path, lambda e: e.pop("labels.txt") and None)
    refused(artifact.path, r"lacks `labels\.txt`, which its manifest lists")


def test_a_payload_digest_of_other_files_is_refused(artifact: Artifact) -> None:
    def change(entries: dict[str, bytes]) -> None:
        data = json.loads(entries["manifest.json"])
        entries["manifest.json"] = json.dumps(data | {"payload_digest": "1" * 64}).encode()

    rezip(artifact.path, change)
    refused(artifact.path, "the payload digest of `tiny.edge` is not that of its files")


def test_a_file_that_changes_after_it_was_opened_is_noticed(artifact: Artifact) -> None:
    raw = bytearray(artifact.path.read_bytes())
    place = raw.index(MODEL[-16:])
    raw[place + 3] ^= 0xFF
    artifact.path.write_bytes(bytes(raw))
    with pytest.raises(ArtifactError, match="changed since it was opened"):
        artifact.read("model/model.onnx")
    with pytest.raises(ArtifactError, match="changed since it was opened"):
        artifact.extract_model(artifact.path.parent / "out")
    assert not list((artifact.path.parent / "out").iterdir())


def test_the_model_is_extracted_under_its_own_name(artifact: Artifact, tmp_path: Path) -> None:
    main = artifact.extract_model(tmp_path / "out")
    assert main == tmp_path / "out" / "model.onnx"
    assert main.read_bytes() == MODEL


def test_a_manifest_written_twice_is_the_same_text(artifact: Artifact) -> None:
    raw = artifact.read("manifest.json")
    assert artifact.manifest.to_json() == raw
    assert document.loads(raw, where="m")["files"]["labels.txt"]["size"] == 15


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot write .*not.*directory|cannot write .*File exists"):
        write_artifact(tmp_path / "file" / "a.edge", manifest=testing.tiny_manifest(), entries=ENTRIES, evidence={})


def test_a_temporary_folder_that_is_gone_is_named_when_loading(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(BackendError, match="cannot unpack the model of `tiny.edge` to .*gone") as caught:
        artifact.load()
    assert caught.value.hint is not None
    assert "TMPDIR" in caught.value.hint
