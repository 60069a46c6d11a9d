"""What a message from a device becomes."""

from __future__ import annotations

import json
import random

import pytest

pytest.importorskip("msgspec", reason="needs edge-sdk[cloud]")

from cloud_sync.ingest.records import Batch, Rejected, Report, Step, merge_ranges, parse
from edge_sdk.schemas.codec import encode_batch

TOPIC = "edge/v1/default/cam-1/"
EVENTS = [{"seq": 5, "t": 1.0, "kind": "result"}, {"seq": 6, "t": 2.0, "kind": "metric"}]


@pytest.mark.parametrize("enc", ["json", "json+zlib", "json+zstd"])
def test_a_batch_keeps_its_body_as_it_came(enc):
    message = encode_batch("s", EVENTS, enc=enc)
    batch = parse(TOPIC + "t", message, False)
    assert isinstance(batch, Batch)
    assert (batch.stream, batch.q0, batch.n, batch.enc, batch.newest) == ("s", 5, 2, enc, 2.0)
    assert batch.body == message.partition(b"\n")[2]


def test_windows_and_alarms_are_taken_out_and_a_bad_window_spoils_nothing_else():
    window = {"kind": "window", "t": 9.0, "t0": 3.0, "t1": 9.0, "pipeline": "p", "model": "m", "n": 4, "later": [1]}
    events = [
        {"seq": 0, **window},
        {"seq": 1, **window, "n": -1},
        {"seq": 2, **window, "n": 2**70},
        {"seq": 3, "t": 1.0, "kind": "alarm", "name": "sink_failed", "message": "no space"},
        {"seq": 4, "t": 1.0, "kind": "alarm"},
    ]
    batch = parse(TOPIC + "t", encode_batch("s", events), False)
    assert isinstance(batch, Batch)
    assert [w[:9] for w in batch.windows] == [("default", "cam-1", "s", 0, 3.0, 9.0, "m", "p", 4)]
    assert json.loads(batch.windows[0][9])["later"] == [1]
    assert [a[5:7] for a in batch.alarms] == [("sink_failed", "no space"), ("alarm", None)]
    assert batch.flaws == ("bad_window", "bad_window")


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        ("edge/v2/default/cam-1/t", b"", "bad_topic"),
        ("edge/v1/default/../t", b"", "bad_topic"),
        (TOPIC + "desired", b"{}", "bad_topic"),
        (TOPIC + "t", b"no newline", "bad_header"),
        (TOPIC + "t", b"x" * 65_537, "too_large"),
        (TOPIC + "t", b'{"v":1,"stream":"s","q0":0,"n":1,"enc":"json"}\n[{}]', "bad_body"),
        (TOPIC + "t", b'{"v":1,"stream":"s","q0":0,"n":1,"enc":"json"}\n' + b"[" * 60_000, "bad_body"),
        (TOPIC + "t", b'{"v":1,"stream":"s","q0":0,"n":1,"enc":"json+zstd"}\n\x28\xb5\x2f\xfd', "bad_body"),
        (TOPIC + "state", b'{"v":2}', "bad_state"),
        (TOPIC + "state", b'{"v":1,"rev":' + b"9" * 30 + b"}", "bad_state"),
        (TOPIC + "state", b'{"v":1,"phase":"DANCING"}', "bad_state"),
        (TOPIC + "ota", b"null", "bad_ota"),
    ],
)
def test_a_bad_message_is_refused_with_its_reason(topic, payload, reason):
    found = parse(topic, payload, False)
    assert isinstance(found, Rejected)
    assert found.reason == reason


def test_a_body_that_can_never_be_read_is_acknowledged_by_its_header():
    found = parse(TOPIC + "t", b'{"v":1,"stream":"s","q0":7,"n":3,"enc":"json"}\nrubbish', False)
    assert isinstance(found, Rejected)
    assert (found.key, found.range) == (("default", "cam-1", "s"), (7, 9))


def test_a_cleared_retained_state_is_no_complaint():
    found = parse(TOPIC + "state", b"", True)
    assert isinstance(found, Rejected)
    assert not found.keep


def test_state_and_transitions_are_read():
    report = parse(TOPIC + "state", b'{"v":1,"online":true,"x":1}', False)
    assert isinstance(report, Report)
    assert report.keys == {"v": 1, "online": True, "x": 1}
    step = {"v": 1, "seq": 1, "t": 2.0, "rev": 3, "release": "r", "sha256": "0" * 64, "from": "IDLE", "to": "OFFERED"}
    found = parse(TOPIC + "ota", json.dumps(step).encode(), False)
    assert isinstance(found, Step)


def test_whatever_bytes_come_something_is_said_of_them():
    dice = random.Random(7)
    good = encode_batch("s", EVENTS)
    for _ in range(3000):
        raw = bytearray(good)
        for _ in range(dice.randint(1, 6)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        cut = bytes(raw[: dice.randrange(len(raw) + 1)])
        leaf = dice.choice(["t", "alarm", "state", "ota"])
        assert isinstance(parse(TOPIC + leaf, cut, False), (Batch, Rejected, Report, Step))


def test_ranges_are_joined():
    assert merge_ranges([(4, 6), (0, 1), (2, 3), (9, 9), (5, 7)]) == [(0, 7), (9, 9)]
    assert merge_ranges([]) == []
