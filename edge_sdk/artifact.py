"""One deployable `.edge` file: opened with every check of the contract, loaded as a model.

Importing this module and opening an artifact need the standard library only; numpy, OpenCV and an engine come with
`load`, `golden` and the golden functions.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from edge_sdk import payload, runtimes, zipfile_strict
from edge_sdk.artifact_write import (
    BOM,
    CARD,
    EVIDENCE,
    LABELS,
    MANIFEST,
    atomic_file,
    compute_payload_digest,
    write_file,
)
from edge_sdk.errors import ArtifactError, BackendError, SchemaError, UsageError
from edge_sdk.schemas import document
from edge_sdk.schemas.ids import check_sha256
from edge_sdk.schemas.manifest import MODEL_DIR, Manifest
from edge_sdk.zipfile_strict import Entry

if TYPE_CHECKING:
    from edge_sdk.golden import Check, GoldenCase, check_golden, golden_entries
    from edge_sdk.model import Model

__all__ = ["BOM", "CARD", "Artifact", "Check", "GoldenCase", "check_golden", "golden_entries", "write_artifact"]

logger = logging.getLogger(__name__)
MAX_LABELS_BYTES = 4 * 1024 * 1024
MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
_CHANGED = "the file was changed after it was packed: get it from its source again"


class Artifact:
    """A checked artifact on disk. `sha256` is of the whole file: the digest that users and the wire name it by."""

    def __init__(
        self,
        path: Path,
        *,
        manifest: Manifest,
        sha256: str,
        evidence: Mapping[str, Any],
        labels: tuple[str, ...],
        entries: Mapping[str, Entry],
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.sha256 = sha256
        self.evidence = evidence
        self.labels = labels
        self._entries = entries

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """Open an artifact; nothing of it is trusted before its form, names, hashes and contents are checked.

        Raises:
            SchemaError: its manifest or evidence has another form, or another major version.
            ArtifactError: any other check failed; the message says which.
        """
        path = Path(path)
        return cls._open(path, f"`{path.name}`")

    @classmethod
    def _open(cls, path: Path, where: str) -> Artifact:
        if path.exists() and not path.is_file():
            raise ArtifactError(f"{where} is no regular file", hint="give an .edge file")
        try:
            with path.open("rb") as file:
                return cls._read(path, file, where)
        except FileNotFoundError:
            raise ArtifactError(f"no such artifact: {path}", hint="check the path") from None
        except OSError as error:
            raise ArtifactError(f"cannot read {where}: {error.strerror or error}", hint="check the file") from None

    @classmethod
    def _read(cls, path: Path, file: BinaryIO, where: str) -> Artifact:
        entries = zipfile_strict.read_directory(file, where)
        if MANIFEST not in entries:
            raise ArtifactError(f"{where} is a zip file without {MANIFEST}", hint="give an .edge file")
        manifest = Manifest.from_json(_read_small(file, entries[MANIFEST], 4 * 1024 * 1024))
        _check_listing(entries, manifest, where)
        for name, listed in manifest.files.items():
            payload.check_name_carries_no_code(name)
            _check_entry(file, entries[name], check_sha256(listed.sha256, f"sha256 of `{name}`"), listed.size)
            if name.startswith(MODEL_DIR) and name.lower().endswith(".onnx"):
                payload.check_onnx(file, entries[name].offset, entries[name].size, name)
        if (
            compute_payload_digest({n: (f.sha256, f.size) for n, f in manifest.files.items()})
            != manifest.payload_digest
        ):
            raise ArtifactError(f"the payload digest of {where} is not that of its files", hint=_CHANGED)
        evidence: dict[str, Any] = {}
        if EVIDENCE in entries:
            evidence = document.loads_object(
                _read_small(file, entries[EVIDENCE], MAX_DOCUMENT_BYTES), where=EVIDENCE, max_bytes=MAX_DOCUMENT_BYTES
            )
        labels = _read_labels(_read_small(file, entries[LABELS], MAX_LABELS_BYTES)) if LABELS in entries else ()
        artifact = cls(
            path, manifest=manifest, sha256=_sha256_of(file), evidence=evidence, labels=labels, entries=entries
        )
        artifact.main_file()
        return artifact

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all entries, in file order."""
        return tuple(self._entries)

    @property
    def size(self) -> int:
        """Bytes of all entries; the file has a few more."""
        return sum(entry.size for entry in self._entries.values())

    def read(self, name: str) -> bytes:
        """Return one entry, its hash checked again.

        Raises:
            UsageError: there is no such entry.
            ArtifactError: the file changed since it was opened.
        """
        parts: list[bytes] = []
        self._copy(name, parts.append)
        return b"".join(parts)

    def main_file(self) -> str:
        """Return the name of the model file that the runtime opens.

        Raises:
            ArtifactError: there is none, or more than one.
        """
        runtime = self.manifest.runtime.name
        models = [name for name in self._entries if name.startswith(MODEL_DIR)]
        try:
            suffixes = runtimes.registry().plugin(runtime).capabilities.get("suffixes", ())
        except UsageError:
            suffixes = ()
        for suffix in suffixes:
            fitting = [name for name in models if name.endswith(suffix)]
            if len(fitting) == 1:
                return fitting[0]
        if not suffixes and len(models) == 1:
            return models[0]
        expected = " or ".join(suffixes) if suffixes else "one"
        raise ArtifactError(
            f"`{self.path.name}` has model files {', '.join(models) or 'none'}, {runtime} opens {expected}",
            hint="convert the model again",
        )

    def extract_model(self, directory: Path) -> Path:
        """Write the entries under `model/` to `directory` and return the path of the main one.

        Each file is written under a temporary name, synced and renamed.

        Raises:
            ArtifactError: the file changed since it was opened.
        """
        for name in self._entries:
            if name.startswith(MODEL_DIR):
                target = directory / name.removeprefix(MODEL_DIR)
                target.parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(target) as out:
                    self._copy(name, out.write)
        return directory / self.main_file().removeprefix(MODEL_DIR)

    def load(
        self, *, options: Mapping[str, Any] | None = None, decoder_params: Mapping[str, Any] | None = None
    ) -> Model:
        """Open the artifact's runtime on its model; `options` and `decoder_params` override the manifest's, key by key.

        Raises:
            BackendError: the runtime is not installed, of another version, or cannot run the model.
            ArtifactError: the model cannot be read or does not fit the manifest.
        """
        from edge_sdk.model import Model

        folder = self._unpack()
        try:
            return Model.open_files(
                self.manifest,
                folder / self.main_file().removeprefix(MODEL_DIR),
                self.labels,
                options=options,
                digest=self.sha256,
                decoder_params=decoder_params,
            )
        finally:
            # Engines keep what they need in memory or mapped, so the files need not outlive loading.
            shutil.rmtree(folder, ignore_errors=True)

    def _unpack(self) -> Path:
        """Extract the model to a new temporary folder."""
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(prefix="edge-model-"))
            self.extract_model(folder)
        except OSError as error:
            where = folder or error.filename or "a temporary folder"
            raise BackendError(
                f"cannot unpack the model of `{self.path.name}` to {where}: {error.strerror or error}",
                hint="free some space there, or set TMPDIR",
            ) from None
        else:
            unpacked, folder = folder, None
            return unpacked
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def golden(self) -> tuple[GoldenCase, ...]:
        """Return the self-test cases.

        Raises:
            ArtifactError: they cannot be read.
        """
        from edge_sdk.golden import read_golden

        return read_golden(self._entries, self.read)

    def _copy(self, name: str, write: Any) -> None:
        if name not in self._entries:
            raise UsageError(f"`{self.path.name}` has no entry `{name}`", hint="`edge inspect` lists them")
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            for chunk in zipfile_strict.chunks(file, self._entries[name]):
                digest.update(chunk)
                write(chunk)
        listed = self.manifest.files.get(name)
        if listed is not None and digest.hexdigest() != listed.sha256:
            raise ArtifactError(f"entry `{name}` of `{self.path.name}` changed since it was opened", hint=_CHANGED)

    def __repr__(self) -> str:
        return f"Artifact({str(self.path)!r}, {self.manifest.name} {self.manifest.version}, {self.sha256[:12]})"


