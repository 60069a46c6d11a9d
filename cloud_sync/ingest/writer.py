"""Messages from devices into the database: group commits, acknowledgements after the commit, bad messages set aside."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cloud_sync.errors import StoreError
from cloud_sync.ingest import records
from cloud_sync.ingest.records import Batch, Rejected, Report, Step
from cloud_sync.metrics import Metrics
from cloud_sync.settings import IngestSettings
from cloud_sync.store.base import Database, Transaction

logger = logging.getLogger(__name__)
_RETRY_S = 0.5
AckKey = tuple[str, str, str]  # tenant, device, stream
OnAck = Callable[[AckKey, list[tuple[int, int]]], None]


@dataclass(slots=True)
class Message:
    """One MQTT message as it came; `done` is set when it is committed or set aside."""

    topic: str
    payload: bytes
    retained: bool
    received_at: float
    done: asyncio.Future[None]


@dataclass(slots=True)
class Outcome:
    """What one group commit did."""

    acks: dict[AckKey, list[tuple[int, int]]] = field(default_factory=dict)
    events: int = 0
    duplicates: int = 0
    leaves: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    newest: float | None = None


class Ingest:
    """Takes messages from the link; every one is committed, or set aside with a reason, before it is acknowledged."""

    def __init__(self, db: Database, metrics: Metrics, settings: IngestSettings, on_ack: OnAck) -> None:
        self._db = db
        self._metrics = metrics
        self._settings = settings
        self._on_ack = on_ack
        self._queue: deque[Message] = deque()
        self._wake = asyncio.Event()
        self._full = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ingest")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop; what waits is not acknowledged, so the broker or the device sends it again."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=True)
        for message in self._queue:
            message.done.cancel()

    async def receive(self, topic: str, payload: bytes, retained: bool) -> None:
        """Return when the message is committed or set aside."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(Message(topic, payload, retained, time.time(), done))
        self._metrics.waiting.set(len(self._queue))
        self._wake.set()
        if len(self._queue) >= self._settings.batch_messages:
            self._full.set()
        await done

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            await self._gather_company()
            group = [self._queue[i] for i in range(min(len(self._queue), self._settings.batch_messages))]
            start = time.monotonic()
            try:
                outcome = await loop.run_in_executor(self._thread, self._commit, group)
            except StoreError as error:
                self._metrics.failures.inc()
                logger.error("nothing is acknowledged until the store works again: %s", error.message)
                await asyncio.sleep(_RETRY_S)
                continue
            except Exception:
                logger.exception("a group of %d messages failed, trying them one by one", len(group))
                outcome = await loop.run_in_executor(self._thread, self._one_by_one, group)
            self._metrics.commits.observe(time.monotonic() - start)
            for _ in group:
                self._queue.popleft()
            if not self._queue:
                self._wake.clear()
            self._finish(group, outcome)

    async def _gather_company(self) -> None:
        self._full.clear()
        if len(self._queue) < self._settings.batch_messages and self._settings.flush_ms:
            try:
                await asyncio.wait_for(self._full.wait(), self._settings.flush_ms / 1000)
            except TimeoutError:
                pass

    def _finish(self, group: list[Message], outcome: Outcome) -> None:
        for message in group:
            if not message.done.done():
                message.done.set_result(None)
        for key, ranges in outcome.acks.items():
            self._on_ack(key, records.merge_ranges(ranges))
        metrics = self._metrics
        metrics.waiting.set(len(self._queue))
        metrics.events.inc(outcome.events)
        metrics.duplicates.inc(outcome.duplicates)
        for leaf, n in outcome.leaves.items():
            metrics.messages.labels(leaf).inc(n)
        for reason, n in outcome.reasons.items():
            metrics.rejected.labels(reason).inc(n)
        if outcome.newest is not None:
            metrics.lag.set(max(0.0, time.time() - outcome.newest))

    def _one_by_one(self, group: list[Message]) -> Outcome:
        """Commit each message alone, so that one that this code cannot handle holds up no other."""
        total = Outcome()
        for message in group:
            try:
                outcome = self._commit([message])
            except StoreError:
                raise
            except Exception:
                logger.exception("a message on %s cannot be handled", message.topic)
                outcome = self._set_aside(message)
            total.events += outcome.events
            total.duplicates += outcome.duplicates
            for key, ranges in outcome.acks.items():
                total.acks.setdefault(key, []).extend(ranges)
            for mine, theirs in ((total.leaves, outcome.leaves), (total.reasons, outcome.reasons)):
                for name, n in theirs.items():
                    mine[name] = mine.get(name, 0) + n
        return total

    def _set_aside(self, message: Message) -> Outcome:
        item = records.parse(message.topic, message.payload, message.retained)
        device = item.device if isinstance(item, (Batch, Report, Step)) else None
        with self._db.transaction() as tx:
            rejected = Rejected("internal", message.topic, message.payload, device)
            self._reject(tx, [rejected], message.received_at)
        acks = {}
        if isinstance(item, Batch):
            acks = {(item.tenant, item.device, item.stream): [(item.q0, item.q0 + item.n - 1)]}
        return Outcome(acks=acks, reasons={"internal": 1})

    def _commit(self, group: list[Message]) -> Outcome:
        """Run in the writer's thread: decode the group, write it in one transaction, say what to acknowledge."""
        now = max(m.received_at for m in group)
        outcome = Outcome()
        parsed = [records.parse(m.topic, m.payload, m.retained) for m in group]
        with self._db.transaction() as tx:
            known = _known_devices(tx, {p.device for p in parsed if p.device is not None})
            rejected: list[Rejected] = []
            seen: set[str] = set()
            for message, item in zip(group, parsed, strict=True):
                refused = item if isinstance(item, Rejected) else _stranger(item, message, known)
                if refused is not None:
                    rejected.append(refused)
                    if refused.key is not None and known.get(refused.key[1]) == refused.key[0]:
                        outcome.acks.setdefault(refused.key, []).append(refused.range)
                    continue
                assert not isinstance(item, Rejected)
                outcome.leaves[item.leaf] = outcome.leaves.get(item.leaf, 0) + 1
                if not message.retained:
                    seen.add(item.device)
                self._write(tx, item, message.received_at, outcome)
            for refused in rejected:
                outcome.reasons[refused.reason] = outcome.reasons.get(refused.reason, 0) + 1
            self._reject(tx, [r for r in rejected if r.keep], now)
            tx.executemany(
                "UPDATE devices SET last_seen = ? WHERE id = ? AND (last_seen IS NULL OR last_seen < ?)",
                [(now, device, now) for device in sorted(seen)],
            )
        return outcome

    def _write(self, tx: Transaction, item: Batch | Report | Step, received_at: float, outcome: Outcome) -> None:
        if isinstance(item, Report):
            item.write(tx)
        elif isinstance(item, Step):
            item.write(tx, received_at)
        else:
            outcome.acks.setdefault((item.tenant, item.device, item.stream), []).append((item.q0, item.q0 + item.n - 1))
            if item.write(tx, received_at):
                outcome.events += item.n
                outcome.newest = max(item.newest, outcome.newest or item.newest)
            else:
                outcome.duplicates += 1
            for reason in item.flaws:
                outcome.reasons[reason] = outcome.reasons.get(reason, 0) + 1

    def _reject(self, tx: Transaction, rejected: Iterable[Rejected], now: float) -> None:
        rows = [(r.device, r.topic[:200], now, r.reason, len(r.payload), r.payload[:65536]) for r in rejected]
        if not rows:
            return
        tx.executemany(
            "INSERT INTO rejects (device, topic, received_at, reason, size, body) VALUES (?, ?, ?, ?, ?, ?)", rows
        )
        newest = tx.query("SELECT max(id) AS id FROM rejects")[0]["id"]
        tx.execute("DELETE FROM rejects WHERE id <= ?", (newest - self._settings.keep_rejects,))


def _known_devices(tx: Transaction, names: set[str]) -> dict[str, str]:
    known: dict[str, str] = {}
    ordered = sorted(names)
    for start in range(0, len(ordered), 500):
        part = ordered[start : start + 500]
        marks = ", ".join("?" * len(part))
        sql = f"SELECT id, tenant FROM devices WHERE retired_at IS NULL AND id IN ({marks})"
        known |= {row["id"]: row["tenant"] for row in tx.query(sql, part)}
    return known


def _stranger(item: Batch | Report | Step, message: Message, known: dict[str, str]) -> Rejected | None:
    if known.get(item.device) == item.tenant:
        return None
    reason = "wrong_tenant" if item.device in known else "unknown_device"
    return Rejected(reason, message.topic, message.payload, keep=not message.retained)
