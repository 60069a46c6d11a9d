"""A telemetry batch on the wire: one header line of JSON, a newline, the body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge_sdk.errors import BackendError, SchemaError
from edge_sdk.schemas import compression, document
from edge_sdk.schemas.ids import check_id

VERSION = 1
MAX_MESSAGE_BYTES = 64 * 1024
MAX_BODY_BYTES = 4 * 1024 * 1024
Encoding = Literal["json", "json+zlib", "json+zstd"]


@dataclass(frozen=True, slots=True)
class Header:
    """`stream` names the outbox file, `q0` is the sequence number of the first of `n` events."""

    stream: str
    q0: int
    n: int
    enc: Encoding


def encode_batch(stream: str, events: Sequence[Mapping[str, Any]], *, enc: Encoding = "json+zlib") -> bytes:
    """Return one batch; the events must have consecutive `seq`.

    Raises:
        SchemaError: there are no events, a gap in `seq`, or the message would be above 64 KiB.
        BackendError: `enc` is zstd and `backports.zstd` is not installed.
    """
    if not events:
        raise SchemaError("a batch needs at least one event")
    q0 = int(events[0]["seq"])
    if [e["seq"] for e in events] != list(range(q0, q0 + len(events))):
        raise SchemaError(f"events from seq {q0} are not consecutive")
    try:
        body = compression.compress(enc, document.dumps(list(events)))
    except ImportError:
        raise _no_zstd() from None
    header = document.dumps(
        {"v": VERSION, "stream": check_id(stream, "stream"), "q0": q0, "n": len(events), "enc": enc}
    )
    message = header + b"\n" + body
    if len(message) > MAX_MESSAGE_BYTES:
        raise SchemaError(
            f"a batch of {len(events)} events is {len(message)} bytes, the limit is {MAX_MESSAGE_BYTES}",
            hint="form smaller batches",
        )
    return message


def read_header(message: bytes) -> tuple[Header, memoryview]:
    """Return the header and the undecoded body of a batch.

    Raises:
        SchemaError: the message is too large, has no header line, or the header is wrong.
    """
    if len(message) > MAX_MESSAGE_BYTES:
        raise SchemaError(f"batch is {len(message)} bytes, the limit is {MAX_MESSAGE_BYTES}")
    end = message.find(b"\n", 0, 1024)
    if end < 0:
        raise SchemaError("batch has no header line", hint="expected one line of JSON, a newline and the body")
    head = document.loads_object(message[:end], where="batch header")
    if head.get("v") != VERSION:
        raise SchemaError(f"batch version is {head.get('v')!r}, this version reads {VERSION}")
    enc, q0, n = head.get("enc"), head.get("q0"), head.get("n")
    if enc not in ("json", "json+zlib", "json+zstd"):
        raise SchemaError(f"batch encoding {enc!r} is not one of json, json+zlib, json+zstd")
    if type(q0) is not int or type(n) is not int or not (0 <= q0 < 2**62 and 1 <= n <= 10_000):
        raise SchemaError(f"batch has q0={q0!r} n={n!r}, expected a sequence number and 1 to 10000 events")
    return Header(check_id(head.get("stream"), "stream"), q0, n, enc), memoryview(message)[end + 1 :]


def decode_body(header: Header, body: bytes | memoryview) -> list[dict[str, Any]]:
    """Return the events of a batch, checked against its header.

    Raises:
        SchemaError: the body does not decompress within 4 MiB, is not an array of n objects with the header's seq and a
            known kind.
        BackendError: the body is zstd and `backports.zstd` is not installed.
    """
    raw = _decompress(header.enc, bytes(body))
    events = document.loads(raw, where="batch body", max_bytes=MAX_BODY_BYTES)
    if not isinstance(events, list) or len(events) != header.n:
        found = len(events) if isinstance(events, list) else type(events).__name__
        raise SchemaError(f"batch says {header.n} events, found {found}")
    for index, event in enumerate(events):
        if not isinstance(event, dict) or event.get("seq") != header.q0 + index:
            raise SchemaError(f"event {index} of the batch has not seq {header.q0 + index}")
        if not isinstance(event.get("kind"), str) or not isinstance(event.get("t"), (int, float)):
            raise SchemaError(f"event {header.q0 + index} has no `kind` or no `t`")
    return events


def encode_ack(stream: str, ranges: Sequence[tuple[int, int]]) -> bytes:
    """Return the application ack of inclusive `ranges` of one stream."""
    return document.dumps({"stream": check_id(stream, "stream"), "ranges": [list(r) for r in ranges]})


def decode_ack(raw: bytes) -> tuple[str, list[tuple[int, int]]]:
    """Return (stream, inclusive ranges) of an ack.

    Raises:
        SchemaError: it has not the form.
    """
    data = document.loads_object(raw, where="ack", max_bytes=MAX_MESSAGE_BYTES)
    ranges = data.get("ranges")
    if not isinstance(ranges, list):
        raise SchemaError("ack has no `ranges`")
    out: list[tuple[int, int]] = []
    for item in ranges:
        if not (isinstance(item, list) and len(item) == 2 and all(type(v) is int for v in item) and item[0] <= item[1]):
            raise SchemaError(f"ack range {item!r} is not [first, last]")
        out.append((item[0], item[1]))
    return check_id(data.get("stream"), "stream"), out


def _decompress(enc: Encoding, body: bytes) -> bytes:
    try:
        return compression.decompress(enc, body, MAX_BODY_BYTES)
    except ImportError:
        raise _no_zstd() from None
    except ValueError as error:
        raise SchemaError(f"batch body {error}") from None


def _no_zstd() -> BackendError:
    return BackendError("zstd batches need `backports.zstd`", hint="pip install 'edge-sdk[agent]'")
