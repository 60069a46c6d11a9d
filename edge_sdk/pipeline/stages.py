"""Adding stages to a pipeline, in Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from edge_sdk.config import parse
from edge_sdk.errors import ConfigError, UsageError
from edge_sdk.pipeline.second import ArtifactLike
from edge_sdk.pipeline_config import StageConfig, first_problems

S = TypeVar("S", bound="Stages")


class Stages:
    """The model that sees the frames, and the stages around it in the order in which they are added."""

    def __init__(self) -> None:
        self._stage: StageConfig | None = None
        self._artifact: ArtifactLike | None = None
        self._shadow: ArtifactLike | None = None
        self._steps: list[StageConfig] = []
        self._artifacts: dict[int, tuple[ArtifactLike, ArtifactLike | None]] = {}

    def _not_running(self, what: str) -> None:
        """Refuse to `what` once the pipeline has been started."""
        raise NotImplementedError

    def detect(self: S, artifact: ArtifactLike, *, name: str = "detect", **options: Any) -> S:
        """Find objects with `artifact`; options as in `stage`."""
        return self.stage(artifact, kind="detect", name=name, **options)

    def classify(self: S, artifact: ArtifactLike, *, name: str = "classify", **options: Any) -> S:
        """Classify whole frames with `artifact`; options as in `stage`."""
        return self.stage(artifact, kind="classify", name=name, **options)

    def stage(
        self: S,
        artifact: ArtifactLike,
        *,
        name: str | None = None,
        kind: str | None = None,
        every: int = 1,
        roi: Sequence[Sequence[float]] = (),
        shadow: ArtifactLike | None = None,
        shadow_every: int = 20,
        **params: Any,
    ) -> S:
        """Run `artifact`, whatever its task; `params` override its decoder's, such as `score=0.4`.

        Args:
            every: infer each so many frames; in between the tracker moves the boxes on, or the answer stands.
            roi: two corners of a rectangle or a polygon, the part of the frame that the model sees.
            shadow: another artifact that answers one frame in `shadow_every` too, to be compared.
        """
        options = {"name": name, "kind": kind, "every": every, "roi": plain_points(roi), "shadow_every": shadow_every}
        made = parse({**options, "params": params}, StageConfig, where="stage")
        problems = first_problems(made, "stage")
        if problems:
            raise ConfigError("; ".join(problems))
        return self._set_stage(made, artifact, shadow)

    def steps(self: S, configs: Sequence[StageConfig]) -> S:
        """Add stages around the first model, second models among them, as they stand in a pipeline file."""
        self._not_running("add a stage")
        for config in configs:
            if config.after is not None:
                self._artifacts[len(self._steps)] = (config.model, config.shadow)
            self._steps.append(config)
        return self

    def then(
        self: S,
        artifact: ArtifactLike,
        *,
        name: str | None = None,
        kind: str | None = None,
        params: Mapping[str, Any] | None = None,
        shadow: ArtifactLike | None = None,
        shadow_every: int = 20,
        **crop: Any,
    ) -> S:
        """Ask a second model about the boxes that the detector found; its answers are `result.detections.then[name]`.

        Args:
            artifact: a .edge file, an Artifact or a loaded model of any task.
            name: what rules, results and `swap` call it; default the kind of its task, such as `classify`.
            params: override its decoder's.
            shadow: another artifact that answers one crop in `shadow_every` too, to be compared.
            crop: what is cut out, as in `edge_sdk.stage_params.CropParams`: `classes`, `pad`, `min_size`, ….
        """
        self._not_running("add a stage")
        made = parse(
            {"name": name, "kind": kind, "params": dict(params or {}), "crop": crop, "shadow_every": shadow_every},
            StageConfig,
            where="then",
        )
        self._artifacts[len(self._steps)] = (artifact, shadow)
        self._steps.append(replace(made, after=self._first_label()))
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

    def with_artifacts(self: S, opened: Callable[[Any], Any]) -> S:
        """Let `opened` see every artifact of the pipeline and give the one to use instead.

        Shadows are left alone: one that is missing must stop nothing, and one that shared an engine would hold it up.
        """
        self._not_running("change artifacts")
        self._artifact = opened(self._artifact)
        self._artifacts = {place: (opened(a), shadow) for place, (a, shadow) in self._artifacts.items()}
        return self

    def _set_stage(self: S, config: StageConfig, artifact: ArtifactLike, shadow: ArtifactLike | None) -> S:
        self._not_running("add a stage")
        if self._stage is not None:
            raise UsageError(
                "the pipeline has a stage already", hint="one pipeline runs one model on its frames, `then` adds others"
            )
        self._stage, self._artifact, self._shadow = config, artifact, shadow
        return self

    def _first_label(self) -> str:
        """Return what the model that sees the frames is called so far."""
        if self._stage is None:
            raise UsageError("there is no detector yet", hint="call .detect('model.edge') before .then(…)")
        return self._stage.label

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
