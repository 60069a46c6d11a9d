"""The stages around the first model: what happens to each result in frame order, and the gate before inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from edge_sdk.camera_health import CameraHealth
from edge_sdk.config import parse
from edge_sdk.errors import UsageError
from edge_sdk.motion import MotionGate
from edge_sdk.pipeline.cascade import Cascade
from edge_sdk.pipeline.pace import Gate, Pace
from edge_sdk.pipeline_config import StageConfig
from edge_sdk.privacy import Privacy
from edge_sdk.rules import Alert, Line, Trace, Zone
from edge_sdk.rules.base import Filter
from edge_sdk.sinks.base import FrameResult, Origin, Overlay
from edge_sdk.stage_params import STEP_PARAMS, CropParams
from edge_sdk.tracking import Tracker

_ANSWERS: Mapping[str, tuple[str, ...]] = {
    "track": ("detection",),
    "zone": ("detection",),
    "line": ("detection",),
    "alert": ("detection",),
    "blur": ("detection", "segmentation"),
}


class Step(Protocol):
    """Sees every result of one camera in order and may add to it; called by one thread at a time."""

    name: str
    kind: str

    def apply(self, item: FrameResult) -> None: ...

    def check(self, labels: Sequence[str]) -> None:
        """Refuse a model that the step cannot work with; raises UsageError."""
        ...

    def describe(self) -> dict[str, Any]: ...


class TrackStep:
    kind = "track"

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name = name
        self._tracker = tracker

    def apply(self, item: FrameResult) -> None:
        found, t_s = item.detections, item.frame.t_s
        if item.origin is not Origin.CARRIED:
            item.result = self._tracker.update(found, t_s)
            return
        moved = self._tracker.carry(t_s)
        if moved is None:
            item.result = replace(found, track_id=np.full(len(found), -1, np.int64))
            return
        height, width = item.frame.image.shape[:2]
        xyxy = np.clip(moved.xyxy, 0, np.array([width, height, width, height], np.float32))
        item.result = replace(moved, xyxy=xyxy.astype(np.float32))

    def adopt(self, old: TrackStep) -> None:
        """Go on with the tracks and numbers of another."""
        self._tracker.adopt(old._tracker)

    def check(self, labels: Sequence[str]) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {"tracks": self._tracker.total}


class RuleStep:
    """A zone, a line or an alert."""

    def __init__(self, rule: Zone | Line | Alert) -> None:
        self.name, self.kind = rule.name, rule.kind
        self._rule = rule
        self._counts: dict[str, Any] = {}
        self._events = 0

    def apply(self, item: FrameResult) -> None:
        outcome = self._rule.update(item.detections, item.frame.t_s)
        item.events.extend(outcome.events)
        item.counts[self.name] = self._counts = outcome.counts
        self._events += len(outcome.events)

    def adopt(self, old: RuleStep) -> None:
        """Go on with the counts and timers of another rule of its kind."""
        if type(self._rule) is type(old._rule):
            self._rule.adopt(old._rule)  # type: ignore[arg-type]
            self._counts, self._events = old._counts, old._events

    @property
    def overlays(self) -> tuple[Overlay, ...]:
        """What is drawn of it: a polygon or a line."""
        rule = self._rule
        if isinstance(rule, Line):
            points: Any = (rule.start, rule.end)
        else:
            points = rule.corners if rule.corners is not None else ()
        corners = tuple((float(x), float(y)) for x, y in points)
        return (Overlay(self.kind, self.name, corners),) if corners else ()

    def check(self, labels: Sequence[str]) -> None:
        _check_classes(self._rule.filter, labels, self.name)

    def check_seconds(self, seconds: Mapping[str, Sequence[str]]) -> None:
        """Refuse second models that are not before it, or labels that they have not; raises UsageError."""
        try:
            self._rule.filter.check_seconds(seconds)
        except UsageError as error:
            raise UsageError(f"stage `{self.name}`: {error.message}", hint=error.hint) from None

    def describe(self) -> dict[str, Any]:
        return {"events": self._events, "counts": self._counts}


class BlurStep:
    kind = "blur"

    def __init__(self, privacy: Privacy) -> None:
        self.name = privacy.name
        self._privacy = privacy
        self._hidden = 0

    def apply(self, item: FrameResult) -> None:
        frame = item.frame
        if not frame.image.flags.writeable:
            frame.image = frame.image.copy()
        self._hidden += self._privacy.hide(frame.image, item.result, frame.t_s)  # type: ignore[arg-type]

    def adopt(self, old: BlurStep) -> None:
        """Go on hiding what another one hides, and count on."""
        self._privacy.adopt(old._privacy)
        self._hidden = old._hidden

    def check(self, labels: Sequence[str]) -> None:
        _check_classes(self._privacy.filter, labels, self.name)

    def describe(self) -> dict[str, Any]:
        return {"hidden": self._hidden}


class CameraStep:
    kind = "camera"

    def __init__(self, health: CameraHealth) -> None:
        self.name = health.name
        self._health = health
        self._events = 0

    def apply(self, item: FrameResult) -> None:
        events = self._health.update(item.frame.image, item.frame.t_s)
        item.events.extend(events)
        self._events += len(events)
        if self._health.problems:
            item.counts[self.name] = {"problems": list(self._health.problems)}

    def adopt(self, old: CameraStep) -> None:
        """Go on with the reference and the problems of another."""
        self._health.adopt(old._health)
        self._events = old._events

    def check(self, labels: Sequence[str]) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {"events": self._events, "problems": list(self._health.problems)}


@dataclass(frozen=True, slots=True)
class Steps:
    """All stages around the first model of one run, in order, and the trace of what they decided.

    `pace` is None where every frame is inferred; `overlays` are the zones and lines, to be drawn; `idle` are second
    models that are loaded and switched off.
    """

    pace: Pace | None
    after: tuple[Step, ...]
    trace: Trace
    overlays: tuple[Overlay, ...] = ()
    idle: tuple[Cascade, ...] = ()

    def apply(self, item: FrameResult) -> None:
        item.overlays = self.overlays
        for step in self.after:
            step.apply(item)

    @property
    def seconds(self) -> tuple[Cascade, ...]:
        """The second models, also those that are switched off."""
        return (*(step for step in self.after if isinstance(step, Cascade)), *self.idle)

    def check(self, labels: Sequence[str], seconds: Mapping[str, Sequence[str]] | None = None) -> None:
        """Refuse a model without the classes that the steps name; `seconds` are labels of second models to come.

        Raises:
            UsageError: a class is unknown.
        """
        known: dict[str, Sequence[str]] = {}
        for step in self.after:
            step.check(labels)
            if isinstance(step, RuleStep):
                step.check_seconds(known)
            elif isinstance(step, Cascade):
                known[step.name] = (seconds or {}).get(step.name, step.labels)
        for second in self.idle:
            second.check(labels)

    def describe(self) -> list[dict[str, Any]]:
        """Return name, kind and counts of each."""
        gate = self.pace.gate if self.pace is not None else None
        parts: list[Any] = [*([gate] if gate else []), *self.after]
        rows = [{"name": p.name, "kind": p.kind} | p.describe() for p in parts]
        return [*rows, *({"name": s.name, "kind": s.kind, "enabled": False} | s.describe() for s in self.idle)]

    def close(self) -> None:
        """Unload the second models."""
        for second in self.seconds:
            second.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What the stages around a model are built for: the model's stage name, task and labels, and the source's rate.

    `second` builds the second model of a stage with `after`.
    """

    stage: str
    task: str
    labels: Sequence[str]
    fps: float | None
    every: int = 1
    second: Callable[[StageConfig, Trace], Cascade] | None = None


