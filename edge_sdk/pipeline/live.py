"""Changing a pipeline while it runs, and the rules by which it changes itself, in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from edge_sdk import sinks as sink_table
from edge_sdk.config import parse
from edge_sdk.degrade import DegradeConfig, Less
from edge_sdk.errors import UsageError
from edge_sdk.pipeline.change import LiveStages, not_live
from edge_sdk.pipeline.control import Controller, Rules
from edge_sdk.pipeline.effective import effective, merged
from edge_sdk.pipeline.run import Run
from edge_sdk.pipeline.stages import Stages, plain_points
from edge_sdk.pipeline.steps import Around
from edge_sdk.pipeline_config import PipelineConfig, SinkConfig, StageConfig
from edge_sdk.registry import near_miss
from edge_sdk.schedule import OverrideConfig
from edge_sdk.sinks.base import Sink
from edge_sdk.sinks.uri import sink_name
from edge_sdk.sources.uri import redact

L = TypeVar("L", bound="Live")
_POINTS = ("polygon", "regions", "start", "end", "roi")


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a new description of a pipeline changed: names of stages, overrides and sinks; and what needs a restart."""

    changed: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"changed": list(self.changed), "restart": list(self.restart)}


class Live(Stages):
    """The part of a pipeline that can be asked to be another one between two frames."""

    def __init__(self) -> None:
        super().__init__()
        self._rules = Rules()
        self._control: Controller | None = None
        self._described: PipelineConfig | None = None
        self._at_start: tuple[StageConfig, ...] | None = None
        self._sink_context: dict[str, Any] = {}
        self._sinks: list[tuple[str, Sink | None, dict[str, Any]]] = []

    def _running(self) -> Run:
        raise NotImplementedError

    def swap(self, stage: str, artifact: Any) -> dict[str, Any]:
        """Load `artifact` beside the running model and switch between two frames."""
        raise NotImplementedError

    # -- before it runs ----------------------------------------------------------------------------------------------

    def override(self: L, name: str, *, when: Mapping[str, Any], **changes: Any) -> L:
        """Run differently while `when` holds; those added first are the strongest.

        Args:
            when: `from`, `to` (`HH:MM`), `days`, `dark`, `light`, `hold_s` as in `edge_sdk.schedule.When`.
            changes: `stage` (params by stage name), `off`, `on` (names of stages), `rate` (frames a second).
        """
        self._not_running("add an override")
        made = parse({"name": name, "when": when, **changes}, OverrideConfig, where=f"override `{name}`")
        self._rules = replace(self._rules, overrides=(*self._rules.overrides, made))
        return self

    def degrade(self: L, **limits: Any) -> L:
        """Do less while the device is hot or its CPU short; limits as in `edge_sdk.degrade.DegradeConfig`."""
        self._not_running("set limits")
        self._rules = replace(self._rules, degrade=parse(limits, DegradeConfig, where="degrade"))
        return self

    def go_by(self: L, rules: Rules) -> L:
        """Take overrides, limits, clock and meter from `rules`."""
        self._not_running("set rules")
        self._rules = rules
        return self

    # -- while it runs -----------------------------------------------------------------------------------------------

    def change(self, name: str, **params: Any) -> Changes:
        """Put `params` over those of the stage or sink `name`, between two frames; None takes the default back.

        What is not named keeps its tracks, counts and timers; a rule that is named goes on with its own. No frame is
        lost and nothing else is stopped. A sink is named by its address or its scheme, such as `webhook`.

        Raises:
            ConfigError: params are wrong. Nothing is changed then.
            UsageError: the pipeline has nothing of that name, or it cannot be changed while it runs.
        """
        self._running()
        assert self._control is not None
        given = {k: plain_points(v) if k in _POINTS and v is not None else v for k, v in params.items()}
        names = [s.label for s in self._control.base]
        name = names[0] if name == self._running().stage else name
        found = self._sinks_called(name)
        if name in names or not found:
            self._known(name, names)
            return Changes(changed=self._control.change(name, given))
        if len(found) > 1:
            raise UsageError(f"{len(found)} sinks are called `{name}`", hint="name one by its address")
        self._change_sink(found[0], merged(self._sinks[found[0]][2], given))
        return Changes(changed=(redact(self._sinks[found[0]][0]),))

    def switch(self, name: str, *, enabled: bool) -> Changes:
        """Switch a stage off or on, between two frames; its counts are kept, and a second model stays loaded.

        Raises:
            UsageError: there is no such stage, or others need it.
        """
        self._running()
        assert self._control is not None
        return Changes(changed=self._control.switch(name, enabled=enabled))

    def apply(self, config: PipelineConfig) -> Changes:
        """Become what `config` describes, as far as that is possible while it runs; the rest stands in `restart`.

        Raises:
            ConfigError: params are wrong. Nothing is changed then, but models that were swapped before.
            EdgeError: another model cannot be loaded, or fails its self-test. Nothing is changed then.
        """
        run = self._running()
        control, before = self._control, self._described
        assert control is not None
        if before is None:
            raise UsageError("only a pipeline that was described by a file can be given another one")
        restart = [f"`{key}` changes with a fresh start" for key in _FRESH if _at(before, key) != _at(config, key)]
        sinks, sinks_restart = self._sink_changes(config.sinks)
        restart += sinks_restart
        wanted = labelled((config.model_stage, *config.steps), run)
        old = {s.label: s for s in control.base}
        swaps = [s for s in wanted if s.label in old and not s.is_step and s.model != old[s.label].model]
        kept = tuple(replace(s, model=old[s.label].model) if s in swaps else s for s in wanted)
        fixed = not_live(control.base, kept)
        restart += fixed
        changed: list[str] = []
        if not fixed:
            for stage in swaps:
                self.swap(stage.label, stage.model)
                changed.append(stage.label)
        rules = replace(self._rules, overrides=config.overrides, time_zone=config.time_zone, degrade=config.degrade)
        names = control.become(control.base if fixed else wanted, rules)
        changed += [name for name in names if name not in changed]
        changed += _rule_changes(self._rules, rules)
        self._rules = rules
        for i, options in sinks.items():
            self._change_sink(i, options)
            changed.append(redact(self._sinks[i][0]))
        # What needs a fresh start stays as it was, to be said again with the next file.
        self._described = replace(config, **{key: getattr(before, key) for key in ("source", "workers", "serve")})
        return Changes(changed=tuple(changed), restart=tuple(restart))

    def stats(self) -> dict[str, Any]:
        """Return the counts so far."""
        return self._running().stats()

    def describe(self) -> dict[str, Any]:
        """Return stage, kind and model of what runs on the frames."""
        run = self._running()
        return {"name": run.stage, "kind": run.kind} | run.slot.current.describe()

    def models(self) -> list[dict[str, Any]]:
        """Return stage, kind and model of every model that runs, the one on the frames first."""
        seconds = self._running().steps.seconds
        return [self.describe(), *({"name": s.name, "kind": s.kind} | s.slot.current.describe() for s in seconds)]

    @property
    def live_stages(self) -> tuple[StageConfig, ...]:
        """The stages as they were written, with the changes since the start."""
        assert self._control is not None
        return self._control.base

    # -- inside ------------------------------------------------------------------------------------------------------

    def _stages_at_start(self) -> tuple[StageConfig, ...]:
        """Return what runs at first, the model that sees the frames first, under the overrides of the hour."""
        if self._at_start is None:
            self._at_start = effective(self._base(), self._rules.active(), Less())
        return self._at_start

    def _base(self) -> tuple[StageConfig, ...]:
        assert self._stage is not None
        return (self._stage, *self._steps)

    def _take_control(self, run: Run, around: Around) -> None:
        """Let a controller hold the stages of `run`."""
        stages = LiveStages(run, labelled(self._stages_at_start(), run), around)
        self._control = Controller(run, stages, labelled(self._base(), run), self._rules)
        run.control = self._control.describe

    def _live_stage(self, name: str) -> StageConfig:
        """Return the stage with a model as it runs now; `name` is what the run calls it."""
        assert self._control is not None
        return self._control.running(name)

    def _swapped(self, name: str, artifact: Any) -> None:
        """Note that a stage has another model."""
        assert self._control is not None
        self._control.swapped(name, str(artifact) if isinstance(artifact, (str, Path)) else None)

    def _sinks_called(self, name: str) -> list[int]:
        return [i for i, (uri, _, _) in enumerate(self._sinks) if name in (uri, redact(uri)) or _scheme(uri) == name]

    def _known(self, name: str, names: Sequence[str]) -> None:
        if name not in names:
            known = [*names, *(redact(uri) for uri, _, _ in self._sinks)]
            hint = near_miss(name, known) or f"it has {', '.join(known)}"
            raise UsageError(f"the pipeline has no stage or sink `{redact(name)}`", hint=hint)

    def _sink_changes(self, wanted: Sequence[SinkConfig]) -> tuple[dict[int, dict[str, Any]], list[str]]:
        """Return the changed options by number of sink, and what cannot be changed while it runs."""
        uris = [uri for uri, _, _ in self._sinks]
        if [s.uri for s in wanted] != uris:
            return {}, ["sinks are added and taken away with a fresh start"]
        changes, restart = {}, []
        for i, sink in enumerate(wanted):
            if sink.params == self._sinks[i][2]:
                continue
            problem = self._unchangeable(i, sink.params)
            if problem is None:
                changes[i] = dict(sink.params)
            else:
                restart.append(problem)
        return changes, restart

    def _unchangeable(self, i: int, options: Mapping[str, Any]) -> str | None:
        """Say why sink `i` cannot get `options` while it runs; None when it can."""
        uri, _, before = self._sinks[i]
        sink: Any = self._running().sinks[i]
        different = {k for k in before.keys() | options.keys() if before.get(k) != options.get(k)}
        fixed = sorted(different - getattr(sink, "changeable", frozenset()))
        return f"sink `{redact(uri)}`: `{fixed[0]}` changes with a fresh start" if fixed else None

    def _change_sink(self, i: int, options: Mapping[str, Any]) -> None:
        """Let the sink take other options, from the next result that it gets."""
        uri, own, _ = self._sinks[i]
        problem = self._unchangeable(i, options)
        if problem is not None:
            raise UsageError(problem, hint="stop the pipeline and start it again")
        sink: Any = self._running().sinks[i]
        # A second one, never opened, checks the options and holds them.
        sink.adopt(sink_table.create(uri, {**self._sink_context, **options}))
        self._sinks[i] = (uri, own, dict(options))


_FRESH = ("source", "workers", "serve")


def _at(config: PipelineConfig, key: str) -> Any:
    return getattr(config, key)


def labelled(stages: Sequence[StageConfig], run: Run) -> tuple[StageConfig, ...]:
    """Return stages by the names that their models have in a run."""
    seconds = iter([s.name for s in run.seconds])
    out = []
    for stage in stages:
        if stage.after is not None:
            stage = replace(stage, name=next(seconds, stage.label), after=run.stage)
        out.append(stage)
    return tuple(out)


def _rule_changes(old: Rules, new: Rules) -> list[str]:
    was, now = {o.name: o for o in old.overrides}, {o.name: o for o in new.overrides}
    names = [name for name in [*now, *(n for n in was if n not in now)] if was.get(name) != now.get(name)]
    out = [f"override {name}" for name in names]
    if [*was] != [*now] and not names:
        out.append("the order of the overrides")
    out += ["degrade"] if old.degrade != new.degrade else []
    return [*out, *(["time_zone"] if old.time_zone != new.time_zone else [])]


def _scheme(uri: str) -> str:
    try:
        return sink_name(uri)
    except UsageError:
        return ""
