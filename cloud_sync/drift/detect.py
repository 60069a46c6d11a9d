"""Drift of one device's pipeline: its baseline, what a window says against it, and the verdict; pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from cloud_sync.drift.stats import Baseline, Comparison, Moments, Null, feature_evidence, fit_baseline, hotelling, merge
from cloud_sync.policies import DriftPolicy
from edge_sdk.schemas.telemetry import Window

INSUFFICIENT, LEARNING, STABLE, SUSPECTED = "insufficient", "learning", "stable", "suspected"
DRIFTED, LIKELY_HARM = "drifted", "likely_harm"
STATES = (INSUFFICIENT, LEARNING, STABLE, SUSPECTED, DRIFTED, LIKELY_HARM)
GROUPS = ("image", "output", "embedding")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a device's windows were like when its baseline was taken.

    `confidence` is the mean over windows and `confidence_sd` its spread between them; `missing` maps groups to shares.
    """

    groups: Mapping[str, Baseline]
    windows: int
    samples: int
    t0: float
    t1: float
    confidence: float | None = None
    confidence_sd: float = 0.0
    missing: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One kind of evidence about one merged window; `weight` is its part of alpha, 0 where alpha does not apply."""

    kind: str
    n: int
    statistic: float | None
    p: float | None
    weight: float
    over: bool
    evidence: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A finding with its state after the votes of the last windows."""

    finding: Finding
    flagged: bool
    state: str


def learn(windows: Sequence[Window], policy: DriftPolicy, *, seed: int) -> Reference | None:
    """Return the reference made of `windows`, or None while they are too few, too small or too close together."""
    used = [w for w in windows if w.n > 0 and w.groups]
    samples = sum(w.n for w in used)
    if len(used) < policy.baseline_windows or samples < policy.baseline_samples:
        return None
    if used[-1].t1 - used[0].t0 < policy.baseline_span_s:
        return None
    groups = {}
    missing = {}
    for name in GROUPS:
        parts = _parts(used, name)
        fitted = fit_baseline(parts, resamples=policy.bootstrap, seed=seed) if len(parts) >= 3 else None
        if fitted is not None:
            groups[name] = fitted
            missing[name] = _missing_share(merge(parts))
    scores = [w.confidence for w in used if w.confidence is not None]
    return Reference(
        groups=groups,
        windows=len(used),
        samples=samples,
        t0=used[0].t0,
        t1=used[-1].t1,
        confidence=float(np.mean(scores)) if len(scores) > 1 else None,
        confidence_sd=float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0,
        missing=missing,
    )


def judge(reference: Reference, windows: Sequence[Window], policy: DriftPolicy) -> list[Finding]:
    """Return what `windows`, merged, say against the reference.

    The image group is tested at half of alpha, the model's groups share the other half, so that a change of the input
    and a change of what the model makes of it are told apart.
    """
    out: list[Finding] = []
    model_groups = [g for g in ("output", "embedding") if g in reference.groups]
    for name in GROUPS:
        baseline = reference.groups.get(name)
        parts = _parts(windows, name)
        if baseline is None or not parts:
            continue
        merged = merge(parts)
        weight = 0.5 if name == "image" else 0.5 / len(model_groups)
        test = hotelling(baseline, merged, min_n=policy.min_n)
        if test is not None:
            evidence = {"features": feature_evidence(baseline, merged, test), "z": [float(v) for v in test.z]}
            over = test.p <= policy.alpha * weight
            out.append(
                Finding(
                    kind=name,
                    n=merged.n,
                    statistic=test.statistic,
                    p=test.p,
                    weight=weight,
                    over=over,
                    evidence=evidence,
                )
            )
        out += _missing(reference, name, merged, policy)
    return out + _confidence(reference, windows, policy)


def device_p(findings: Sequence[Finding]) -> float | None:
    """Return one p-value of a device over its kinds (Bonferroni by weight), None without a test."""
    values = [f.p / f.weight for f in findings if f.p is not None and f.weight > 0]
    return min(1.0, *values) if values else None


def vote(
    findings: Sequence[Finding], selected: bool, votes: Mapping[str, Sequence[int]], policy: DriftPolicy
) -> tuple[list[Verdict], dict[str, list[int]]]:
    """Return each kind's verdict and the votes to keep; tests count only when `selected` over the fleet."""
    verdicts = []
    kept: dict[str, list[int]] = {}
    for finding in findings:
        flagged = finding.over and (selected or finding.weight == 0)
        recent: list[int] = [*votes.get(finding.kind, ()), int(flagged)][-policy.of :]
        kept[finding.kind] = recent
        bad = LIKELY_HARM if finding.kind == "confidence" else DRIFTED
        state = bad if recent.count(1) >= policy.votes else SUSPECTED if 1 in recent else STABLE
        verdicts.append(Verdict(finding=finding, flagged=flagged, state=state))
    return verdicts, kept


