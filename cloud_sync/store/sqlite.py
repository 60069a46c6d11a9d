"""The default store: one SQLite file, WAL with synchronous FULL, one writer, a pool of readers."""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from cloud_sync.errors import StoreError
from cloud_sync.store.base import Migration
from cloud_sync.store.migrations import all_migrations
from edge_sdk.errors import UsageError

T = TypeVar("T")
_SET = "cloud"
_CHECK_BELOW_BYTES = 64 * 1024 * 1024
_READERS = 8


def open_url(url: str) -> SqliteDatabase:
    """Open `sqlite:PATH`.

    Raises:
        UsageError: the URL has no path.
        StoreError: see SqliteDatabase.
    """
    path = url.partition(":")[2]
    if not path or path.startswith("//"):
        raise UsageError(f"store URL `{url}` has no file", hint="write it as sqlite:/var/lib/edge/fleet.db")
    return SqliteDatabase(Path(path))


class SqliteDatabase:
    """A Database in one file."""

    def __init__(self, path: Path, *, migrations: Sequence[Migration] | None = None) -> None:
        """Open or make the file and apply the migrations it lacks.

        Raises:
            StoreError: it cannot be opened, is damaged, or has migrations that this version does not know.
        """
        self.path = path
        self._lock = threading.Lock()
        self._readers: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._reader_slots = threading.BoundedSemaphore(_READERS)
        self._all_readers: list[sqlite3.Connection] = []
        self._closed = False
        self._writer = self._guard(self._connect)
        try:
            self._guard(self._check)
            self._guard(lambda: self._migrate(all_migrations() if migrations is None else migrations))
        except BaseException:
            self._writer.close()
            raise

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[dict[str, Any]]:
        with self._reader() as connection:
            return self._guard(lambda: _rows(connection.execute(sql, params)))

    def execute(self, sql: str, params: Sequence[Any] = ()) -> int:
        with self.transaction() as tx:
            return tx.execute(sql, params)

    @contextmanager
    def transaction(self) -> Iterator[_Transaction]:
        with self._lock:
            if self._closed:
                raise StoreError(f"{self.path} is closed", hint="the service is stopping")
            self._guard(lambda: self._writer.execute("BEGIN IMMEDIATE"))
            try:
                yield _Transaction(self._writer, self._guard)
                self._guard(lambda: self._writer.execute("COMMIT"))
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for connection in [*self._all_readers, self._writer]:
                connection.close()

    def _connect(self, *, read_only: bool = False) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=30)
        connection.row_factory = sqlite3.Row
        if read_only:
            connection.execute("PRAGMA query_only = ON")
        else:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA journal_size_limit = 67108864")
            self.path.chmod(0o600)
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        with self._reader_slots:
            if self._closed:
                raise StoreError(f"{self.path} is closed", hint="the service is stopping")
            try:
                connection = self._readers.get_nowait()
            except queue.Empty:
                connection = self._guard(lambda: self._connect(read_only=True))
                self._all_readers.append(connection)
            try:
                yield connection
            finally:
                self._readers.put(connection)

    def _check(self) -> None:
        self._writer.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if self.path.stat().st_size <= _CHECK_BELOW_BYTES:
            found = self._writer.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(str(found))

    def _migrate(self, migrations: Sequence[Migration]) -> None:
        known = self._writer.execute("SELECT 1 FROM sqlite_master WHERE name = '_sqlite_migrations'").fetchone()
        rows = (
            self._writer.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = ?", (_SET,))
            if known
            else ()
        )
        applied = {row[0] for row in rows}
        unknown = sorted(applied - {name for name, _ in migrations})
        if unknown:
            raise StoreError(
                f"{self.path} was written by a newer version (migration `{unknown[-1]}`)",
                hint="upgrade edge-sdk, or restore the copy made before the upgrade",
            )
        if len(applied) == len(migrations):
            return
        import sqlite_utils  # only when there is something to migrate: it imports pandas where pandas is installed
        from sqlite_utils.migrations import Migrations

        pending = Migrations(_SET)
        for name, function in migrations:
            pending(name=name)(function)
        pending.apply(sqlite_utils.Database(self._writer, execute_plugins=False, recursive_triggers=False))
        self._writer.row_factory = sqlite3.Row

    def _guard(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except sqlite3.ProgrammingError:
            if self._closed:
                raise StoreError(f"{self.path} is closed", hint="the service is stopping") from None
            raise  # a wrong statement or parameter count is a bug
        except sqlite3.OperationalError as error:
            text = str(error)
            if "syntax error" in text or text.startswith("no such"):
                raise
            raise StoreError(f"cannot use {self.path}: {text}", hint="check its disk space and permissions") from error
        except sqlite3.IntegrityError as error:
            raise StoreError(f"{self.path} refused a row: {error}", hint="the row exists or lacks a value") from error
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{self.path} is damaged or is no SQLite database: {error}",
                hint="restore a backup, or move the file away to start empty (devices keep what was not acknowledged)",
            ) from error
        except OSError as error:
            raise StoreError(f"cannot use {self.path}: {error}", hint="check the path and its permissions") from error


class _Transaction:
    def __init__(self, connection: sqlite3.Connection, guard: Callable[[Callable[[], Any]], Any]) -> None:
        self._connection = connection
        self._guard = guard

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._guard(lambda: _rows(self._connection.execute(sql, params)))
        return rows

    def execute(self, sql: str, params: Sequence[Any] = ()) -> int:
        return int(self._guard(lambda: self._connection.execute(sql, params).rowcount))

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> int:
        return int(self._guard(lambda: self._connection.executemany(sql, rows).rowcount))


def _rows(cursor: sqlite3.Cursor) -> list[dict[str, Any]]:
    return [dict(row) for row in cursor.fetchall()]
