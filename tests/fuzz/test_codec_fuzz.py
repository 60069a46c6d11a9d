"""Whatever arrives on the wire: a value or a SchemaError, nothing else."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import SchemaError
from edge_sdk.schemas import codec, document
from edge_sdk.schemas.manifest import Manifest
from edge_sdk.schemas.state import Desired, Reported, Transition
from edge_sdk.schemas.telemetry import Window

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
SAFE_TEXT = st.text(st.characters(exclude_categories=("Cs",)))
EVENT = st.dictionaries(SAFE_TEXT, JSON, max_size=4)
READERS = [Desired.from_json, Reported.from_json, Transition.from_json, Manifest.from_json, codec.decode_ack]


def encodable(value: Any) -> bool:
    try:
        document.dumps(value)
    except UnicodeEncodeError:
        return False
    return True


@settings(max_examples=100, deadline=None)
@given(
    st.lists(EVENT.filter(encodable), min_size=1, max_size=8),
    st.integers(0, 2**61),
    st.sampled_from(["json", "json+zlib"]),
)
def test_any_events_come_back_as_they_were(bodies, q0, enc):
    sent = [{**body, "seq": q0 + i, "t": 1.5, "kind": "result"} for i, body in enumerate(bodies)]
    header, body = codec.read_header(codec.encode_batch("s", sent, enc=enc))
    assert codec.decode_body(header, body) == sent


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_refused(raw):
    for read in READERS:
        refused_or_read(read, raw)
    refused_or_read(decode, raw)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255), st.sampled_from(["json", "json+zlib"]))
def test_a_flipped_byte_is_refused_or_changes_only_values(place, value, enc):
    events = [{"seq": i, "t": 1.0, "kind": "result", "x": [i, "abc"]} for i in range(5)]
    raw = bytearray(codec.encode_batch("s", events, enc=enc))
    raw[place % len(raw)] = value
    refused_or_read(decode, bytes(raw))


@settings(max_examples=200, deadline=None)
@given(JSON)
def test_any_json_is_refused_or_read(value):
    raw = json.dumps(value).encode()
    for read in READERS:
        refused_or_read(read, raw)
    if isinstance(value, dict):
        refused_or_read(Window.from_event, value)


def decode(raw: bytes) -> None:
    header, body = codec.read_header(raw)
    codec.decode_body(header, body)


def refused_or_read(read: Any, raw: Any) -> None:
    try:
        read(raw)
    except SchemaError:
        pass