def build(
    configs: Sequence[StageConfig],
    around: Around,
    trace: Trace | None = None,
    *,
    keep: Mapping[str, Any] | None = None,
) -> Steps:
    """Build the stages around a model; `keep` are made already, by name.

    Of those that are switched off second models stay loaded, and the others are left out.

    Raises:
        ConfigError: params are wrong.
        UsageError: a polygon or line is none, a class is unknown, two stages share a name, a line has no tracks to
            follow, or the model's answer is of the wrong kind.
        EdgeError: a second model cannot be loaded.
    """
    trace = Trace() if trace is None else trace
    gate: Gate | None = None
    after: list[Step] = []
    idle: list[Cascade] = []
    names = {around.stage}
    kept = keep or {}
    try:
        for config in configs:
            if not config.enabled and config.after is None:
                _built(config, around, trace, {"track"})
                continue
            before = {s.kind for s in after} if config.enabled else {"track"}
            step = _built(config, around, trace, before, kept.get(config.label))
            if step.name in names:
                raise UsageError(f"two stages are called `{step.name}`", hint="give each a name of its own")
            names.add(step.name)
            if not config.enabled:
                idle.append(step)
            elif not isinstance(step, Gate):
                after.append(step)
            elif gate is not None:
                raise UsageError("a pipeline has one motion gate, found two", hint="give it all `regions`")
            else:
                gate = step
        pace = Pace(around.stage, around.every, gate, trace) if gate is not None or around.every > 1 else None
        overlays = tuple(o for s in after if isinstance(s, RuleStep) for o in s.overlays)
        steps = Steps(pace, tuple(after), trace, overlays, tuple(idle))
        steps.check(around.labels)
    except BaseException:
        for made in (*after, *idle):
            if isinstance(made, Cascade) and made.name not in kept:
                made.close()
        raise
    return steps


