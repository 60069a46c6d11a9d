"""Drift tests on the mergeable moments of telemetry windows: no raw samples, robust to samples that follow each other.

The test is Hotelling's T2 of a window's mean against the device's own baseline. Video frames are correlated over tens
of frames, so the spread of a mean is taken from the baseline's windows (not from samples) and the distribution of the
statistic from a block bootstrap over them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from edge_sdk.schemas.telemetry import FeatureGroup

Array = NDArray[np.float64]
RIDGE = 1e-6
SHRINK_WINDOWS = 10.0
BINS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """A group's samples in sum: count, mean (p), scatter (p, p), histogram (p, 32), samples left out."""

    names: tuple[str, ...]
    n: int
    mean: Array
    scatter: Array
    hist: Array
    missing: int

    @classmethod
    def of(cls, group: FeatureGroup) -> Moments:
        p = len(group.names)
        scatter = np.zeros((p, p))
        scatter[np.triu_indices(p)] = group.m2
        scatter = scatter + np.triu(scatter, 1).T
        hist = np.zeros((p, BINS))
        if len(group.hist) == p and all(len(row) == BINS for row in group.hist):
            hist = np.asarray(group.hist, float).reshape(p, BINS)
        return cls(
            names=group.names,
            n=group.n,
            mean=np.asarray(group.mean, float),
            scatter=scatter,
            hist=hist,
            missing=group.missing,
        )

    @property
    def usable(self) -> bool:
        """Whether it has samples and only finite numbers."""
        return self.n > 0 and bool(np.isfinite(self.mean).all() and np.isfinite(self.scatter).all())


@dataclass(frozen=True, slots=True, kw_only=True)
class Null:
    """How T2 behaves without drift: `T2 / mean` is about F(df, df * windows)."""

    mean: float
    df: float
    windows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A group's reference: merged moments, covariance (p, p) of the mean of `n_window` samples, and the null of T2."""

    total: Moments
    covariance: Array
    n_window: float
    null: Null


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """T2 of a window, its p-value, and each feature's standardised difference (p)."""

    statistic: float
    p: float
    n: int
    z: Array


def merge(parts: Sequence[Moments]) -> Moments:
    """Return the moments of all samples of `parts` together; unusable parts only add their missing counts."""
    good = [m for m in parts if m.usable]
    missing = sum(m.missing for m in parts) + sum(m.n for m in parts if not m.usable)
    if not good:
        p = len(parts[0].names)
        return Moments(
            names=parts[0].names,
            n=0,
            mean=np.zeros(p),
            scatter=np.zeros((p, p)),
            hist=np.zeros((p, BINS)),
            missing=missing,
        )
    counts = np.array([m.n for m in good], float)
    means = np.stack([m.mean for m in good])
    mean = counts @ means / counts.sum()
    away = means - mean
    scatter = np.sum([m.scatter for m in good], axis=0) + (away * counts[:, None]).T @ away
    hist = np.sum([m.hist for m in good], axis=0)
    return Moments(names=good[0].names, n=int(counts.sum()), mean=mean, scatter=scatter, hist=hist, missing=missing)


def fit_baseline(windows: Sequence[Moments], *, resamples: int, seed: int) -> Baseline | None:
    """Return the reference of a group from its baseline windows in time order, or None when fewer than 3 are usable.

    Blocks of about the cube root of the number of windows are drawn with replacement as a pseudo baseline; windows
    that were not drawn are tested against it.
    """
    good = [m for m in windows if m.usable and m.n > 1]
    if len(good) < 3:
        return None
    counts = np.array([m.n for m in good], float)
    means = np.stack([m.mean for m in good])
    scatters = np.stack([m.scatter for m in good])
    n_window = float(np.median(counts))
    covariance = _mean_covariance(counts, means, scatters, n_window)
    rng = np.random.default_rng(seed)
    block = max(1, round(len(good) ** (1 / 3))) if len(good) >= 8 else 1
    values = _bootstrap(counts, means, scatters, n_window=n_window, block=block, resamples=resamples, rng=rng)
    return Baseline(
        total=merge(good),
        covariance=covariance,
        n_window=n_window,
        null=_null(values, means.shape[1], len(good)),
    )


def hotelling(baseline: Baseline, window: Moments, *, min_n: int) -> Comparison | None:
    """Return T2 of `window` against its baseline, or None when it has fewer than `min_n` samples or other features."""
    if window.n < min_n or not window.usable or window.names != baseline.total.names:
        return None
    covariance = baseline.covariance * (baseline.n_window / window.n)
    difference = window.mean - baseline.total.mean
    statistic = _quadratic(difference, covariance)
    null = baseline.null
    p = float(stats.f.sf(statistic / null.mean, null.df, null.df * null.windows))
    scale = covariance.diagonal() * max(null.mean / len(window.names), 1e-12)
    return Comparison(statistic=statistic, p=p, n=window.n, z=difference / np.sqrt(np.maximum(scale, 1e-18)))


def pooled(tests: Sequence[Comparison]) -> tuple[float, float]:
    """Return (statistic, p) of the shift that many devices share, each against its own baseline.

    Every feature's standardised differences are averaged over devices; the largest is judged by Bonferroni, its spread
    taken from Student's t, since the devices' spreads are estimates.
    """
    z = np.stack([t.z for t in tests])
    count, p = z.shape
    mean = z.mean(axis=0) * math.sqrt(count)
    spread = np.maximum(1.0, z.std(axis=0, ddof=1)) if count > 2 else np.ones(p)
    values = np.abs(mean) / spread
    statistic = float(values.max())
    tail = stats.t.sf(statistic, count - 1) if count > 2 else stats.norm.sf(statistic)
    return statistic, float(min(1.0, 2.0 * p * tail))


