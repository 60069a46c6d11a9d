"""Drift over the store: every new telemetry window once, verdicts over the whole fleet together."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cloud_sync.drift import detect, store
from cloud_sync.drift.detect import Finding
from cloud_sync.drift.stats import benjamini_hochberg, pooled
from cloud_sync.drift.store import Standing
from cloud_sync.ingest.windows import read_window
from cloud_sync.policies import DriftPolicy
from cloud_sync.store.base import Database
from edge_sdk.schemas.telemetry import Window

logger = logging.getLogger(__name__)
Row = dict[str, Any]
FLEET = "*"
_PAGE = 2000
_POOL_LEAST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """Windows merged until they hold enough samples, and what they say."""

    standing: Standing
    window: int
    t: float
    findings: Sequence[Finding]


class Drift:
    """The verdicts of one tenant's devices."""

    def __init__(self, db: Database, tenant: str, policy: DriftPolicy) -> None:
        self._db = db
        self._tenant = tenant
        self._policy = policy

    def step(self, now: float) -> int:
        """Look at every window that came since the last step; return how many verdicts were made."""
        made = 0
        while True:
            cursor = store.cursor(self._db, self._tenant)
            rows = store.new_windows(self._db, self._tenant, cursor, _PAGE)
            if not rows:
                return made
            standings, units = self._read(rows, now)
            made += self._conclude(standings, units, rows[-1]["id"], now)

    def verdicts(self, device: str | None = None) -> list[Row]:
        """Return the newest verdict of each device, pipeline and kind: device, kind, p, statistic, n, state, …

        A device without a verdict yet has one row that says what it waits for. Rows of device `*` are pooled over a
        profile or over the fleet.
        """
        found = [r for r in store.latest(self._db, self._tenant) if device is None or r["device"] == device]
        standings = {(s.device, s.pipeline): s for s in store.standings(self._db, self._tenant)}
        out = []
        for row in found:
            standing = standings.get((row["device"], row["pipeline"]))
            if row["device"] == FLEET or (standing and standing.model == row["model"]):
                out.append(_shown(row, standing))
        seen = {(r["device"], r["pipeline"]) for r in out}
        for key, standing in standings.items():
            if key not in seen and (device is None or standing.device == device):
                out.append(_waiting(standing))
        return sorted(out, key=lambda r: (r["device"], r["pipeline"], r["kind"]))

    def devices(self) -> list[Row]:
        """Return each device's pipeline and its state."""
        return [
            {
                "device": s.device,
                "pipeline": s.pipeline,
                "profile": s.profile,
                "model": s.model,
                "state": s.state,
                "since": s.since,
                "pending": s.samples,
            }
            for s in store.standings(self._db, self._tenant)
        ]

    def series(self, device: str, limit: int = 500) -> list[Row]:
        """Return a device's verdicts over time, oldest first: t, kind, p, statistic, n, flagged, state, evidence."""
        return store.series(self._db, self._tenant, device, limit)

    def reference(self, device: str, pipeline: str) -> Row | None:
        """Return the baseline of a device's pipeline, None while it is being learned."""
        standing = store.standing(self._db, device, pipeline)
        return standing.baseline if standing else None

    def _read(self, rows: Sequence[Row], now: float) -> tuple[dict[tuple[str, str], Standing], list[_Unit]]:
        standings: dict[tuple[str, str], Standing] = {}
        units: list[_Unit] = []
        cache: dict[int, Window] = {}
        for row in rows:
            window = read_window(row)
            if window is None:
                logger.warning("window %s of %s is not readable: drift leaves it out", row["id"], row["device"])
                continue
            cache[row["id"]] = window
            key = (row["device"], row["pipeline"])
            standing = standings.get(key) or store.standing(self._db, *key)
            if standing is None or standing.model != row["model"]:
                standing = _fresh(row, now)
            standing, unit = self._take(standing, row, window, cache, now)
            standings[key] = standing
            units += [unit] if unit else []
        return standings, units

    def _take(
        self, standing: Standing, row: Row, window: Window, cache: dict[int, Window], now: float
    ) -> tuple[Standing, _Unit | None]:
        if window.n <= 0 or not window.groups:
            return standing, None
        standing = replace(
            standing,
            profile=row["profile"],
            windows=(*standing.windows, row["id"]),
            samples=standing.samples + window.n,
        )
        policy = self._policy
        if standing.baseline is None:
            learned = _changed(standing, detect.LEARNING, now)
            if len(standing.windows) < policy.baseline_windows or standing.samples < policy.baseline_samples:
                return learned, None
            seed = zlib.crc32(f"{standing.device}|{standing.pipeline}|{standing.model}".encode())
            reference = detect.learn(self._windows(standing.windows, cache), policy, seed=seed)
            if reference is None:
                return learned, None
            done = _changed(learned, detect.STABLE, now)
            return replace(done, baseline=detect.write_reference(reference), windows=(), samples=0), None
        if standing.samples < policy.enough_n:
            return standing, None
        findings = detect.judge(
            detect.read_reference(standing.baseline), self._windows(standing.windows, cache), policy
        )
        unit = _Unit(standing=standing, window=row["id"], t=row["t1"], findings=findings)
        return replace(standing, windows=(), samples=0), unit

    def _windows(self, ids: Sequence[int], cache: dict[int, Window]) -> list[Window]:
        lacking = [i for i in ids if i not in cache]
        for row in store.windows(self._db, lacking):
            window = read_window(row)
            if window is not None:
                cache[row["id"]] = window
        return [cache[i] for i in ids if i in cache]

    def _conclude(
        self, standings: dict[tuple[str, str], Standing], units: Sequence[_Unit], cursor: int, now: float
    ) -> int:
        rows: list[Row] = []
        latest = self._latest_p()
        for unit in units:
            key = (unit.standing.device, unit.standing.pipeline)
            own = detect.device_p(unit.findings)
            others = [p for k, p in latest.items() if k != key]
            selected = own is not None and benjamini_hochberg([*others, own], self._policy.fdr)[-1]
            if own is not None:
                latest[key] = own
            now_standing = standings[key]
            if now_standing.model != unit.standing.model:
                continue
            verdicts, votes = detect.vote(unit.findings, selected, now_standing.votes, self._policy)
            state = detect.device_state(verdicts)
            standings[key] = replace(_changed(now_standing, state, now), votes=votes)
            rows += [_row(self._tenant, unit, v) for v in verdicts]
        with self._db.transaction() as tx:
            for standing in standings.values():
                store.save_standing(tx, self._tenant, replace(standing, updated_at=now))
            store.add_verdicts(tx, rows, self._policy.keep)
            store.set_cursor(tx, self._tenant, cursor)
        if rows:
            self._pool()
        return len(rows)

    def _latest_p(self) -> dict[tuple[str, str], float]:
        """Return every device's newest p-value over its kinds."""
        found: dict[tuple[str, str], list[float]] = {}
        for row in store.latest(self._db, self._tenant):
            weight = row["evidence"].get("weight", 0.0)
            if row["device"] != FLEET and row["p"] is not None and weight:
                found.setdefault((row["device"], row["pipeline"]), []).append(row["p"] / weight)
        return {k: min(1.0, *v) for k, v in found.items()}

    def _pool(self) -> None:
        """Test the shift that the devices of a profile, and of the fleet, share, once most have something new."""
        rows = [r for r in store.latest(self._db, self._tenant) if r["evidence"].get("z")]
        past = {(r["pipeline"], r["kind"]): r for r in rows if r["device"] == FLEET}
        current = {(s.device, s.pipeline): s for s in store.standings(self._db, self._tenant)}
        scopes: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            standing = current.get((row["device"], row["pipeline"]))
            if standing is None or standing.model != row["model"]:
                continue
            for scope in ("fleet", f"profile:{standing.profile}"):
                scopes.setdefault((scope, row["kind"]), []).append(row)
        made = [
            self._pooled_row(scope, kind, members, past.get((scope, kind))) for (scope, kind), members in scopes.items()
        ]
        with self._db.transaction() as tx:
            store.add_verdicts(tx, [r for r in made if r is not None], self._policy.keep)

    def _pooled_row(self, scope: str, kind: str, members: Sequence[Row], past: Row | None) -> Row | None:
        features = [
            tuple(f["feature"] for f in sorted(m["evidence"]["features"], key=lambda f: f["feature"])) for m in members
        ]
        members = [m for m, names in zip(members, features, strict=True) if names == features[0]]
        last = past["window_id"] if past else 0
        news = [m for m in members if m["window_id"] > last]
        if len(members) < _POOL_LEAST or len(news) < 0.8 * len(members):
            return None
        tests = [t for m in members if (t := detect.stored_test(m, m["evidence"])) is not None]
        statistic, p = pooled(tests)
        flagged = p <= self._policy.fleet_alpha
        votes = [*(past["evidence"].get("votes", []) if past else []), int(flagged)][-self._policy.of :]
        state = detect.DRIFTED if sum(votes) >= self._policy.votes else detect.SUSPECTED if flagged else detect.STABLE
        evidence = {"votes": votes, "devices": len(members), "z": [0.0]}
        return {
            "tenant": self._tenant,
            "device": FLEET,
            "pipeline": scope,
            "model": "",
            "kind": kind,
            "t": max(m["t"] for m in members),
            "window_id": max(m["window_id"] for m in members),
            "n": sum(m["n"] for m in members),
            "statistic": statistic,
            "p": p,
            "flagged": int(flagged),
            "state": state,
            "evidence_json": json.dumps(evidence),
        }


