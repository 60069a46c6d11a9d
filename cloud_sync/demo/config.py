"""The configuration files of the demo: the product's own, with periods of seconds where a fleet has hours and days."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CAMERA_FPS = 10.0
DEVICES = 5
SAMPLE_PERIOD_S = 0.1
WINDOW_N = 16
TRIAL_S = 2.5

SERVE: dict[str, dict[str, Any]] = {
    "": {"control_period_s": 0.5, "console_period_s": 1.0},
    "devices": {"silent_after_s": 20.0},
    "rollout": {
        "stages": [20, 60, 100],
        "first_devices": 1,
        "soak_s": 1.0,
        "bake_s": 2.0,
        "holdback": 0.0,
        "min_windows": 1,
        "min_stage_windows": 2,
        "silent_after_s": 60.0,
        "failed_after_s": 2.0,
        "trial_s": TRIAL_S,
        "bin_s": 2.0,
    },
    "drift": {
        "baseline_windows": 8,
        "baseline_samples": 120,
        "baseline_span_s": 12.0,
        "min_n": 30,
        "enough_n": 32,
    },
}


def serve_toml(retrain: Sequence[str]) -> str:
    """Return the demo's serve.toml; `retrain` is the trainer's command."""
    sections = {
        **SERVE,
        "retrain": {
            "command": list(retrain),
            "on": ["likely_harm", "drifted"],
            "devices": 3,
            "cooldown_s": 3600.0,
            "timeout_s": 390.0,
            "rollout": "auto",
        },
    }
    return toml(sections)


def agent_toml(*, server: str, device: str, state_dir: Path, pipeline: Path) -> str:
    """Return a device's agent.toml."""
    return toml(
        {
            "": {"server": server, "device": device, "state_dir": str(state_dir), "pipeline": str(pipeline)},
            "telemetry": {"sample_period_s": SAMPLE_PERIOD_S, "window_n": WINDOW_N},
        }
    )


def pipeline_toml(camera: str) -> str:
    """Return a device's pipeline.toml: the camera, and the model that the agent's active slot holds."""
    return (
        toml({"source": {"uri": camera, "policy": "latest"}})
        + '\n[[stage]]\nname = "classify"\nkind = "classify"\nmodel = "slot"\n'
    )


def toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Return TOML text of sections; the section without a name comes first."""
    lines: list[str] = []
    for name in sorted(sections, key=bool):
        if name:
            lines += ["", f"[{name}]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in sections[name].items()]
    return "\n".join(lines).lstrip() + "\n"


def shortened() -> str:
    """Return the shortened periods in words, for the screen."""
    rollout, drift = SERVE["rollout"], SERVE["drift"]
    return (
        f"Periods shortened for the demo (serve.toml, agent.toml): a telemetry sample every {SAMPLE_PERIOD_S:g} s, "
        f"{WINDOW_N} to a window; a drift baseline of {drift['baseline_windows']} windows; "
        f"trial {TRIAL_S:g} s, soak {rollout['soak_s']:g} s, bake {rollout['bake_s']:g} s; "
        f"control every {SERVE['']['control_period_s']:g} s"
    )


def trainer(*words: str | Path) -> list[str]:
    """Return the command that runs the demo's trainer."""
    return [sys.executable, "-m", "cloud_sync.demo.trainer", *map(str, words)]
