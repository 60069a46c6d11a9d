"""Guards of a rollout that may be looked at as often as one likes: e-processes and plain counts.

An e-process starts at 1, has expectation at most 1 at any stopping time when the release is no worse, so that by
Ville's inequality it ever reaches 1/alpha with probability at most alpha. The mean of e-processes is one too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cloud_sync.policies import RolloutPolicy

RATIOS = (1.5, 2.0, 3.0, 4.0, 8.0, 16.0)
STAKES = (0.1, 0.25, 0.5, 0.75, 0.95)
STATISTICAL = ("errors", "error_share", "slow", "confidence")
HISTORY_PRIOR = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one telemetry window says of one device: shares in [0, 1] of its processed frames, `t` in seconds.

    `confidence` is the mean top score, 0 where the model found nothing.
    """

    device: str
    t: float
    error_share: float
    slow_share: float
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A device's windows before the rollout: how many, how many had an error, mean shares, mean confidence."""

    windows: int = 0
    error_windows: int = 0
    error_share: float = 0.0
    slow_share: float = 0.0
    confidence: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Error windows of one time bin: `share` is the canary's part of the errors expected when nothing changed."""

    share: float
    canary: int
    rest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardResult:
    """One guard's standing; it is tripped when `value` has reached `limit`. `action` is what a trip asks for."""

    name: str
    value: float
    limit: float
    tripped: bool
    detail: str
    action: str = "rollback"


def error_evidence(bins: Iterable[Bin]) -> float:
    """Return the e-value against "the canary's error rate is at most the rest's", a mixture over rate ratios RATIOS.

    For bins i with canary share f of the expected errors it is the mean over ratios r of
    prod_i r^xc (1 / (r f + 1 - f))^(xc + xb): given how many errors a bin has, the canary's are binomial.
    """
    logs = [0.0] * len(RATIOS)
    for item in bins:
        f = min(max(item.share, 0.0), 1.0)
        total = item.canary + item.rest
        if total == 0 or f in (0.0, 1.0):
            continue
        for k, ratio in enumerate(RATIOS):
            logs[k] += item.canary * math.log(ratio) - total * math.log(ratio * f + 1.0 - f)
    return _mean_exp(logs)


def betting_evidence(payoffs: Iterable[tuple[float, float]]) -> float:
    """Return the e-value against "every payoff has mean at most 0" (arXiv 2010.09686), a mixture over STAKES.

    `payoffs` are (payoff, lowest possible payoff < 0) of successive windows; a stake is a part of the highest safe one.
    """
    logs = [0.0] * len(STAKES)
    for payoff, lowest in payoffs:
        for k, stake in enumerate(STAKES):
            logs[k] += math.log1p(stake * payoff / -lowest)
    return _mean_exp(logs)


def share_evidence(shares: Iterable[tuple[float, float]]) -> float:
    """Return the e-value against "the mean share is at most the limit", for (share, limit) of successive windows."""
    return betting_evidence((share - limit, -limit) for share, limit in shares)


def device_weight(history: History, fleet_rate: float, *, prior: float = 2.0) -> float:
    """Return a device's error rate over the fleet's by its own history, shrunk to 1: (a + y) / (a + rate windows)."""
    return (prior + history.error_windows) / (prior + fleet_rate * history.windows)


def evaluate(
    policy: RolloutPolicy,
    *,
    canary: Sequence[Observation],
    rest: Sequence[Observation],
    history: Mapping[str, History],
    devices: int,
    failed: int,
    silent: int,
) -> list[GuardResult]:
    """Return every guard of a rollout.

    `canary` are windows made by the new artifact since the rollout began, `rest` those of devices still on another one,
    both in the order in which they came. `devices`, `failed` and `silent` count the devices that were told to change.
    The statistical guards share `policy.alpha` equally.
    """
    limit = len(STATISTICAL) / policy.alpha
    errors = _errors(policy, canary, rest, history)
    values = {
        "errors": (errors, f"{_error_windows(canary)} of {len(canary)} windows of the new release had errors"),
        "error_share": (
            share_evidence((o.error_share, _limit(policy.max_error_share, history, o, "error_share")) for o in canary),
            f"{_mean(o.error_share for o in canary):.1%} of frames failed",
        ),
        "slow": (
            share_evidence((o.slow_share, _limit(policy.max_slow, history, o, "slow_share")) for o in canary),
            f"{_mean(o.slow_share for o in canary):.1%} of inferences took over twice the usual p95",
        ),
        "confidence": (
            _confidence(policy, canary, rest, history),
            f"mean confidence {_mean(o.confidence for o in canary):.3f}",
        ),
    }
    results = [
        GuardResult(name=name, value=min(value, 1e12), limit=limit, tripped=value >= limit, detail=detail)
        for name, (value, detail) in values.items()
    ]
    most_failed, most_silent = count_limit(policy.max_failed, devices), count_limit(policy.max_silent, devices)
    failed_text, silent_text = f"{failed} of {devices} devices failed", f"{silent} of {devices} devices are silent"
    return [
        *results,
        GuardResult(
            name="failures", value=failed, limit=most_failed, tripped=failed >= most_failed, detail=failed_text
        ),
        GuardResult(
            name="silent",
            value=silent,
            limit=most_silent,
            tripped=silent >= most_silent,
            detail=silent_text,
            action="hold",
        ),
    ]


