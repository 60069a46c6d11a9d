"""Rows of rollouts: their devices, guards, evidence and events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cloud_sync.rollout.guardrails import GuardResult, History, Observation
from cloud_sync.rollout.state_machine import FINAL, Record, Seen
from cloud_sync.store.base import Database, Transaction
from cloud_sync.store.rows import Row, first, values
from cloud_sync.store.rows import insert as insert_row

_FINAL = ", ".join(f"'{s.value}'" for s in FINAL)
_COLUMNS = (
    "id",
    "tenant",
    "release",
    "model",
    "state",
    "stage",
    "reason",
    "salt",
    "policy_json",
    "whole_fleet",
    "created_at",
    "changed_at",
    "stage_at",
    "run",
    "cursor",
)


def insert(tx: Transaction, row: Row, records: Sequence[Record], buckets: dict[str, float], sizes: Row) -> None:
    """Insert a rollout and the record of every device."""
    tx.execute(insert_row("rollouts", _COLUMNS), values(row, _COLUMNS))
    tx.executemany(
        "INSERT INTO rollout_devices (rollout, device, profile, stage, bucket, state, target, sha256, size, took,"
        " waived, changed_at, error) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, ?, ?)",
        [
            (
                row["id"],
                r.device,
                r.profile,
                r.stage,
                buckets[r.device],
                r.state,
                sizes[r.profile]["target"] if r.sha256 else None,
                r.sha256,
                sizes[r.profile]["size"] if r.sha256 else None,
                r.changed_at,
                r.error,
            )
            for r in records
        ],
    )


def get(db: Database, tenant: str, rollout: str) -> Row | None:
    return first(db.query("SELECT * FROM rollouts WHERE tenant = ? AND id = ?", (tenant, rollout)))


def all_rollouts(db: Database, tenant: str) -> list[Row]:
    return db.query("SELECT * FROM rollouts WHERE tenant = ? ORDER BY created_at DESC, id", (tenant,))


def active(db: Database, tenant: str) -> list[Row]:
    sql = f"SELECT * FROM rollouts WHERE tenant = ? AND state NOT IN ({_FINAL}) ORDER BY created_at, id"
    return db.query(sql, (tenant,))


def overlapping(db: Database, tenant: str) -> dict[str, str]:
    """Return {device: rollout} of devices that an unfinished rollout, other than one rolling back, still holds."""
    rows = db.query(
        "SELECT d.device, d.rollout FROM rollout_devices d JOIN rollouts r ON r.id = d.rollout"
        f" WHERE r.tenant = ? AND r.state NOT IN ({_FINAL}, 'ROLLING_BACK')"
        " AND d.state NOT IN ('SUPERSEDED', 'INCOMPATIBLE')",
        (tenant,),
    )
    return {r["device"]: r["rollout"] for r in rows}


def move(tx: Transaction, rollout: str, *, state: str, stage: int, reason: str, now: float, restart: bool) -> None:
    """Change a rollout's state; `restart` begins its stage's clock."""
    tx.execute(
        "UPDATE rollouts SET state = ?, stage = ?, reason = ?, changed_at = ?,"
        " stage_at = CASE WHEN ? = 1 THEN ? ELSE stage_at END WHERE id = ?",
        (state, stage, reason, now, int(restart), now, rollout),
    )


def event(tx: Transaction, rollout: str, *, state: str, stage: int, actor: str, reason: str, now: float) -> None:
    tx.execute(
        "INSERT INTO rollout_events (rollout, t, state, stage, actor, reason) VALUES (?, ?, ?, ?, ?, ?)",
        (rollout, now, state, stage, actor, reason),
    )


def events(db: Database, rollout: str) -> list[Row]:
    return db.query(
        "SELECT t, state, stage, actor, reason FROM rollout_events WHERE rollout = ? ORDER BY id", (rollout,)
    )


def records(db: Database | Transaction, rollout: str) -> list[Record]:
    rows = db.query("SELECT * FROM rollout_devices WHERE rollout = ? ORDER BY stage, bucket, device", (rollout,))
    return [
        Record(
            device=r["device"],
            profile=r["profile"],
            stage=r["stage"],
            sha256=r["sha256"],
            state=r["state"],
            previous_sha256=r["previous_sha256"],
            rev=r["rev"],
            undo_rev=r["undo_rev"],
            took=bool(r["took"]),
            waived=bool(r["waived"]),
            changed_at=r["changed_at"] or 0.0,
            committed_at=r["committed_at"],
            error=r["error"],
        )
        for r in rows
    ]


def save_records(tx: Transaction, rollout: str, changed: Iterable[Record]) -> None:
    tx.executemany(
        "UPDATE rollout_devices SET state = ?, previous_sha256 = ?, rev = ?, undo_rev = ?, took = ?,"
        " changed_at = ?, committed_at = ?, error = ? WHERE rollout = ? AND device = ?",
        [
            (
                r.state,
                r.previous_sha256,
                r.rev,
                r.undo_rev,
                int(r.took),
                r.changed_at,
                r.committed_at,
                r.error,
                rollout,
                r.device,
            )
            for r in changed
        ],
    )


def waive_silent(tx: Transaction, rollout: str) -> int:
    """Accept the devices that are silent now as they are."""
    return tx.execute("UPDATE rollout_devices SET waived = 1 WHERE rollout = ? AND state = 'SILENT'", (rollout,))


def state_counts(db: Database, tenant: str) -> dict[str, dict[str, int]]:
    """Return {rollout: {state: devices}} of every rollout."""
    rows = db.query(
        "SELECT d.rollout, d.state, count(*) AS n FROM rollout_devices d JOIN rollouts r ON r.id = d.rollout"
        " WHERE r.tenant = ? GROUP BY d.rollout, d.state ORDER BY d.rollout, d.state",
        (tenant,),
    )
    out: dict[str, dict[str, int]] = {}
    for row in rows:
        out.setdefault(row["rollout"], {})[row["state"]] = row["n"]
    return out


def seen(db: Database, rollout: str) -> dict[str, Seen]:
    """Return what every device of a rollout last said."""
    phases: dict[str, list[str]] = {}
    for row in db.query(
        "SELECT t.device, t.to_phase FROM transitions t JOIN rollout_devices d ON d.device = t.device"
        " AND d.rev = t.rev WHERE d.rollout = ? ORDER BY t.id",
        (rollout,),
    ):
        phases.setdefault(row["device"], []).append(row["to_phase"])
    rows = db.query(
        "SELECT v.* FROM devices v JOIN rollout_devices d ON d.device = v.id WHERE d.rollout = ?", (rollout,)
    )
    return {
        r["id"]: Seen(
            rev=r["rev"],
            digest=r["digest"],
            phase=r["phase"],
            error=r["error"],
            online=bool(r["online"]),
            last_seen=r["last_seen"],
            desired_rev=r["desired_rev"] or 0,
            retired=r["retired_at"] is not None,
            phases=tuple(phases.get(r["id"], ())),
        )
        for r in rows
    }


def devices_outside(db: Database, tenant: str, profile: str, release: str) -> list[Row]:
    """Return a profile's enrolled devices: id, desired_json, and whether a rollout of `release` knows them (member)."""
    return db.query(
        "SELECT v.id, v.desired_json, (SELECT count(*) FROM rollout_devices d JOIN rollouts r ON r.id = d.rollout"
        " WHERE d.device = v.id AND r.release = ?) AS member FROM devices v"
        " WHERE v.tenant = ? AND v.profile = ? AND v.retired_at IS NULL AND v.enrolled_at IS NOT NULL ORDER BY v.id",
        (release, tenant, profile),
    )


