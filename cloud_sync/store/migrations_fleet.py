"""The tables of devices, telemetry and audit; names start at 001."""

from __future__ import annotations

from typing import Any

from cloud_sync.store.base import Migration


def _devices(db: Any) -> None:
    db["devices"].create(
        {
            "id": str,
            "tenant": str,
            "profile": str,
            "created_at": float,
            "enrolled_at": float,
            "retired_at": float,
            "credential_hash": str,
            "claim_hash": str,
            "claim_expires": float,
            "claim_nonce": str,
            "online": int,
            "last_seen": float,
            "rev": int,
            "digest": str,
            "slot": str,
            "phase": str,
            "error": str,
            "outbox_rows": int,
            "outbox_dropped": int,
            "state_json": str,
            "desired_rev": int,
            "desired_json": str,
        },
        pk="id",
        not_null={"tenant", "profile", "created_at", "online", "desired_rev"},
        defaults={"online": 0, "desired_rev": 0},
    )
    db["devices"].create_index(["claim_hash"], unique=True)
    db["devices"].create_index(["tenant", "profile"])


def _telemetry(db: Any) -> None:
    db["batches"].create(
        {
            "device": str,
            "stream": str,
            "q0": int,
            "n": int,
            "tenant": str,
            "received_at": float,
            "enc": str,
            "body": bytes,
        },
        pk=("device", "stream", "q0"),
        not_null={"n", "tenant", "received_at", "enc", "body"},
    )
    db["windows"].create(
        {
            "id": int,
            "tenant": str,
            "device": str,
            "stream": str,
            "seq": int,
            "t0": float,
            "t1": float,
            "model": str,
            "pipeline": str,
            "n": int,
            "json": str,
        },
        pk="id",
        not_null={"tenant", "device", "stream", "seq", "t0", "t1", "model", "pipeline", "n", "json"},
    )
    db["windows"].create_index(["device", "stream", "seq"], unique=True)
    db["windows"].create_index(["device", "t1"])
    db["alarms"].create(
        {
            "id": int,
            "tenant": str,
            "device": str,
            "stream": str,
            "seq": int,
            "t": float,
            "kind": str,
            "message": str,
            "json": str,
        },
        pk="id",
        not_null={"tenant", "device", "stream", "seq", "t", "kind", "json"},
    )
    db["alarms"].create_index(["device", "stream", "seq"], unique=True)
    db["alarms"].create_index(["t"])
    db["rejects"].create(
        {"id": int, "device": str, "topic": str, "received_at": float, "reason": str, "size": int, "body": bytes},
        pk="id",
        not_null={"topic", "received_at", "reason", "size"},
    )


def _transitions(db: Any) -> None:
    db["transitions"].create(
        {
            "id": int,
            "tenant": str,
            "device": str,
            "seq": int,
            "t": float,
            "received_at": float,
            "rev": int,
            "release": str,
            "rollout": str,
            "sha256": str,
            "from_phase": str,
            "to_phase": str,
            "error": str,
        },
        pk="id",
        not_null={"tenant", "device", "seq", "t", "received_at", "rev", "release", "sha256", "from_phase", "to_phase"},
    )
    db["transitions"].create_index(["device", "seq", "t"], unique=True)
    db["transitions"].create_index(["rollout"])


def _audit(db: Any) -> None:
    db["audit"].create(
        {"id": int, "t": float, "actor": str, "action": str, "subject": str, "detail": str},
        pk="id",
        not_null={"t", "actor", "action", "subject"},
    )


MIGRATIONS: list[Migration] = [
    ("001_devices", _devices),
    ("002_telemetry", _telemetry),
    ("003_transitions", _transitions),
    ("004_audit", _audit),
]
