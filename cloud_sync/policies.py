"""Sections of `serve.toml` for trust, rollouts, drift and retraining; every default suits a real fleet."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Literal

DAY_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustPolicy:
    """`[trust]`: how long signed metadata lives, in days; online roles are signed again when half of it is over."""

    root_days: float = field(default=365, metadata={"min": 0.0001})
    targets_days: float = field(default=365, metadata={"min": 0.0001})
    profile_days: float = field(default=30, metadata={"min": 0.0001})
    snapshot_days: float = field(default=7, metadata={"min": 0.0001})
    timestamp_days: float = field(default=1, metadata={"min": 0.0001})


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPolicy:
    """`[rollout]`: what a rollout does unless it is created otherwise; times in seconds, shares in [0, 1].

    `first_devices` is the least size of the first stage, cut to a fifth of the fleet; every profile has at least one
    device in it. A stage is passed when all its devices are at an end, `soak_s` went by since, each committed device
    sent `min_windows` windows with the new artifact and the stage `min_stage_windows` together, the expected number of
    error windows reached `min_expected_errors`, and no guard tripped; without that evidence it is held after
    `evidence_timeout_s`. A device that does not move for `silent_after_s` is silent.
    """

    stages: tuple[int, ...] = (1, 10, 50, 100)
    soak_s: float = field(default=3600, metadata={"min": 0})
    bake_s: float = field(default=DAY_S, metadata={"min": 0})
    holdback: float = field(default=0.05, metadata={"min": 0, "max": 0.5})
    first_devices: int = field(default=10, metadata={"min": 1})
    min_windows: int = field(default=3, metadata={"min": 0})
    min_stage_windows: int = field(default=12, metadata={"min": 0})
    min_expected_errors: float = field(default=0, metadata={"min": 0})
    evidence_timeout_s: float = field(default=7 * DAY_S, metadata={"min": 0})
    silent_after_s: float = field(default=3600, metadata={"min": 0.1})
    failed_after_s: float = field(default=600, metadata={"min": 0})
    trial_s: float = field(default=60, metadata={"min": 0})
    approval: bool = False
    alpha: float = field(default=0.01, metadata={"min": 1e-9, "max": 0.5})
    max_failed: float = field(default=0.05, metadata={"min": 0, "max": 1})
    max_silent: float = field(default=0.2, metadata={"min": 0, "max": 1})
    max_slow: float = field(default=0.05, metadata={"min": 0.001, "max": 0.9})
    max_error_share: float = field(default=0.05, metadata={"min": 0.001, "max": 0.9})
    max_confidence_drop: float = field(default=0.05, metadata={"min": 0, "max": 1})
    bin_s: float = field(default=3600, metadata={"min": 0.1})
    history_windows: int = field(default=50, metadata={"min": 1})

    def __post_init__(self) -> None:
        check_stages(self.stages)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftPolicy:
    """`[drift]`: when a baseline is complete and what counts as drift.

    A baseline takes the first `baseline_windows` windows of a device under one model, more until they hold
    `baseline_samples` samples and span `baseline_span_s`. Windows are merged until they hold `enough_n` samples, which
    may not be set below `min_n`. A device has drifted by the votes of `votes` of its last `of` merged windows.
    `alpha` is for one device and all its groups, `fleet_alpha` for the pooled test.
    """

    baseline_windows: int = field(default=10, metadata={"min": 4})
    baseline_samples: int = field(default=1000, metadata={"min": 1})
    baseline_span_s: float = field(default=DAY_S, metadata={"min": 0})
    min_n: int = field(default=50, metadata={"min": 2})
    enough_n: int = field(default=100, metadata={"min": 2})
    alpha: float = field(default=0.01, metadata={"min": 1e-9, "max": 0.5})
    fleet_alpha: float = field(default=0.01, metadata={"min": 1e-9, "max": 0.5})
    fdr: float = field(default=0.10, metadata={"min": 1e-6, "max": 1})
    votes: int = field(default=2, metadata={"min": 1})
    of: int = field(default=3, metadata={"min": 1})
    harm_drop: float = field(default=0.05, metadata={"min": 0, "max": 1})
    max_missing: float = field(default=0.10, metadata={"min": 0, "max": 1})
    bootstrap: int = field(default=400, metadata={"min": 50, "max": 20000})
    keep: int = field(default=500, metadata={"min": 10})

    def __post_init__(self) -> None:
        if self.votes > self.of:
            raise ValueError(f"votes is {self.votes}, more than `of` {self.of}")
        if self.min_n > self.enough_n:
            raise ValueError(f"min_n is {self.min_n}, more than enough_n {self.enough_n}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainPolicy:
    """`[retrain]`: what starts the trainer, and the gate that its result must pass.

    `command` is an argument list run without a shell; empty turns retraining off. `devices` is how many devices must be
    in one of the states `on`. `schedule_s` 0 means no schedule. `non_inferiority` is the loss that is accepted on the
    primary metric; unset, the candidate must be better.
    """

    command: tuple[str, ...] = ()
    on: tuple[Literal["likely_harm", "drifted"], ...] = ("likely_harm",)
    devices: int = field(default=1, metadata={"min": 1})
    cooldown_s: float = field(default=7 * DAY_S, metadata={"min": 0})
    schedule_s: float = field(default=0, metadata={"min": 0})
    timeout_s: float = field(default=6 * 3600, metadata={"min": 0.1})
    rollout: Literal["auto", "approval", "none"] = "approval"
    alpha: float = field(default=0.05, metadata={"min": 1e-6, "max": 0.5})
    non_inferiority: float | None = field(default=None, metadata={"min": 0, "max": 1})
    slice_loss: float = field(default=0.01, metadata={"min": 0, "max": 1})
    slice_n: int = field(default=30, metadata={"min": 1})
    bootstrap: int = field(default=2000, metadata={"min": 100, "max": 100000})


def check_stages(stages: tuple[int, ...]) -> None:
    """Refuse stages that are not rising percentages that end at 100.

    Raises:
        ValueError: they are not.
    """
    rising = all(a < b for a, b in itertools.pairwise(stages))
    if not stages or not rising or stages[0] < 1 or stages[-1] != 100:
        raise ValueError(f"stages {list(stages)} are not rising percentages from 1 that end at 100")
