"""What the agent's threads tell its loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_sdk.agent.reconcile import Job
from edge_sdk.agent.state import TrustFloor


@dataclass(frozen=True, slots=True)
class WorkerEvent:
    event: dict[str, Any]


@dataclass(frozen=True, slots=True)
class JobEnd:
    """A job's result; `generation` tells results of a cancelled job."""

    generation: int
    job: Job
    error: str | None = None
    retriable: bool = True
    floor: TrustFloor | None = None
