"""Which frames are inferred: those that the motion gate lets through, and of those each n-th one."""

from __future__ import annotations

from typing import Any

from edge_sdk.motion import MotionGate
from edge_sdk.rules import Decision, Trace
from edge_sdk.sinks.base import Origin
from edge_sdk.sources.base import Frame


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


class Pace:
    """Says where the answer of each frame of one camera comes from; called in frame order.

    The gate sees every frame. One that it lets through is inferred when `every` frames have come since the last
    inferred one, so that the first frame with motion after a quiet time is inferred at once.
    """

    def __init__(self, stage: str, every: int, gate: Gate | None, trace: Trace) -> None:
        self.every = every
        self.gate = gate
        self.inferred = 0
        self._stage = stage
        self._trace = trace
        self._since = every - 1

    def __call__(self, frame: Frame) -> Origin:
        is_open = self.gate is None or self.gate.open_for(frame)
        self._since += 1
        if not is_open:
            return Origin.GATED
        if self._since < self.every:
            why = f"one frame in {self.every} is inferred, its answer is carried to the others"
            self._trace.add(Decision(frame.t_s, self._stage, "every", False, why))
            return Origin.CARRIED
        self._since = 0
        self.inferred += 1
        return Origin.INFERRED
