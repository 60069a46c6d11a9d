"""What the manifest and evidence.json say of a conversion: equal inputs and versions give an equal manifest."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from converters import tools
from converters.candidates import INTEGER, as_it_came
from converters.data import Data
from converters.frontends.base import Source
from converters.recipe import Recipe
from converters.search import Outcome
from device_profiles.machine import Machine
from device_profiles.probe import describe
from device_profiles.profile import Profile, version_range
from edge_sdk import runtimes
from edge_sdk.parsing import write_dataclass

SEED = 0
"""Calibration images are taken in order and the bootstrap is seeded: nothing else draws."""


def manifest(
    chosen: Outcome,
    *,
    profile: Profile,
    recipe: Recipe,
    source: Source,
    data: Data,
    machine: Machine,
    parent: str | None,
) -> dict[str, Any]:
    """Return the manifest of the chosen build for a profile; no timing and no date stands in it."""
    candidate = chosen.candidate
    support = profile.runtime(candidate.runtime, candidate.provider)
    assert support is not None
    low, high = version_range(support.versions)
    calibrated = candidate.precision in INTEGER and not as_it_came(source, candidate.form)
    provider = {} if support.provider == "CPU" else {"provider": support.provider}
    out = dict(chosen.manifest)
    out["profile"] = profile.name
    out["parent"] = parent
    out["metric"] = dict(chosen.metric or {})
    out["licences"] = dict(recipe.licences)
    options = {"threads": 1, **support.options} | provider | chosen.options
    out["runtime"] = {"name": support.name, "min": low, "max": high, "options": options}
    unlike = runtimes.registry().plugin(support.name).capabilities.get("unlike")
    if unlike:
        out["runtime"]["distribution"] = support.distribution or unlike[0]
    out["conversion"] = {
        "precision": candidate.precision,
        "backend": candidate.backend,
        "form": candidate.form,
        "method": candidate.method,
        "scheme": write_dataclass(candidate.scheme) if calibrated and candidate.precision == "int8" else None,
        "variant": candidate.variant,
        "compiler": candidate.compiler or None,
        "float_first": candidate.float_first,
        "float_last": candidate.float_last,
        "float_layers": list(candidate.float_layers),
        "steps": list(chosen.steps),
        "file": dict(chosen.facts),
        "source": {"format": source.format, "sha256": source.sha256, "opset": source.opset},
        "tools": tools.of_backend(candidate.backend) | tools.of_runtime(candidate.runtime, candidate.environment),
        "host": {"arch": machine.arch, "isa": list(machine.isa)},
        "seed": SEED,
        "calibration": data.paper(data.calibration) if calibrated else None,
        "golden": data.paper(data.golden),
        "deltas": dict(chosen.deltas),
    }
    return out


def evidence(
    rows: Sequence[Outcome],
    chosen: Outcome,
    *,
    recipe: Recipe,
    source: Source,
    data: Data,
    machine: Machine,
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """Return evidence.json: every candidate, figures, versions, machine, dates.

    Args:
        run: what is of this run: the source's metric and latency, golden looks, seconds.
    """
    return {
        "chosen": chosen.to_json(),
        "candidates": [o.to_json() for o in rows],
        "source": {
            "format": source.format,
            "sha256": source.sha256,
            "opset": source.opset,
            "recognised": list(source.because),
        },
        "calibration": data.paper(data.calibration),
        "golden": data.paper(data.golden),
        "limits": {"max_drop": recipe.max_drop, "min_metric": recipe.min_metric},
        "machine": describe(machine),
        "tools": tools.all_known(),
        "python": platform.python_version(),
        "threads": 1,
        "seed": SEED,
        "converted_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **run,
    }
