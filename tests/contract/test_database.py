"""Every store keeps the contract of `cloud_sync.store.base.Database`."""

from __future__ import annotations

import sqlite3
import threading
from abc import ABC, abstractmethod
from pathlib import Path

import pytest

pytest.importorskip("sqlite_utils", reason="needs edge-sdk[cloud]")

from cloud_sync.errors import StoreError
from cloud_sync.store import open_store
from cloud_sync.store.base import Database
from cloud_sync.store.migrations import all_migrations
from cloud_sync.store.sqlite import SqliteDatabase
from edge_sdk.errors import UsageError

AUDIT = "INSERT INTO audit (t, actor, action, subject) VALUES (?, ?, ?, ?)"
DEVICE = "INSERT INTO devices (id, tenant, profile, created_at) VALUES (?, 'default', 'p', 1.0) ON CONFLICT DO NOTHING"


class DatabaseContract(ABC):
    """Run by every store: `open` opens the same store again."""

    @abstractmethod
    def open(self, where: Path) -> Database: ...

    @pytest.fixture
    def db(self, tmp_path: Path):
        database = self.open(tmp_path)
        yield database
        database.close()

    def test_rows_come_back_as_dictionaries(self, db: Database) -> None:
        assert db.execute(AUDIT, (1.5, "a", "b", "c")) == 1
        (row,) = db.query("SELECT * FROM audit")
        assert row == {"id": row["id"], "t": 1.5, "actor": "a", "action": "b", "subject": "c", "detail": None}

    def test_a_conflict_that_is_ignored_changes_no_row(self, db: Database) -> None:
        assert db.execute(DEVICE, ("cam-1",)) == 1
        assert db.execute(DEVICE, ("cam-1",)) == 0

    def test_bytes_survive(self, db: Database) -> None:
        body = bytes(range(256))
        db.execute(
            "INSERT INTO batches (device, stream, q0, n, tenant, received_at, enc, body) VALUES (?,?,?,?,?,?,?,?)",
            ("cam-1", "s", 0, 1, "default", 1.0, "json", body),
        )
        assert bytes(db.query("SELECT body FROM batches")[0]["body"]) == body

    def test_a_block_that_raises_leaves_nothing_behind(self, db: Database) -> None:
        def fails() -> None:
            with db.transaction() as tx:
                tx.execute(AUDIT, (1, "a", "b", "c"))
                assert tx.query("SELECT count(*) AS n FROM audit")[0]["n"] == 1
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fails()
        assert db.query("SELECT * FROM audit") == []

    def test_others_see_a_transaction_only_when_it_is_committed(self, db: Database) -> None:
        with db.transaction() as tx:
            tx.executemany(AUDIT, [(i, "a", "b", "c") for i in range(3)])
            assert db.query("SELECT * FROM audit") == []
        assert len(db.query("SELECT * FROM audit")) == 3

    def test_a_refused_row_is_a_store_error_and_the_store_goes_on(self, db: Database) -> None:
        with pytest.raises(StoreError, match="refused a row"):
            db.execute("INSERT INTO audit (t, actor) VALUES (1, 'a')")
        assert db.execute(AUDIT, (1, "a", "b", "c")) == 1

    def test_threads_read_and_write_at_the_same_time(self, db: Database) -> None:
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for i in range(20):
                    with db.transaction() as tx:
                        before = tx.query("SELECT count(*) AS n FROM audit")[0]["n"]
                        tx.execute(AUDIT, (i, str(number), "b", str(before)))
                    db.query("SELECT * FROM audit ORDER BY id DESC LIMIT 5")
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert [int(r["subject"]) for r in db.query("SELECT subject FROM audit ORDER BY id")] == list(range(240))

    def test_what_is_committed_is_there_when_it_is_opened_again(self, tmp_path: Path) -> None:
        first = self.open(tmp_path)
        first.execute(AUDIT, (1, "a", "b", "c"))
        first.close()
        again = self.open(tmp_path)
        assert len(again.query("SELECT * FROM audit")) == 1
        again.close()

    def test_a_closed_store_says_so(self, tmp_path: Path) -> None:
        database = self.open(tmp_path)
        database.close()
        database.close()
        with pytest.raises(StoreError, match="is closed"):
            database.query("SELECT 1")
        with pytest.raises(StoreError, match="is closed"):
            database.execute(AUDIT, (1, "a", "b", "c"))


class TestSqlite(DatabaseContract):
    def open(self, where: Path) -> Database:
        return open_store(None, where)

    def test_it_is_durable_and_private(self, tmp_path: Path) -> None:
        self.open(tmp_path).close()
        with sqlite3.connect(tmp_path / "fleet.db") as raw:
            assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        raw.close()
        assert (tmp_path / "fleet.db").stat().st_mode & 0o077 == 0

    def test_a_damaged_file_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "fleet.db"
        path.write_bytes(b"this is no database" * 400)
        with pytest.raises(StoreError, match=r"fleet\.db is damaged or is no SQLite database") as caught:
            self.open(tmp_path)
        assert "restore a backup" in str(caught.value.hint)
        assert path.read_bytes().startswith(b"this is no")

    def test_a_file_with_a_damaged_page_is_named(self, tmp_path: Path) -> None:
        database = self.open(tmp_path)
        with database.transaction() as tx:
            tx.executemany(AUDIT, [(i, "a" * 500, "b", "c") for i in range(500)])
        database.close()
        path = tmp_path / "fleet.db"
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2 : len(raw) // 2 + 8192] = b"\xff" * 8192
        path.write_bytes(raw)
        with pytest.raises(StoreError, match=r"fleet\.db is damaged"):
            self.open(tmp_path)

    def test_a_file_of_a_newer_version_is_refused(self, tmp_path: Path) -> None:
        newer = [*all_migrations(), ("999_later", lambda db: db["later"].create({"id": int}))]
        SqliteDatabase(tmp_path / "fleet.db", migrations=newer).close()
        with pytest.raises(StoreError, match="written by a newer version .migration `999_later`") as caught:
            self.open(tmp_path)
        assert "upgrade edge-sdk" in str(caught.value.hint)

    def test_a_migration_that_fails_leaves_no_half(self, tmp_path: Path) -> None:
        def half(db) -> None:
            db["half"].create({"id": int})
            raise RuntimeError("power")

        with pytest.raises(RuntimeError):
            SqliteDatabase(tmp_path / "fleet.db", migrations=[*all_migrations(), ("500_half", half)])
        database = self.open(tmp_path)
        assert database.query("SELECT name FROM sqlite_master WHERE name = 'half'") == []
        database.close()

    def test_a_path_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "fleet.db").mkdir()
        with pytest.raises(StoreError, match=r"cannot use .*fleet\.db"):
            self.open(tmp_path)

    def test_an_unknown_kind_of_store_gets_a_hint(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="unknown store `sqlit`") as caught:
            open_store("sqlit:/x", tmp_path)
        assert caught.value.hint == "did you mean `sqlite`?"
        with pytest.raises(UsageError, match="has no file"):
            open_store("sqlite:", tmp_path)