def _built(config: StageConfig, around: Around, trace: Trace, before: set[str], made: Any = None) -> Any:
    """Build one stage, or take the one that is `made`; `before` has the kinds of those before it."""
    if made is not None and not (config.kind == "line" and "track" not in before):
        return made
    if config.after is not None:
        return _second(config, around, trace, before)
    kind, name = str(config.kind), config.label
    if around.task not in _ANSWERS.get(kind, (around.task,)):
        need = " or ".join(_ANSWERS[kind])
        raise UsageError(f"stage `{name}` ({kind}) needs a model for {need}, this one is for {around.task}")
    if kind == "line" and "track" not in before:
        raise UsageError(f"stage `{name}`: a line counts tracks", hint="put a `track` stage before it")
    params = parse(config.params, STEP_PARAMS[kind], where=f"stage `{name}`")
    if kind == "motion_gate":
        return Gate(name, MotionGate(params), trace)
    return _step(kind, name, params, trace, around.fps)


def _second(config: StageConfig, around: Around, trace: Trace, before: set[str]) -> Cascade:
    if config.after != around.stage:
        raise UsageError(
            f"stage `{config.label}` comes after `{config.after}`, the model is called `{around.stage}`",
            hint=f'after = "{around.stage}"',
        )
    if around.task != "detection":
        need = "needs a model for detection before it"
        raise UsageError(f"stage `{config.label}` works on boxes and {need}, this one is for {around.task}")
    crop = config.crop or CropParams()
    if (crop.refresh_frames > 1 or crop.refresh_below > 0) and "track" not in before:
        raise UsageError(
            f"stage `{config.label}`: an answer is kept for a tracked object", hint="put a `track` stage before it"
        )
    assert around.second is not None
    return around.second(config, trace)


def _step(kind: str, name: str, params: Any, trace: Trace, fps: float | None) -> Step:
    if kind == "track":
        return TrackStep(name, Tracker(params, fps=fps or 30.0))
    if kind == "camera":
        return CameraStep(CameraHealth(name, params))
    if kind == "blur":
        return BlurStep(Privacy(name, params))
    if kind == "zone":
        return RuleStep(Zone(name, params, trace))
    return RuleStep(Line(name, params, trace) if kind == "line" else Alert(name, params, trace))


def _check_classes(chosen: Filter, labels: Sequence[str], name: str) -> None:
    try:
        chosen.ids(labels)
    except UsageError as error:
        raise UsageError(f"stage `{name}`: {error.message}", hint=error.hint) from None
