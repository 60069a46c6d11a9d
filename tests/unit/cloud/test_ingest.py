"""Group commits, acknowledgements after the commit, and a store that fails for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs edge-sdk[cloud]")

from cloud_sync import devices
from cloud_sync.errors import StoreError
from cloud_sync.ingest.writer import Ingest
from cloud_sync.metrics import Metrics
from cloud_sync.settings import IngestSettings
from cloud_sync.store import open_store
from edge_sdk.schemas.codec import encode_batch


class Faulty:
    """A Database that fails its next `failures` transactions, and always where `poison` is written."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.failures, self.poison, self.commits = inner, 0, "", 0

    def query(self, sql: str, params: Any = ()) -> Any:
        return self.inner.query(sql, params)

    def execute(self, sql: str, params: Any = ()) -> int:
        return int(self.inner.execute(sql, params))

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        with self.inner.transaction() as tx:
            yield _Tx(tx, self.poison)
            if self.failures:
                self.failures -= 1
                raise StoreError("the disk is full")
        self.commits += 1

    def close(self) -> None:
        self.inner.close()


class _Tx:
    def __init__(self, inner: Any, poison: str) -> None:
        self.inner, self.poison = inner, poison
        self.query, self.executemany = inner.query, inner.executemany

    def execute(self, sql: str, params: Any = ()) -> int:
        if self.poison and self.poison in params:
            raise RuntimeError("a mistake of ours")
        return int(self.inner.execute(sql, params))


@pytest.fixture
def db(tmp_path):
    database = Faulty(open_store(None, tmp_path))
    for name in ("cam-1", "cam-2"):
        devices.add_device(database, "default", name, "p", now=0.0, ttl_s=1, actor="test")
    database.commits = 0
    yield database
    database.close()


def batch(q0: int, *, stream: str = "s", n: int = 2) -> bytes:
    return encode_batch(stream, [{"seq": q0 + i, "t": 1.0, "kind": "result"} for i in range(n)])


async def send(db: Faulty, messages: list[tuple[str, bytes]]) -> tuple[list[Any], Metrics]:
    """Give an Ingest all messages at once; return what it acknowledged when each of them was done."""
    acks: list[Any] = []
    metrics = Metrics()

    def on_ack(key: Any, ranges: Any) -> None:
        q0s = {r["q0"] for r in db.query("SELECT q0 FROM batches WHERE stream = ?", (key[2],))}
        acks.append((key, ranges, q0s))

    ingest = Ingest(db, metrics, IngestSettings(flush_ms=5), on_ack)
    ingest.start()
    await asyncio.gather(*(ingest.receive(f"edge/v1/default/{d}/t", body, False) for d, body in messages))
    await ingest.stop()
    return acks, metrics


def value(metrics: Metrics, name: str) -> float:
    lines = metrics.render().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name) and not line.startswith("#"))


def test_many_messages_share_a_commit_and_one_acknowledgement(db):
    acks, metrics = asyncio.run(send(db, [("cam-1", batch(q0)) for q0 in range(0, 200, 2)]))
    assert db.commits <= 3
    assert [(key, ranges) for key, ranges, _ in acks] == [(("default", "cam-1", "s"), [(0, 199)])]
    assert value(metrics, "edge_ingest_events_total") == 200


def test_nothing_is_acknowledged_while_the_store_fails_and_everything_after(db):
    db.failures = 2
    acks, metrics = asyncio.run(send(db, [("cam-1", batch(0)), ("cam-1", batch(8))]))
    assert [(ranges, stored) for _, ranges, stored in acks] == [([(0, 1), (8, 9)], {0, 8})]
    assert value(metrics, "edge_ingest_commit_failures_total") == 2


def test_a_message_that_our_code_cannot_handle_holds_up_no_other(db):
    db.poison = "poison"
    messages = [("cam-1", batch(0)), ("cam-2", batch(4, stream="poison")), ("cam-1", batch(2))]
    acks, metrics = asyncio.run(send(db, messages))
    acked = {(key[1], r) for key, ranges, _ in acks for r in ranges}
    assert acked == {("cam-1", (0, 3)), ("cam-2", (4, 5))}
    assert [r["q0"] for r in db.query("SELECT q0 FROM batches ORDER BY q0")] == [0, 2]
    kept = db.query("SELECT device, reason, body FROM rejects")
    assert [(r["device"], r["reason"]) for r in kept] == [("cam-2", "internal")]
    assert bytes(kept[0]["body"]) == batch(4, stream="poison")
    assert value(metrics, "edge_ingest_rejected_total") == 1


def test_a_stranger_gets_no_acknowledgement(db):
    acks, metrics = asyncio.run(send(db, [("nobody", batch(0)), ("nobody", b"rubbish")]))
    assert acks == []
    assert value(metrics, "edge_ingest_rejected_total") == 2


def test_what_waits_when_the_service_stops_is_not_acknowledged(db):
    async def stop_early() -> list[Any]:
        acks: list[Any] = []
        ingest = Ingest(db, Metrics(), IngestSettings(flush_ms=10_000), lambda *a: acks.append(a))
        ingest.start()
        waiting = asyncio.create_task(ingest.receive("edge/v1/default/cam-1/t", batch(0), False))
        await asyncio.sleep(0)
        await ingest.stop()
        assert (await asyncio.gather(waiting, return_exceptions=True))[0].__class__ is asyncio.CancelledError
        return acks

    assert asyncio.run(stop_early()) == []
    assert db.query("SELECT * FROM batches") == []
