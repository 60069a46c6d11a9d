"""Values as people read them, in the terminal and in the console."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any


def age(t: float | None, now: float) -> str:
    """Return how long ago a time was, for people."""
    if t is None:
        return "never"
    seconds = max(0.0, now - t)
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds / 86400:.0f} d ago"


def clock(t: float | None) -> str:
    """Return a time (seconds since the epoch) as date and time of day, UTC."""
    return "" if t is None else datetime.fromtimestamp(t, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def size(n: int | None) -> str:
    """Return a number of bytes in kB or MB."""
    if n is None:
        return ""
    return f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.0f} kB"


def number(value: float | None) -> str:
    """Return three significant digits."""
    if value is None:
        return "–"
    return f"{value:.3g}" if abs(value) < 1e5 else f"{value:.2e}"


def slug(text: Any) -> str:
    """Return text as a CSS class."""
    return str(text).lower().replace(" ", "-").replace("_", "-")
