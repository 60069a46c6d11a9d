"""The stages of a running pipeline, and how they become others between two frames.

What did not change is kept as it is, with its tracks, counts and timers; what did is built anew, checked, and then
takes over the state of the one before. Nothing waits for a frame, and no frame waits for longer than the exchange.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edge_sdk.config import parse
from edge_sdk.errors import UsageError
from edge_sdk.pipeline.models import ModelSet, ModelSlot, StageModel
from edge_sdk.pipeline.run import Run
from edge_sdk.pipeline.steps import Around, Steps, build
from edge_sdk.pipeline_config import StageConfig
from edge_sdk.registry import near_miss
from edge_sdk.roi import RoiModel
from edge_sdk.sinks.base import FrameResult
from edge_sdk.stage_params import CropParams, TilesParams
from edge_sdk.tiling import TiledModel

_FIXED = ("kind", "model", "after", "shadow", "shadow_every")


class LiveStages:
    """Holds what runs; `become` changes it. Safe to call from every thread, also from one that reads results."""

    def __init__(self, run: Run, stages: Sequence[StageConfig], around: Around) -> None:
        self._run, self._around = run, around
        self._stages = tuple(stages)
        self._steps = run.steps
        self._parts = _parts(run.steps)
        self._lock = threading.Lock()

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        """The stages that run, those that are switched off included."""
        return self._stages

    def swapped(self, name: str, model: str | None, base: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
        """Note that a stage has another model, at `model` if it has an address, and return `base` with it."""

        def with_it(stages: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
            return tuple(replace(s, model=model) if s.label == name and model is not None else s for s in stages)

        with self._lock:
            self._stages = with_it(self._stages)
            self._around = replace(self._around, labels=self._run.slot.current.models[0].labels)
            return with_it(base)

    def become(self, stages: Sequence[StageConfig]) -> tuple[str, ...]:
        """Run `stages` from the next frame on; return the names of those that are different.

        Raises:
            ConfigError: params are wrong. Nothing is changed then.
            UsageError: a stage cannot work as it stands, or something changed that needs a fresh start.
        """
        wanted = tuple(stages)
        with self._lock:
            before = {s.label: s for s in self._stages}
            changed = tuple(s.label for s in wanted if before.get(s.label) != s)
            gone = tuple(name for name in before if name not in {s.label for s in wanted})
            if not changed and not gone and [s.label for s in wanted] == list(before):
                return ()
            for problem in not_live(self._stages, wanted):
                raise UsageError(problem, hint="stop the pipeline and start it with the new file")
            self._switch(wanted, before)
            return (*changed, *gone)

    def _switch(self, wanted: tuple[StageConfig, ...], before: Mapping[str, StageConfig]) -> None:
        models = self._models(wanted, before)
        first = next(s for s in wanted if s.is_first)
        around = replace(self._around, every=first.every)
        rest = tuple(s for s in wanted if not s.is_first)
        keep = {
            s.label: self._parts[s.label]
            for s in rest
            if s.label in self._parts and (s.after is not None or _same(before.get(s.label), s))
        }
        steps = build(rest, around, self._steps.trace, keep=keep)
        old_pace = self._steps.pace
        if old_pace is not None and (pace := steps.pace) is not None:
            pace.inferred = old_pace.inferred
            if old_pace.every == pace.every and old_pace.gate is pace.gate:
                steps = replace(steps, pace=old_pace)
        new = _parts(steps)
        takes_over = [
            (part, self._parts[name]) for name, part in new.items() if name in self._parts and name not in keep
        ]
        crops = [
            (new[s.label], s.crop or CropParams())
            for s in rest
            if s.after is not None and s.label in new and s.label in before and before[s.label].crop != s.crop
        ]
        for slot, models_ in models:
            slot.replace(models_, close=False)
        woken = [s for s in self._steps.idle if s not in steps.idle]
        run = self._run

        def switch(_item: FrameResult) -> None:
            for part, old in takes_over:
                if type(part) is type(old) and hasattr(part, "adopt"):
                    part.adopt(old)
            for second, crop in crops:
                second.change(crop)
            for second in woken:
                second.forget()
            run.use(steps)

        run.between_frames(switch)
        self._stages, self._steps, self._around = wanted, steps, around
        self._parts |= new

    def _models(
        self, wanted: tuple[StageConfig, ...], before: Mapping[str, StageConfig]
    ) -> list[tuple[ModelSlot, ModelSet]]:
        """Return the slots whose model decodes or sees something else from now on, and what goes into them."""
        out = []
        for stage in wanted:
            old = before.get(stage.label)
            if stage.is_step or old is None or (old.params == stage.params and old.roi == stage.roi):
                continue
            if stage.is_first:
                slot = self._run.slot
            elif stage.label in self._parts:
                slot = self._parts[stage.label].slot
            else:
                continue
            out.append((slot, tuned(slot.current, stage)))
        return out


def not_live(before: Sequence[StageConfig], wanted: Sequence[StageConfig]) -> list[str]:
    """Return a sentence for each difference between two lists of stages that needs a fresh start."""
    found = []
    old, new = {s.label: s for s in before if not s.is_step}, {s.label: s for s in wanted if not s.is_step}
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            what = "added to" if name not in old else "taken out of"
            found.append(f"a stage with a model (`{name}`) cannot be {what} a pipeline that runs")
            continue
        found += [
            f"stage `{name}`: `{key}` cannot be changed while it runs"
            for key in _FIXED
            if getattr(old[name], key) != getattr(new[name], key)
        ]
        if old[name].is_first and not new[name].enabled:
            found.append(f"stage `{name}`: the first model cannot be switched off")
    return found


def tuned(models: ModelSet, stage: StageConfig) -> ModelSet:
    """Return models on the same engines whose decoders, tiles and region are those of `stage`.

    Raises:
        UsageError: params are wrong, or the models are none that can be changed.
    """
    return ModelSet(tuple(_tuned(model, stage) for model in models.models))


def _tuned(model: Any, stage: StageConfig) -> StageModel:
    base = model
    while isinstance(base, (TiledModel, RoiModel)):
        base = base.inner
    own = dict(stage.params)
    tiles = own.pop("tiles", None)
    if not hasattr(base, "decoder"):
        raise UsageError(f"stage `{stage.label}`: this model's params cannot be changed", hint="build it anew")
    same = copy.copy(base)
    same.decoder = type(base.decoder)({**base.manifest.decoder.params, **own}, base.labels)
    if tiles is not None:
        same = TiledModel(same, parse(tiles, TilesParams, where=f"stage `{stage.label}`: params.tiles"))
    return RoiModel(same, stage.roi) if stage.roi else same


def find(stages: Sequence[StageConfig], name: str) -> StageConfig:
    """Return the stage called `name`.

    Raises:
        UsageError: there is none.
    """
    names = [s.label for s in stages]
    if name not in names:
        raise UsageError(f"the pipeline has no stage `{name}`", hint=near_miss(name, names) or f"it has {_some(names)}")
    return stages[names.index(name)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"`{n}`" for n in names) or "none"


def _same(old: StageConfig | None, new: StageConfig) -> bool:
    """Whether the part of one config serves the other, switched off or on."""
    return old is not None and replace(old, enabled=True) == replace(new, enabled=True)


def _parts(steps: Steps) -> dict[str, Any]:
    gate = steps.pace.gate if steps.pace is not None else None
    parts: list[Any] = [*([gate] if gate is not None else []), *steps.after, *steps.idle]
    return {part.name: part for part in parts}
