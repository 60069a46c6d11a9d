"""What the service needs of a database: synchronous, safe from any thread, SQL that SQLite and PostgreSQL both read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

Migration = tuple[str, Callable[[Any], None]]
"""A name that never changes, and what it does to a `sqlite_utils.Database`."""


class Transaction(Protocol):
    """One write transaction; what it wrote is seen by its own queries and by nobody else until it ends."""

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[dict[str, Any]]: ...

    def execute(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run one statement and return how many rows it changed."""
        ...

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> int: ...


class Database(Protocol):
    """A store. `?` marks parameters; `ON CONFLICT` and `RETURNING` may be used, functions of one product may not.

    Every method raises StoreError when the store cannot be read or written; constraint violations included.
    """

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return the rows of a read as dictionaries, of what is committed."""
        ...

    def execute(self, sql: str, params: Sequence[Any] = ()) -> int:
        """Run one statement in a transaction of its own and return how many rows it changed."""
        ...

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Open a write transaction: committed durably when the block ends, undone when it raises.

        One at a time for the whole store; a second waits. Not reentrant.
        """
        ...

    def close(self) -> None: ...
