"""The fleet's records: claim tokens, enrolment, what is known of each device, its events."""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from cloud_sync.credentials import hash_claim, hash_credential, new_secret
from cloud_sync.errors import AuthError, ConflictError, NotFoundError
from cloud_sync.ingest.records import decompress
from cloud_sync.store.audit import audit
from cloud_sync.store.base import Database, Transaction
from edge_sdk.schemas.ids import check_id

STATUSES = ("online", "silent", "offline", "new", "retired")
_COLUMNS = (
    "id, tenant, profile, created_at, enrolled_at, retired_at, online, last_seen, rev, digest, slot, phase, error,"
    " outbox_rows, outbox_dropped, state_json, desired_rev, desired_json, credential_hash IS NOT NULL AS enrolled"
)
_MAX_EVENTS = 1000


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What enrolment gave a device; the credential is shown once and kept only as a hash."""

    tenant: str
    device: str
    credential: str
    profile: str


def add_device(
    db: Database, tenant: str, device: str, profile: str, *, now: float, ttl_s: float, actor: str, renew: bool = False
) -> str:
    """Make a device that may enrol once with the claim token that is returned.

    A device that has not enrolled yet gets a new token; one that has needs `renew`, which ends its present credential
    when the new token is used.

    Raises:
        SchemaError: an id has a wrong form.
        ConflictError: the device is enrolled and `renew` is not given, or it belongs to another tenant.
    """
    check_id(device, "device")
    check_id(profile, "profile")
    token = new_secret()
    with db.transaction() as tx:
        rows = tx.query("SELECT tenant, credential_hash, retired_at FROM devices WHERE id = ?", (device,))
        if rows and rows[0]["tenant"] != tenant:
            raise ConflictError(
                f"device `{device}` belongs to another tenant", hint="device names are unique: choose another"
            )
        if rows and rows[0]["credential_hash"] and rows[0]["retired_at"] is None and not renew:
            raise ConflictError(
                f"device `{device}` is enrolled", hint=f"`edge device add {device} --renew` lets it enrol again"
            )
        if rows:
            tx.execute(
                "UPDATE devices SET profile = ?, claim_hash = ?, claim_expires = ?, claim_nonce = NULL,"
                " retired_at = NULL WHERE id = ?",
                (profile, hash_claim(token), now + ttl_s, device),
            )
        else:
            tx.execute(
                "INSERT INTO devices (id, tenant, profile, created_at, claim_hash, claim_expires)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (device, tenant, profile, now, hash_claim(token), now + ttl_s),
            )
        audit(tx, now=now, actor=actor, action="device.add", subject=device, detail=profile)
    return token


def enroll(db: Database, token: str, nonce: str | None, *, now: float) -> Enrolled:
    """Turn a claim token into a credential, once.

    An answer that was lost on the way is asked for again with the same `nonce`, which the device keeps from before its
    first try: that is the same enrolment and gets a new credential in place of the lost one, until the token expires.

    Raises:
        AuthError: the token is unknown, used or expired.
    """
    with db.transaction() as tx:
        rows = tx.query("SELECT * FROM devices WHERE claim_hash = ? AND retired_at IS NULL", (hash_claim(token),))
        if not rows:
            raise AuthError("the claim token is unknown or was replaced", hint=_ASK_AGAIN)
        row = rows[0]
        device = row["id"]
        if now >= row["claim_expires"]:
            raise AuthError(f"the claim token of `{device}` has expired", hint=_ASK_AGAIN)
        used = row["claim_nonce"]
        if used is not None and not (nonce and hmac.compare_digest(used, hash_claim(nonce))):
            raise AuthError(f"the claim token of `{device}` has been used", hint=_ASK_AGAIN)
        credential = new_secret()
        tx.execute(
            "UPDATE devices SET credential_hash = ?, enrolled_at = ?, claim_nonce = ?, online = 0 WHERE id = ?",
            (hash_credential(credential), now, hash_claim(nonce) if nonce else "", device),
        )
        again = "again with the same nonce" if used is not None else ""
        audit(tx, now=now, actor=f"device:{device}", action="device.enroll", subject=device, detail=again)
    return Enrolled(row["tenant"], device, credential, row["profile"])


_ASK_AGAIN = "ask the operator for a new one: `edge device add NAME`"


def retire_device(db: Database, tenant: str, device: str, *, now: float, actor: str) -> None:
    """Take a device out of the fleet: its credential ends, its history stays.

    Raises:
        NotFoundError: there is no such device, or it is retired.
    """
    with db.transaction() as tx:
        changed = tx.execute(
            "UPDATE devices SET retired_at = ?, credential_hash = NULL, claim_hash = NULL, claim_nonce = NULL,"
            " online = 0, desired_json = NULL WHERE id = ? AND tenant = ? AND retired_at IS NULL",
            (now, device, tenant),
        )
        if not changed:
            raise _unknown(device)
        audit(tx, now=now, actor=actor, action="device.retire", subject=device)


def list_devices(
    db: Database, tenant: str, *, now: float, silent_after_s: float, profile: str | None = None, retired: bool = False
) -> list[dict[str, Any]]:
    """Return the devices of a tenant by name, as the API shows them."""
    sql = f"SELECT {_COLUMNS} FROM devices WHERE tenant = ?"
    params: list[Any] = [tenant]
    if not retired:
        sql += " AND retired_at IS NULL"
    if profile:
        sql += " AND profile = ?"
        params.append(profile)
    return [_shown(row, now, silent_after_s) for row in db.query(sql + " ORDER BY id", params)]


def get_device(db: Database, tenant: str, device: str, *, now: float, silent_after_s: float) -> dict[str, Any]:
    """Return one device.

    Raises:
        NotFoundError: there is none of that name.
    """
    rows = db.query(f"SELECT {_COLUMNS} FROM devices WHERE tenant = ? AND id = ?", (tenant, device))
    if not rows:
        raise _unknown(device)
    return _shown(rows[0], now, silent_after_s)


def events(
    db: Database, device: str, *, stream: str | None, after: str | None, limit: int = 100, kind: str | None = None
) -> tuple[list[dict[str, Any]], str | None]:
    """Return up to `limit` decoded events after a cursor, in order of stream and sequence, and the next cursor.

    The cursor is `stream:seq`; None at the end. With `kind`, events of other kinds are left out.

    Raises:
        NotFoundError: the cursor has not the form.
    """
    limit = max(1, min(limit, _MAX_EVENTS))
    found: list[dict[str, Any]] = []
    position = (stream or "", -1) if after is None else _cursor(after, stream)
    for batch in _batches(db, device, stream, position):
        for event in _decoded(batch):
            if (batch["stream"], event["seq"]) <= position or (kind is not None and event["kind"] != kind):
                continue
            if len(found) == limit:
                last = found[-1]
                return found, f"{last['stream']}:{last['seq']}"
            found.append({"stream": batch["stream"], **event})
    return found, None


def _cursor(after: str, stream: str | None) -> tuple[str, int]:
    name, colon, number = after.rpartition(":")
    if not number.isdecimal() or (not colon and stream is None):
        raise NotFoundError(f"cursor `{after[:80]}` is not `stream:seq`", hint="use the `next` of the page before")
    return name or stream or "", int(number)


def _batches(db: Database, device: str, stream: str | None, position: tuple[str, int]) -> Iterator[dict[str, Any]]:
    """Yield batches from the one that may hold `position`, some at a time."""
    name, seq = position
    q0 = -1
    start = db.query(
        "SELECT max(q0) AS q0 FROM batches WHERE device = ? AND stream = ? AND q0 <= ?", (device, name, max(seq, 0))
    )
    if start and start[0]["q0"] is not None:
        q0 = start[0]["q0"] - 1
    only = " AND stream = ?" if stream else ""
    while True:
        params: list[Any] = [device, name, name, q0, *([stream] if stream else [])]
        rows = db.query(
            "SELECT stream, q0, n, enc, body FROM batches WHERE device = ? AND (stream > ? OR (stream = ? AND q0 > ?))"
            + only
            + " ORDER BY stream, q0 LIMIT 32",
            params,
        )
        yield from rows
        if len(rows) < 32:
            return
        name, q0 = rows[-1]["stream"], rows[-1]["q0"]


def _decoded(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = msgspec.json.decode(decompress(batch["enc"], bytes(batch["body"])))
    return out


def _shown(row: Mapping[str, Any], now: float, silent_after_s: float) -> dict[str, Any]:
    state = json.loads(row["state_json"]) if row["state_json"] else {}
    desired = json.loads(row["desired_json"]) if row["desired_json"] else None
    return {
        "id": row["id"],
        "tenant": row["tenant"],
        "profile": row["profile"],
        "status": device_status(row, now, silent_after_s),
        "online": bool(row["online"]),
        "last_seen": row["last_seen"],
        "digest": row["digest"],
        "slot": row["slot"],
        "phase": row["phase"],
        "rev": row["rev"],
        "error": row["error"],
        "outbox": {"rows": row["outbox_rows"], "dropped": row["outbox_dropped"]},
        "state": state,
        "desired": desired,
        "created_at": row["created_at"],
        "enrolled_at": row["enrolled_at"],
        "retired_at": row["retired_at"],
    }


def device_status(row: Mapping[str, Any], now: float, silent_after_s: float) -> str:
    """Return one of STATUSES; `silent` is a device that says it is online and was not heard for too long."""
    if row["retired_at"] is not None:
        return "retired"
    if not row["enrolled"]:
        return "new"
    if not row["online"]:
        return "offline"
    return "online" if row["last_seen"] is not None and now - row["last_seen"] <= silent_after_s else "silent"


def mark_all_offline(tx: Transaction | Database) -> None:
    """Forget who is online: after a lost broker session, the retained states say it again."""
    tx.execute("UPDATE devices SET online = 0 WHERE online = 1")


def _unknown(device: str) -> NotFoundError:
    return NotFoundError(f"no device `{device[:80]}`", hint="`edge device list` shows the fleet")
