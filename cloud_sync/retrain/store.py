"""Rows of retraining runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cloud_sync.store.base import Database, Transaction
from cloud_sync.store.rows import Row, first, insert, values

_COLUMNS = ("id", "tenant", "model", "state", "reason", "requested_by", "attempts", "devices_json", "created_at")


def add(tx: Transaction, row: Row) -> None:
    tx.execute(insert("retrain_runs", _COLUMNS), values({**row, "attempts": 0}, _COLUMNS))


def update(db: Database | Transaction, run: str, **changes: Any) -> None:
    """Set columns of a run."""
    names = list(changes)
    sets = ", ".join(f"{n} = ?" for n in names)
    db.execute(f"UPDATE retrain_runs SET {sets} WHERE id = ?", [*(changes[n] for n in names), run])


def get(db: Database, tenant: str, run: str) -> Row | None:
    row = first(db.query("SELECT * FROM retrain_runs WHERE tenant = ? AND id = ?", (tenant, run)))
    return None if row is None else _shown(row)


def runs(db: Database, tenant: str, model: str | None = None) -> list[Row]:
    """Return the runs, newest first."""
    where, params = ("", [tenant]) if model is None else (" AND model = ?", [tenant, model])
    rows = db.query(f"SELECT * FROM retrain_runs WHERE tenant = ?{where} ORDER BY created_at DESC, id DESC", params)
    return [_shown(r) for r in rows]


def models_of(db: Database, digests: Sequence[str]) -> dict[str, str]:
    """Return {digest: model name} of artifacts that the catalog knows."""
    if not digests:
        return {}
    marks = ", ".join("?" for _ in digests)
    rows = db.query(f"SELECT sha256, name FROM artifacts WHERE sha256 IN ({marks})", list(digests))
    return {r["sha256"]: r["name"] for r in rows}


def _shown(row: Row) -> Row:
    out = {k: v for k, v in row.items() if k not in ("gate_json", "devices_json", "tenant", "id")}
    return {
        "run": row["id"],
        **out,
        "devices": json.loads(row["devices_json"] or "[]"),
        "gate": json.loads(row["gate_json"] or "[]"),
    }