def count_limit(share: float, devices: int) -> int:
    """Return how many bad devices trip a count guard: more than `share`, at least 2, but half of a very small stage."""
    return max(1, min(2, math.ceil(devices / 2)), math.floor(share * devices) + 1 if devices else 1)


def expected_errors(canary_windows: int, history: Mapping[str, History]) -> float:
    """Return how many error windows the canary would have had at the rate of the devices' history."""
    windows = sum(h.windows for h in history.values())
    return canary_windows * sum(h.error_windows for h in history.values()) / windows if windows else 0.0


def time_bins(
    canary: Sequence[Observation], rest: Sequence[Observation], history: Mapping[str, History], *, bin_s: float
) -> list[Bin]:
    """Return the error windows of both arms by time bin, the expected share weighted by each device's own history."""
    weights = _weights(history)
    expected: dict[int, list[float]] = {}
    errors: dict[int, list[int]] = {}
    for arm, observations in enumerate((canary, rest)):
        for item in observations:
            key = int(item.t // bin_s)
            expected.setdefault(key, [0.0, 0.0])[arm] += weights.get(item.device, 1.0)
            errors.setdefault(key, [0, 0])[arm] += item.error_share > 0
    return [
        Bin(share=e[0] / (e[0] + e[1]), canary=errors[k][0], rest=errors[k][1]) for k, e in sorted(expected.items())
    ]


def _errors(
    policy: RolloutPolicy, canary: Sequence[Observation], rest: Sequence[Observation], history: Mapping[str, History]
) -> float:
    """The mean of two e-processes: against the rest of the fleet in the same bins, and the devices' own past."""
    concurrent = error_evidence(time_bins(canary, rest, history, bin_s=policy.bin_s))
    own = [history[d] for d in {o.device for o in canary} if d in history]
    past = sum(h.windows for h in own)
    seen = [o for o in canary if history.get(o.device, History()).windows]
    if not past or not seen:
        return concurrent
    # The gamma-Poisson predictive of the canary's count given the past: the same formula with the past as the rest.
    weight = len(seen) / (len(seen) + past + 1.0)
    x, y = _error_windows(seen), sum(h.error_windows for h in own) + HISTORY_PRIOR
    logs = [x * math.log(r) - (x + y) * math.log(r * weight + 1.0 - weight) for r in RATIOS]
    return (concurrent + _mean_exp(logs)) / 2.0


def _confidence(
    policy: RolloutPolicy, canary: Sequence[Observation], rest: Sequence[Observation], history: Mapping[str, History]
) -> float:
    """Bets that confidence fell below the device's own past by more than allowed, and by more than the rest's fell."""
    drops: dict[int, list[float]] = {}
    for item in rest:
        before = history.get(item.device, History()).confidence
        if before is not None:
            drops.setdefault(int(item.t // policy.bin_s), []).append(before - item.confidence)
    payoffs = []
    for item in canary:
        before = history.get(item.device, History()).confidence
        if before is None:
            continue
        common = max(_mean(drops.get(int(item.t // policy.bin_s), ())), 0.0)
        floor = before - policy.max_confidence_drop - common
        if floor > 0.0:
            payoffs.append((floor - item.confidence, min(floor - 1.0, -0.05)))
    return betting_evidence(payoffs)


def _limit(base: float, history: Mapping[str, History], item: Observation, field: str) -> float:
    past: float = getattr(history.get(item.device, History()), field)
    return min(max(base, 2.0 * past), 0.95)


def _weights(history: Mapping[str, History]) -> dict[str, float]:
    windows = sum(h.windows for h in history.values())
    rate = sum(h.error_windows for h in history.values()) / windows if windows else 0.0
    return {device: device_weight(h, rate) for device, h in history.items()}


def _error_windows(observations: Iterable[Observation]) -> int:
    return sum(o.error_share > 0 for o in observations)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def _mean_exp(logs: Sequence[float]) -> float:
    top = max(logs)
    return math.exp(min(top, 700.0)) * sum(math.exp(v - top) for v in logs) / len(logs)
