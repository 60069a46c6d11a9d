"""The outbox keeps every event until the server says that it has it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.errors import SchemaError, SyncError
from edge_sdk.schemas import codec
from edge_sdk.telemetry.batching import MAX_EVENT_BYTES, Frozen
from edge_sdk.telemetry.outbox import Grouped, Outbox


def event(number: int, kind: str = "metric", size: int = 0) -> dict[str, Any]:
    return {"kind": kind, "t": 1000.0 + number, "number": number, "pad": "x" * size}


def events_of(batch: Frozen) -> list[dict[str, Any]]:
    header, body = codec.read_header(batch.payload)
    assert (header.q0, header.n) == (batch.q0, batch.n)
    return codec.decode_body(header, body)


def numbers(batches: list[Frozen]) -> list[int]:
    return [e["number"] for b in batches for e in events_of(b)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


def test_events_come_out_in_order_as_batches_of_consecutive_numbers(path: Path) -> None:
    with Outbox.open(path) as box:
        box.append([event(i) for i in range(250)], now=0)
        batches = box.next_batches(8, now=10)
        assert [(b.q0, b.n) for b in batches] == [(0, 100), (100, 100), (200, 50)]
        assert numbers(batches) == list(range(250))
        assert all(codec.read_header(b.payload)[0].stream == box.stream for b in batches)


def test_a_batch_is_resent_as_the_same_bytes_after_a_restart_and_after_more_events(path: Path) -> None:
    with Outbox.open(path) as box:
        box.append([event(i) for i in range(30)], now=0)
        first = box.next_batches(4, now=10)
    with Outbox.open(path) as box:
        box.append([event(i) for i in range(30, 35)], now=10)
        assert box.next_batches(1, now=20) == first


def test_few_events_wait_for_company_but_not_longer_than_the_linger(path: Path) -> None:
    with Outbox.open(path) as box:
        box.append([event(0)], now=0)
        assert box.next_batches(4, now=0.5, linger_s=1) == []
        assert [b.n for b in box.next_batches(4, now=1.0, linger_s=1)] == [1]


def test_an_alarm_does_not_wait_behind_a_backlog(path: Path) -> None:
    with Outbox.open(path) as box:
        box.append([event(i) for i in range(500)], now=0)
        box.append([event(500, kind="alarm")], urgent=True, now=0)
        assert numbers(box.next_batches(1, now=0)) == [500]


def test_only_an_acknowledgement_of_the_whole_batch_deletes_it(path: Path) -> None:
    with Outbox.open(path) as box:
        box.append([event(i) for i in range(150)], now=0)
        box.next_batches(8, now=10)
        assert box.ack([(0, 98)]) == 0
        assert box.ack([(0, 99)], stream="another") == 0
        assert box.ack([(0, 99)], stream=box.stream) == 100
        assert box.stats().rows == 50
        assert [b.q0 for b in box.next_batches(8, now=10)] == [100]


def test_an_acknowledgement_of_everything_spares_events_that_were_never_sent(path: Path) -> None:
    with Outbox.open(path) as box:
        box.append([event(i) for i in range(300)], now=0)
        box.next_batches(1, now=10)
        box.ack([(-5, 2**80), (2**63, 2**64)])
        assert box.stats().rows == 200
        assert numbers(box.next_batches(4, now=10)) == list(range(100, 300))


def test_a_full_outbox_drops_the_oldest_of_the_lowest_priority_and_counts_them(path: Path) -> None:
    with Outbox.open(path, max_rows=50) as box:
        box.append([event(i, "alarm") for i in range(10)])
        box.append([event(i, "window") for i in range(10, 20)])
        box.append([event(i, "result") for i in range(20, 60)])
        box.append([event(60, "window")])
        assert (box.stats().rows, box.stats().dropped) == (50, 11)
        kept = numbers(box.next_batches(50, now=1e12))
        assert sorted(kept) == list(range(20)) + list(range(31, 61))


def test_dropping_leaves_no_gap_inside_a_batch(path: Path) -> None:
    with Outbox.open(path, max_rows=60) as box:
        for i in range(0, 80, 2):
            box.append([event(i, "window"), event(i + 1, "result")], now=0)
        batches = box.next_batches(80, now=100)
        assert sum(b.n for b in batches) == 60
        for batch in batches:
            assert [e["seq"] for e in events_of(batch)] == list(range(batch.q0, batch.q0 + batch.n))


def test_the_outbox_is_bounded_in_bytes_too(path: Path) -> None:
    with Outbox.open(path, max_bytes=100_000) as box:
        for i in range(20):
            box.append([event(i, size=20_000)])
        assert box.stats().rows == 4
        assert box.stats().dropped == 16


def test_batches_of_large_events_stay_under_the_limit_of_a_message(path: Path) -> None:
    noise = os.urandom(20_000).hex()
    with Outbox.open(path) as box:
        box.append([{**event(i), "pad": noise[i * 10 : i * 10 + 30_000]} for i in range(5)], now=0)
        batches = box.next_batches(8, now=10)
        assert len(batches) == 5
        assert all(len(b.payload) <= codec.MAX_MESSAGE_BYTES for b in batches)


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (event(0, size=MAX_EVENT_BYTES), "limit is 49152"),
        ({"kind": "gossip", "t": 1.0}, "found kind 'gossip'"),
        ({"kind": "metric"}, "needs `t`"),
        ({"kind": "metric", "t": 1.0, "value": float("nan")}, "not JSON"),
        ({"kind": "metric", "t": 1.0, "value": {1, 2}}, "not JSON"),
    ],
)
def test_an_event_that_could_never_be_sent_is_refused_before_anything_is_stored(
    path: Path, bad: dict[str, Any], word: str
) -> None:
    with Outbox.open(path) as box:
        with pytest.raises(SchemaError, match=word):
            box.append([event(1), bad])
        assert box.stats().rows == 0


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SyncError, match=r"cannot use the outbox .*file/outbox\.db"):
        Outbox.open(tmp_path / "file" / "outbox.db")


@pytest.mark.parametrize("damage", ["noise", "torn header", "torn page"])
def test_a_damaged_file_is_kept_aside_and_a_new_stream_begins(path: Path, damage: str) -> None:
    with Outbox.open(path) as box:
        box.append([event(i, size=400) for i in range(200)])
        old = box.stream
    raw = bytearray(path.read_bytes())
    if damage == "noise":
        raw = bytearray(os.urandom(len(raw)))
    elif damage == "torn header":
        raw[:100] = bytes(100)
    else:
        raw[4096 : 4096 * 12] = os.urandom(4096 * 11)
    path.write_bytes(raw)
    with Outbox.open(path) as box:
        assert box.stream != old
        assert "damaged" in (box.note or "")
        box.append([event(1)])
        assert box.stats().rows == 1
        box.clear_note()
        assert box.note is None
    assert path.with_name("outbox.db.damaged-0").read_bytes()[:5000] == bytes(raw)[:5000]


def test_a_file_that_is_damaged_while_open_is_noticed_by_every_process(path: Path) -> None:
    with Outbox.open(path) as agent, Outbox.open(path) as worker:
        worker.append([event(i, size=400) for i in range(200)])
        for suffix in ("", "-wal"):
            Path(f"{path}{suffix}").write_bytes(os.urandom(40_000))
        agent.close()
        assert agent.stats().rows == 0
        assert worker.append([event(7)]) == 1
        assert worker.stream == agent.stream
        assert numbers(agent.next_batches(4, now=1e12)) == [7]


def test_a_disk_that_is_full_drops_and_counts_and_later_recovers(path: Path) -> None:
    code = textwrap.dedent(
        """
        import resource, sys
        from edge_sdk.telemetry.outbox import Outbox
        box = Outbox.open(sys.argv[1])
        event = {"kind": "metric", "t": 1.0, "pad": "x" * 4000}
        assert box.append([event]) == 1
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
        stored = sum(box.append([event] * 5) for _ in range(20))
        assert stored < 100 and "cannot store events" in box.note, (stored, box.note)
        lost = 100 - stored
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert box.append([event]) == 1 and box.note is None
        assert (box.stats().rows, box.stats().dropped) == (stored + 2, lost), box.stats()
        print("ok")
        """
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert run.stdout == "ok\n", run.stderr


def test_processes_that_are_killed_while_they_append_lose_nothing_that_they_had_committed(path: Path) -> None:
    code = textwrap.dedent(
        """
        import sys
        from edge_sdk.telemetry.outbox import Outbox
        box = Outbox.open(sys.argv[1])
        for i in range(10**9):
            box.append([{"kind": "metric", "t": 1.0, "who": sys.argv[2], "number": i}])
            print(i, flush=True)
        """
    )
    received: dict[tuple[str, int], int] = {}
    with Outbox.open(path) as box:
        for life in range(3):
            writers = [
                subprocess.Popen(
                    [sys.executable, "-c", code, str(path), f"{life}{w}"], stdout=subprocess.PIPE, text=True
                )
                for w in "ab"
            ]
            committed = {}
            for process, w in zip(writers, "ab", strict=True):
                assert process.stdout
                for _ in range(20):
                    process.stdout.readline()
                for batch in box.next_batches(4, now=1e12):
                    for e in events_of(batch):
                        received[e["who"], e["number"]] = received.get((e["who"], e["number"]), 0) + 1
                    box.ack([(batch.q0, batch.q0 + batch.n - 1)])
                process.send_signal(signal.SIGKILL)
                rest = process.communicate()[0].split()
                committed[f"{life}{w}"] = int(rest[-1]) if rest else 19
            while batches := box.next_batches(8, now=1e12):
                for batch in batches:
                    for e in events_of(batch):
                        received[e["who"], e["number"]] = received.get((e["who"], e["number"]), 0) + 1
                    box.ack([(batch.q0, batch.q0 + batch.n - 1)])
            for who, last in committed.items():
                assert {n for (w, n) in received if w == who} >= set(range(last + 1))
    assert set(received.values()) == {1}


def test_threads_share_one_outbox(path: Path) -> None:
    with Outbox.open(path) as box:
        threads = [threading.Thread(target=lambda: [box.append([event(i)]) for i in range(20)]) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert box.stats().rows == 80


def test_grouping_writes_when_a_hundred_wait_or_a_second_passed_and_alarms_at_once(path: Path) -> None:
    with Outbox.open(path) as box:
        grouped = Grouped(box)
        grouped.add(event(0), now_s=10.0)
        assert box.stats().rows == 0
        grouped.poll(10.9)
        assert box.stats().rows == 0
        grouped.poll(11.0)
        assert box.stats().rows == 1
        for i in range(100):
            grouped.add(event(i), now_s=20.0)
        assert box.stats().rows == 101
        grouped.add(event(200), now_s=30.0)
        grouped.add(event(201, "alarm"), now_s=30.0, urgent=True)
        assert box.stats().rows == 103
        grouped.add(event(1, size=MAX_EVENT_BYTES), now_s=31.0)
        assert grouped.refused == 1
