"""The service's database: one protocol, one implementation per kind of store, one list of migrations."""

from __future__ import annotations

from pathlib import Path

from cloud_sync.store.base import Database, Transaction
from edge_sdk.registry import Plugin, Registry


def stores() -> Registry:
    """Return the kinds of store, named by the scheme of their URL."""
    return Registry("store", {"sqlite": Plugin(target="cloud_sync.store.sqlite:open_url", extra="cloud")})


def open_store(url: str | None, data: Path) -> Database:
    """Open the store that `url` names (default: `fleet.db` in the data directory) and bring its tables up to date.

    Raises:
        UsageError: no kind of store has the URL's scheme.
        StoreError: the store cannot be opened, is damaged or was written by a newer version.
    """
    url = url or f"sqlite:{data / 'fleet.db'}"
    scheme = url.partition(":")[0]
    database: Database = stores().load(scheme)(url)
    return database


__all__ = ["Database", "Transaction", "open_store", "stores"]
