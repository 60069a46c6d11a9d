"""Rows of drift: where each device's pipeline stands and the verdicts about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from cloud_sync.store.base import Database, Transaction
from cloud_sync.store.rows import Row, first, insert, values

_VERDICT = (
    "tenant",
    "device",
    "pipeline",
    "model",
    "kind",
    "t",
    "window_id",
    "n",
    "statistic",
    "p",
    "flagged",
    "state",
    "evidence_json",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One device's pipeline: `windows` are ids that wait for a baseline or a verdict, `samples` how many they hold."""

    device: str
    pipeline: str
    profile: str
    model: str
    state: str
    since: float
    updated_at: float
    windows: tuple[int, ...] = ()
    samples: int = 0
    baseline: Row | None = None
    votes: dict[str, list[int]]


def cursor(db: Database, tenant: str) -> int:
    rows = db.query("SELECT cursor FROM drift_cursor WHERE tenant = ?", (tenant,))
    return int(rows[0]["cursor"]) if rows else 0


def set_cursor(tx: Transaction, tenant: str, value: int) -> None:
    tx.execute(
        "INSERT INTO drift_cursor (tenant, cursor) VALUES (?, ?)"
        " ON CONFLICT (tenant) DO UPDATE SET cursor = excluded.cursor",
        (tenant, value),
    )


def new_windows(db: Database, tenant: str, after: int, limit: int) -> list[Row]:
    return db.query(
        "SELECT w.id, w.device, w.pipeline, w.model, w.n, w.t1, w.json, d.profile FROM windows w"
        " JOIN devices d ON d.id = w.device WHERE w.tenant = ? AND w.id > ? ORDER BY w.id LIMIT ?",
        (tenant, after, limit),
    )


def windows(db: Database, ids: Sequence[int]) -> list[Row]:
    """Return windows by id, in order."""
    out: list[Row] = []
    for start in range(0, len(ids), 500):
        part = ids[start : start + 500]
        marks = ", ".join("?" for _ in part)
        out += db.query(f"SELECT id, device, t1, model, json FROM windows WHERE id IN ({marks}) ORDER BY id", part)
    return sorted(out, key=lambda r: r["id"])


def standing(db: Database, device: str, pipeline: str) -> Standing | None:
    row = first(db.query("SELECT * FROM drift_states WHERE device = ? AND pipeline = ?", (device, pipeline)))
    return None if row is None else _standing(row)


def standings(db: Database, tenant: str) -> list[Standing]:
    """Return every device's pipelines, those of retired devices left out."""
    rows = db.query(
        "SELECT s.* FROM drift_states s JOIN devices d ON d.id = s.device WHERE s.tenant = ? AND d.retired_at IS NULL"
        " ORDER BY s.device, s.pipeline",
        (tenant,),
    )
    return [_standing(r) for r in rows]


def save_standing(tx: Transaction, tenant: str, s: Standing) -> None:
    baseline = json.dumps(s.baseline) if s.baseline is not None else None
    tx.execute(
        "INSERT INTO drift_states (tenant, device, pipeline, profile, model, state, since, updated_at, windows_json,"
        " samples, baseline_json, votes_json) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (device, pipeline) DO UPDATE SET profile = excluded.profile, model = excluded.model,"
        " state = excluded.state, since = excluded.since, updated_at = excluded.updated_at,"
        " windows_json = excluded.windows_json, samples = excluded.samples, baseline_json = excluded.baseline_json,"
        " votes_json = excluded.votes_json",
        (
            tenant,
            s.device,
            s.pipeline,
            s.profile,
            s.model,
            s.state,
            s.since,
            s.updated_at,
            json.dumps(s.windows),
            s.samples,
            baseline,
            json.dumps(s.votes),
        ),
    )


def add_verdicts(tx: Transaction, rows: Sequence[Row], keep: int) -> None:
    """Insert verdicts, once per window and kind, and forget a device's oldest beyond `keep`."""
    sql = insert("drift_verdicts", _VERDICT, conflict="device, pipeline, kind, window_id")
    tx.executemany(sql, [values(r, _VERDICT) for r in rows])
    for device in {r["device"] for r in rows}:
        tx.execute(
            "DELETE FROM drift_verdicts WHERE device = ? AND id <="
            " (SELECT id FROM drift_verdicts WHERE device = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (device, device, keep),
        )


def latest(db: Database, tenant: str) -> list[Row]:
    """Return the newest verdict of each device, pipeline and kind, with its evidence."""
    rows = db.query(
        "SELECT * FROM drift_verdicts WHERE id IN (SELECT max(id) FROM drift_verdicts WHERE tenant = ?"
        " GROUP BY device, pipeline, kind) ORDER BY device, pipeline, kind",
        (tenant,),
    )
    return [_verdict(r) for r in rows]


def series(db: Database, tenant: str, device: str, limit: int) -> list[Row]:
    """Return a device's newest verdicts in time order."""
    rows = db.query(
        "SELECT * FROM drift_verdicts WHERE tenant = ? AND device = ? ORDER BY id DESC LIMIT ?",
        (tenant, device, limit),
    )
    return [_verdict(r) for r in reversed(rows)]


def _standing(row: Row) -> Standing:
    return Standing(
        device=row["device"],
        pipeline=row["pipeline"],
        profile=row["profile"],
        model=row["model"],
        state=row["state"],
        since=row["since"],
        updated_at=row["updated_at"],
        windows=tuple(json.loads(row["windows_json"])),
        samples=row["samples"],
        baseline=json.loads(row["baseline_json"]) if row["baseline_json"] else None,
        votes=json.loads(row["votes_json"]),
    )


def _verdict(row: Row) -> Row:
    out = {k: v for k, v in row.items() if k not in ("evidence_json", "tenant")}
    return out | {"flagged": bool(row["flagged"]), "evidence": json.loads(row["evidence_json"] or "{}")}
