"""A small world for rollout, drift and retraining tests: a real store, signatures and catalog, a fleet that obeys."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cloud_sync.policies import RolloutPolicy
from cloud_sync.releases.catalog import Catalog
from cloud_sync.releases.repository import TrustRepository
from cloud_sync.rollout.controller import Order, RolloutController
from cloud_sync.rollout.service import Rollouts
from cloud_sync.store.sqlite import SqliteDatabase
from edge_sdk.schemas.state import Desired
from edge_sdk.schemas.telemetry import Counters, FeatureGroup, Window
from edge_sdk.testing import build_artifact

TENANT = "default"
QUICK = RolloutPolicy(
    stages=(10, 50, 100),
    soak_s=10,
    bake_s=20,
    holdback=0.0,
    first_devices=1,
    min_windows=1,
    min_stage_windows=1,
    silent_after_s=100,
    failed_after_s=5,
    bin_s=10,
)


class World:
    """Time is a number that `tick` moves; nothing sleeps."""

    def __init__(self, folder: Path, policy: RolloutPolicy = QUICK) -> None:
        self.folder, self.policy, self.now = folder, policy, 1_000_000.0
        self.db = SqliteDatabase(folder / "fleet.db")
        self.signer = TrustRepository(folder)
        if not self.signer.exists:
            self.signer.init(self.now)
        self.restart()
        self.behaviour: Callable[[str, Desired], str] = lambda device, desired: "COMMITTED"
        self.health: Callable[[str, str | None], dict[str, Any]] = lambda device, digest: {}
        self.seq = 0

    def restart(self) -> None:
        """What a new service process has: everything made again from the store and the files."""
        self.catalog = Catalog(self.folder, self.db, self.signer, TENANT)
        self.rollouts = Rollouts(self.db, self.catalog, TENANT, self.policy)
        self.controller = RolloutController(self.db, self.catalog, TENANT, self.policy)

    def add_devices(self, names: Sequence[str], profile: str = "generic-cpu") -> None:
        for name in names:
            self.db.execute(
                "INSERT INTO devices (id, tenant, profile, created_at, enrolled_at, online, last_seen, credential_hash)"
                " VALUES (?, ?, ?, ?, ?, 1, ?, 'x')",
                (name, TENANT, profile, self.now, self.now, self.now),
            )

    def release(self, version: str, profiles: Sequence[str] = ("generic-cpu",), name: str = "tiny") -> dict[str, Any]:
        digests = []
        for profile in profiles:
            path = self.folder / f"{name}-{version}-{profile}.edge"
            build_artifact(path, golden=False, name=name, version=version, profile=profile)
            digests.append(self.catalog.add_file(path)["sha256"])
        return self.catalog.create_release(name, version, digests, actor="test", now=self.now)

    def tick(self, seconds: float = 5.0, *, windows: bool = True) -> list[Order]:
        """Let time pass, let every device send a window, let the controller and then the devices act."""
        self.now += seconds
        self.db.execute("UPDATE devices SET last_seen = ? WHERE online = 1", (self.now,))
        if windows:
            rows = self.db.query("SELECT id, digest FROM devices WHERE online = 1 AND retired_at IS NULL")
            with self.db.transaction() as tx:
                for row in rows:
                    self.window(row["id"], row["digest"], tx, **self.health(row["id"], row["digest"]))
        orders = self.controller.step(self.now)
        for order in orders:
            self.obey(order)
        return orders

    def obey(self, order: Order) -> None:
        row = self.db.query("SELECT * FROM devices WHERE id = ?", (order.device,))[0]
        if order.desired is None or not row["online"]:
            return
        outcome = self.behaviour(order.device, order.desired)
        if outcome == "ignore":
            return
        steps = ["OFFERED", "DOWNLOADING", "VERIFYING", "STAGED", "TESTED", "TRIAL", "COMMITTED"]
        if outcome == "ROLLED_BACK":
            steps = [*steps[:-1], "ROLLING_BACK", "ROLLED_BACK"]
        elif outcome == "FAILED":
            steps = ["OFFERED", "DOWNLOADING", "FAILED"]
        elif outcome in steps:
            steps = steps[: steps.index(outcome) + 1]
        if row["digest"] == order.desired.sha256:
            steps = ["OFFERED", "COMMITTED"]
        rows = []
        for before, phase in zip([row["phase"] or "IDLE", *steps], steps, strict=False):
            self.seq += 1
            asked = order.desired
            rows.append((order.device, self.seq, self.now, asked.rev, asked.release, asked.sha256, before, phase))
        with self.db.transaction() as tx:
            tx.executemany(
                "INSERT INTO transitions (tenant, device, seq, t, received_at, rev, release, sha256, from_phase,"
                " to_phase) VALUES ('default', ?, ?, ?, 0, ?, ?, ?, ?, ?)",
                rows,
            )
        digest = order.desired.sha256 if steps[-1] in ("TRIAL", "COMMITTED") else row["digest"]
        self.report(order.device, rev=order.desired.rev, phase=steps[-1], digest=digest)

    def report(self, device: str, **columns: Any) -> None:
        columns = {"last_seen": self.now, **columns}
        sets = ", ".join(f"{c} = ?" for c in columns)
        self.db.execute(f"UPDATE devices SET {sets} WHERE id = ?", [*columns.values(), device])

    def window(
        self,
        device: str,
        model: str | None,
        tx: Any = None,
        *,
        errors: int = 0,
        slow: int = 0,
        confidence: float | None = 0.8,
        n: int = 50,
        groups: dict[str, FeatureGroup] | None = None,
    ) -> None:
        self.seq += 1
        window = Window(
            t=self.now,
            t0=self.now - 5,
            t1=self.now,
            pipeline="camera",
            model=model or "none",
            n=n,
            counters=Counters(frames=100, processed=100, errors=errors, slow=slow),
            confidence=confidence,
            groups=groups or {},
        )
        (tx or self.db).execute(
            "INSERT INTO windows (tenant, device, stream, seq, t0, t1, model, pipeline, n, json)"
            " VALUES (?, ?, 's', ?, ?, ?, ?, 'camera', ?, ?)",
            (TENANT, device, self.seq, window.t0, window.t1, window.model, n, json.dumps(window.to_event())),
        )

    def run_until(self, rollout: str, *states: str, ticks: int = 60) -> dict[str, Any]:
        for _ in range(ticks):
            self.tick()
            row = self.rollouts.get(rollout)
            if row["state"] in states:
                return row
        raise AssertionError(f"{rollout} is {row['state']} ({row['reason']}), waits for {row['waits_for']}")

    def complete(self, version: str, **changes: Any) -> dict[str, Any]:
        """Release a version and roll it out to the end."""
        release = self.release(version)
        made = self.rollouts.create(release["release"], changes=changes, actor="test", now=self.now)
        self.run_until(made["id"], "COMPLETE")
        return release

    def digests(self) -> dict[str, str | None]:
        return {r["id"]: r["digest"] for r in self.db.query("SELECT id, digest FROM devices ORDER BY id")}

    def desired(self, device: str) -> Desired | None:
        text = self.db.query("SELECT desired_json FROM devices WHERE id = ?", (device,))[0]["desired_json"]
        return Desired.from_json(text.encode()) if text else None
