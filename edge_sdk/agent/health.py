"""Whether a model on trial does its work, judged from the worker's counters."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthPolicy:
    """`[health]`: what ends a trial.

    A trial fails after `max_crashes` deaths of the worker; when, of at least `min_frames` frames, more than
    `max_error_rate` fail or more than `max_nonfinite_rate` give NaN or infinity; when frames arrive but none is
    processed for `stall_s`; when, at its end, the median latency is more than `max_latency_ratio` times that of the
    model before and above `min_latency_ms`. It is extended until `min_frames` were processed, to at most `patience`
    times its length; then it ends without a verdict on the model: rolled back, but not blacklisted.
    """

    max_crashes: int = field(default=2, metadata={"min": 1})
    min_frames: int = field(default=20, metadata={"min": 1})
    max_error_rate: float = field(default=0.05, metadata={"min": 0, "max": 1})
    max_nonfinite_rate: float = field(default=0.01, metadata={"min": 0, "max": 1})
    stall_s: float = field(default=30.0, metadata={"min": 0.1})
    max_latency_ratio: float = field(default=3.0, metadata={"min": 1})
    min_latency_ms: float = field(default=20.0, metadata={"min": 0})
    patience: float = field(default=5.0, metadata={"min": 1})


class Verdict(enum.Enum):
    """`INCONCLUSIVE` rolls back without blame."""

    WAIT = "wait"
    GOOD = "good"
    BAD = "bad"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What the worker counted up to `t_s` (monotonic); `errors` counts frames without an answer."""

    t_s: float
    frames: int = 0
    processed: int = 0
    errors: int = 0
    nonfinite: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None

    @classmethod
    def from_stats(cls, stats: Mapping[str, Any], t_s: float) -> Counts:
        """Read the worker's `stats`; what is absent counts as 0, failures of source and sinks are not the model's."""
        latency = stats.get("model_latency_ms") or {}
        errors = stats.get("errors")
        infer = errors.get("infer") if isinstance(errors, Mapping) else errors
        nonfinite = _count(stats.get("nonfinite"))
        return cls(
            t_s=t_s,
            frames=_count(stats.get("frames")),
            processed=_count(stats.get("processed")),
            errors=_count(infer) + nonfinite,
            nonfinite=nonfinite,
            p50_ms=_number(latency.get("p50")),
            p95_ms=_number(latency.get("p95")),
        )


@dataclass(slots=True)
class Trial:
    """A running trial: what was counted since it began, over worker restarts."""

    began_s: float
    baseline_p50_ms: float | None = None
    start: Counts | None = None
    last: Counts | None = None
    frames: int = 0
    processed: int = 0
    errors: int = 0
    nonfinite: int = 0
    progress_s: float = 0.0
    frames_since_progress: int = 0
    crashes: int = 0

    def crashed(self) -> None:
        """Note a death of the worker; its counters start again."""
        self.crashes += 1
        self.last = None

    def add(self, counts: Counts) -> None:
        """Take the worker's newest counters."""
        before = self.last or (Counts(t_s=counts.t_s) if self.start is not None else counts)
        if counts.frames < before.frames or counts.processed < before.processed:
            before = Counts(t_s=counts.t_s)
        self.start = self.start or counts
        self.frames += counts.frames - before.frames
        self.processed += counts.processed - before.processed
        self.errors += max(0, counts.errors - before.errors)
        self.nonfinite += max(0, counts.nonfinite - before.nonfinite)
        if counts.processed > before.processed or self.last is None:
            self.progress_s, self.frames_since_progress = counts.t_s, 0
        else:
            self.frames_since_progress += counts.frames - before.frames
        self.last = counts


def judge(trial: Trial, policy: HealthPolicy, *, trial_s: float, now_s: float) -> tuple[Verdict, str]:
    """Return the verdict on a trial at the monotonic time `now_s`, and why."""
    if trial.crashes >= policy.max_crashes:
        return Verdict.BAD, f"the worker died {trial.crashes} times during the trial"
    answered = trial.processed + trial.errors
    if answered >= policy.min_frames:
        rate = trial.nonfinite / answered
        if rate > policy.max_nonfinite_rate:
            return Verdict.BAD, f"{rate:.1%} of {answered} frames gave NaN or infinity"
        rate = trial.errors / answered
        if rate > policy.max_error_rate:
            return Verdict.BAD, f"{rate:.1%} of {answered} frames failed, the limit is {policy.max_error_rate:.1%}"
    stalled_s = now_s - trial.progress_s
    if trial.last is not None and trial.frames_since_progress > 0 and stalled_s > policy.stall_s:
        return Verdict.BAD, f"frames arrive and none was processed for {stalled_s:.0f} s"
    elapsed_s = now_s - trial.began_s
    if elapsed_s < trial_s:
        return Verdict.WAIT, ""
    if trial.processed < policy.min_frames:
        if elapsed_s < max(trial_s * policy.patience, policy.stall_s):
            return Verdict.WAIT, ""
        return Verdict.INCONCLUSIVE, f"only {trial.processed} frames were processed in {elapsed_s:.0f} s of trial"
    p50 = trial.last.p50_ms if trial.last else None
    base = trial.baseline_p50_ms
    if p50 is not None and base is not None and p50 > policy.min_latency_ms and p50 > policy.max_latency_ratio * base:
        return Verdict.BAD, f"median latency {p50:.1f} ms, the model before had {base:.1f} ms"
    return Verdict.GOOD, f"{trial.processed} frames in {elapsed_s:.0f} s"


def _count(value: Any) -> int:
    return int(value) if isinstance(value, (int, float)) and value >= 0 else 0


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
