"""Which stages a pipeline runs now: those that a person wrote, with overrides and degradation put over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edge_sdk.degrade import Less
from edge_sdk.pipeline_config import StageConfig
from edge_sdk.schedule import OverrideConfig
from edge_sdk.stage_params import MotionParams

_GATE = "motion_gate"
Stages = tuple[StageConfig, ...]


def merged(params: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return params with changes put over them; a change to None takes the default back."""
    return {k: v for k, v in {**params, **changes}.items() if v is not None}


def overridden(stages: Stages, active: Sequence[OverrideConfig]) -> Stages:
    """Return the stages while `active` hold, the first of them the strongest."""
    by_name = {s.label: s for s in stages}
    for override in reversed(active):
        for name, changes in override.stage.items():
            if name in by_name:
                by_name[name] = replace(by_name[name], params=merged(by_name[name].params, changes))
        for enabled, names in ((True, override.on), (False, override.off)):
            by_name |= {name: replace(by_name[name], enabled=enabled) for name in names if name in by_name}
    return tuple(by_name[s.label] for s in stages)


def rate_of(active: Sequence[OverrideConfig], less: Less) -> float | None:
    """Return the frames a second at most; None for no limit."""
    chosen = next((o.rate for o in active if o.rate is not None), None)
    rates = [rate for rate in (chosen, less.rate) if rate is not None]
    return min(rates, default=None)


def stricter(stages: Stages, times: int) -> Stages:
    """Return the stages with a motion gate that wants `times` as much motion; without one, with fewer inferences."""
    if times <= 1:
        return stages
    gated = any(s.kind == _GATE and s.enabled for s in stages)
    out = []
    for stage in stages:
        if gated and stage.kind == _GATE:
            area = float(stage.params.get("min_area", MotionParams().min_area))
            stage = replace(stage, params={**stage.params, "min_area": min(1.0, area * times)})
        elif not gated and stage.is_first:
            stage = replace(stage, every=stage.every * times)
        out.append(stage)
    return tuple(out)


def effective(stages: Stages, active: Sequence[OverrideConfig], less: Less) -> Stages:
    """Return what runs."""
    return stricter(overridden(stages, active), less.stricter)
