"""The stages around a model: what happens to each result in frame order, and the gate before inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edge_sdk.camera_health import CameraHealth
from edge_sdk.config import parse
from edge_sdk.errors import UsageError
from edge_sdk.motion import MotionGate
from edge_sdk.pipeline_config import StageConfig
from edge_sdk.privacy import Privacy
from edge_sdk.rules import Alert, Decision, Line, Trace, Zone
from edge_sdk.rules.base import Filter
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sources.base import Frame
from edge_sdk.stage_params import STEP_PARAMS
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
        item.result = self._tracker.update(item.detections, item.frame.t_s)

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

    def check(self, labels: Sequence[str]) -> None:
        _check_classes(self._rule.filter, labels, self.name)

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

    def check(self, labels: Sequence[str]) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {"events": self._events, "problems": list(self._health.problems)}


class Gate:
    """The motion gate of a pipeline; a closed one lets the last answer stand."""

    kind = "motion_gate"

    def __init__(self, name: str, gate: MotionGate, trace: Trace) -> None:
        self.name = name
        self._gate = gate
        self._trace = trace

    def open_for(self, frame: Frame) -> bool:
        """Say whether the frame needs inference."""
        is_open = self._gate.update(frame.image, frame.t_s)
        if not self._trace.known(self.name, "gate", -1, is_open, ""):
            why = f"{100 * self._gate.area:.2f} % of the watched pixels changed"
            self._trace.add(Decision(frame.t_s, self.name, "gate", is_open, why))
        return is_open

    def describe(self) -> dict[str, Any]:
        return {"frames": self._gate.frames, "skipped": self._gate.skipped}


@dataclass(frozen=True, slots=True)
class Steps:
    """All stages around the model of one run, in order, and the trace of what they decided."""

    gate: Gate | None
    after: tuple[Step, ...]
    trace: Trace

    def apply(self, item: FrameResult) -> None:
        for step in self.after:
            step.apply(item)

    def check(self, labels: Sequence[str]) -> None:
        """Refuse a model without the classes that the steps name.

        Raises:
            UsageError: a class is unknown.
        """
        for step in self.after:
            step.check(labels)

    def describe(self) -> list[dict[str, Any]]:
        """Return name, kind and counts of each."""
        parts: list[Any] = [*([self.gate] if self.gate else []), *self.after]
        return [{"name": p.name, "kind": p.kind} | p.describe() for p in parts]


def build(
    configs: Sequence[StageConfig], *, task: str, labels: Sequence[str], fps: float | None, trace: Trace | None = None
) -> Steps:
    """Build the stages around a model that does `task` and knows `labels`, for a source of `fps`.

    Raises:
        ConfigError: params are wrong.
        UsageError: a polygon or line is none, a class is unknown, two stages share a name, a line has no tracks to
            follow, or the model's answer is of the wrong kind.
    """
    trace = Trace() if trace is None else trace
    gate, after = None, []
    names: set[str] = set()
    tracked = False
    for config in configs:
        kind, name = str(config.kind), config.label
        if name in names:
            raise UsageError(f"two stages are called `{name}`", hint="give each a name of its own")
        names.add(name)
        if task not in _ANSWERS.get(kind, (task,)):
            need = " or ".join(_ANSWERS[kind])
            raise UsageError(f"stage `{name}` ({kind}) needs a model for {need}, this one is for {task}")
        if kind == "line" and not tracked:
            raise UsageError(f"stage `{name}`: a line counts tracks", hint="put a `track` stage before it")
        tracked = tracked or kind == "track"
        params = parse(config.params, STEP_PARAMS[kind], where=f"stage `{name}`")
        if kind == "motion_gate":
            if gate is not None:
                raise UsageError("a pipeline has one motion gate, found two", hint="give it all `regions`")
            gate = Gate(name, MotionGate(params), trace)
        else:
            after.append(_step(kind, name, params, trace, fps))
    steps = Steps(gate, tuple(after), trace)
    steps.check(labels)
    return steps


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