def new_windows(db: Database, rollout: str, after: int, limit: int = 2000) -> list[Row]:
    """Return telemetry windows of a rollout's devices that came after window `after`, oldest first."""
    return db.query(
        "SELECT w.id, w.device, w.t1, w.model, w.json FROM windows w JOIN rollout_devices d ON d.device = w.device"
        " WHERE d.rollout = ? AND w.id > ? ORDER BY w.id LIMIT ?",
        (rollout, after, limit),
    )


def last_window(db: Database | Transaction) -> int:
    return int(db.query("SELECT max(id) AS last FROM windows")[0]["last"] or 0)


def windows_before(db: Database, device: str, last: int, *, not_model: str, limit: int) -> list[Row]:
    """Return a device's newest windows up to window `last`, made by another artifact than `not_model`."""
    return db.query(
        "SELECT id, device, t1, model, json FROM windows WHERE device = ? AND id <= ? AND model <> ?"
        " ORDER BY id DESC LIMIT ?",
        (device, last, not_model, limit),
    )


def save_observations(
    tx: Transaction, rollout: str, found: Iterable[tuple[int, bool, Observation]], cursor: int
) -> None:
    """Insert (window, canary, observation) rows and remember how far the windows were read."""
    tx.executemany(
        "INSERT INTO rollout_observations (rollout, window_id, device, canary, t, error_share, slow_share, confidence)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (rollout, window_id) DO NOTHING",
        [(rollout, w, o.device, int(canary), o.t, o.error_share, o.slow_share, o.confidence) for w, canary, o in found],
    )
    tx.execute("UPDATE rollouts SET cursor = ? WHERE id = ?", (cursor, rollout))


