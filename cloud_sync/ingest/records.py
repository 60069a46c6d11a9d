"""What each kind of device message is, and the rows it becomes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from cloud_sync.store.base import Transaction
from edge_sdk.errors import EdgeError
from edge_sdk.schemas import codec, compression, document
from edge_sdk.schemas.ids import UP, check_id, parse_topic
from edge_sdk.schemas.state import Reported, Transition
from edge_sdk.schemas.telemetry import KINDS


class _Event(msgspec.Struct):
    seq: int
    t: float
    kind: str


class _Window(msgspec.Struct):
    """The part of a window that the tables need; unknown keys are allowed, drift reads the rest."""

    t0: float
    t1: float
    pipeline: str
    model: str
    n: Annotated[int, msgspec.Meta(ge=0, lt=2**62)]


_RAWS = msgspec.json.Decoder(list[msgspec.Raw])
_EVENT = msgspec.json.Decoder(_Event)
_WINDOW = msgspec.json.Decoder(_Window)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A message that is not taken; with `keep` its bytes go to the table of rejects.

    `key` and `range` say what to acknowledge when its header could be read: a batch that can never be stored must not
    be sent for ever.
    """

    reason: str
    topic: str
    payload: bytes
    device: str | None = None
    key: tuple[str, str, str] | None = None
    range: tuple[int, int] = (0, -1)
    keep: bool = True


@dataclass(frozen=True, slots=True)
class Batch:
    """One telemetry batch: stored as it came, its windows and alarms also as rows of their own."""

    leaf: str
    tenant: str
    device: str
    stream: str
    q0: int
    n: int
    enc: str
    body: bytes
    newest: float
    windows: tuple[tuple[Any, ...], ...]
    alarms: tuple[tuple[Any, ...], ...]
    flaws: tuple[str, ...]

    def write(self, tx: Transaction, received_at: float) -> bool:
        """Insert what is new and return whether the batch was."""
        row = (self.device, self.stream, self.q0, self.n, self.tenant, received_at, self.enc, self.body)
        new = tx.execute(
            "INSERT INTO batches (device, stream, q0, n, tenant, received_at, enc, body)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            row,
        )
        if not new:
            return False
        if self.windows:
            tx.executemany(
                "INSERT INTO windows (tenant, device, stream, seq, t0, t1, model, pipeline, n, json)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                self.windows,
            )
        if self.alarms:
            tx.executemany(
                "INSERT INTO alarms (tenant, device, stream, seq, t, kind, message, json)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                self.alarms,
            )
        return True


@dataclass(frozen=True, slots=True)
class Report:
    """A `state` message: the keys it has replace the stored ones, the others stay."""

    leaf: str
    tenant: str
    device: str
    keys: dict[str, Any]

    def write(self, tx: Transaction) -> None:
        stored = tx.query("SELECT state_json FROM devices WHERE id = ?", (self.device,))[0]["state_json"]
        merged = (document.loads_object(stored, where="stored state") if stored else {}) | self.keys
        outbox = merged.get("outbox") or {}
        tx.execute(
            "UPDATE devices SET online = ?, rev = ?, digest = ?, slot = ?, phase = ?, error = ?, outbox_rows = ?,"
            " outbox_dropped = ?, state_json = ? WHERE id = ?",
            (
                1 if merged.get("online") else 0,
                merged.get("rev"),
                merged.get("digest"),
                merged.get("slot"),
                merged.get("phase"),
                merged.get("error") or None,
                outbox.get("rows"),
                outbox.get("dropped"),
                document.dumps(merged).decode(),
                self.device,
            ),
        )


@dataclass(frozen=True, slots=True)
class Step:
    """An `ota` message: one transition of an update."""

    leaf: str
    tenant: str
    device: str
    transition: Transition

    def write(self, tx: Transaction, received_at: float) -> None:
        t = self.transition
        row = (self.tenant, self.device, t.seq, t.t, received_at, t.rev, t.release, t.rollout, t.sha256)
        tx.execute(
            "INSERT INTO transitions (tenant, device, seq, t, received_at, rev, release, rollout, sha256, from_phase,"
            " to_phase, error) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (*row, t.source.value, t.to.value, t.error),
        )


