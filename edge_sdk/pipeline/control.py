"""Decides what a running pipeline does: its stages as written, overrides of the hour, less when the device is hot."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edge_sdk import schedule
from edge_sdk.config import parse
from edge_sdk.degrade import DegradeConfig, Less, Level, less, step
from edge_sdk.errors import EdgeError, UsageError
from edge_sdk.machine_load import LoadMeter
from edge_sdk.parsing import write_dataclass
from edge_sdk.pipeline.change import LiveStages, find
from edge_sdk.pipeline.effective import effective, merged, rate_of
from edge_sdk.pipeline.run import Run
from edge_sdk.pipeline_config import StageConfig
from edge_sdk.schedule import Darkness, OverrideConfig
from edge_sdk.sinks.base import FrameResult

logger = logging.getLogger(__name__)
_SAMPLE_S = 0.5
_OWN = ("every", "roi", "crop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a controller goes by; clocks and meter are there for tests: `clock` gives seconds since the epoch."""

    overrides: tuple[OverrideConfig, ...] = ()
    time_zone: str | None = None
    degrade: DegradeConfig | None = None
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    meter: LoadMeter = field(default_factory=LoadMeter)
    period_s: float = 1.0

    def __bool__(self) -> bool:
        return bool(self.overrides) or self.degrade is not None

    def active(self, darkness: Mapping[str, Darkness] | None = None) -> tuple[OverrideConfig, ...]:
        """Return the overrides that hold now."""
        if not self.overrides:
            return ()
        return schedule.active(self.overrides, schedule.local_time(self.clock(), self.time_zone), darkness or {})


