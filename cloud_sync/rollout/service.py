"""Rollouts as operators see and steer them; `rollout_control` moves them on."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cloud_sync.errors import ConflictError, NotFoundError
from cloud_sync.policies import RolloutPolicy
from cloud_sync.releases.catalog import Catalog
from cloud_sync.rollout import state_machine, store
from cloud_sync.rollout.cohorts import assign, bucket
from cloud_sync.rollout.controller import evidence_of, read_policy, read_progress
from cloud_sync.rollout.state_machine import Record, State
from cloud_sync.store.audit import audit
from cloud_sync.store.base import Database
from edge_sdk.config import parse
from edge_sdk.errors import UsageError
from edge_sdk.parsing import write_dataclass

logger = logging.getLogger(__name__)
Row = dict[str, Any]


class Rollouts:
    """The rollouts of one tenant."""

    def __init__(self, db: Database, catalog: Catalog, tenant: str, policy: RolloutPolicy) -> None:
        self._db = db
        self._catalog = catalog
        self._tenant = tenant
        self._policy = policy

    # What operators do

    def create(
        self,
        release: str,
        *,
        changes: Mapping[str, Any] | None = None,
        devices: Sequence[str] | None = None,
        profiles: Sequence[str] | None = None,
        run: str | None = None,
        draft: bool = False,
        actor: str,
        now: float | None = None,
    ) -> Row:
        """Make a rollout of a release to all enrolled devices, or to those named; it starts by itself once approved.

        `changes` are RolloutPolicy fields that differ from the service's; a `draft` waits to be approved.

        Raises:
            NotFoundError: the release or a device does not exist.
            ConfigError: a key of `changes` is wrong.
            ConflictError: a device is in another unfinished rollout.
            UsageError: no device could run the release.
        """
        now = time.time() if now is None else now
        found = self._catalog.release(release)
        policy = self._policy_with(changes or {})
        fleet = self._fleet(devices, profiles)
        sizes = {t["profile"]: t for t in found["targets"]}
        fitting = {d: p for d, p in fleet.items() if p in sizes}
        if not fitting:
            raise UsageError(
                f"no enrolled device of this selection has a profile of release `{release}`: {', '.join(sizes)}",
                hint="`edge device list` shows the fleet and its profiles",
            )
        self._check_free(fitting)
        number = len(store.all_rollouts(self._db, self._tenant)) + 1
        rollout_id = f"r{number}-{found['id']}"[:63]
        stages = assign(
            fitting,
            salt=rollout_id,
            stages=policy.stages,
            first_devices=policy.first_devices,
            holdback=policy.holdback,
        )
        records = _first_records(fleet, sizes, stages, now)
        waits = State.AWAITING_APPROVAL if policy.approval else State.READY
        state = State.DRAFT if draft else waits
        row = {
            "id": rollout_id,
            "tenant": self._tenant,
            "release": found["id"],
            "model": found["model"],
            "state": state.value,
            "stage": 0,
            "reason": "ready" if state is State.READY else "waits for approval",
            "salt": rollout_id,
            "policy_json": json.dumps(write_dataclass(policy)),
            "whole_fleet": int(devices is None and profiles is None),
            "created_at": now,
            "changed_at": now,
            "stage_at": now,
            "run": run,
            "cursor": store.last_window(self._db),
        }
        with self._db.transaction() as tx:
            store.insert(tx, row, records, {d: bucket(rollout_id, d) for d in fleet}, sizes)
            store.event(tx, rollout_id, state=state.value, stage=0, actor=actor, reason="created", now=now)
            audit(tx, now=now, actor=actor, action="rollout.create", subject=rollout_id, detail=found["id"])
        return self.get(rollout_id)

    def approve(self, rollout_id: str, *, actor: str, now: float | None = None) -> Row:
        """Let a rollout that waits for approval start."""
        return self._steer(
            rollout_id,
            (State.DRAFT, State.AWAITING_APPROVAL),
            State.READY,
            f"approved by {actor}",
            actor=actor,
            now=now,
        )

    def pause(self, rollout_id: str, *, actor: str, now: float | None = None) -> Row:
        """Tell no further devices; guards stay on."""
        allowed = (State.READY, State.RUNNING, State.BAKING, State.HELD)
        return self._steer(rollout_id, allowed, State.PAUSED, f"paused by {actor}", actor=actor, now=now)

    def resume(self, rollout_id: str, *, actor: str, now: float | None = None) -> Row:
        """Go on after a pause or a hold; devices that are silent now are accepted as they are."""
        now = time.time() if now is None else now
        row = self._row(rollout_id)
        policy = read_policy(row)
        state = State.BAKING if row["stage"] >= len(policy.stages) else State.RUNNING
        started = any(r.rev is not None for r in store.records(self._db, rollout_id))
        if row["state"] == State.HELD.value:
            with self._db.transaction() as tx:
                store.waive_silent(tx, rollout_id)
        return self._steer(
            rollout_id,
            (State.PAUSED, State.HELD),
            state if started else State.READY,
            f"resumed by {actor}",
            actor=actor,
            now=now,
            restart=row["state"] == State.HELD.value,
        )

    def abort(self, rollout_id: str, *, actor: str, now: float | None = None, undo: bool = True) -> Row:
        """End a rollout from any state: devices that were told to change go back, unless `undo` is False.

        A complete rollout can be aborted too while no later one has replaced it.
        """
        row = self._row(rollout_id)
        records = store.records(self._db, rollout_id)
        was_told = any(r.rev is not None and r.state != state_machine.SUPERSEDED for r in records)
        target = State.ROLLING_BACK if undo and was_told else State.CANCELLED
        allowed = tuple(s for s in State if s not in (State.ROLLED_BACK, State.CANCELLED))
        if not undo:
            allowed = tuple(s for s in allowed if s is not State.COMPLETE)
        elif row["state"] == State.ROLLING_BACK.value:
            return self.get(rollout_id)
        return self._steer(rollout_id, allowed, target, f"aborted by {actor}", actor=actor, now=now)

    # What is shown

    def list(self) -> Sequence[Row]:
        """Return every rollout, newest first: id, state, stage, stages, release, devices{state: n}, guards."""
        counts, guards = store.state_counts(self._db, self._tenant), store.guards(self._db, self._tenant)
        rows = store.all_rollouts(self._db, self._tenant)
        return [self._shown(r, counts.get(r["id"], {}), guards.get(r["id"], [])) for r in rows]

    def get(self, rollout_id: str) -> Row:
        """Return one rollout with its `records` [device, profile, stage, state, …] and `events`.

        Raises:
            NotFoundError: there is none.
        """
        row = self._row(rollout_id)
        records = store.records(self._db, rollout_id)
        guards = store.guards(self._db, self._tenant).get(rollout_id, [])
        shown = self._shown(row, state_machine.states(records), guards)
        canary, _ = store.observations(self._db, rollout_id)
        policy = read_policy(row)
        waits = None
        if row["state"] == State.RUNNING.value:
            waits = state_machine.waits_for(
                read_progress(row, policy),
                records,
                evidence_of(canary, store.history(self._db, rollout_id)),
                now=time.time(),
                policy=policy,
            )
        return {
            **shown,
            "waits_for": waits,
            "windows": len(canary),
            "policy": write_dataclass(policy),
            "records": [_shown_record(r) for r in records],
            "events": store.events(self._db, rollout_id),
        }

    # Small things

    def _check_free(self, devices: Mapping[str, str]) -> None:
        busy = {d: r for d, r in store.overlapping(self._db, self._tenant).items() if d in devices}
        if busy:
            device, other = next(iter(busy.items()))
            raise ConflictError(
                f"{len(busy)} devices are in another rollout that is not finished, such as `{device}` in `{other}`",
                hint=f"let it finish, or `edge rollout abort {other}`",
            )

    def _steer(
        self,
        rollout_id: str,
        allowed: Sequence[State],
        state: State,
        reason: str,
        *,
        actor: str,
        now: float | None,
        restart: bool = False,
    ) -> Row:
        now = time.time() if now is None else now
        with self._db.transaction() as tx:
            rows = tx.query("SELECT * FROM rollouts WHERE tenant = ? AND id = ?", (self._tenant, rollout_id))
            if not rows:
                raise _unknown(rollout_id)
            row = rows[0]
            if State(row["state"]) not in allowed:
                raise ConflictError(
                    f"rollout `{rollout_id}` is {row['state']}",
                    hint=f"this needs one of {', '.join(s.value for s in allowed)}",
                )
            store.move(tx, rollout_id, state=state.value, stage=row["stage"], reason=reason, now=now, restart=restart)
            store.event(tx, rollout_id, state=state.value, stage=row["stage"], actor=actor, reason=reason, now=now)
            audit(tx, now=now, actor=actor, action=f"rollout.{state.value.lower()}", subject=rollout_id)
        return self.get(rollout_id)

    def _row(self, rollout_id: str) -> Row:
        row = store.get(self._db, self._tenant, rollout_id)
        if row is None:
            raise _unknown(rollout_id)
        return row

    def _policy_with(self, changes: Mapping[str, Any]) -> RolloutPolicy:
        return parse({**write_dataclass(self._policy), **changes}, RolloutPolicy, where="rollout")

    def _fleet(self, devices: Sequence[str] | None, profiles: Sequence[str] | None) -> dict[str, str]:
        rows = self._db.query(
            "SELECT id, profile FROM devices WHERE tenant = ? AND retired_at IS NULL AND enrolled_at IS NOT NULL"
            " ORDER BY id",
            (self._tenant,),
        )
        fleet = {r["id"]: r["profile"] for r in rows}
        unknown = [d for d in devices or () if d not in fleet]
        if unknown:
            raise NotFoundError(f"no enrolled device `{unknown[0][:80]}`", hint="`edge device list` shows the fleet")
        return {
            d: p for d, p in fleet.items() if (devices is None or d in devices) and (profiles is None or p in profiles)
        }

    def _shown(self, row: Row, counts: Mapping[str, int], guards: Sequence[Row]) -> Row:
        policy = read_policy(row)
        return {
            "id": row["id"],
            "state": row["state"],
            "stage": row["stage"],
            "stages": list(policy.stages),
            "reason": row["reason"],
            "release": row["release"],
            "model": row["model"],
            "undo_release": row["undo_release"],
            "run": row["run"],
            "created_at": row["created_at"],
            "changed_at": row["changed_at"],
            "devices": dict(counts),
            "guards": [*guards],
        }


def _shown_record(record: Record) -> Row:
    return write_dataclass(record) | {"error": record.error}  # type: ignore[no-any-return]


def _unknown(rollout_id: str) -> NotFoundError:
    return NotFoundError(f"no rollout `{rollout_id[:80]}`", hint="`edge rollout list` shows them")


def _first_records(
    fleet: Mapping[str, str], targets: Mapping[str, Row], stages: Mapping[str, int], now: float
) -> list[Record]:
    """Return the record of each device, given as {device: profile}; a profile without a target is incompatible."""
    return [
        Record(
            device=device,
            profile=profile,
            stage=stages.get(device, 0),
            sha256=targets[profile]["sha256"] if profile in targets else None,
            state=state_machine.QUEUED if profile in targets else state_machine.INCOMPATIBLE,
            changed_at=now,
            error=None if profile in targets else f"the release has nothing for profile `{profile}`",
        )
        for device, profile in fleet.items()
    ]
