"""What each page of the console shows, read from the store; plain data for the templates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cloud_sync import devices
from cloud_sync.base import Services

Row = dict[str, Any]
FEATURES = ("brightness", "contrast", "saturation", "entropy", "sharpness", "noise")
_POINTS = 300
_ROWS = 500
_ACTIVE = ("DRAFT", "AWAITING_APPROVAL", "READY", "RUNNING", "HELD", "PAUSED", "BAKING", "ROLLING_BACK")
ACTIONS: Mapping[str, tuple[str, ...]] = {
    "approve": ("DRAFT", "AWAITING_APPROVAL"),
    "pause": ("READY", "RUNNING", "BAKING", "HELD"),
    "resume": ("PAUSED", "HELD"),
    "abort": (*[s for s in _ACTIVE if s != "ROLLING_BACK"], "COMPLETE"),
}


def fleet(services: Services, tenant: str, now: float) -> Row:
    """The overview: counts and one row a device."""
    rows = _devices(services, tenant, now)
    names = digests(services)
    drift = _drift_of_devices(services, tenant)
    for row in rows:
        row["artifact"] = names.get(row["digest"] or "")
        row["drift"] = drift.get(row["id"])
    count = {status: sum(r["status"] == status for r in rows) for status in devices.STATUSES}
    shown = sorted(rows, key=_trouble)[:_ROWS] if len(rows) > _ROWS else rows
    alarms = services.db.query("SELECT count(*) AS n FROM alarms WHERE tenant = ? AND t > ?", (tenant, now - 86400))
    return {
        "devices": shown,
        "total": len(rows),
        "count": count,
        "waiting": sum(r["outbox"]["rows"] or 0 for r in rows),
        "dropped": sum(r["outbox"]["dropped"] or 0 for r in rows),
        "drifting": sum(r["drift"] in ("drifted", "likely_harm") for r in rows),
        "alarms": alarms[0]["n"],
        "active": [r for r in _rollouts(services) if r["state"] in _ACTIVE],
    }


def device(services: Services, tenant: str, name: str, now: float) -> Row:
    """One device: what it runs, its last transitions, alarms and drift verdicts.

    Raises:
        NotFoundError: there is none of that name.
    """
    found = devices.get_device(
        services.db, tenant, name, now=now, silent_after_s=services.settings.devices.silent_after_s
    )
    found["artifact"] = digests(services).get(found["digest"] or "")
    query = services.db.query
    return {
        "device": found,
        "transitions": query("SELECT * FROM transitions WHERE device = ? ORDER BY id DESC LIMIT 15", (name,)),
        "alarms": query("SELECT * FROM alarms WHERE device = ? ORDER BY id DESC LIMIT 15", (name,)),
        "verdicts": [v for v in _verdicts(services, tenant) if v["device"] == name],
        "windows": query("SELECT count(*) AS n FROM windows WHERE device = ?", (name,))[0]["n"],
    }


def series(services: Services, name: str) -> Row:
    """The device's newest windows as columns for the charts; a value that a window has not is null."""
    rows = services.db.query(
        "SELECT t1, json FROM windows WHERE device = ? ORDER BY t1 DESC, id DESC LIMIT ?", (name, _POINTS)
    )
    windows = [(row["t1"], json.loads(row["json"])) for row in reversed(rows)]
    out: dict[str, list[Any]] = {"t": [t for t, _ in windows]}
    out["confidence"] = [w.get("confidence") for _, w in windows]
    for quantile in ("p50", "p95"):
        out[f"latency_{quantile}"] = [_dict(w, "latency_ms").get(quantile) for _, w in windows]
    for counter in ("processed", "dropped", "errors"):
        out[counter] = [_dict(w, "counters").get(counter, 0) for _, w in windows]
    for feature in FEATURES:
        out[feature] = [_feature(w, feature) for _, w in windows]
    return out