def benjamini_hochberg(values: Sequence[float], rate: float) -> list[bool]:
    """Return which p-values are discoveries at false discovery rate `rate`; NaN never is."""
    p = np.array([1.0 if math.isnan(v) else v for v in values], float)
    if not len(p):
        return []
    order = np.argsort(p, kind="stable")
    passed = np.nonzero(p[order] <= rate * np.arange(1, len(p) + 1) / len(p))[0]
    limit = p[order][passed[-1]] if len(passed) else -1.0
    return [bool(v <= limit) for v in p]


def histogram_evidence(reference: Array, current: Array) -> dict[str, float]:
    """Return PSI, KS, JS, Wasserstein and the chi2 p-value of two histograms over equal bins of [0, 1].

    Counts are smoothed by half a count over the bins, so that empty bins stay finite; JS is in bits, Wasserstein in
    units of the feature.
    """
    if reference.sum() <= 0 or current.sum() <= 0:
        return {}
    a, b = _smooth(reference), _smooth(current)
    raw_a, raw_b = reference / reference.sum(), current / current.sum()
    gap = np.cumsum(raw_a - raw_b)
    middle = (a + b) / 2
    js = float((a * np.log2(a / middle)).sum() / 2 + (b * np.log2(b / middle)).sum() / 2)
    used = (reference + current) > 0
    chi2_p = 1.0
    if used.sum() > 1:
        chi2_p = float(stats.chi2_contingency(np.stack([reference[used], current[used]]), correction=False).pvalue)
    return {
        "psi": float(((a - b) * np.log(a / b)).sum()),
        "ks": float(np.abs(gap).max()),
        "js": js,
        "wasserstein": float(np.abs(gap).sum() / len(gap)),
        "chi2_p": chi2_p,
    }


def feature_evidence(baseline: Baseline, window: Moments, test: Comparison) -> list[dict[str, Any]]:
    """Return each feature's evidence, most changed first: means, z and the histogram distances."""
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(window.names):
        row: dict[str, Any] = {
            "feature": name,
            "reference": float(baseline.total.mean[i]),
            "current": float(window.mean[i]),
            "z": float(np.clip(test.z[i], -1e6, 1e6)),
            **histogram_evidence(baseline.total.hist[i], window.hist[i]),
        }
        row["reference_hist"] = [int(v) for v in baseline.total.hist[i]]
        row["current_hist"] = [int(v) for v in window.hist[i]]
        rows.append(row)
    return sorted(rows, key=lambda r: -abs(r["z"]))


def _mean_covariance(counts: Array, means: Array, scatters: Array, n_window: float) -> Array:
    """Return the covariance (p, p) of the mean of a window of `n_window` samples.

    The samples' own covariance, each variance raised (at least by 1) to what the windows' means show, since samples
    follow each other; the raise is shrunk towards its median over features. A ridge carries constant and tied features.
    """
    dof = max(float((counts - 1).sum()), 1.0)
    within = scatters.sum(axis=0) / dof
    variance = np.maximum(within.diagonal(), 1e-12)
    centre = counts @ means / counts.sum()
    away = (means - centre) * np.sqrt(counts)[:, None]
    windows = len(counts)
    inflation = (away**2).sum(axis=0) / (windows - 1) / variance
    inflation = np.minimum(inflation, 1e6)
    shrunk = (SHRINK_WINDOWS * np.median(inflation) + (windows - 1) * inflation) / (SHRINK_WINDOWS + windows - 1)
    root = np.sqrt(np.maximum(shrunk, 1.0))
    covariance: Array = within * np.outer(root, root) / n_window
    ridge = RIDGE / n_window + 0.02 * covariance.diagonal()
    return covariance * (windows + 1) / windows + np.diag(ridge)


def _bootstrap(
    counts: Array,
    means: Array,
    scatters: Array,
    *,
    n_window: float,
    block: int,
    resamples: int,
    rng: np.random.Generator,
) -> Array:
    size = len(counts)
    values: list[float] = []
    for _ in range(resamples):
        starts = rng.integers(0, size, math.ceil(size / block))
        drawn = ((starts[:, None] + np.arange(block)) % size).ravel()[:size]
        left = np.setdiff1d(np.arange(size), drawn)
        kept = np.unique(drawn)
        if len(left) == 0 or len(kept) < 2:
            continue
        covariance = _mean_covariance(counts[kept], means[kept], scatters[kept], n_window)
        centre = counts[drawn] @ means[drawn] / counts[drawn].sum()
        away = (means[left] - centre) * np.sqrt(counts[left] / n_window)[:, None]
        solved = np.linalg.solve(covariance, away.T)
        values += list((away * solved.T).sum(axis=1))
    return np.asarray(values)


def _null(values: Array, p: int, windows: int) -> Null:
    """Match the bootstrap's mean and variance (Satterthwaite); p degrees of freedom at most, one at least."""
    if not len(values):
        return Null(mean=float(p), df=1.0, windows=windows)
    mean = max(float(values.mean()), 1e-9)
    spread = max(float(values.var()), 1e-12)
    return Null(mean=max(mean, 0.5 * p), df=float(np.clip(2 * mean * mean / spread, 1.0, p)), windows=windows)


def _quadratic(difference: Array, covariance: Array) -> float:
    return max(float(difference @ np.linalg.solve(covariance, difference)), 0.0)


def _smooth(counts: Array) -> Array:
    raised = counts + 0.5 / len(counts)
    out: Array = raised / raised.sum()
    return out
