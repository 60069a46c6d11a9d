"""One batch: what was asked for, how far it is, and what came out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from edge_sdk.sinks.post import Poster


class Status(Enum):
    """Where a batch is; the last four do not change any more."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"

    @property
    def ended(self) -> bool:
        return self not in (Status.QUEUED, Status.RUNNING)


@dataclass(slots=True)
class Batch:
    """One batch; times are seconds since the epoch, `ended_s` monotonic; images go as they are answered.

    `tries` says how often a process has begun the image that is next and did not live to answer it.
    """

    id: str
    images: deque[bytes]
    total: int
    created: float
    poster: Poster | None = None
    status: Status = Status.QUEUED
    results: list[bytes] = field(default_factory=list)
    failed: int = 0
    why: str | None = None
    started: float | None = None
    ended: float | None = None
    ended_s: float = 0.0
    webhook: dict[str, Any] | None = None
    tries: int = 0

    result_bytes: int = 0

    @property
    def pending_bytes(self) -> int:
        return sum(map(len, self.images))

    def is_running(self) -> bool:
        return self.status is Status.RUNNING