def drift(services: Services, tenant: str) -> Row:
    """Where each device's pipeline stands, worst first, and the newest verdicts with their evidence."""
    states = services.db.query(
        "SELECT s.device, s.pipeline, s.profile, s.model, s.state, s.since, s.updated_at, s.samples FROM drift_states s"
        " JOIN devices d ON d.id = s.device WHERE s.tenant = ? AND d.retired_at IS NULL ORDER BY s.device, s.pipeline",
        (tenant,),
    )
    order = ("likely_harm", "drifted", "suspected", "insufficient", "learning", "stable")
    rank = {state: i for i, state in enumerate(order)}
    states.sort(key=lambda r: rank.get(r["state"], len(order)))
    verdicts = _verdicts(services, tenant)
    names = digests(services)
    for row in states:
        mine = [v for v in verdicts if (v["device"], v["pipeline"]) == (row["device"], row["pipeline"])]
        row["verdicts"] = mine
        row["features"] = _features(mine)
        row["artifact"] = names.get(row["model"])
    runs = services.db.query(
        "SELECT id, model, state, reason, created_at, ended_at, release, rollout, error FROM retrain_runs"
        " WHERE tenant = ? ORDER BY created_at DESC LIMIT 10",
        (tenant,),
    )
    return {"states": states, "count": {s: sum(r["state"] == s for r in states) for s in order}, "runs": runs}


def rollouts(services: Services) -> Row:
    """Every rollout, newest first."""
    return {"rollouts": _rollouts(services)}


def rollout(services: Services, rollout_id: str) -> Row:
    """One rollout with its stages, guards, devices and events.

    Raises:
        NotFoundError: there is none.
    """
    found = services.rollouts.get(rollout_id)
    _decorate(found)
    records: Sequence[Row] = found["records"]
    found["stage_rows"] = [
        {
            "index": index,
            "percent": percent,
            "devices": [r for r in records if r["stage"] == index],
            "status": _stage_status(found, index),
        }
        for index, percent in enumerate(found["stages"])
    ]
    found["holdback"] = [r for r in records if r["stage"] >= len(found["stages"])]
    found["actions"] = [name for name, states in ACTIONS.items() if found["state"] in states]
    return {"rollout": found}


def releases(services: Services, tenant: str) -> Row:
    """Releases against profiles: which artifact each has for each, and what runs where now."""
    shown = services.catalog.list_releases()
    targets = {(r["release"], t["profile"]): t for r in shown for t in r["targets"]}
    running = services.db.query(
        "SELECT digest, profile, count(*) AS n FROM devices WHERE tenant = ? AND retired_at IS NULL"
        " AND digest IS NOT NULL GROUP BY digest, profile",
        (tenant,),
    )
    count = {(r["digest"], r["profile"]): r["n"] for r in running}
    profiles = sorted({p for _, p in targets})
    manifests = _manifests(services)
    return {
        "profiles": profiles,
        "releases": [
            r | {"cells": [_cell(targets.get((r["release"], p)), p, count, manifests) for p in profiles]} for r in shown
        ],
        "current": services.catalog.current(),
    }


def alarms(services: Services, tenant: str) -> Row:
    """The newest alarms of the fleet, and messages that were not taken."""
    query = services.db.query
    return {
        "alarms": query("SELECT * FROM alarms WHERE tenant = ? ORDER BY id DESC LIMIT 200", (tenant,)),
        "rejects": query("SELECT device, topic, received_at, reason, size FROM rejects ORDER BY id DESC LIMIT 50"),
    }


def audit(services: Services) -> Row:
    """The newest lines of the audit log."""
    return {"lines": services.db.query("SELECT * FROM audit ORDER BY id DESC LIMIT 300")}


def digests(services: Services) -> dict[str, str]:
    """Return `name version` of every artifact in the catalog, by digest."""
    rows = services.db.query("SELECT sha256, name, version FROM artifacts")
    return {r["sha256"]: f"{r['name']} {r['version']}" for r in rows}


