"""The catalog: artifacts by digest, where they came from, and the immutable releases made of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cloud_sync.errors import ConflictError, NotFoundError
from cloud_sync.releases import store
from cloud_sync.releases.repository import Target, TrustRepository, target_path
from cloud_sync.store.audit import audit
from cloud_sync.store.base import Database
from edge_sdk.errors import UsageError
from edge_sdk.schemas.ids import SHA256

Row = dict[str, Any]
_CHUNK = 1024 * 1024


class Catalog:
    """Files in DATA/blobs/<sha256>, rows in the store, signatures by the trust repository."""

    def __init__(self, data: Path, db: Database, signer: TrustRepository, tenant: str) -> None:
        self.blobs = data / "blobs"
        self._incoming = self.blobs / ".incoming"
        self._db = db
        self._signer = signer
        self._tenant = tenant
        self._incoming.mkdir(parents=True, exist_ok=True)
        for left in self._incoming.iterdir():  # uploads that a killed service left behind
            left.unlink()

    def incoming(self) -> Path:
        """Return a new name to write an upload to; `adopt` takes it over, whoever fails before deletes it."""
        return self._incoming / f"{uuid.uuid4().hex}.edge"

    def add_file(self, path: Path, *, actor: str = "service") -> Row:
        """Copy an artifact file into the catalog; raises as `adopt`."""
        temporary = self.incoming()
        try:
            shutil.copyfile(path, temporary)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UsageError(f"cannot read {path}: {error.strerror}", hint="check the path") from None
        return self.adopt(temporary, actor=actor)

    def adopt(self, path: Path, *, actor: str) -> Row:
        """Verify a file as an artifact and move it under its digest; the same artifact again changes nothing.

        Raises:
            ArtifactError: it is no artifact, or a damaged one; the file is deleted.
        """
        from edge_sdk.artifact import Artifact

        try:
            manifest = Artifact.open(path).manifest
            digest = _sha256(path)
            row: Row = {
                "sha256": digest,
                "size": path.stat().st_size,
                "name": manifest.name,
                "version": manifest.version,
                "profile": manifest.profile,
                "task": manifest.task,
                "source_sha256": manifest.source_sha256,
                "parent": manifest.parent,
                "uploaded_at": time.time(),
                "manifest_json": manifest.to_json().decode(),
            }
            _durable(path)
            path.replace(self.blobs / digest)
            _sync_folder(self.blobs)
        finally:
            path.unlink(missing_ok=True)
        store.put_artifact(self._db, row)
        audit(self._db, now=row["uploaded_at"], actor=actor, action="artifact.add", subject=digest)
        return {k: row[k] for k in ("sha256", "size", "profile", "name", "version")}

    def blob(self, sha256: str) -> Path:
        """Return the file of an artifact.

        Raises:
            NotFoundError: the catalog has no such artifact.
        """
        path = self.blobs / sha256
        if not SHA256.fullmatch(sha256) or not path.is_file():
            raise NotFoundError(f"no artifact {sha256[:64]!r}", hint="`edge publish` puts artifacts into the catalog")
        return path

    def artifacts(self) -> list[Row]:
        """Return every artifact, newest first, with `manifest`."""
        rows = store.artifacts(self._db)
        return [{**r, "manifest": json.loads(r.pop("manifest_json"))} for r in rows]

    def lineage(self, sha256: str) -> list[Row]:
        """Return an artifact and its parents, as far as the catalog knows them."""
        found: list[Row] = []
        digest: str | None = sha256
        while digest and digest not in {r["sha256"] for r in found}:
            row = store.artifact(self._db, digest)
            if row is None:
                break
            found.append({k: row[k] for k in ("sha256", "name", "version", "profile", "source_sha256", "parent")})
            digest = row["parent"]
        return found

    def create_release(
        self, model: str, version: str, digests: Sequence[str], *, actor: str, now: float | None = None
    ) -> Row:
        """Sign one artifact per profile as a release; the same release again is answered with the first one.

        Raises:
            UsageError: no artifact, two for one profile, or one of another model.
            NotFoundError: an artifact is not in the catalog.
            ConflictError: the version exists with other artifacts.
        """
        now = time.time() if now is None else now
        if not model.strip() or not version.strip() or len(model) > 100 or len(version) > 100:
            raise UsageError("model and version need 1 to 100 characters", hint="--model NAME --version 1.2")
        rows = self._checked(model, digests)
        exists = store.release_of_version(self._db, self._tenant, model, version)
        if exists:
            found = {t["sha256"] for t in store.targets(self._db, exists["id"])}
            if found != {r["sha256"] for r in rows}:
                raise ConflictError(
                    f"release {version} of `{model}` exists with other artifacts",
                    hint="releases never change: give this one another --version",
                )
            return self.release(exists["id"])
        release_id = release_name(model, version, sorted(digests))
        return self._sign_and_store(
            {"id": release_id, "model": model, "version": version, "kind": "release", "undoes": None}, rows, actor, now
        )

    def create_undo(self, release_id: str, targets: Sequence[tuple[str, str, int]], *, actor: str, now: float) -> Row:
        """Sign a new, higher release that points at old bytes, (profile, sha256, size) each; once per undone release.

        Devices refuse anything older than what they have seen, so going back is a step forward too.
        """
        undone = self.release(release_id)
        rows: list[Row] = [{"profile": p, "sha256": s, "size": n} for p, s, n in sorted(set(targets))]
        again = sum(r["undoes"] == release_id for r in store.releases(self._db, self._tenant))
        version = f"{undone['version']}+undo{again + 1}"
        name = release_name(undone["model"], version, [r["sha256"] for r in rows])
        row = {"id": name, "model": undone["model"], "version": version, "kind": "undo", "undoes": release_id}
        return self._sign_and_store(row, rows, actor, now)

    def release(self, release_id: str) -> Row:
        """Return a release with its `targets` [profile, sha256, size, target].

        Raises:
            NotFoundError: there is none.
        """
        row = store.release(self._db, self._tenant, release_id)
        if row is None:
            raise NotFoundError(f"no release `{release_id[:80]}`", hint="`edge publish` makes releases")
        return _shown(row, store.targets(self._db, release_id))

    def list_releases(self) -> list[Row]:
        """Return every release with its targets, newest first."""
        by_release: dict[str, list[Row]] = {}
        for target in store.all_targets(self._db, self._tenant):
            by_release.setdefault(target["release"], []).append(target)
        return [_shown(r, by_release.get(r["id"], [])) for r in store.releases(self._db, self._tenant)]

    def current(self) -> dict[str, Row]:
        """Return the current release of each profile."""
        return store.current(self._db, self._tenant)

    def _checked(self, model: str, digests: Sequence[str]) -> list[Row]:
        if not digests:
            raise UsageError("a release needs at least one artifact", hint="`edge publish ARTIFACT…`")
        rows: dict[str, Row] = {}
        for digest in dict.fromkeys(digests):
            self.blob(digest)
            row = store.artifact(self._db, digest)
            if row is None:
                raise NotFoundError(f"artifact {digest} has no entry in the catalog", hint="upload it again")
            if row["name"] != model:
                raise UsageError(
                    f"artifact {digest[:12]} is of the model `{row['name']}`, the release of `{model}`",
                    hint=f"publish it with --model {row['name']}, or convert it with --name {model}",
                )
            if row["profile"] in rows:
                raise UsageError(
                    f"two artifacts are for the profile `{row['profile']}`: {rows[row['profile']]['sha256'][:12]} and"
                    f" {digest[:12]}",
                    hint="a release has one artifact per profile",
                )
            rows[row["profile"]] = row
        return [rows[p] for p in sorted(rows)]

    def _sign_and_store(self, row: Row, rows: Sequence[Row], actor: str, now: float) -> Row:
        custom = {"release": row["id"], "model": row["model"], "version": row["version"]}
        self._signer.publish(
            [Target(profile=r["profile"], sha256=r["sha256"], size=r["size"], custom=custom) for r in rows], now
        )
        targets = [{**r, "target": target_path(r["profile"], r["sha256"])} for r in rows]
        with self._db.transaction() as tx:
            if not tx.query("SELECT id FROM releases WHERE id = ?", (row["id"],)):
                store.put_release(tx, {**row, "tenant": self._tenant, "created_at": now}, targets)
                audit(tx, now=now, actor=actor, action=f"release.{row['kind']}", subject=row["id"])
        return self.release(row["id"])


def release_name(model: str, version: str, digests: Sequence[str]) -> str:
    """Return a release's id: readable, an id of the wire, and different for other bytes."""
    text = re.sub(r"[^a-z0-9_-]+", "-", f"{model}-{version}".lower()).strip("-_")[:50] or "release"
    mark = hashlib.sha256("|".join([model, version, *digests]).encode()).hexdigest()[:8]
    return f"{text}-{mark}"


def _shown(row: Row, targets: Sequence[Row]) -> Row:
    shown = [{k: t[k] for k in ("profile", "sha256", "size", "target")} for t in targets]
    return {"release": row["id"], **{k: v for k, v in row.items() if k != "tenant"}, "targets": shown}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _durable(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
