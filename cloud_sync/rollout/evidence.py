"""Telemetry windows as the numbers that rollout guards look at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cloud_sync.ingest.windows import read_window
from cloud_sync.rollout.guardrails import History, Observation


def observation(row: Mapping[str, Any]) -> Observation | None:
    """Return what a stored window says, or None when it saw no frame at all.

    A worker that had to be started again counts as one failed frame.
    """
    window = read_window(row)
    if window is None:
        return None
    counters = window.counters
    errors = max(counters.errors, counters.nonfinite) + counters.restarts
    looked = max(counters.processed, errors)
    if looked <= 0:
        return None
    return Observation(
        device=str(row["device"]),
        t=float(row["t1"]),
        error_share=min(errors / looked, 1.0),
        slow_share=min(counters.slow / looked, 1.0),
        confidence=min(max(window.confidence or 0.0, 0.0), 1.0),
    )


def summarise(observations: Iterable[Observation]) -> History:
    """Return the history of one device."""
    found = list(observations)
    if not found:
        return History()
    count = len(found)
    return History(
        windows=count,
        error_windows=sum(o.error_share > 0 for o in found),
        error_share=sum(o.error_share for o in found) / count,
        slow_share=sum(o.slow_share for o in found) / count,
        confidence=sum(o.confidence for o in found) / count,
    )
