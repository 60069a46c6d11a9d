"""Moving rollouts on: what devices said, the guards, the decision and what devices are told, one transaction a step."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cloud_sync.policies import RolloutPolicy
from cloud_sync.releases import store as release_store
from cloud_sync.releases.catalog import Catalog
from cloud_sync.rollout import guardrails, state_machine, store
from cloud_sync.rollout.evidence import observation, summarise
from cloud_sync.rollout.guardrails import GuardResult, History, Observation
from cloud_sync.rollout.state_machine import Decision, Evidence, Progress, Record, State
from cloud_sync.store.audit import audit
from cloud_sync.store.base import Database, Transaction
from edge_sdk.config import parse
from edge_sdk.errors import EdgeError
from edge_sdk.schemas.state import Desired

logger = logging.getLogger(__name__)
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A desired state that is in the store and wants publishing; None clears it."""

    tenant: str
    device: str
    desired: Desired | None


class RolloutController:
    """Every step reads what is committed and writes its outcome in one transaction, so that a service killed anywhere
    goes on where it was. What a device should run is written with the step; publishing it again is harmless."""

    def __init__(self, db: Database, catalog: Catalog, tenant: str, policy: RolloutPolicy) -> None:
        self._db = db
        self._catalog = catalog
        self._tenant = tenant
        self._policy = policy
        self._listening_since = 0.0

    def deaf_until(self, now: float) -> None:
        """Remember that devices could not be heard before `now`, so that this is not taken for their silence."""
        self._listening_since = now

    def step(self, now: float) -> list[Order]:
        """Move every unfinished rollout on and return what to publish."""
        orders: list[Order] = []
        for row in store.active(self._db, self._tenant):
            try:
                orders += self._advance(row, now)
            except EdgeError as error:
                logger.error("rollout %s cannot go on: %s", row["id"], error.message)
        return orders + self._welcome(now)

    def _advance(self, row: Row, now: float) -> list[Order]:
        policy = read_policy(row)
        state = State(row["state"])
        if state in (State.DRAFT, State.AWAITING_APPROVAL):
            return []
        if state is State.READY:
            self._take_history(row, policy)
        seen = store.seen(self._db, row["id"])
        before = [r for r in store.records(self._db, row["id"]) if r.device in seen]
        since = self._listening_since
        records = [
            state_machine.mirror(r, seen[r.device], now=now, policy=policy, listening_since=since) for r in before
        ]
        progress = read_progress(row, policy)
        decision, guards = self._judge(row, progress, records, policy, now=now)
        undo = self._undo_targets(row, records, now) if decision.state is State.ROLLING_BACK else None
        changed = {r.device: r for r, old in zip(records, before, strict=True) if r != old}
        with self._db.transaction() as tx:
            # An operator may have steered it meanwhile: then this step is void and the next one sees it.
            found = tx.query("SELECT state FROM rollouts WHERE id = ?", (row["id"],))
            if found[0]["state"] != row["state"]:
                return []
            store.save_guards(tx, row["id"], guards, now)
            self._move(tx, row, progress, decision, now)
            if undo is not None:
                told, orders = self._untell(tx, records, undo, policy, now=now)
            else:
                same = decision.stage == progress.stage
                moved = replace(progress, state=decision.state, stage=decision.stage)
                moved = moved if same else replace(moved, stage_at=now)
                turn = state_machine.to_notify(moved, records, now=now, policy=policy)
                told, orders = self._tell(tx, row, turn, policy, now=now)
            store.save_records(tx, row["id"], {**changed, **{r.device: r for r in told}}.values())
            if row["whole_fleet"]:
                self._set_current(tx, row, decision.state, undo, records, now=now)
        return orders

    def _judge(
        self, row: Row, progress: Progress, records: Sequence[Record], policy: RolloutPolicy, *, now: float
    ) -> tuple[Decision, list[GuardResult]]:
        guards: list[GuardResult] = []
        evidence = Evidence()
        if progress.state in state_machine.WATCHED:
            self._read_windows(row, records)
            canary, rest = store.observations(self._db, row["id"])
            history = store.history(self._db, row["id"])
            members = state_machine.told(records)
            evidence = evidence_of(canary, history)
            guards = guardrails.evaluate(
                policy,
                canary=canary,
                rest=rest,
                history=history,
                devices=len(members),
                failed=state_machine.count_failed(members, now=now, policy=policy),
                silent=state_machine.count_silent(members),
            )
        return state_machine.decide(progress, records, guards, evidence, now=now, policy=policy), guards

    def _set_current(
        self, tx: Transaction, row: Row, state: State, undo: Row | None, records: Sequence[Record], *, now: float
    ) -> None:
        """Keep what devices that enrol later get: the release of a complete rollout, the old bytes of an undone one."""
        if state is State.COMPLETE:
            profiles, release = {r.profile for r in records if r.sha256}, row["release"]
        elif undo is not None:
            mine = {p for p, c in self._catalog.current().items() if c["rollout"] == row["id"]}
            profiles, release = {t["profile"] for t in undo["targets"]} & mine, undo["id"]
        else:
            return
        for profile in sorted(profiles):
            release_store.set_current(tx, self._tenant, profile, release=release, rollout=row["id"], now=now)

    def _move(self, tx: Transaction, row: Row, progress: Progress, decision: Decision, now: float) -> None:
        if (decision.state, decision.stage, decision.reason) == (progress.state, progress.stage, progress.reason):
            return
        restart = decision.stage != progress.stage or progress.state is State.READY
        store.move(
            tx,
            row["id"],
            state=decision.state.value,
            stage=decision.stage,
            reason=decision.reason,
            now=now,
            restart=restart,
        )
        store.event(
            tx,
            row["id"],
            state=decision.state.value,
            stage=decision.stage,
            actor="service",
            reason=decision.reason,
            now=now,
        )
        logger.info("rollout %s: %s (%s)", row["id"], decision.state.value, decision.reason)

    def _tell(
        self, tx: Transaction, row: Row, turn: Sequence[Record], policy: RolloutPolicy, *, now: float
    ) -> tuple[list[Record], list[Order]]:
        told, orders = [], []
        targets = {t["sha256"]: t for t in release_store.targets(self._db, row["release"])}
        current = self._catalog.current()
        for record in turn:
            assert record.sha256 is not None
            order = self._order(
                tx, record.device, row["release"], targets[record.sha256], rollout_id=row["id"], policy=policy
            )
            if order is None or order.desired is None:
                continue
            told.append(
                replace(
                    record,
                    state=state_machine.NOTIFIED,
                    rev=order.desired.rev,
                    previous_sha256=self._previous(record, current),
                    changed_at=now,
                )
            )
            orders.append(order)
        return told, orders

    def _untell(
        self, tx: Transaction, records: Sequence[Record], undo: Row, policy: RolloutPolicy, *, now: float
    ) -> tuple[list[Record], list[Order]]:
        """Give every device that was told the artifact that it had before; one that had none gets nothing to run."""
        told, orders = [], []
        targets = {(t["profile"], t["sha256"]): t for t in undo["targets"]}
        for record in state_machine.told(records):
            if record.undo_rev is not None or record.rev is None:
                continue
            target = targets.get((record.profile, record.previous_sha256 or ""))
            order = self._order(tx, record.device, undo["id"], target, rollout_id=None, policy=policy)
            if order is None:
                continue
            rev = order.desired.rev if order.desired else record.rev + 1
            error = record.error if target else "nothing to go back to"
            told.append(replace(record, undo_rev=rev, changed_at=now, error=error))
            orders.append(order)
        return told, orders

    def _order(
        self,
        tx: Transaction,
        device: str,
        release: str,
        target: Row | None,
        *,
        rollout_id: str | None,
        policy: RolloutPolicy,
    ) -> Order | None:
        """Write a device's next desired state; None when the device is gone."""
        rows = tx.query("SELECT desired_rev, desired_json, retired_at FROM devices WHERE id = ?", (device,))
        if not rows or rows[0]["retired_at"] is not None:
            return None
        rev = int(rows[0]["desired_rev"] or 0) + 1
        desired = None
        if target is not None:
            old = read_desired(rows[0]["desired_json"])
            desired = Desired(
                rev=rev,
                release=release,
                target=target["target"],
                sha256=target["sha256"],
                size=target["size"],
                rollout=rollout_id,
                trial_s=policy.trial_s,
                config=old.config if old else {},
            )
        text = desired.to_json().decode() if desired else None
        tx.execute("UPDATE devices SET desired_rev = ?, desired_json = ? WHERE id = ?", (rev, text, device))
        return Order(tenant=self._tenant, device=device, desired=desired)

    def _previous(self, record: Record, current: Mapping[str, Row]) -> str | None:
        """Return what a device goes back to: what it reports, else what it was told, else its profile's current one."""
        row = self._db.query("SELECT digest, desired_json FROM devices WHERE id = ?", (record.device,))[0]
        told = read_desired(row["desired_json"])
        release = current.get(record.profile)
        ours = [] if release is None else release_store.targets(self._db, release["release"])
        candidates = [
            row["digest"],
            told.sha256 if told else None,
            *(t["sha256"] for t in ours if t["profile"] == record.profile),
        ]
        for digest in candidates:
            if digest and digest != record.sha256:
                artifact = release_store.artifact(self._db, digest)
                if artifact and artifact["profile"] == record.profile:
                    return str(digest)
        return None

    def _undo_targets(self, row: Row, records: Sequence[Record], now: float) -> Row:
        """Return the release that points at the old bytes, made when the rollout begins to go back."""
        if row["undo_release"]:
            return self._catalog.release(row["undo_release"])
        wanted = {(r.profile, r.previous_sha256) for r in records if r.rev is not None and r.previous_sha256}
        if not wanted:
            return {"id": row["release"], "targets": []}
        targets = []
        for profile, digest in sorted(wanted):
            artifact = release_store.artifact(self._db, digest)
            assert artifact is not None
            targets.append((profile, digest, int(artifact["size"])))
        undo = self._catalog.create_undo(row["release"], targets, actor="service", now=now)
        self._db.execute("UPDATE rollouts SET undo_release = ? WHERE id = ?", (undo["id"], row["id"]))
        return undo

    def _take_history(self, row: Row, policy: RolloutPolicy) -> None:
        """Freeze every device's past before its first stage begins."""
        found = {}
        for record in store.records(self._db, row["id"]):
            windows = store.windows_before(
                self._db,
                record.device,
                row["cursor"],
                not_model=record.sha256 or "",
                limit=policy.history_windows,
            )
            found[record.device] = summarise(o for o in map(observation, windows) if o is not None)
        with self._db.transaction() as tx:
            store.save_history(tx, row["id"], found)

    def _read_windows(self, row: Row, records: Sequence[Record]) -> None:
        """Sort new telemetry windows into canary and rest."""
        by_device = {r.device: r for r in records}
        cursor = row["cursor"] or 0
        while rows := store.new_windows(self._db, row["id"], cursor):
            found = []
            for window in rows:
                record, seen = by_device.get(window["device"]), observation(window)
                if record is None or seen is None:
                    continue
                if window["model"] == record.sha256 and record.rev is not None:
                    found.append((window["id"], True, seen))
                elif record.rev is None and seen.t >= row["stage_at"]:
                    found.append((window["id"], False, seen))
            cursor = rows[-1]["id"]
            with self._db.transaction() as tx:
                store.save_observations(tx, row["id"], found, cursor)

    def _welcome(self, now: float) -> list[Order]:
        """Give devices that came after a rollout, or during it, their profile's current release."""
        orders: list[Order] = []
        held = store.overlapping(self._db, self._tenant)
        for profile, current in self._catalog.current().items():
            targets = release_store.targets(self._db, current["release"])
            target = next((t for t in targets if t["profile"] == profile), None)
            for row in store.devices_outside(self._db, self._tenant, profile, current["release"]):
                told = read_desired(row["desired_json"])
                late = told is None or (told.release == current["previous"] and not row["member"])
                if target is None or row["id"] in held or not late:
                    continue
                with self._db.transaction() as tx:
                    order = self._order(tx, row["id"], current["release"], target, rollout_id=None, policy=self._policy)
                    audit(tx, now=now, actor="service", action="device.welcome", subject=row["id"])
                orders += [order] if order else []
        return orders


def read_policy(row: Row) -> RolloutPolicy:
    """Return the policy that a rollout was created with."""
    return parse(json.loads(row["policy_json"]), RolloutPolicy, where=f"rollout {row['id']}")


def read_progress(row: Row, policy: RolloutPolicy) -> Progress:
    return Progress(
        state=State(row["state"]),
        stage=row["stage"],
        stages=len(policy.stages),
        stage_at=row["stage_at"],
        reason=row["reason"] or "",
    )


def read_desired(text: str | None) -> Desired | None:
    return Desired.from_json(text.encode()) if text else None


def evidence_of(canary: Sequence[Observation], history: Mapping[str, History]) -> Evidence:
    """Return what the observations of devices with the new artifact amount to."""
    return Evidence(
        windows=Counter(o.device for o in canary), expected_errors=guardrails.expected_errors(len(canary), history)
    )
