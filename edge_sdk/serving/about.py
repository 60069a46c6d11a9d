"""What the service says of itself in `/metrics`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_sdk.serving import metrics
from edge_sdk.serving.engine import Engine, describe

_STATES = {"closed": 0, "half-open": 1, "open": 2}


def engine_metrics(engine: Engine, now: float) -> list[str]:
    """Return the lines about the model and its circuit breaker."""
    state = _STATES[engine.breaker.state(now)]
    lines = gauge("edge_circuit_state", "0 closed, 1 half-open, 2 open.", state)
    labels = {k: v for k, v in describe(engine).items() if k != "task"}
    info = metrics.sample("edge_model_info", 1, labels)
    lines += metrics.family("edge_model_info", "gauge", "The model that answers.", [info])
    return lines + metrics.counter("edge_http_errors_total", "Failed inferences.", "kind", engine.errors)


def pipeline_metrics(stats: Mapping[str, Any], watch: metrics.Watch, now: float) -> list[str]:
    """Return the lines about a pipeline from its `stats`."""

    def count(name: str, text: str, value: int) -> list[str]:
        return metrics.family(name, "counter", text, [metrics.sample(name, value)])

    errors = {**stats["errors"], "nonfinite": stats["nonfinite"]}
    lines = count("edge_frames_total", "Frames that the source gave.", stats["frames"])
    lines += count("edge_frames_processed_total", "Frames that were answered.", stats["processed"])
    lines += metrics.counter("edge_frames_dropped_total", "Frames dropped, by cause.", "cause", stats["dropped"])
    lines += metrics.counter("edge_errors_total", "Errors of the pipeline, by kind.", "kind", errors)
    lines += gauge("edge_fps", "Results a second over the last ten seconds.", round(watch.fps(now), 3))
    lines += gauge("edge_source_up", "1 when a frame came in the last five seconds.", int(watch.source_up(now)))
    lines += _control_metrics(stats.get("control") or {})
    age = watch.age_s(now)
    if age is not None:
        lines += gauge("edge_last_frame_age_seconds", "Time since the last result.", round(age, 3))
    return lines


def _control_metrics(control: Mapping[str, Any]) -> list[str]:
    """Return the lines about overrides and degradation of a pipeline that has them."""
    lines: list[str] = []
    override, degrade = control.get("override"), control.get("degrade")
    if override is not None:
        rows = [
            metrics.sample("edge_override_active", int(name in override["active"]), {"name": name})
            for name in override["seconds"]
        ]
        lines += metrics.family("edge_override_active", "gauge", "1 while an override holds.", rows)
    if degrade is not None:
        lines += gauge("edge_degrade_level", "0 at full rate, higher when hot or short of CPU.", degrade["level"])
    return lines + (
        gauge("edge_rate_limit_fps", "Frames a second that are taken at most.", control["rate"])
        if "rate" in control
        else []
    )


def gauge(name: str, text: str, value: float) -> list[str]:
    """Return a gauge without labels."""
    return metrics.family(name, "gauge", text, [metrics.sample(name, value)])
