"""Adding stages without a model to a pipeline, in Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from edge_sdk.pipeline_config import StageConfig

S = TypeVar("S", bound="Stages")


class Stages:
    """The stages around the model, in the order in which they are added."""

    def __init__(self) -> None:
        self._steps: list[StageConfig] = []

    def _not_running(self, what: str) -> None:
        """Refuse to `what` once the pipeline has been started."""
        raise NotImplementedError

    def steps(self: S, configs: Sequence[StageConfig]) -> S:
        """Add stages without a model, as they stand in a pipeline file."""
        self._not_running("add a stage")
        self._steps += configs
        return self

    def track(self: S, name: str = "track", **params: Any) -> S:
        """Number objects through time (ByteTrack); params as in `edge_sdk.stage_params.TrackParams`."""
        return self._add_step("track", name, params)

    def zone(self: S, name: str, polygon: Sequence[Sequence[float]], **params: Any) -> S:
        """Watch who is in, enters, leaves or stays in a polygon in pixels; params as in `ZoneParams`."""
        return self._add_step("zone", name, {"polygon": plain_points(polygon)} | params)

    def line(self: S, name: str, start: Sequence[float], end: Sequence[float], **params: Any) -> S:
        """Count tracks that cross from one side of a line to the other; params as in `LineParams`."""
        return self._add_step("line", name, {"start": plain_points(start), "end": plain_points(end)} | params)

    def alert(self: S, name: str, **params: Any) -> S:
        """Send an event when something is there for some frames, and not again too soon; params as in `AlertParams`."""
        return self._add_step("alert", name, params)

    def blur(self: S, classes: Sequence[str] = (), *, name: str = "blur", **params: Any) -> S:
        """Hide what was found, in the frame itself, before anything gets the frame; params as in `BlurParams`."""
        return self._add_step("blur", name, {"classes": list(classes)} | params)

    def camera_health(self: S, name: str = "camera", **params: Any) -> S:
        """Notice a black, frozen, covered, defocused, moved or resized picture; params as in `CameraParams`."""
        return self._add_step("camera", name, params)

    def motion_gate(self: S, name: str = "motion_gate", **params: Any) -> S:
        """Infer only when something moves, else let the last answer stand; params as in `MotionParams`."""
        return self._add_step("motion_gate", name, params)

    def _add_step(self: S, kind: Any, name: str, params: dict[str, Any]) -> S:
        self._not_running("add a stage")
        self._steps.append(StageConfig(name=name, kind=kind, params=params))
        return self


def plain_points(points: Any) -> Any:
    """Return points, a list or an array, as lists of floats; what is none is left for the check of the params."""
    try:
        return np.asarray(points, float).tolist()
    except (TypeError, ValueError):
        return points