def parse(topic: str, payload: bytes, retained: bool) -> Batch | Report | Step | Rejected:
    """Return what a message is; never raises, whatever the bytes."""
    payload = bytes(payload)
    try:
        tenant, device, leaf = parse_topic(topic)
    except EdgeError:
        return Rejected("bad_topic", topic, payload)
    if leaf not in UP:
        return Rejected("bad_topic", topic, payload)
    if len(payload) > codec.MAX_MESSAGE_BYTES:
        return Rejected("too_large", topic, payload, device)
    if leaf in ("t", "alarm"):
        return _batch(topic, payload, tenant, device, leaf)
    if not payload and (retained or leaf == "state"):
        return Rejected("empty", topic, payload, device, keep=False)  # a retained state that was cleared
    try:
        if leaf == "ota":
            step = Transition.from_json(payload)
            check_id(step.release, "release")
            if not (math.isfinite(step.t) and abs(step.rev) < 2**62 and step.seq < 2**62):
                return Rejected("bad_ota", topic, payload, device)
            return Step(leaf, tenant, device, step)
        reported = Reported.from_json(payload)
        if reported.v != 1 or (reported.rev is not None and abs(reported.rev) >= 2**62):
            return Rejected("bad_state", topic, payload, device)
        return Report(leaf, tenant, device, document.loads_object(payload, where="state"))
    except (EdgeError, ValueError, RecursionError):
        return Rejected(f"bad_{leaf}", topic, payload, device)


def _batch(topic: str, payload: bytes, tenant: str, device: str, leaf: str) -> Batch | Rejected:
    try:
        header, view = codec.read_header(payload)
    except EdgeError:
        return Rejected("bad_header", topic, payload, device)
    key, span = (tenant, device, header.stream), (header.q0, header.q0 + header.n - 1)
    body = bytes(view)
    windows: list[tuple[Any, ...]] = []
    alarms: list[tuple[Any, ...]] = []
    flaws: list[str] = []
    newest = 0.0
    try:
        raws = _RAWS.decode(decompress(header.enc, body))
        if len(raws) != header.n:
            return Rejected("bad_body", topic, payload, device, key, span)
        for index, raw in enumerate(raws):
            event = _EVENT.decode(raw)
            if event.seq != header.q0 + index:
                return Rejected("bad_body", topic, payload, device, key, span)
            newest = max(newest, event.t)
            if event.kind == "window":
                try:
                    w = _WINDOW.decode(raw)
                except msgspec.ValidationError:
                    flaws.append("bad_window")
                    continue
                text = bytes(raw).decode()
                windows.append((tenant, device, header.stream, event.seq, w.t0, w.t1, w.model, w.pipeline, w.n, text))
            elif event.kind == "alarm":
                alarms.append((tenant, device, header.stream, event.seq, event.t, *_alarm(raw)))
            elif event.kind not in KINDS:
                flaws.append("unknown_kind")
    except (msgspec.MsgspecError, EdgeError, ValueError, RecursionError):
        return Rejected("bad_body", topic, payload, device, key, span)
    return Batch(
        leaf, tenant, device, header.stream, header.q0, header.n, header.enc, body, newest,
        tuple(windows), tuple(alarms), tuple(flaws),
    )  # fmt: skip


def _alarm(raw: msgspec.Raw) -> tuple[str, str | None, str]:
    """Return (kind, message, JSON) of an alarm; its `name` says what."""
    data = msgspec.json.decode(raw)
    kind = data.get("name") or data.get("alarm") or "alarm"
    message = data.get("message")
    return str(kind)[:80], None if message is None else str(message)[:2000], bytes(raw).decode()


def decompress(enc: str, body: bytes) -> bytes:
    """Return the JSON of a batch body, at most 4 MiB of it.

    Raises:
        ValueError: it does not decompress, or to more.
    """
    return compression.decompress(enc, body, codec.MAX_BODY_BYTES)


def merge_ranges(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return inclusive ranges sorted, overlapping and adjacent ones joined."""
    out: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if out and first <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], last))
        else:
            out.append((first, last))
    return out