def write_artifact(
    path: str | Path,
    *,
    manifest: Mapping[str, Any] | Manifest,
    entries: Mapping[str, bytes | Path],
    evidence: Mapping[str, Any],
) -> Artifact:
    """Pack an artifact and return it, opened; `schema`, `files` and `payload_digest` of the manifest are filled in.

    Equal arguments give an equal file, byte for byte. The file appears whole or not at all.

    Args:
        entries: bytes or a file for each of `model/…`, `labels.txt`, `golden/…`, `card.md`, `bom.cdx.json`.
        evidence: everything that varies between equal builds: timings, candidates, machine, versions.

    Raises:
        ArtifactError: the result would not pass the checks of `Artifact.open`.
        SchemaError: the manifest lacks keys, or manifest or evidence hold what JSON cannot.
        UsageError: the file cannot be written there.
    """
    path = Path(path)
    try:
        with atomic_file(path) as out:
            write_file(out, manifest, entries, evidence)
            out.flush()
            Artifact._open(Path(out.name), f"`{path.name}`")
    except (TypeError, ValueError) as error:
        raise SchemaError(f"manifest or evidence cannot be written as JSON: {error}", hint="use plain values") from None
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}", hint="check the folder and its space"
        ) from None
    return Artifact.open(path)


def __getattr__(name: str) -> Any:
    if name in ("Check", "GoldenCase", "check_golden", "golden_entries"):
        from edge_sdk import golden

        return getattr(golden, name)
    raise AttributeError(f"module `edge_sdk.artifact` has no attribute `{name}`")


