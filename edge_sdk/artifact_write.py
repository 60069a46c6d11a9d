"""Packing: the entries of an artifact in their fixed order, and the digests over them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from edge_sdk import payload, zipfile_strict
from edge_sdk.errors import ArtifactError
from edge_sdk.schemas import document
from edge_sdk.schemas.manifest import MODEL_DIR, SCHEMA, Manifest

MANIFEST = "manifest.json"
EVIDENCE = "evidence.json"
LABELS = "labels.txt"
GOLDEN_DIR = "golden/"
CARD = "card.md"
BOM = "bom.cdx.json"
_ORDER = (MANIFEST, EVIDENCE, MODEL_DIR, LABELS, GOLDEN_DIR, CARD, BOM)
Content = bytes | Path


def compute_payload_digest(files: Mapping[str, tuple[str, int]]) -> str:
    """Return the SHA-256 over name, hash and size of the files that decide the answers: model/, labels.txt, golden/.

    Each file is a line `name TAB sha256 TAB size NEWLINE`, sorted by name.
    """
    digest = hashlib.sha256()
    for name in sorted(files):
        if name == LABELS or name.startswith((MODEL_DIR, GOLDEN_DIR)):
            sha256, size = files[name]
            digest.update(f"{name}\t{sha256}\t{size}\n".encode())
    return digest.hexdigest()


def write_file(
    out: BinaryIO,
    manifest: Mapping[str, Any] | Manifest,
    entries: Mapping[str, Content],
    evidence: Mapping[str, Any],
) -> None:
    """Write the zip file of an artifact.

    Raises:
        ArtifactError: a name is not plain or reserved, a file is no regular file or changes while it is read.
        ValueError: manifest or evidence hold what JSON cannot.
    """
    contents: dict[str, Content] = dict(entries)
    for name in (MANIFEST, EVIDENCE):
        if name in contents:
            raise ArtifactError(f"`{name}` is written by the packer, leave it out of the entries")
    contents[EVIDENCE] = document.dumps_pretty(evidence)
    measured = {name: _measure(name, content) for name, content in contents.items()}
    files = {name: (sha256, size) for name, (sha256, size, _) in measured.items()}
    raw = _manifest_bytes(manifest, files)
    contents[MANIFEST] = raw
    measured[MANIFEST] = _measure(MANIFEST, raw)
    rows = []
    for name in sorted(contents, key=_rank):
        sha256, size, crc = measured[name]
        rows.append((name, size, crc, _verified(name, contents[name], sha256)))
    zipfile_strict.write(out, rows)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Any]:
    """Open a temporary file beside `path` that is synced and renamed to it when the block ends well, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            # `out.name` is the descriptor's number; readers need the path.
            yield _Named(out, name)
            out.flush()
            os.fsync(out.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


class _Named:
    """A binary file and its path."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.write = file.write
        self.flush = file.flush
        self.name = name


def _manifest_bytes(manifest: Mapping[str, Any] | Manifest, files: Mapping[str, tuple[str, int]]) -> bytes:
    data = document.write(manifest) | {"parent": manifest.parent} if isinstance(manifest, Manifest) else dict(manifest)
    data.setdefault("parent", None)
    data["schema"] = data.get("schema") or SCHEMA
    data["files"] = {name: {"sha256": sha256, "size": size} for name, (sha256, size) in files.items()}
    data["payload_digest"] = compute_payload_digest(files)
    raw = document.dumps_pretty(data)
    return Manifest.from_json(raw).to_json()


def _rank(name: str) -> tuple[int, str]:
    for index, prefix in enumerate(_ORDER):
        if name == prefix or (prefix.endswith("/") and name.startswith(prefix)):
            return index, name
    return len(_ORDER), name


def _measure(name: str, content: Content) -> tuple[str, int, int]:
    """Return (sha256, size, crc32) and refuse what an artifact may not carry."""
    zipfile_strict.check_name(name)
    payload.check_name_carries_no_code(name)
    digest, size, crc = hashlib.sha256(), 0, 0
    for chunk in _chunks(name, content):
        digest.update(chunk)
        size += len(chunk)
        crc = zlib.crc32(chunk, crc)
    return digest.hexdigest(), size, crc


def _verified(name: str, content: Content, sha256: str) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for chunk in _chunks(name, content):
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != sha256:
        raise ArtifactError(f"`{name}` changed while it was packed", hint="pack it again")


def _chunks(name: str, content: Content) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    try:
        with content.open("rb") as file:
            while chunk := file.read(zipfile_strict.CHUNK):
                yield chunk
    except OSError as error:
        raise ArtifactError(f"cannot read {content} for `{name}`: {error.strerror}", hint="check the path") from None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
