"""The audit log: who did what to what."""

from __future__ import annotations

from cloud_sync.store.base import Database, Transaction


def audit(db: Database | Transaction, *, now: float, actor: str, action: str, subject: str, detail: str = "") -> None:
    """Write one line of the audit log, in a transaction of its own or in the one given."""
    db.execute(
        "INSERT INTO audit (t, actor, action, subject, detail) VALUES (?, ?, ?, ?, ?)",
        (now, actor, action, subject, detail),
    )