class Controller:
    """Looks at clock and machine once a period, in a thread; an observer where it matters how dark the picture is.

    The thread runs only while there are overrides or limits, and ends with the run. A change that cannot be applied is
    logged once and said in `describe`; what ran goes on.

    Args:
        run: its rate is lowered only where frames may be dropped.
        base: the stages as a person wrote them.
    """

    def __init__(self, run: Run, stages: LiveStages, base: Sequence[StageConfig], rules: Rules) -> None:
        self._run, self._stages = run, stages
        self._base = tuple(base)
        self._rules = rules
        self._live = run.policy == "latest"
        self._lock = threading.RLock()
        self._darkness: dict[str, Darkness] = {}
        self._sampled_s: float | None = None
        self._luminance: float | None = None
        self._active = rules.active()
        self._level = Level()
        self._before: tuple[float, int] | None = None
        self._held_s: dict[str, float] = {}
        self._noted_s = rules.monotonic()
        self._problem: str | None = None
        self._wake = threading.Event()
        self._stopping = self._observing = False
        self._thread: threading.Thread | None = None
        self._announce((), self._active)
        self._limit_rate()
        self._begin()

    @property
    def base(self) -> tuple[StageConfig, ...]:
        """The stages as they were written, with the changes since."""
        return self._base

    def running(self, name: str) -> StageConfig:
        """Return the stage that the run calls `name` as it runs, overrides and all."""
        stages = self._stages.stages
        return find(stages, stages[0].label if name == self._run.stage else name)

    def swapped(self, name: str, model: str | None) -> None:
        """Note that a stage has another model; `model` is None where it has no address."""
        with self._lock:
            label = self.running(name).label
            self._base = self._stages.swapped(label, model, self._base)

    # -- what people change ----------------------------------------------------------------------------------------

    def change(self, name: str, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Put `params` over those of one stage; None takes the default back. A model has `every`, `roi`, `crop` too.

        Raises:
            ConfigError: they are wrong. Nothing is changed then.
            UsageError: there is no such stage.
        """
        with self._lock:
            stage = find(self._base, name)
            own = {} if stage.is_step else {k: v for k, v in params.items() if k in _OWN}
            rest = {k: v for k, v in params.items() if k not in own}
            wanted = merged(write_dataclass(stage), own) | {"params": merged(stage.params, rest)}
            made = parse(wanted, StageConfig, where=f"stage `{name}`")
            return self.become(tuple(made if s is stage else s for s in self._base))

    def switch(self, name: str, *, enabled: bool) -> tuple[str, ...]:
        """Switch one stage off or on."""
        with self._lock:
            stage = find(self._base, name)
            return self.become(tuple(replace(s, enabled=enabled) if s is stage else s for s in self._base))

    def become(self, base: Sequence[StageConfig], rules: Rules | None = None) -> tuple[str, ...]:
        """Run other stages, and go by other rules; return the names of the stages that are different.

        Raises:
            ConfigError: params are wrong. Nothing is changed then.
            UsageError: a stage cannot work as it stands, or something changed that needs a fresh start.
        """
        with self._lock:
            own = self._rules if rules is None else rules
            names = tuple(s.label for s in base)
            for problem in schedule.problems(own.overrides, names, tuple(s.label for s in base if not s.is_first)):
                raise UsageError(problem, hint="an override changes stages of its pipeline")
            kept = {o.name: o.when for o in own.overrides}
            darkness = {k: v for k, v in self._darkness.items() if self._when(k) == kept.get(k)}
            active = own.active(darkness)
            level = self._level if own.degrade is not None else Level()
            less_ = less(own.degrade, level) if own.degrade is not None else Less()
            changed = self._stages.become(effective(tuple(base), active, less_))
            self._base, self._rules = tuple(base), own
            self._darkness, self._level = darkness, level
            self._announce(self._active, active)
            self._active = active
            self._limit_rate()
            self._begin()
            return changed

    # -- what the controller sees ----------------------------------------------------------------------------------

    def on_result(self, item: FrameResult) -> None:
        """Look at the luminance of a frame, twice a second of its own time, while an override asks for it."""
        t_s = item.frame.t_s
        if self._sampled_s is not None and 0 <= t_s - self._sampled_s < _SAMPLE_S:
            return
        self._sampled_s = t_s
        self.see(float(item.frame.image[::8, ::8].mean()) / 255.0, t_s)

    def see(self, luminance: float, t_s: float) -> None:
        """Take the mean luminance (0 to 1) of the picture at media time `t_s`."""
        with self._lock:
            self._luminance = luminance
            for override in self._rules.overrides:
                before = self._darkness.get(override.name, Darkness())
                self._darkness[override.name] = before.after(override.when, luminance, t_s)
            self._evaluate()

    def tick(self) -> None:
        """Look at the clock and at the machine, and do what follows."""
        with self._lock:
            now = self._rules.monotonic()
            for override in self._active:
                self._held_s[override.name] = self._held_s.get(override.name, 0.0) + now - self._noted_s
            self._noted_s = now
            if self._rules.degrade is not None and self._live:
                self._degrade(self._rules.degrade, now)
            self._evaluate()

    def describe(self) -> dict[str, Any]:
        """Return which overrides hold, for how long each did, and the level of degradation; empty without rules."""
        if not self._rules:
            return {}
        out: dict[str, Any] = {}
        if self._rules.overrides:
            held = {o.name: round(self._held_s.get(o.name, 0.0), 3) for o in self._rules.overrides}
            out["override"] = {"active": [o.name for o in self._active], "seconds": held}
            if self._luminance is not None:
                out["override"]["luminance"] = round(self._luminance, 4)
        if self._rules.degrade is not None:
            out["degrade"] = {"level": self._level.number, "worst": self._level.worst, "why": self._level.why}
        rate = rate_of(self._active, self._less())
        if rate is not None:
            out["rate"] = round(rate, 3)
        return out | ({"problem": self._problem} if self._problem else {})

    def on_error(self, kind: str, detail: str) -> None:
        pass

    def on_drop(self, cause: str, n: int) -> None:
        pass

    def close(self) -> None:
        """End the thread."""
        self._stopping = True
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(5.0)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self._observing and any(o.when.dark is not None for o in self._rules.overrides):
            # Only then: handing each result to observers costs as much as the postprocessing of a small model.
            self._observing = True
            self._run.observe(self)
        if self._rules and self._thread is None and not self._stopping:
            self._thread = threading.Thread(target=self._watch, name="control", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        while not self._wake.wait(self._rules.period_s) and not self._run.finished.is_set():
            try:
                self.tick()
            except Exception:
                logger.exception("the controller could not look at clock and machine")

    def _when(self, name: str) -> Any:
        return next((o.when for o in self._rules.overrides if o.name == name), None)

    def _less(self) -> Less:
        return less(self._rules.degrade, self._level) if self._rules.degrade is not None else Less()

    def _degrade(self, config: DegradeConfig, now: float) -> None:
        processed = int(self._run.stats()["processed"])
        before, self._before = self._before, (now, processed)
        reading = self._rules.meter.read(now)
        if before is None or now <= before[0]:
            return
        fps = max(0, processed - before[1]) / (now - before[0])
        level = step(config, self._level, reading, fps, now)
        was, self._level = self._level.number, level
        if level.number == was:
            return
        self._limit_rate()
        now_less = self._less()
        event: dict[str, Any] = {
            "kind": "degraded" if level.number > was else "recovered",
            "name": "degrade",
            "level": level.number,
            "why": level.why or "every reading is clear of its limit",
        }
        if now_less.rate is not None:
            event["rate"] = round(now_less.rate, 3)
        logger.warning("%s to level %d: %s", event["kind"], level.number, event["why"])
        self._say(event)
        reading_json = {
            "temp_c": reading.temp_c,
            "cpu_percent": reading.cpu_percent,
            "throttled_percent": reading.throttled_percent,
        }
        found = {k: round(v, 1) for k, v in reading_json.items() if v is not None}
        self._run.tell_metric({"name": "degrade", "level": level.number, **found})

    def _evaluate(self) -> None:
        """Apply what holds now."""
        active = self._rules.active(self._darkness)
        if active != self._active:
            self._announce(self._active, active)
            self._active = active
            self._limit_rate()
        try:
            self._stages.become(effective(self._base, active, self._less()))
            self._problem = None
        except EdgeError as error:
            if self._problem != error.message:
                logger.error("an override cannot be applied: %s", error.message)
            self._problem = error.message

    def _announce(self, before: Sequence[OverrideConfig], after: Sequence[OverrideConfig]) -> None:
        was, now = [o.name for o in before], [o.name for o in after]
        for state, names, others in (("end", was, now), ("begin", now, was)):
            for name in names:
                if name not in others:
                    logger.info("override %s: %s", name, state)
                    self._say({"kind": "override", "name": name, "state": state})

    def _say(self, event: Mapping[str, Any]) -> None:
        """Put an event into the next result."""

        def add(item: FrameResult) -> None:
            item.events.append({**event, "t_s": round(item.frame.t_s, 3)})

        self._run.between_frames(add)

    def _limit_rate(self) -> None:
        if self._live:
            self._run.limit_rate(rate_of(self._active, self._less()))
