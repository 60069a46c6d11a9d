"""When to retrain, and whether what the trainer made may be released: pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cloud_sync.drift.detect import DRIFTED, LIKELY_HARM
from cloud_sync.policies import RetrainPolicy
from edge_sdk.errors import SchemaError
from edge_sdk.schemas import document

QUEUED, TRAINING, GATING = "QUEUED", "TRAINING", "GATING"
RELEASED, REFUSED, FAILED, TIMED_OUT = "RELEASED", "REFUSED", "FAILED", "TIMED_OUT"
UNFINISHED = (QUEUED, TRAINING, GATING)
DECIDED = (RELEASED, REFUSED)
RETRY_S = 600.0
PASS, REFUSE = "pass", "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One metric of candidate and production on the same `n` random labelled samples, higher is better."""

    candidate: float
    production: float
    n: int = field(metadata={"min": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The trainer's `metrics.json`.

    `pairs` are [candidate, production] scores of the same samples, `slices` the metric on parts of them; `golden` is
    the SHA-256 of the golden set on which both were judged.
    """

    metric: str
    candidate: float
    production: float
    n: int = field(metadata={"min": 1})
    pairs: tuple[tuple[float, ...], ...] = ()
    slices: dict[str, Score] = field(default_factory=dict)
    golden: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, raw: bytes) -> Metrics:
        """Read `metrics.json`.

        Raises:
            SchemaError: it has not the form, or a pair is not two numbers.
        """
        metrics = document.read(document.loads_object(raw, where="metrics.json"), cls, where="metrics.json")
        wrong = next((i for i, p in enumerate(metrics.pairs) if len(p) != 2), None)
        if wrong is not None:
            raise SchemaError(
                f"metrics.json: pairs[{wrong}] has {len(metrics.pairs[wrong])} numbers",
                hint="write [candidate, production] of one sample each",
            )
        return metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRow:
    """One condition of the gate; `lower` is the lower confidence bound of the gain where there is one."""

    metric: str
    candidate: float | None
    production: float | None
    decision: str
    detail: str
    lower: float | None = None


def gate(metrics: Metrics, policy: RetrainPolicy, *, golden_before: str | None, seed: int) -> list[GateRow]:
    """Return every condition of the release gate; all must pass.

    The one-sided lower bound of the gain on the primary metric (paired bootstrap over samples, else the normal bound
    of two proportions) must be above 0, or above minus the accepted loss. No slice may lose more than allowed.
    """
    needed = 0.0 if policy.non_inferiority is None else -policy.non_inferiority
    lower = _lower_bound(metrics, policy, seed)
    passed = lower > needed
    what = "paired bootstrap" if metrics.pairs else "normal bound"
    rows = [
        GateRow(
            metric=metrics.metric,
            candidate=metrics.candidate,
            production=metrics.production,
            decision=PASS if passed else REFUSE,
            detail=f"{what}: gain at least {lower:+.4f}, needed above {needed:+.4f} (n={metrics.n})",
            lower=lower,
        )
    ]
    for name, score in sorted(metrics.slices.items()):
        loss = score.production - score.candidate
        judged = score.n >= policy.slice_n
        ok = not judged or loss <= policy.slice_loss
        rows.append(
            GateRow(
                metric=f"{metrics.metric}[{name}]",
                candidate=score.candidate,
                production=score.production,
                decision=PASS if ok else REFUSE,
                detail=f"lost {loss:+.4f}, allowed {policy.slice_loss:.4f}"
                if judged
                else f"n={score.n} is below {policy.slice_n}: not judged",
            )
        )
    if golden_before is not None:
        same = metrics.golden == golden_before
        found = (metrics.golden or "nothing")[:12]
        rows.append(
            GateRow(
                metric="golden set",
                candidate=None,
                production=None,
                decision=PASS if same else REFUSE,
                detail="unchanged" if same else f"was {golden_before[:12]}, now {found}: results cannot be compared",
            )
        )
    return rows


def trigger(
    policy: RetrainPolicy, states: Mapping[str, str], runs: Sequence[Mapping[str, Any]], *, now: float
) -> tuple[str, list[str]] | None:
    """Return (reason, devices) when a model should be retrained now.

    `states` maps its devices to their drift states, `runs` are its earlier runs, newest first.
    """
    if not policy.command or any(r["state"] in UNFINISHED for r in runs):
        return None
    decided = next((r for r in runs if r["state"] in DECIDED), None)
    if decided and now - (decided["ended_at"] or decided["created_at"]) < policy.cooldown_s:
        return None
    failures = 0
    for run in runs:
        if run["state"] in DECIDED:
            break
        failures += 1
    if failures and now - (runs[0]["ended_at"] or runs[0]["created_at"]) < retry_after(failures, policy.cooldown_s):
        return None
    wanted = set(policy.on) | ({LIKELY_HARM} if DRIFTED in policy.on else set())
    hit = sorted(d for d, s in states.items() if s in wanted)
    if len(hit) >= policy.devices:
        worst = LIKELY_HARM if any(states[d] == LIKELY_HARM for d in hit) else DRIFTED
        return f"{worst.replace('_', ' ')} on {len(hit)} of {len(states)} devices", hit
    last = runs[0]["created_at"] if runs else None
    if policy.schedule_s and last is not None and now - last >= policy.schedule_s:
        return "schedule", []
    return None


def retry_after(failures: int, cooldown_s: float) -> float:
    """Return how long to wait after `failures` failed runs in a row, in seconds."""
    return min(cooldown_s, RETRY_S * 2.0 ** min(failures - 1, 16))


def _lower_bound(metrics: Metrics, policy: RetrainPolicy, seed: int) -> float:
    if metrics.pairs:
        gains = np.array([c - p for c, p in metrics.pairs], float)
        rng = np.random.default_rng(seed)
        draws = rng.integers(0, len(gains), (policy.bootstrap, len(gains)))
        return float(np.quantile(gains[draws].mean(axis=1), policy.alpha))
    from scipy import stats

    c, p = (min(max(v, 0.0), 1.0) for v in (metrics.candidate, metrics.production))
    spread = math.sqrt((c * (1 - c) + p * (1 - p)) / metrics.n)
    return float(metrics.candidate - metrics.production - stats.norm.ppf(1 - policy.alpha) * spread)
