"""What became of a candidate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters.candidates import Candidate
from converters.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a candidate. `status`: passed, chosen, refused (by a guard), failed (to build or run), skipped.

    `reason_kind` is the word of `reason`. `deltas` say how far the outputs are from the source's, `facts` what the
    built file is (opset, IR version). `options` are runtime options that were measured to be better than the
    profile's. `cached`: nothing was built, the cache had it. `pareto`: no other build that may be used is at least as
    good in latency, size and metric and better in one.
    """

    candidate: Candidate
    status: str
    reason: str | None = None
    reason_kind: Reason | None = None
    files: tuple[Path, ...] = ()
    manifest: dict[str, Any] = field(default_factory=dict)
    size_bytes: int | None = None
    steps: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    metric: dict[str, Any] | None = None
    deltas: dict[str, Any] = field(default_factory=dict)
    latency_ms: dict[str, Any] | None = None
    ram_mb: dict[str, Any] | None = None
    threads: tuple[dict[str, Any], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    pareto: bool = False
    cached: bool = False
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the row of the table of candidates; the spans of single channels stand in the manifest only."""
        c = self.candidate
        row = {
            "runtime": c.runtime,
            "precision": c.precision,
            "backend": c.backend,
            "form": c.form,
            "method": c.method,
            "variant": c.variant,
            "status": self.status,
            "reason": self.reason,
            "reason_kind": None if self.reason_kind is None else self.reason_kind.value,
            "metric": self.metric,
            "latency_ms": self.latency_ms,
            "ram_mb": self.ram_mb,
            "size_bytes": self.size_bytes,
            "pareto": self.pareto,
            "threads": list(self.threads) or None,
            "options": self.options or None,
            "float_layers": list(c.float_layers) or None,
            "facts": self.facts or None,
            "deltas": {k: v for k, v in self.deltas.items() if k != "spans"} or None,
            "steps": list(self.steps),
        }
        return {k: v for k, v in row.items() if v is not None or k == "reason"}

    def line(self) -> str:
        """Return the line for people that says how it went."""
        c = self.candidate
        metric = f", {self.metric['name']} {self.metric['value']:.4f}" if self.metric else ""
        reason = f": {self.reason}" if self.reason else ""
        bits = "7-bit weights" if c.precision == "int8" and c.scheme.reduce_range else None
        notes = ", ".join(filter(None, (c.variant, bits)))
        variant = f" ({notes})" if notes else ""
        took = "from the cache" if self.cached else f"{self.seconds:.1f} s"
        return f"  {c.runtime} {c.precision}{variant} {self.status}{metric}{reason} ({took})"