def device_state(verdicts: Sequence[Verdict]) -> str:
    """Return the worst state of the kinds; missing samples alone are never more than suspected."""
    states = [SUSPECTED if v.finding.kind == "missing" and v.state == DRIFTED else v.state for v in verdicts]
    return max(states, key=STATES.index) if states else STABLE


def _parts(windows: Sequence[Window], name: str) -> list[Moments]:
    parts = [Moments.of(w.groups[name]) for w in windows if name in w.groups]
    return [m for m in parts if m.names == parts[0].names]


def _missing_share(moments: Moments) -> float:
    total = moments.n + moments.missing
    return moments.missing / total if total else 0.0


def _missing(reference: Reference, name: str, merged: Moments, policy: DriftPolicy) -> list[Finding]:
    share, usual = _missing_share(merged), reference.missing.get(name, 0.0)
    if name != "image":
        return []
    evidence = {"share": share, "usual": usual, "limit": policy.max_missing}
    over = share - usual > policy.max_missing
    return [
        Finding(
            kind="missing",
            n=merged.n + merged.missing,
            statistic=share - usual,
            p=None,
            weight=0.0,
            over=over,
            evidence=evidence,
        )
    ]


def _confidence(reference: Reference, windows: Sequence[Window], policy: DriftPolicy) -> list[Finding]:
    """Difference of confidence: the estimated loss of accuracy."""
    scored = [(w.confidence, w.n) for w in windows if w.confidence is not None and w.n > 0]
    if reference.confidence is None or not scored:
        return []
    n = sum(k for _, k in scored)
    drop = reference.confidence - sum(c * k for c, k in scored) / n
    spread = reference.confidence_sd * math.sqrt(1 / len(scored) + 1 / reference.windows)
    p = float(stats.t.sf(drop / spread, reference.windows - 1)) if spread > 0 else float(drop <= 0)
    evidence = {"reference": reference.confidence, "current": reference.confidence - drop, "limit": policy.harm_drop}
    over = drop >= policy.harm_drop and p <= policy.alpha
    return [Finding(kind="confidence", n=n, statistic=drop, p=p, weight=0.0, over=over, evidence=evidence)]


# The reference as JSON


def write_reference(reference: Reference) -> dict[str, Any]:
    return {
        "windows": reference.windows,
        "samples": reference.samples,
        "t0": reference.t0,
        "t1": reference.t1,
        "confidence": reference.confidence,
        "confidence_sd": reference.confidence_sd,
        "missing": dict(reference.missing),
        "groups": {name: _write_baseline(b) for name, b in reference.groups.items()},
    }


def read_reference(data: Mapping[str, Any]) -> Reference:
    return Reference(
        groups={name: _read_baseline(b) for name, b in data["groups"].items()},
        windows=data["windows"],
        samples=data["samples"],
        t0=data["t0"],
        t1=data["t1"],
        confidence=data["confidence"],
        confidence_sd=data["confidence_sd"],
        missing=data["missing"],
    )


def _write_baseline(baseline: Baseline) -> dict[str, Any]:
    total = baseline.total
    return {
        "names": list(total.names),
        "n": total.n,
        "mean": total.mean.tolist(),
        "scatter": total.scatter.tolist(),
        "hist": total.hist.astype(int).tolist(),
        "missing": total.missing,
        "covariance": baseline.covariance.tolist(),
        "n_window": baseline.n_window,
        "null": [baseline.null.mean, baseline.null.df, baseline.null.windows],
    }


def _read_baseline(data: Mapping[str, Any]) -> Baseline:
    total = Moments(
        names=tuple(data["names"]),
        n=data["n"],
        mean=np.asarray(data["mean"], float),
        scatter=np.asarray(data["scatter"], float),
        hist=np.asarray(data["hist"], float),
        missing=data["missing"],
    )
    mean, df, windows = data["null"]
    return Baseline(
        total=total,
        covariance=np.asarray(data["covariance"], float),
        n_window=data["n_window"],
        null=Null(mean=mean, df=df, windows=windows),
    )


def stored_test(row: Mapping[str, Any], evidence: Mapping[str, Any]) -> Comparison | None:
    """Return the test of a stored verdict, for pooling over devices."""
    if row["statistic"] is None or row["p"] is None or "z" not in evidence:
        return None
    return Comparison(statistic=row["statistic"], p=row["p"], n=row["n"], z=np.asarray(evidence["z"], float))
