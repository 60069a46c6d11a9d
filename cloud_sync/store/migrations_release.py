"""The tables of releases, rollouts, drift and retraining; names start at 101."""

from __future__ import annotations

from typing import Any

from cloud_sync.store.base import Migration


def _releases(db: Any) -> None:
    db["artifacts"].create(
        {
            "sha256": str,
            "size": int,
            "name": str,
            "version": str,
            "profile": str,
            "task": str,
            "source_sha256": str,
            "parent": str,
            "uploaded_at": float,
            "manifest_json": str,
        },
        pk="sha256",
        not_null={"size", "name", "version", "profile", "task", "uploaded_at", "manifest_json"},
    )
    db["releases"].create(
        {
            "id": str,
            "tenant": str,
            "model": str,
            "version": str,
            "number": int,
            "kind": str,
            "undoes": str,
            "created_at": float,
        },
        pk="id",
        not_null={"tenant", "model", "version", "number", "kind", "created_at"},
    )
    db["releases"].create_index(["tenant", "model", "version"], unique=True)
    db["release_targets"].create(
        {"release": str, "profile": str, "sha256": str, "size": int, "target": str},
        pk=("release", "profile", "sha256"),
        not_null={"size", "target"},
    )
    db["current_releases"].create(
        {"tenant": str, "profile": str, "release": str, "rollout": str, "previous": str, "since": float},
        pk=("tenant", "profile"),
        not_null={"release", "since"},
    )


def _rollouts(db: Any) -> None:
    db["rollouts"].create(
        {
            "id": str,
            "tenant": str,
            "release": str,
            "model": str,
            "state": str,
            "stage": int,
            "reason": str,
            "salt": str,
            "policy_json": str,
            "whole_fleet": int,
            "created_at": float,
            "started_at": float,
            "changed_at": float,
            "stage_at": float,
            "undo_release": str,
            "run": str,
            "cursor": int,
        },
        pk="id",
        not_null={"tenant", "release", "model", "state", "stage", "salt", "policy_json", "whole_fleet", "created_at"},
    )
    db["rollouts"].create_index(["tenant", "state"])
    db["rollout_devices"].create(
        {
            "rollout": str,
            "device": str,
            "profile": str,
            "stage": int,
            "bucket": float,
            "state": str,
            "target": str,
            "sha256": str,
            "size": int,
            "previous_sha256": str,
            "rev": int,
            "undo_rev": int,
            "took": int,
            "waived": int,
            "notified_at": float,
            "changed_at": float,
            "committed_at": float,
            "error": str,
        },
        pk=("rollout", "device"),
        not_null={"profile", "stage", "bucket", "state", "took", "waived"},
    )
    db["rollout_devices"].create_index(["device"])
    db["rollout_guards"].create(
        {
            "rollout": str,
            "name": str,
            "value": float,
            "limit_value": float,
            "tripped": int,
            "peak": float,
            "t": float,
            "detail": str,
        },
        pk=("rollout", "name"),
        not_null={"value", "limit_value", "tripped", "peak", "t"},
    )
    db["rollout_history"].create(
        {
            "rollout": str,
            "device": str,
            "windows": int,
            "error_windows": int,
            "error_share": float,
            "slow_share": float,
            "confidence": float,
        },
        pk=("rollout", "device"),
        not_null={"windows", "error_windows", "error_share", "slow_share"},
    )
    db["rollout_observations"].create(
        {
            "rollout": str,
            "window_id": int,
            "device": str,
            "canary": int,
            "t": float,
            "error_share": float,
            "slow_share": float,
            "confidence": float,
        },
        pk=("rollout", "window_id"),
        not_null={"device", "canary", "t", "error_share", "slow_share", "confidence"},
    )
    db["rollout_events"].create(
        {"id": int, "rollout": str, "t": float, "state": str, "stage": int, "actor": str, "reason": str},
        pk="id",
        not_null={"rollout", "t", "state", "stage", "actor", "reason"},
    )
    db["rollout_events"].create_index(["rollout"])


def _drift(db: Any) -> None:
    db["drift_states"].create(
        {
            "tenant": str,
            "device": str,
            "pipeline": str,
            "profile": str,
            "model": str,
            "state": str,
            "since": float,
            "updated_at": float,
            "windows_json": str,
            "samples": int,
            "baseline_json": str,
            "votes_json": str,
        },
        pk=("device", "pipeline"),
        not_null={
            "tenant",
            "profile",
            "model",
            "state",
            "since",
            "updated_at",
            "windows_json",
            "samples",
            "votes_json",
        },
    )
    db["drift_cursor"].create({"tenant": str, "cursor": int}, pk="tenant", not_null={"cursor"})
    db["drift_verdicts"].create(
        {
            "id": int,
            "tenant": str,
            "device": str,
            "pipeline": str,
            "model": str,
            "kind": str,
            "t": float,
            "window_id": int,
            "n": int,
            "statistic": float,
            "p": float,
            "flagged": int,
            "state": str,
            "evidence_json": str,
        },
        pk="id",
        not_null={"tenant", "device", "pipeline", "model", "kind", "t", "window_id", "n", "flagged", "state"},
    )
    db["drift_verdicts"].create_index(["device", "pipeline", "kind", "window_id"], unique=True)
    db["drift_verdicts"].create_index(["t"])


def _retrain(db: Any) -> None:
    db["retrain_runs"].create(
        {
            "id": str,
            "tenant": str,
            "model": str,
            "state": str,
            "reason": str,
            "requested_by": str,
            "attempts": int,
            "devices_json": str,
            "created_at": float,
            "started_at": float,
            "ended_at": float,
            "dir": str,
            "gate_json": str,
            "release": str,
            "rollout": str,
            "error": str,
        },
        pk="id",
        not_null={"tenant", "state", "reason", "created_at"},
    )
    db["retrain_runs"].create_index(["tenant", "created_at"])


MIGRATIONS: list[Migration] = [
    ("101_releases", _releases),
    ("102_rollouts", _rollouts),
    ("103_drift", _drift),
    ("104_retrain", _retrain),
]
