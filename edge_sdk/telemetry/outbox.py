"""The durable queue of unsent telemetry: one SQLite file that the worker appends to and the agent sends from."""

from __future__ import annotations

import fcntl
import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from edge_sdk.errors import SchemaError, SyncError
from edge_sdk.schemas.state import OutboxState
from edge_sdk.telemetry.batching import (
    BATCH_EVENTS,
    BATCH_MIN_EVENTS,
    Frozen,
    freeze,
    frozen,
    row_of,
    run_of,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_ROWS = 100_000
MAX_BYTES = 64 * 1024 * 1024
_FORMAT = 1
_BUSY_S = 20.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS box (
    id INTEGER PRIMARY KEY CHECK (id = 1), stream TEXT NOT NULL, next_seq INTEGER NOT NULL,
    rows INTEGER NOT NULL, bytes INTEGER NOT NULL, dropped INTEGER NOT NULL, note TEXT);
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, priority INTEGER NOT NULL, added REAL NOT NULL, size INTEGER NOT NULL, json TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_priority ON events (priority, seq);
CREATE TABLE IF NOT EXISTS batches (
    q0 INTEGER PRIMARY KEY, n INTEGER NOT NULL, priority INTEGER NOT NULL, size INTEGER NOT NULL,
    payload BLOB NOT NULL);
"""


class Outbox:
    """Events in order of arrival, kept until the server's commit is acknowledged.

    Safe for several threads and several processes. Each file has a random `stream` id and numbers its events from 0.
    Above `max_rows` events or `max_bytes` of JSON the oldest events of the lowest priority (result, then metric and
    window, then alarm) are dropped in the transaction that adds, and counted; batches that were formed are not.
    A file that is damaged is renamed to `NAME.damaged-N` and a new stream begins; `note` says so until it is cleared.
    """

    def __init__(self, path: Path, *, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._inode = 0
        self._unsaved_drops = 0
        self._trouble: str | None = None

    @classmethod
    def open(cls, path: str | Path, *, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES) -> Outbox:
        """Open or create the file.

        Raises:
            SyncError: the folder cannot be written.
        """
        box = cls(Path(path), max_rows=max_rows, max_bytes=max_bytes)
        with suppress(OSError):
            box.path.parent.mkdir(parents=True, exist_ok=True)
        box._ask(lambda _: None)
        return box

    @property
    def stream(self) -> str:
        """Return the random id of the file."""
        return str(self._ask(lambda db: db.execute("SELECT stream FROM box").fetchone()[0]))

    @property
    def note(self) -> str | None:
        """Return what happened to an earlier, damaged file, or why events cannot be stored now."""
        if self._trouble:
            return self._trouble
        value = self._ask(lambda db: db.execute("SELECT note FROM box").fetchone()[0])
        return None if value is None else str(value)

    def clear_note(self) -> None:
        self._ask(lambda db: db.execute("UPDATE box SET note = NULL"), write=True)

    def append(self, events: Sequence[Mapping[str, Any]], *, urgent: bool = False, now: float | None = None) -> int:
        """Store events in one transaction and return how many were stored.

        A full or failing disk drops them, counts them and returns 0; the process goes on. `urgent` events are formed
        into a batch before all others. Events have `kind` and `t`; `seq` is given here.

        Raises:
            SchemaError: an event has no known kind, is not JSON or is above 48 KiB; nothing is stored.
        """
        rows = [row_of(event, urgent) for event in events]
        if not rows:
            return 0
        added = time.time() if now is None else now
        try:
            self._run(lambda db: self._insert(db, rows, added), write=True)
        except (sqlite3.Error, OSError) as error:
            with self._lock:
                self._unsaved_drops += len(rows)
            if self._trouble is None:
                logger.error("outbox %s cannot store events, dropping them: %s", self.path, error)
            self._trouble = f"the outbox cannot store events: {error}"
            return 0
        if self._trouble is not None:
            logger.warning("outbox %s stores events again", self.path)
        self._trouble = None
        return len(rows)

    def next_batches(self, limit: int, *, now: float | None = None, linger_s: float = 1.0) -> list[Frozen]:
        """Return up to `limit` unacknowledged batches, alarms first, then oldest first, forming new ones as needed.

        A new batch has 20 to 100 consecutive events, fewer when they reach 16 KiB, when the oldest waits longer than
        `linger_s`, or when they are urgent or end at a gap that dropping left.
        """
        moment = time.time() if now is None else now
        try:
            return self._run(lambda db: self._batches(db, limit, moment, linger_s), write=True)
        except sqlite3.Error as error:
            logger.error("outbox %s cannot form batches: %s", self.path, error)
            return self._ask(lambda db: frozen(db, limit))

    def ack(self, ranges: Sequence[tuple[int, int]], *, stream: str | None = None) -> int:
        """Delete the batches that lie wholly in one of the inclusive `ranges` and return their number of events.

        Acks of another stream are ignored; events that were never in a batch stay.
        """
        top = 2**62
        spans = [(max(0, a), min(b, top)) for a, b in ranges if b >= 0 and a <= top]

        def delete(db: sqlite3.Connection) -> int:
            if stream is not None and stream != db.execute("SELECT stream FROM box").fetchone()[0]:
                return 0
            events = 0
            for first, last in spans:
                where = "q0 >= ? AND q0 + n - 1 <= ?"
                n, size = db.execute(
                    f"SELECT COALESCE(SUM(n), 0), COALESCE(SUM(size), 0) FROM batches WHERE {where}", (first, last)
                ).fetchone()
                if n:
                    db.execute(f"DELETE FROM batches WHERE {where}", (first, last))
                    db.execute("UPDATE box SET rows = rows - ?, bytes = bytes - ?", (n, size))
                    events += n
            return events

        return self._ask(delete, write=True)

    def stats(self) -> OutboxState:
        """Return the number of events kept and of events dropped since the file was made.

        Raises:
            SyncError: the file cannot be read now; so do all methods here but `append` and `next_batches`.
        """
        rows, dropped = self._ask(lambda db: db.execute("SELECT rows, dropped FROM box").fetchone())
        return OutboxState(rows=int(rows), dropped=int(dropped) + self._unsaved_drops)

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
            self._db = None

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _insert(self, db: sqlite3.Connection, rows: list[tuple[int, str, int]], added: float) -> None:
        (seq,) = db.execute("SELECT next_seq FROM box").fetchone()
        db.executemany(
            "INSERT INTO events (seq, priority, added, size, json) VALUES (?, ?, ?, ?, ?)",
            [(seq + i, priority, added, size, text) for i, (priority, text, size) in enumerate(rows)],
        )
        unsaved = self._unsaved_drops
        db.execute(
            "UPDATE box SET next_seq = ?, rows = rows + ?, bytes = bytes + ?, dropped = dropped + ?",
            (seq + len(rows), len(rows), sum(r[2] for r in rows), unsaved),
        )
        self._bound(db)
        db.execute("COMMIT")
        self._unsaved_drops -= unsaved

    def _bound(self, db: sqlite3.Connection) -> None:
        rows, size = db.execute("SELECT rows, bytes FROM box").fetchone()
        while rows > self._max_rows or size > self._max_bytes:
            surplus = max(1, min(rows - self._max_rows, 1000))
            doomed = db.execute("SELECT seq, size FROM events ORDER BY priority, seq LIMIT ?", (surplus,)).fetchall()
            if not doomed:
                return
            db.executemany("DELETE FROM events WHERE seq = ?", [(seq,) for seq, _ in doomed])
            freed = sum(s for _, s in doomed)
            db.execute(
                "UPDATE box SET rows = rows - ?, bytes = bytes - ?, dropped = dropped + ?",
                (len(doomed), freed, len(doomed)),
            )
            rows, size = rows - len(doomed), size - freed

    def _batches(self, db: sqlite3.Connection, limit: int, now: float, linger_s: float) -> list[Frozen]:
        (stream,) = db.execute("SELECT stream FROM box").fetchone()
        while True:
            rows = db.execute(
                "SELECT seq, priority, added, size, json FROM events WHERE priority >= 2 ORDER BY seq LIMIT ?",
                (BATCH_EVENTS,),
            ).fetchall()
            if not rows:
                break
            freeze(db, stream, run_of(rows)[0])
        missing = limit - db.execute("SELECT COUNT(*) FROM batches").fetchone()[0]
        for _ in range(missing):
            rows = db.execute(
                "SELECT seq, priority, added, size, json FROM events ORDER BY seq LIMIT ?", (BATCH_EVENTS + 1,)
            ).fetchall()
            run, closed = run_of(rows)
            if not run or not (closed or len(run) >= BATCH_MIN_EVENTS or now - run[0][2] >= linger_s):
                break
            freeze(db, stream, run)
        return frozen(db, limit)

    def _ask(self, work: Callable[[sqlite3.Connection], T], *, write: bool = False) -> T:
        try:
            return self._run(work, write=write)
        except (sqlite3.Error, OSError) as error:
            raise SyncError(f"cannot use the outbox {self.path}: {error}", hint="check the disk") from None

    def _run(self, work: Callable[[sqlite3.Connection], T], *, write: bool = False) -> T:
        """Do `work` in a transaction; a damaged file is put aside and the work done on a new one."""
        with self._lock:
            try:
                return self._attempt(work, write)
            except sqlite3.Error as error:
                if not _is_damage(error):
                    raise
                self._put_aside(str(error))
                return self._attempt(work, write)

    def _attempt(self, work: Callable[[sqlite3.Connection], T], write: bool) -> T:
        db = self._connection()
        if not write:
            return work(db)
        db.execute("BEGIN IMMEDIATE")
        try:
            value = work(db)
            if db.in_transaction:
                db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        return value

    def _connection(self) -> sqlite3.Connection:
        if self._db is not None and self._inode != _inode(self.path):
            self._db.close()
            self._db = None
        if self._db is None:
            with self._file_lock():
                self._db = self._connect(None)
                self._inode = _inode(self.path)
        return self._db

    def _connect(self, note: str | None) -> sqlite3.Connection:
        new = not self.path.exists()
        db = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            if new:
                self.path.chmod(0o600)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA journal_size_limit = 4194304")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (check,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if check != "ok" or version not in (0, _FORMAT):
                raise sqlite3.DatabaseError(
                    f"damaged: {check}" if check != "ok" else f"damaged: file format {version}, expected {_FORMAT}"
                )
            db.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {_FORMAT}")
            db.execute(
                "INSERT OR IGNORE INTO box VALUES (1, ?, 0, 0, 0, 0, ?)",
                (secrets.token_hex(8), note),
            )
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db

    def _put_aside(self, why: str) -> None:
        if self._db is not None:
            self._db.close()
        self._db = None
        with self._file_lock():
            try:  # another process may have done it meanwhile
                self._db = self._connect(None)
                self._db.execute("SELECT * FROM events LIMIT 1").fetchone()
            except sqlite3.Error as error:
                if not _is_damage(error):
                    raise
                if self._db is not None:
                    self._db.close()
                aside = next(
                    p for i in range(10**6) if not (p := self.path.with_name(f"{self.path.name}.damaged-{i}")).exists()
                )
                for suffix in ("-wal", "-shm", ""):
                    with suppress(FileNotFoundError):
                        Path(f"{self.path}{suffix}").replace(f"{aside}{suffix}")
                logger.error("outbox %s was damaged (%s): kept as %s, a new stream begins", self.path, why, aside.name)
                self._db = self._connect(f"the outbox was damaged ({why}) and kept as {aside.name}")
            self._inode = _inode(self.path)

    @contextmanager
    def _file_lock(self) -> Iterator[None]:
        with open(f"{self.path}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class Grouped:
    """Puts events into an outbox 100 at a time or once a second, urgent ones at once.

    A power cut loses at most the events of the last second; `add` and `poll` belong to one thread.
    """

    def __init__(self, outbox: Outbox, *, max_events: int = 100, max_delay_s: float = 1.0) -> None:
        self._outbox = outbox
        self._max_events = max_events
        self._max_delay_s = max_delay_s
        self._events: list[Mapping[str, Any]] = []
        self._since_s = 0.0
        self.refused = 0

    def add(self, event: Mapping[str, Any], *, now_s: float, urgent: bool = False) -> None:
        """Take one event; one that the outbox would refuse is counted in `refused` and logged. `now_s` is monotonic."""
        try:
            row_of(event, urgent)
        except SchemaError as error:
            self.refused += 1
            logger.error("telemetry event refused: %s", error.message)
            return
        if urgent:
            self.flush()
            self._outbox.append([event], urgent=True)
            return
        if not self._events:
            self._since_s = now_s
        self._events.append(event)
        self.poll(now_s)

    def poll(self, now_s: float) -> None:
        """Write the group when it is full or old enough."""
        if self._events and (len(self._events) >= self._max_events or now_s - self._since_s >= self._max_delay_s):
            self.flush()

    def flush(self) -> None:
        events, self._events = self._events, []
        self._outbox.append(events)


def _is_damage(error: sqlite3.Error) -> bool:
    text = str(error)
    return any(
        sign in text
        for sign in ("not a database", "malformed", "damaged:", "no such table", "no such column", "no row")
    )


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0
