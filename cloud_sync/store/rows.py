"""Small things that every table's rows need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def first(rows: Sequence[Row]) -> Row | None:
    return rows[0] if rows else None


def insert(table: str, columns: Sequence[str], *, conflict: str = "") -> str:
    """Return the statement that inserts one row, its parameters in the order of `columns`.

    `conflict` names columns: a row that is there with the same values of these stays as it is.
    """
    marks = ", ".join("?" for _ in columns)
    sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"
    return sql + (f" ON CONFLICT ({conflict}) DO NOTHING" if conflict else "")


def values(row: Row, columns: Sequence[str]) -> list[Any]:
    """Return the parameters of `insert`."""
    return [row[c] for c in columns]
