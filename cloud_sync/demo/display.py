"""The demo's steps as people see them: a list that fills on a terminal, one line a step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edge_sdk.output import Output


@dataclass(slots=True)
class Shown:
    """One step: `ok` is None until it has ended."""

    name: str
    title: str
    ok: bool | None = None
    seconds: float = 0.0
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "ok": bool(self.ok), "seconds": round(self.seconds, 1), "detail": self.detail}


class Display:
    """Shows steps in their order; `now` runs all the time, so that seconds count on a terminal."""

    def __init__(
        self, output: Output, steps: Sequence[tuple[str, str]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.steps = [Shown(name, title) for name, title in steps]
        self._output = output
        self._clock = clock
        self._current: Shown | None = None
        self._since = 0.0

    def begin(self, name: str) -> None:
        self._current = next(s for s in self.steps if s.name == name)
        self._since = self._clock()
        self.now("")

    def now(self, detail: str) -> None:
        """Say what the step in progress is doing."""
        assert self._current is not None
        self._current.seconds = self._clock() - self._since
        self._current.detail = detail
        self._draw()

    def end(self, detail: str, *, ok: bool) -> None:
        """End the step in progress."""
        step = self._current
        assert step is not None
        step.ok, step.detail, step.seconds = ok, detail, self._clock() - self._since
        self._current = None
        self._draw()
        if not self._output.live:
            self._output.note(self._line(step))

    def close(self) -> None:
        """Leave the list on the screen and go on below it."""
        self._output.end_block()

    def _draw(self) -> None:
        self._output.block([self._line(step) for step in self.steps])

    def _line(self, step: Shown) -> str:
        if step.ok is None and step is not self._current:
            return self._output.styled(f"    {step.title}", "dim")
        mark, style = {True: ("✓", "green"), False: ("✗", "red"), None: ("…", "yellow")}[step.ok]
        text = f"  {self._output.styled(mark, style)} {step.title:<34}{step.seconds:6.1f} s"
        return f"{text}  {step.detail}" if step.detail else text
