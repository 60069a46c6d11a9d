"""Telemetry batches on the wire."""

from __future__ import annotations

import json
import sys
import zlib
from typing import Any

import pytest

from edge_sdk.errors import BackendError, SchemaError
from edge_sdk.schemas import codec


def events(n: int, q0: int = 0) -> list[dict[str, Any]]:
    return [{"seq": q0 + i, "t": 1.5 + i, "kind": "result", "text": "ü"} for i in range(n)]


def message(header: Any, body: bytes = b"[]") -> bytes:
    return (header if isinstance(header, bytes) else json.dumps(header).encode()) + b"\n" + body


def zstd() -> Any:
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    return pytest.importorskip(name, reason="zstd batches need the extra [agent]")


HEADER = {"v": 1, "stream": "s1", "q0": 0, "n": 1, "enc": "json"}


@pytest.mark.parametrize("enc", ["json", "json+zlib", "json+zstd"])
def test_a_batch_comes_back_as_it_was(enc):
    if enc == "json+zstd":
        zstd()
    raw = codec.encode_batch("s1", events(50, 7), enc=enc)
    header, body = codec.read_header(raw)
    assert header == codec.Header("s1", 7, 50, enc)
    assert codec.decode_body(header, body) == events(50, 7)


def test_zstd_of_the_reference_library_is_read():
    zstd()
    body = bytes.fromhex("28b52ffd20231901005b7b226b696e64223a22726573756c74222c22736571223a302c2274223a312e357d5d")
    events = codec.decode_body(codec.Header("s1", 0, 1, "json+zstd"), body)
    assert events == [{"seq": 0, "t": 1.5, "kind": "result"}]


def test_zstd_that_wants_more_than_8_mib_of_memory_is_refused():
    module = zstd()
    large = module.ZstdCompressor(options={module.CompressionParameter.window_log: 24})
    body = large.compress(b"[]") + large.flush()
    with pytest.raises(SchemaError, match="batch body does not decompress as json\\+zstd: .*memory"):
        codec.decode_body(codec.Header("s1", 0, 1, "json+zstd"), body)


def test_zstd_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd", None)
    for use in (
        lambda: codec.encode_batch("s1", events(1), enc="json+zstd"),
        lambda: codec.decode_body(codec.Header("s1", 0, 1, "json+zstd"), b"[]"),
    ):
        with pytest.raises(BackendError, match=r"zstd batches need `backports\.zstd`") as caught:
            use()
        assert caught.value.hint == "pip install 'edge-sdk[agent]'"


def test_equal_events_give_equal_bytes():
    shuffled = [dict(reversed(list(e.items()))) for e in events(3)]
    assert codec.encode_batch("s1", events(3)) == codec.encode_batch("s1", shuffled)


def test_an_empty_batch_is_refused():
    with pytest.raises(SchemaError, match="a batch needs at least one event"):
        codec.encode_batch("s1", [])


def test_a_gap_in_the_sequence_is_refused():
    with pytest.raises(SchemaError, match="events from seq 0 are not consecutive"):
        codec.encode_batch("s1", [*events(2), *events(1, 3)])


def test_a_batch_above_the_limit_is_refused_before_it_is_sent():
    big = [{"seq": 0, "t": 0, "kind": "result", "text": "x" * 70_000}]
    with pytest.raises(SchemaError, match=r"a batch of 1 events is 70\d+ bytes, the limit is 65536") as caught:
        codec.encode_batch("s1", big, enc="json")
    assert caught.value.hint == "form smaller batches"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"x" * 65_537, "batch is 65537 bytes, the limit is 65536"),
        (b"no header", "batch has no header line"),
        (b"x" * 2000 + b"\n", "batch has no header line"),
        (message(b"[]"), "batch header: expected an object"),
        (message({**HEADER, "v": 2}), "batch version is 2, this version reads 1"),
        (message({**HEADER, "enc": "pickle"}), "batch encoding 'pickle' is not one of"),
        (message({**HEADER, "enc": ["json"]}), r"batch encoding \['json'\] is not one of"),
        (message({**HEADER, "q0": -1}), "batch has q0=-1 n=1"),
        (message({**HEADER, "q0": 2**62}), "expected a sequence number"),
        (message({**HEADER, "n": 0}), "batch has q0=0 n=0"),
        (message({**HEADER, "n": True}), "batch has q0=0 n=True"),
        (message({**HEADER, "stream": "../x"}), "stream '../x' is not an id"),
        (message({"v": 1}), "batch encoding None"),
    ],
)
def test_a_wrong_header_is_refused_and_named(raw, said):
    with pytest.raises(SchemaError, match=said):
        codec.read_header(raw)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{}", "batch says 1 events, found dict"),
        (b"[]", "batch says 1 events, found 0"),
        (b"[1]", "event 0 of the batch has not seq 0"),
        (b'[{"seq":1,"t":0,"kind":"result"}]', "event 0 of the batch has not seq 0"),
        (b'[{"seq":0,"kind":"result"}]', "event 0 has no `kind` or no `t`"),
        (b'[{"seq":0,"t":0,"kind":5}]', "event 0 has no `kind` or no `t`"),
        (b"[", "batch body is not valid JSON"),
    ],
)
def test_a_wrong_body_is_refused_and_named(body, said):
    header, rest = codec.read_header(message(HEADER, body))
    with pytest.raises(SchemaError, match=said):
        codec.decode_body(header, rest)


@pytest.mark.parametrize("enc", ["json+zlib", "json+zstd"])
def test_a_compression_bomb_is_stopped_at_its_limit(enc):
    bomb = b"[" + b" " * (64 * 1024 * 1024) + b"]"
    body = zstd().compress(bomb) if enc == "json+zstd" else zlib.compress(bomb, 9)
    with pytest.raises(SchemaError, match="batch body (is cut or )?d(oes not d)?ecompress"):
        codec.decode_body(codec.Header("s1", 0, 1, enc), body)


@pytest.mark.parametrize("enc", ["json+zlib", "json+zstd"])
@pytest.mark.parametrize("cut", [0, 1, -1])
def test_a_cut_body_is_refused(enc, cut):
    if enc == "json+zstd":
        zstd()
    header, body = codec.read_header(codec.encode_batch("s1", events(5), enc=enc))
    with pytest.raises(SchemaError, match="batch body"):
        codec.decode_body(header, bytes(body)[:cut])


def test_an_ack_comes_back_as_it_was():
    assert codec.decode_ack(codec.encode_ack("s1", [(0, 19), (40, 40)])) == ("s1", [(0, 19), (40, 40)])


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"stream":"s1"}', "ack has no `ranges`"),
        (b'{"stream":"s1","ranges":[[2,1]]}', r"ack range \[2, 1\] is not \[first, last\]"),
        (b'{"stream":"s1","ranges":[[0,true]]}', r"ack range \[0, True\]"),
        (b'{"stream":"s1","ranges":[3]}', "ack range 3"),
        (b'{"stream":"A/+","ranges":[]}', "stream 'A/\\+' is not an id"),
        (b"null", "ack: expected an object"),
    ],
)
def test_a_wrong_ack_is_refused_and_named(raw, said):
    with pytest.raises(SchemaError, match=said):
        codec.decode_ack(raw)