def observations(db: Database, rollout: str) -> tuple[list[Observation], list[Observation]]:
    """Return (canary, rest) in the order in which the windows came."""
    arms: tuple[list[Observation], list[Observation]] = ([], [])
    for r in db.query("SELECT * FROM rollout_observations WHERE rollout = ? ORDER BY window_id", (rollout,)):
        arms[0 if r["canary"] else 1].append(
            Observation(
                device=r["device"],
                t=r["t"],
                error_share=r["error_share"],
                slow_share=r["slow_share"],
                confidence=r["confidence"],
            )
        )
    return arms


def save_history(tx: Transaction, rollout: str, found: dict[str, History]) -> None:
    tx.executemany(
        "INSERT INTO rollout_history (rollout, device, windows, error_windows, error_share, slow_share, confidence)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (rollout, device) DO NOTHING",
        [(rollout, d, h.windows, h.error_windows, h.error_share, h.slow_share, h.confidence) for d, h in found.items()],
    )


def history(db: Database, rollout: str) -> dict[str, History]:
    return {
        r["device"]: History(
            windows=r["windows"],
            error_windows=r["error_windows"],
            error_share=r["error_share"],
            slow_share=r["slow_share"],
            confidence=r["confidence"],
        )
        for r in db.query("SELECT * FROM rollout_history WHERE rollout = ?", (rollout,))
    }


def save_guards(tx: Transaction, rollout: str, guards: Sequence[GuardResult], now: float) -> None:
    """Store the guards' standing; `peak` keeps the highest value ever seen."""
    for guard in guards:
        tx.execute(
            "INSERT INTO rollout_guards (rollout, name, value, limit_value, tripped, peak, t, detail)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (rollout, name) DO UPDATE SET value = excluded.value,"
            " limit_value = excluded.limit_value, tripped = excluded.tripped, t = excluded.t, detail = excluded.detail,"
            " peak = CASE WHEN excluded.peak > rollout_guards.peak THEN excluded.peak ELSE rollout_guards.peak END",
            (rollout, guard.name, guard.value, guard.limit, int(guard.tripped), guard.value, now, guard.detail),
        )


def guards(db: Database, tenant: str) -> dict[str, list[Row]]:
    """Return {rollout: guards} of every rollout, each [name, value, limit, tripped, peak, detail]."""
    out: dict[str, list[Row]] = {}
    rows = db.query(
        "SELECT g.* FROM rollout_guards g JOIN rollouts r ON r.id = g.rollout WHERE r.tenant = ?"
        " ORDER BY g.rollout, g.name",
        (tenant,),
    )
    for r in rows:
        shown = {"name": r["name"], "value": r["value"], "limit": r["limit_value"], "tripped": bool(r["tripped"])}
        out.setdefault(r["rollout"], []).append({**shown, "peak": r["peak"], "detail": r["detail"]})
    return out
