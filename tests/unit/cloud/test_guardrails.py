"""Guards may be looked at after every window: how often they cry wolf, and how soon they see a bad release."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from cloud_sync.policies import RolloutPolicy
from cloud_sync.rollout.guardrails import (
    Bin,
    History,
    Observation,
    betting_evidence,
    count_limit,
    device_weight,
    error_evidence,
    evaluate,
    expected_errors,
    share_evidence,
)

POLICY = RolloutPolicy()


def seen(device: str, t: float, errors: float = 0.0, slow: float = 0.0, confidence: float = 0.8) -> Observation:
    return Observation(device=device, t=t, error_share=errors, slow_share=slow, confidence=confidence)


def tripped(results) -> set[str]:  # type: ignore[no-untyped-def]
    return {r.name for r in results if r.tripped}


def test_the_error_evidence_has_expectation_one_when_the_release_is_no_worse() -> None:
    for share, total in product((0.1, 0.5, 0.9), (1, 4)):
        mean = sum(
            math.comb(total, x)
            * share**x
            * (1 - share) ** (total - x)
            * error_evidence([Bin(share=share, canary=x, rest=total - x)])
            for x in range(total + 1)
        )
        assert mean == pytest.approx(1.0)


def test_the_error_evidence_follows_the_written_formula() -> None:
    bins = [Bin(share=0.2, canary=3, rest=1), Bin(share=0.25, canary=2, rest=2)]
    ratios = (1.5, 2.0, 3.0, 4.0, 8.0, 16.0)
    direct = np.mean(
        [
            np.prod([r**b.canary * (1 / (r * b.share + 1 - b.share)) ** (b.canary + b.rest) for b in bins])
            for r in ratios
        ]
    )
    assert error_evidence(bins) == pytest.approx(float(direct))


def test_the_betting_evidence_never_exceeds_its_start_in_expectation() -> None:
    for share, limit in ((0.05, 0.05), (0.02, 0.05), (0.3, 0.5)):
        mean = share * share_evidence([(1.0, limit)]) + (1 - share) * share_evidence([(0.0, limit)])
        assert mean <= 1.0 + 1e-12
    assert betting_evidence([]) == 1.0


def simulate(rng: np.random.Generator, *, ratio: float, windows: int, devices: int = 40, canary: int = 8) -> int | None:
    """Return after how many windows a device the errors guard trips, looked at each time; None when it never does."""
    rates = rng.gamma(2.0, 0.02, devices)
    history = {
        f"d{i}": History(windows=50, error_windows=int(rng.binomial(50, rates[i])), confidence=0.8)
        for i in range(devices)
    }
    arms: tuple[list[Observation], list[Observation]] = ([], [])
    for step in range(windows):
        bad = rng.random(devices) < np.minimum(rates * np.where(np.arange(devices) < canary, ratio, 1.0), 1.0)
        for i in range(devices):
            arms[0 if i < canary else 1].append(seen(f"d{i}", step * 3600.0, errors=0.01 * bad[i]))
        result = evaluate(POLICY, canary=arms[0], rest=arms[1], history=history, devices=canary, failed=0, silent=0)
        if "errors" in tripped(result):
            return step + 1
    return None


def test_a_release_that_is_no_worse_is_almost_never_rolled_back_however_often_one_looks() -> None:
    rng = np.random.default_rng(7)
    alarms = sum(simulate(rng, ratio=1.0, windows=30) is not None for _ in range(80))
    assert alarms <= 1  # the bound is alpha / 4 = .0025 a rollout


def test_a_release_with_four_times_the_errors_is_found() -> None:
    rng = np.random.default_rng(8)
    found = [simulate(rng, ratio=4.0, windows=60) for _ in range(12)]
    assert sum(f is not None for f in found) >= 11


def test_a_release_that_fails_on_every_frame_is_found_within_three_windows() -> None:
    canary = [seen("d0", t, errors=1.0) for t in range(3)]
    rest = [seen(f"d{i}", t) for i in range(1, 5) for t in range(3)]
    results = evaluate(POLICY, canary=canary, rest=rest, history={}, devices=1, failed=0, silent=0)
    assert "error_share" in tripped(results)
    assert "100.0% of frames failed" in next(r.detail for r in results if r.name == "error_share")


def test_a_burst_of_errors_in_one_window_trips_nothing() -> None:
    canary = [seen("d0", t, errors=0.3 * (t == 4)) for t in range(20)]
    assert not tripped(evaluate(POLICY, canary=canary, rest=[], history={}, devices=1, failed=0, silent=0))


def test_slow_inferences_trip_and_the_usual_one_in_twenty_does_not() -> None:
    rng = np.random.default_rng(3)
    usual = [seen("d0", t, slow=float(rng.binomial(200, 0.05) / 200)) for t in range(200)]
    slow = [seen("d0", t, slow=0.6) for t in range(8)]
    assert not tripped(evaluate(POLICY, canary=usual, rest=[], history={}, devices=1, failed=0, silent=0))
    assert tripped(evaluate(POLICY, canary=slow, rest=[], history={}, devices=1, failed=0, silent=0)) == {"slow"}


def test_lost_confidence_trips_unless_the_rest_of_the_fleet_lost_it_too() -> None:
    history = {f"d{i}": History(windows=20, confidence=0.9) for i in range(5)}
    canary = [seen("d0", t, confidence=0.45) for t in range(12)]
    well = [seen(f"d{i}", t, confidence=0.9) for i in range(1, 5) for t in range(12)]
    dark = [seen(f"d{i}", t, confidence=0.45) for i in range(1, 5) for t in range(12)]
    assert tripped(evaluate(POLICY, canary=canary, rest=well, history=history, devices=1, failed=0, silent=0)) == {
        "confidence"
    }
    assert not tripped(evaluate(POLICY, canary=canary, rest=dark, history=history, devices=1, failed=0, silent=0))


def test_confidence_that_varies_around_its_past_trips_nothing() -> None:
    rng = np.random.default_rng(5)
    history = {"d0": History(windows=20, confidence=0.8)}
    canary = [seen("d0", t, confidence=float(np.clip(rng.normal(0.79, 0.1), 0, 1))) for t in range(300)]
    assert not tripped(evaluate(POLICY, canary=canary, rest=[], history=history, devices=1, failed=0, silent=0))


def test_without_any_rest_the_devices_own_past_finds_a_bad_release() -> None:
    history = {"d0": History(windows=50, error_windows=1, confidence=0.8)}
    canary = [seen("d0", t, errors=0.02) for t in range(10)]
    assert "errors" in tripped(evaluate(POLICY, canary=canary, rest=[], history=history, devices=1, failed=0, silent=0))


@pytest.mark.parametrize(
    ("share", "devices", "limit"), [(0.05, 1, 1), (0.05, 2, 1), (0.05, 5, 2), (0.05, 100, 6), (0.05, 0, 1)]
)
def test_how_many_bad_devices_are_too_many_depends_on_the_stage(share: float, devices: int, limit: int) -> None:
    assert count_limit(share, devices) == limit


def test_failed_devices_ask_for_a_roll_back_and_silent_ones_for_a_hold() -> None:
    results = evaluate(POLICY, canary=[], rest=[], history={}, devices=1, failed=1, silent=1)
    assert {(r.name, r.action) for r in results if r.tripped} == {("failures", "rollback"), ("silent", "hold")}
    assert {r.detail for r in results if r.tripped} == {"1 of 1 devices failed", "1 of 1 devices are silent"}


def test_a_device_with_more_errors_in_its_past_is_expected_to_have_more() -> None:
    noisy, quiet = History(windows=100, error_windows=30), History(windows=100, error_windows=0)
    assert device_weight(noisy, 0.05) > 1 > device_weight(quiet, 0.05)
    assert expected_errors(10, {"a": noisy, "b": quiet}) == pytest.approx(1.5)
