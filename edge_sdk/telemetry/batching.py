"""How events of the outbox become batches: what one event may be, which ones go together, the bytes they freeze to."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_sdk.errors import SchemaError
from edge_sdk.schemas import codec, document

MAX_EVENT_BYTES = 48 * 1024
BATCH_EVENTS = 100
BATCH_MIN_EVENTS = 20
BATCH_BYTES = 16 * 1024
BATCH_MAX_BYTES = 56 * 1024
PRIORITY = {"result": 0, "metric": 1, "window": 1, "alarm": 2}


@dataclass(frozen=True, slots=True)
class Frozen:
    """A batch as it goes on the wire, the same bytes at every sending; `priority` 2 holds alarms."""

    q0: int
    n: int
    payload: bytes
    priority: int = 1


def row_of(event: Mapping[str, Any], urgent: bool) -> tuple[int, str, int]:
    kind = event.get("kind")
    if kind not in PRIORITY or not isinstance(event.get("t"), (int, float)):
        raise SchemaError(f"an event needs `t` and a kind of {', '.join(PRIORITY)}, found kind {kind!r}")
    try:
        raw = document.dumps(event)
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError(f"{kind} event is not JSON: {error}") from None
    if len(raw) > MAX_EVENT_BYTES:
        raise SchemaError(
            f"{kind} event is {len(raw)} bytes, the limit is {MAX_EVENT_BYTES}", hint="send less in one event"
        )
    return (2 if urgent else PRIORITY[kind]), raw.decode(), len(raw)


Row = tuple[int, int, float, int, str]


def run_of(rows: Sequence[Row]) -> tuple[list[Row], bool]:
    """Return the first events that make one batch and whether the batch can grow no more."""
    run: list[Row] = []
    size = 0
    for row in rows:
        if run:
            consecutive = row[0] == run[-1][0] + 1
            fits = size + row[3] <= (BATCH_MAX_BYTES if len(run) < BATCH_MIN_EVENTS else BATCH_BYTES)
            if not consecutive or not fits or len(run) >= BATCH_EVENTS:
                return run, True
        run.append(row)
        size += row[3] + 32
    return run, len(run) >= BATCH_EVENTS or size >= BATCH_BYTES


def freeze(db: sqlite3.Connection, stream: str, run: Sequence[Row]) -> None:
    events = [{**json.loads(row[4]), "seq": row[0]} for row in run]
    payload = codec.encode_batch(stream, events)
    q0, last = run[0][0], run[-1][0]
    db.execute(
        "INSERT INTO batches (q0, n, priority, size, payload) VALUES (?, ?, ?, ?, ?)",
        (q0, len(run), max(row[1] for row in run), sum(row[3] for row in run), payload),
    )
    db.execute("DELETE FROM events WHERE seq BETWEEN ? AND ?", (q0, last))


def frozen(db: sqlite3.Connection, limit: int) -> list[Frozen]:
    rows = db.execute("SELECT q0, n, payload, priority FROM batches ORDER BY priority < 2, q0 LIMIT ?", (limit,))
    return [Frozen(q0, n, bytes(payload), priority) for q0, n, payload, priority in rows]