def _trouble(row: Row) -> tuple[bool, bool, str]:
    """Sort key that puts devices that somebody should look at first."""
    drifting = row["drift"] in ("drifted", "likely_harm")
    fine = row["status"] in ("online", "new") and not row["error"] and not drifting
    return fine, not row["outbox"]["dropped"], row["id"]


def _devices(services: Services, tenant: str, now: float) -> list[Row]:
    silent = services.settings.devices.silent_after_s
    return devices.list_devices(services.db, tenant, now=now, silent_after_s=silent)


def _rollouts(services: Services) -> list[Row]:
    rows = [dict(r) for r in services.rollouts.list()]
    for row in rows:
        _decorate(row)
    return rows


def _decorate(row: Row) -> None:
    total = sum(row["devices"].values())
    row["total"] = total
    row["shares"] = [
        {"state": state, "n": n, "percent": round(100 * n / total, 1)} for state, n in sorted(row["devices"].items())
    ]
    row["tripped"] = [g for g in row["guards"] if g["tripped"]]


def _stage_status(found: Row, index: int) -> str:
    if found["state"] in ("COMPLETE", "BAKING") or index < found["stage"]:
        return "passed"
    if index > found["stage"] or found["state"] in ("DRAFT", "AWAITING_APPROVAL", "READY"):
        return "waiting"
    return {"ROLLING_BACK": "rolling back", "ROLLED_BACK": "rolled back", "CANCELLED": "cancelled"}.get(
        found["state"], "current"
    )


def _drift_of_devices(services: Services, tenant: str) -> dict[str, str]:
    order = ("insufficient", "learning", "stable", "suspected", "drifted", "likely_harm")
    worst: dict[str, str] = {}
    for row in services.db.query("SELECT device, state FROM drift_states WHERE tenant = ?", (tenant,)):
        state = row["state"]
        before = worst.get(row["device"])
        if before is None or (state in order and order.index(state) > order.index(before)):
            worst[row["device"]] = state
    return worst


def _verdicts(services: Services, tenant: str) -> list[Row]:
    rows = services.db.query(
        "SELECT * FROM drift_verdicts WHERE id IN (SELECT max(id) FROM drift_verdicts WHERE tenant = ?"
        " GROUP BY device, pipeline, kind) ORDER BY device, pipeline, kind",
        (tenant,),
    )
    for row in rows:
        row["evidence"] = json.loads(row.pop("evidence_json") or "{}")
    return rows


def _features(verdicts: Sequence[Row]) -> list[Row]:
    """Return the five features that changed most, over the kinds that were tested."""
    found = [f | {"kind": v["kind"]} for v in verdicts for f in v["evidence"].get("features", ())]
    return sorted(found, key=lambda f: -abs(f["z"]))[:5]


def _manifests(services: Services) -> dict[str, Row]:
    rows = services.db.query("SELECT sha256, manifest_json FROM artifacts")
    return {r["sha256"]: json.loads(r["manifest_json"]) for r in rows}


def _cell(target: Row | None, profile: str, count: Mapping[tuple[str, str], int], manifests: Mapping[str, Row]) -> Row:
    if target is None:
        return {}
    manifest = manifests.get(target["sha256"], {})
    return {
        "sha256": target["sha256"],
        "size": target["size"],
        "running": count.get((target["sha256"], profile), 0),
        "runtime": _dict(manifest, "runtime").get("name"),
        "metric": manifest.get("metric"),
    }


def _dict(value: Any, key: str) -> Row:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _feature(window: Row, feature: str) -> float | None:
    group = _dict(_dict(window, "groups"), "image")
    names, mean = group.get("names"), group.get("mean")
    if not isinstance(names, list) or not isinstance(mean, list) or feature not in names:
        return None
    index = names.index(feature)
    return mean[index] if index < len(mean) and isinstance(mean[index], (int, float)) else None
