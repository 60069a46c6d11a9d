"""How long to wait before the next attempt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Doubling delays with jitter: attempt n waits between half and all of `first_s * 2**n`, at most `max_s`."""

    first_s: float = 0.5
    max_s: float = 30.0

    def delay_s(self, attempt: int, random: Callable[[], float]) -> float:
        """Return the delay before attempt `attempt` (from 0); `random` gives numbers in [0, 1)."""
        full = min(self.max_s, self.first_s * 2.0 ** min(attempt, 30))
        return float(full * (0.5 + 0.5 * random()))
