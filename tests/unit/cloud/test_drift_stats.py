"""The drift tests on simulated windows: false alarms, power, and data that breaks naive statistics."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cloud_sync.drift.stats import (
    BINS,
    Comparison,
    Moments,
    benjamini_hochberg,
    feature_evidence,
    fit_baseline,
    histogram_evidence,
    hotelling,
    merge,
    pooled,
)
from edge_sdk.schemas.telemetry import FeatureGroup


def moments(rows: NDArray[np.float64], missing: int = 0) -> Moments:
    n, p = rows.shape
    mean = rows.mean(axis=0)
    away = rows - mean
    hist = np.stack([np.histogram(np.clip(rows[:, j], 0, 1), BINS, (0, 1))[0] for j in range(p)])
    group = FeatureGroup(
        names=tuple(f"f{j}" for j in range(p)),
        n=n,
        mean=tuple(mean),
        m2=tuple((away.T @ away)[np.triu_indices(p)]),
        hist=tuple(tuple(int(v) for v in h) for h in hist),
        missing=missing,
    )
    return Moments.of(group)


def stream(rng: np.random.Generator, total: int, p: int, phi: float) -> NDArray[np.float64]:
    """Correlated features whose samples follow each other with autocorrelation `phi`."""
    noise = rng.normal(size=(total, p))
    rows = np.zeros((total, p))
    rows[0] = noise[0]
    for t in range(1, total):
        rows[t] = phi * rows[t - 1] + np.sqrt(1 - phi**2) * noise[t]
    mix = np.eye(p) + 0.3 * rng.normal(size=(p, p))
    return 0.5 + 0.08 * (rows @ mix)


def cut(rows: NDArray[np.float64], n: int) -> list[Moments]:
    return [moments(rows[i : i + n]) for i in range(0, len(rows), n)]


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.95])
def test_false_alarms_stay_below_their_rate_whether_or_not_samples_follow_each_other(phi: float) -> None:
    rng = np.random.default_rng(11)
    p_values = []
    for trial in range(25):
        windows = cut(stream(rng, 200 * 18, 12, phi), 200)
        baseline = fit_baseline(windows[:10], resamples=60, seed=trial)
        assert baseline is not None
        tests = [hotelling(baseline, w, min_n=50) for w in windows[10:]]
        p_values += [t.p for t in tests if t is not None]
    rate = float(np.mean(np.array(p_values) < 0.05))
    assert len(p_values) == 200
    assert rate <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_a_shift_of_half_a_standard_deviation_in_one_feature_is_found() -> None:
    rng = np.random.default_rng(12)
    found = 0
    for trial in range(20):
        rows = stream(rng, 200 * 11, 12, 0.0)
        baseline = fit_baseline(cut(rows[:2000], 200), resamples=60, seed=trial)
        assert baseline is not None
        rows[2000:, 3] += 0.5 * rows[:2000, 3].std()
        test = hotelling(baseline, moments(rows[2000:]), min_n=50)
        found += test is not None and test.p < 0.005
        assert test is not None
        assert int(np.abs(test.z).argmax()) == 3
    assert found >= 19


def test_windows_below_the_least_size_or_with_other_features_are_refused() -> None:
    rng = np.random.default_rng(13)
    baseline = fit_baseline(cut(stream(rng, 1000, 4, 0.0), 100), resamples=50, seed=0)
    assert baseline is not None
    assert hotelling(baseline, moments(stream(rng, 49, 4, 0.0)), min_n=50) is None
    assert hotelling(baseline, moments(stream(rng, 100, 5, 0.0)), min_n=50) is None


def test_constant_and_identical_features_give_finite_answers_and_still_alarm_when_they_move() -> None:
    rng = np.random.default_rng(14)
    rows = stream(rng, 1100, 3, 0.0)
    rows = np.column_stack([rows, np.full(1100, 0.25), rows[:, 0]])
    baseline = fit_baseline(cut(rows[:1000], 100), resamples=50, seed=0)
    assert baseline is not None
    same = hotelling(baseline, moments(rows[1000:]), min_n=50)
    rows[1000:, 3] = 0.5
    moved = hotelling(baseline, moments(rows[1000:]), min_n=50)
    assert same is not None
    assert moved is not None
    assert np.isfinite(same.statistic)
    assert same.p > 0.01
    assert moved.p < 1e-6


def test_a_window_with_nan_counts_as_missing_and_never_as_drift() -> None:
    rng = np.random.default_rng(15)
    good = cut(stream(rng, 1000, 3, 0.0), 100)
    broken = Moments(
        names=good[0].names,
        n=100,
        mean=np.array([np.nan, 0.5, 0.5]),
        scatter=np.eye(3),
        hist=np.zeros((3, BINS)),
        missing=0,
    )
    assert merge([good[0], broken]).missing == 100
    assert merge([good[0], broken]).n == 100
    baseline = fit_baseline([*good, broken], resamples=50, seed=0)
    assert baseline is not None
    assert hotelling(baseline, broken, min_n=50) is None
    assert merge([broken]).n == 0


def test_merged_moments_are_those_of_all_samples_together() -> None:
    rows = stream(np.random.default_rng(16), 300, 4, 0.3)
    together, parts = moments(rows), merge([moments(rows[:40]), moments(rows[40:120]), moments(rows[120:])])
    np.testing.assert_allclose(parts.mean, together.mean)
    np.testing.assert_allclose(parts.scatter, together.scatter)
    np.testing.assert_array_equal(parts.hist, together.hist)


def test_equal_seeds_give_equal_baselines() -> None:
    windows = cut(stream(np.random.default_rng(17), 1200, 4, 0.3), 100)
    first, second = (fit_baseline(windows, resamples=60, seed=5) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.null == second.null


def test_two_usable_windows_make_no_baseline() -> None:
    assert fit_baseline(cut(stream(np.random.default_rng(1), 200, 3, 0.0), 100), resamples=50, seed=0) is None


def test_pooling_finds_a_small_shift_that_every_device_has_and_stays_quiet_without() -> None:
    rng = np.random.default_rng(18)

    def device(shift: float) -> Comparison:
        z = rng.normal(size=6)
        z[2] += shift
        return Comparison(statistic=float(z @ z), p=0.5, n=200, z=z)

    quiet = [pooled([device(0.0) for _ in range(40)])[1] for _ in range(200)]
    assert np.mean(np.array(quiet) < 0.01) <= 0.03
    assert pooled([device(0.9) for _ in range(40)])[1] < 0.01


def test_benjamini_hochberg_keeps_the_false_discovery_rate_and_survives_nan() -> None:
    assert benjamini_hochberg([0.01, 0.5, float("nan"), 0.02], 0.10) == [True, False, False, True]
    assert benjamini_hochberg([0.09], 0.10) == [True]
    assert benjamini_hochberg([0.09, 0.9, 0.9], 0.10) == [False, False, False]
    assert benjamini_hochberg([], 0.10) == []


def test_histogram_distances_are_zero_for_equal_and_large_for_moved_histograms() -> None:
    a = np.zeros(BINS)
    a[5:9] = 50
    b = np.roll(a, 16)
    same, moved = histogram_evidence(a, a), histogram_evidence(a, b)
    assert same["psi"] == pytest.approx(0)
    assert same["chi2_p"] == pytest.approx(1)
    assert moved["ks"] == pytest.approx(1)
    assert moved["wasserstein"] == pytest.approx(0.5)
    assert moved["js"] > 0.9
    assert moved["psi"] > 0.2
    assert moved["chi2_p"] < 1e-6
    assert histogram_evidence(a, np.zeros(BINS)) == {}


def test_evidence_names_the_most_changed_feature_first() -> None:
    rng = np.random.default_rng(19)
    rows = stream(rng, 1100, 4, 0.0)
    baseline = fit_baseline(cut(rows[:1000], 100), resamples=50, seed=0)
    rows[1000:, 2] += 0.2
    assert baseline is not None
    window = moments(rows[1000:])
    test = hotelling(baseline, window, min_n=50)
    assert test is not None
    evidence = feature_evidence(baseline, window, test)
    assert evidence[0]["feature"] == "f2"
    assert sum(evidence[0]["current_hist"]) == 100