def _check_listing(entries: Mapping[str, Entry], manifest: Manifest, where: str) -> None:
    listed = set(manifest.files)
    found = set(entries) - {MANIFEST}
    if MANIFEST in listed:
        raise ArtifactError(f"the manifest of {where} lists itself", hint=_CHANGED)
    for name in sorted(found - listed):
        raise ArtifactError(f"{where} has `{name}`, which its manifest does not list", hint=_CHANGED)
    for name in sorted(listed - found):
        raise ArtifactError(f"{where} lacks `{name}`, which its manifest lists", hint=_CHANGED)


def _check_entry(file: BinaryIO, entry: Entry, sha256: str, size: int) -> None:
    if entry.size != size:
        raise ArtifactError(f"`{entry.name}` is {entry.size} bytes, the manifest says {size}", hint=_CHANGED)
    digest, crc, head = hashlib.sha256(), 0, b""
    for chunk in zipfile_strict.chunks(file, entry):
        if not head:
            head = chunk[: payload.HEAD_BYTES]
        digest.update(chunk)
        crc = zlib.crc32(chunk, crc)
    if digest.hexdigest() != sha256:
        raise ArtifactError(
            f"`{entry.name}` has SHA-256 {digest.hexdigest()[:12]}…, the manifest says {sha256[:12]}…", hint=_CHANGED
        )
    if crc != entry.crc:
        raise ArtifactError(f"`{entry.name}` has not the CRC that the zip directory says", hint=_CHANGED)
    payload.check_head(entry.name, head)


def _read_small(file: BinaryIO, entry: Entry, limit: int) -> bytes:
    if entry.size > limit:
        raise ArtifactError(f"`{entry.name}` is {entry.size} bytes, the limit is {limit}", hint=_CHANGED)
    return b"".join(zipfile_strict.chunks(file, entry))


def _read_labels(raw: bytes) -> tuple[str, ...]:
    try:
        return tuple(raw.decode("utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise ArtifactError(f"`{LABELS}` is not UTF-8: {error.reason} at byte {error.start}", hint=_CHANGED) from None


def _sha256_of(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(zipfile_strict.CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
