"""Batches on disk: accepted ones survive the process, whatever ends it."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edge_sdk.errors import SinkError
from edge_sdk.serving.batch import Batch, Status

logger = logging.getLogger(__name__)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS batch (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, total INTEGER NOT NULL, created REAL NOT NULL,
    address TEXT, webhook TEXT, status TEXT NOT NULL, why TEXT, started REAL, ended REAL,
    tries INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS image (
    id TEXT NOT NULL, n INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (id, n));
CREATE TABLE IF NOT EXISTS result (
    id TEXT NOT NULL, n INTEGER NOT NULL, failed INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (id, n));
"""


class BatchStore:
    """A SQLite file `batches.db` in `folder`, readable for this user alone, in use by one service at a time.

    A batch is on the disk (fsync) before `add` returns. Results are written as they come; a power cut may take the last
    ones, whose images are then answered again. Not safe for several threads: its owner has the lock.

    Raises:
        SinkError: the folder cannot be written, or another service uses it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "batches.db"
        self._failing = False
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise SinkError(f"batches cannot be kept in `{folder}`: {why}", hint="name another `folder`") from None
        try:
            self._db = self._open()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                message = f"`{self.path}` is in use by another service"
                raise SinkError(message, hint="give each service a `folder` of its own") from None
            raise SinkError(f"batches cannot be kept in `{folder}`: {error}", hint="name another `folder`") from None
        except sqlite3.DatabaseError as error:
            self._set_aside(error)
            self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=0.5, isolation_level=None, check_same_thread=False)
        try:
            # The lock is held until the file is closed.
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN EXCLUSIVE")
            db.execute("COMMIT")
            db.executescript(_SCHEMA)
        except BaseException:
            db.close()
            raise
        return db

    def _set_aside(self, error: Exception) -> None:
        """Keep a damaged file for people to look at; the service begins with an empty one."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists():
            number += 1
        logger.error("`%s` is damaged (%s), its batches are lost; it is now `%s`", self.path, error, aside.name)
        self.path.replace(aside)
        for end in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                self.path.with_name(self.path.name + end).unlink()
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))

    def load(self) -> list[tuple[Batch, str | None]]:
        """Return the batches in the order in which they came, and the addresses to tell; none from a damaged file.

        Raises:
            SinkError: the disk does not give the file.
        """
        try:
            return self._read()
        except sqlite3.OperationalError as error:
            raise SinkError(f"`{self.path}` cannot be read: {error}", hint="check the disk") from None
        except (sqlite3.DatabaseError, ValueError) as error:
            self.close()
            self._set_aside(error)
            self._db = self._open()
            return []

    def _read(self) -> list[tuple[Batch, str | None]]:
        out = []
        columns = "id, total, created, address, webhook, status, why, started, ended, tries"
        for row in self._db.execute(f"SELECT {columns} FROM batch ORDER BY number").fetchall():
            name, total, created, address, webhook, status, why, started, ended, tries = row
            images = self._db.execute("SELECT data FROM image WHERE id = ? ORDER BY n", (name,)).fetchall()
            results = self._db.execute("SELECT data, failed FROM result WHERE id = ? ORDER BY n", (name,)).fetchall()
            batch = Batch(name, deque(bytes(data) for (data,) in images), total, created)
            batch.results = [bytes(data) for data, _ in results]
            batch.result_bytes = sum(map(len, batch.results))
            batch.failed = sum(failed for _, failed in results)
            batch.webhook = None if webhook is None else json.loads(webhook)
            batch.status, batch.why, batch.started, batch.ended, batch.tries = (
                Status(status),
                *(why, started, ended, tries),
            )
            out.append((batch, address))
        return out

    def add(self, batch: Batch, address: str | None) -> None:
        """Keep a new batch.

        Raises:
            SinkError: the disk does not take it.
        """
        webhook = None if batch.webhook is None else json.dumps(batch.webhook)
        head = (batch.id, batch.total, batch.created, address, webhook, batch.status.value)
        rows = [(batch.id, n, data) for n, data in enumerate(batch.images)]
        try:
            with self._transaction():
                self._db.execute(
                    "INSERT INTO batch (id, total, created, address, webhook, status) VALUES (?, ?, ?, ?, ?, ?)", head
                )
                self._db.executemany("INSERT INTO image VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise SinkError(f"the batch cannot be kept: {error}", hint="is the disk full?") from None

    def begin(self, batch: Batch, tries: int) -> None:
        """Note that the image that is next is begun, for the `tries`-th time."""
        self._write([("UPDATE batch SET tries = ?, started = ? WHERE id = ?", (tries, batch.started, batch.id))])

    def answered(self, batch: Batch, n: int, row: bytes, *, failed: bool) -> None:
        """Keep the result of image `n` in place of the image."""
        self._write(
            [
                ("INSERT OR IGNORE INTO result VALUES (?, ?, ?, ?)", (batch.id, n, int(failed), row)),
                ("DELETE FROM image WHERE id = ? AND n = ?", (batch.id, n)),
                ("UPDATE batch SET tries = 0 WHERE id = ?", (batch.id,)),
            ]
        )

    def ended(self, batch: Batch) -> None:
        """Keep how a batch ended; its images go."""
        values = (batch.status.value, batch.why, batch.ended, batch.id)
        self._write(
            [
                ("UPDATE batch SET status = ?, why = ?, ended = ? WHERE id = ?", values),
                ("DELETE FROM image WHERE id = ?", (batch.id,)),
            ]
        )

    def told(self, batch: Batch) -> None:
        """Keep whether its webhook was delivered."""
        self._write([("UPDATE batch SET webhook = ? WHERE id = ?", (json.dumps(batch.webhook), batch.id))])

    def forget(self, name: str) -> None:
        """Delete a batch with all that belongs to it."""
        tables = ("batch", "image", "result")
        self._write([(f"DELETE FROM {table} WHERE id = ?", (name,)) for table in tables])

    def close(self) -> None:
        """Close the file and let others use it."""
        with suppress(sqlite3.Error):
            self._db.close()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _write(self, statements: Sequence[tuple[str, tuple[Any, ...]]]) -> None:
        """Write what has happened; a disk that does not take it is logged, and the service goes on."""
        try:
            # What is lost here in a power cut is done again.
            self._db.execute("PRAGMA synchronous = NORMAL")
            with self._transaction():
                for text, values in statements:
                    self._db.execute(text, values)
            self._failing = False
        except sqlite3.Error as error:
            if not self._failing:
                logger.error("`%s` does not take what batches give: %s", self.path, error)
            self._failing = True
        finally:
            with suppress(sqlite3.Error):
                self._db.execute("PRAGMA synchronous = FULL")

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self._db.execute("COMMIT")
                return
            except sqlite3.Error:
                self._roll_back()
                raise
        self._roll_back()

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):
            self._db.execute("ROLLBACK")