def _fresh(row: Row, now: float) -> Standing:
    return Standing(
        device=row["device"],
        pipeline=row["pipeline"],
        profile=row["profile"],
        model=row["model"],
        state=detect.INSUFFICIENT,
        since=now,
        updated_at=now,
        votes={},
    )


def _changed(standing: Standing, state: str, now: float) -> Standing:
    return standing if standing.state == state else replace(standing, state=state, since=now)


def _row(tenant: str, unit: _Unit, verdict: detect.Verdict) -> Row:
    finding = verdict.finding
    return {
        "tenant": tenant,
        "device": unit.standing.device,
        "pipeline": unit.standing.pipeline,
        "model": unit.standing.model,
        "kind": finding.kind,
        "t": unit.t,
        "window_id": unit.window,
        "n": finding.n,
        "statistic": finding.statistic,
        "p": finding.p,
        "flagged": int(verdict.flagged),
        "state": verdict.state,
        "evidence_json": json.dumps({**finding.evidence, "weight": finding.weight}),
    }


def _shown(row: Row, standing: Standing | None) -> Row:
    features = row["evidence"].get("features", [])
    out = {k: row[k] for k in ("device", "pipeline", "model", "kind", "t", "n", "statistic", "p", "flagged", "state")}
    out["device_state"] = standing.state if standing else row["state"]
    out["features"] = [{k: v for k, v in f.items() if not k.endswith("_hist")} for f in features[:3]]
    out |= {k: v for k, v in row["evidence"].items() if k in ("reference", "current", "share", "usual", "devices")}
    return out


def _waiting(standing: Standing) -> Row:
    return {
        "device": standing.device,
        "pipeline": standing.pipeline,
        "model": standing.model,
        "kind": "image",
        "t": standing.updated_at,
        "n": standing.samples,
        "statistic": None,
        "p": None,
        "flagged": False,
        "state": standing.state,
        "device_state": standing.state,
        "features": [],
    }
