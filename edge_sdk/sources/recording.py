"""Which recorded segments stay: by size, age and free space, the oldest go first; standard library only."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

MB = 1024 * 1024
_NAME = re.compile(r"(\d{8}T\d{6})Z\.mkv")
STAMP = "%Y%m%dT%H%M%SZ.mkv"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingConfig:
    """How the main stream of a camera is kept: segments of `segment_s` seconds in `folder`, named by their start (UTC).

    The oldest segments go when all of them hold more than `max_mb`, when they are older than `max_age_h`, and while the
    disk has less than `min_free_mb` left, or less than two segments need. A recorder that gets nothing for `stall_s` is
    started again.
    """

    folder: str = "recordings"
    segment_s: float = field(default=60.0, metadata={"min": 1, "max": 3600})
    max_mb: float = field(default=10_000.0, metadata={"min": 1})
    max_age_h: float | None = field(default=None, metadata={"min": 0.001})
    min_free_mb: float = field(default=500.0, metadata={"min": 0})
    stall_s: float = field(default=10.0, metadata={"min": 1, "max": 600})


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """One recorded file; `start_s` is seconds since 1970."""

    start_s: float
    path: Path
    size: int


def segments(folder: Path) -> list[Segment]:
    """Return what a recorder has written to `folder`, oldest first; other files are none of its business."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                match = _NAME.fullmatch(entry.name)
                if match:
                    start = datetime.strptime(match.group(1), "%Y%m%dT%H%M%S").replace(tzinfo=timezone.utc)
                    found.append(Segment(start.timestamp(), Path(entry.path), entry.stat().st_size))
    except (OSError, ValueError):
        return sorted(found)
    return sorted(found)


def to_delete(
    kept: Sequence[Segment], config: RecordingConfig, *, now_s: float, free_bytes: int
) -> tuple[Segment, ...]:
    """Return the segments that have to go, oldest first; the newest one, which is being written, stays.

    Args:
        kept: oldest first.
        now_s: seconds since 1970.
        free_bytes: what the disk has left.
    """
    total = sum(s.size for s in kept)
    floor = max([config.min_free_mb * MB, *(2 * s.size for s in kept)])
    gone: list[Segment] = []
    for i, segment in enumerate(kept[:-1]):
        # A segment is as old as its last frame, which comes just before the next one begins.
        age_s = now_s - kept[i + 1].start_s
        too_old = config.max_age_h is not None and age_s > config.max_age_h * 3600
        if not (too_old or total > config.max_mb * MB or free_bytes < floor):
            break
        gone.append(segment)
        total -= segment.size
        free_bytes += segment.size
    return tuple(gone)
