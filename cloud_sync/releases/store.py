"""Rows of artifacts and releases."""

from __future__ import annotations

from collections.abc import Sequence

from cloud_sync.store.base import Database, Transaction
from cloud_sync.store.rows import Row, first, insert, values

_ARTIFACT = (
    "sha256",
    "size",
    "name",
    "version",
    "profile",
    "task",
    "source_sha256",
    "parent",
    "uploaded_at",
    "manifest_json",
)
_RELEASE = ("id", "tenant", "model", "version", "number", "kind", "undoes", "created_at")
_TARGET = ("release", "profile", "sha256", "size", "target")


def put_artifact(db: Database, row: Row) -> None:
    """Insert an artifact; the same one again changes nothing."""
    db.execute(insert("artifacts", _ARTIFACT, conflict="sha256"), values(row, _ARTIFACT))


def artifact(db: Database, sha256: str) -> Row | None:
    return first(db.query("SELECT * FROM artifacts WHERE sha256 = ?", (sha256,)))


def artifacts(db: Database) -> list[Row]:
    return db.query("SELECT * FROM artifacts ORDER BY uploaded_at DESC, sha256")


def release(db: Database, tenant: str, release_id: str) -> Row | None:
    return first(db.query("SELECT * FROM releases WHERE tenant = ? AND id = ?", (tenant, release_id)))


def release_of_version(db: Database, tenant: str, model: str, version: str) -> Row | None:
    sql = "SELECT * FROM releases WHERE tenant = ? AND model = ? AND version = ?"
    return first(db.query(sql, (tenant, model, version)))


def releases(db: Database, tenant: str) -> list[Row]:
    return db.query("SELECT * FROM releases WHERE tenant = ? ORDER BY number DESC", (tenant,))


def targets(db: Database, release_id: str) -> list[Row]:
    return db.query("SELECT * FROM release_targets WHERE release = ? ORDER BY profile, sha256", (release_id,))


def all_targets(db: Database, tenant: str) -> list[Row]:
    return db.query(
        "SELECT t.* FROM release_targets t JOIN releases r ON r.id = t.release WHERE r.tenant = ?"
        " ORDER BY t.release, t.profile, t.sha256",
        (tenant,),
    )


def put_release(tx: Transaction, row: Row, rows: Sequence[Row]) -> Row:
    """Insert a release with the tenant's next number, and its targets."""
    found = tx.query("SELECT max(number) AS last FROM releases WHERE tenant = ?", (row["tenant"],))
    row = {**row, "number": (found[0]["last"] or 0) + 1}
    tx.execute(insert("releases", _RELEASE), values(row, _RELEASE))
    tx.executemany(insert("release_targets", _TARGET), [values({**t, "release": row["id"]}, _TARGET) for t in rows])
    return row


def current(db: Database, tenant: str) -> dict[str, Row]:
    """Return what a device of each profile should run, by the last rollout to the whole fleet that completed."""
    return {r["profile"]: r for r in db.query("SELECT * FROM current_releases WHERE tenant = ?", (tenant,))}


def set_current(tx: Transaction, tenant: str, profile: str, *, release: str, rollout: str | None, now: float) -> None:
    """Make a release the profile's current one; the one before stays known as `previous`."""
    tx.execute(
        "INSERT INTO current_releases (tenant, profile, release, rollout, previous, since) VALUES (?, ?, ?, ?, NULL, ?)"
        " ON CONFLICT (tenant, profile) DO UPDATE SET previous = current_releases.release,"
        " release = excluded.release, rollout = excluded.rollout, since = excluded.since"
        " WHERE current_releases.release <> excluded.release",
        (tenant, profile, release, rollout, now),
    )
