"""Stored telemetry windows, read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_sdk.errors import SchemaError
from edge_sdk.schemas import document
from edge_sdk.schemas.telemetry import Window


def read_window(row: Mapping[str, Any]) -> Window | None:
    """Return the window of a stored row, or None when it does not have the form of one."""
    try:
        return Window.from_event(document.loads_object(row["json"], where="window"))
    except SchemaError:
        return None
