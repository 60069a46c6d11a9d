"""Give a source the forms that tools in environments of their own can make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from converters import backends
from converters.environments import Environment, bridges, find, how_to_make
from converters.environments.make import ensure
from converters.environments.workshop import ForeignWorkshop
from converters.frontends.base import FORMS, Source
from converters.recipe import Recipe
from converters.workers import Workshop
from device_profiles.profile import Profile
from edge_sdk.errors import EdgeError

FORM = "tflite"


def needed(source: Source, runtime: str) -> Environment | None:
    """Return the environment whose bridge would give `runtime` a form of the source, None where none is needed."""
    if runtime != FORMS[FORM] or FORM in source.absent or _built_from(source, runtime):
        return None
    return next((e for e in bridges(FORM) if e.reads in source.forms), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a bridge works: its folder, the worker that compares the answers, who is told, and which bridges there are.

    `root` is where environments are kept (None: the user's folder).
    """

    work: Path
    worker: Workshop
    say: Callable[[str], None]
    bridges: tuple[Environment, ...] = field(default_factory=lambda: bridges(FORM))
    root: Path | None = None


def extend(source: Source, recipe: Recipe, profiles: Sequence[Profile], place: Place) -> Source:
    """Return the source with a TFLite form where a profile can use it and an environment is there, or is asked for.

    What fails is a reason beside the candidates, not the end of the conversion.
    """
    runtime = str(FORMS[FORM])
    wanted = any(p.runtime(runtime) for p in profiles) and runtime in (recipe.runtime or (runtime,))
    if not wanted or needed(source, runtime) is None or not _asked(recipe, runtime):
        return source
    reasons: list[str] = []
    for environment in [e for e in place.bridges if e.reads in source.forms]:
        try:
            python = find(environment, place.root)
            if python is None and recipe.make_environments:
                python = ensure(environment, root=place.root, say=place.say)
            if python is not None:
                return _bridged(source, recipe, environment, python, place)
        except EdgeError as error:
            place.say(f"  {environment.name}: {error.message}")
            reasons.append(f"{environment.name}: {error.message}")
    return replace(source, absent={**source.absent, FORM: "; ".join(reasons)}) if reasons else source


def _asked(recipe: Recipe, runtime: str) -> bool:
    table = backends.registry()
    return not recipe.backend or any(table.plugin(b).capabilities.get("runtime") == runtime for b in recipe.backend)


def _built_from(source: Source, runtime: str) -> bool:
    return any(form in source.forms for form in read_by(runtime))


def _reads(runtime: str) -> list[Sequence[str]]:
    """Return what each back-end of the runtime reads."""
    table = backends.registry()
    capabilities = [table.plugin(name).capabilities for name in table.names()]
    return [c["reads"] for c in capabilities if c.get("runtime") == runtime]


def _bridged(source: Source, recipe: Recipe, environment: Environment, python: Path, place: Place) -> Source:
    made, out = place.work / f"{environment.name}.tflite", place.work / f"source-{environment.name}.tflite"
    tool = ForeignWorkshop(environment, python, job_limit_s=recipe.job_limit_s, memory_mb=recipe.memory_mb)
    try:
        facts: Mapping[str, str] = tool.call("convert", source=source.forms[environment.reads], out=str(made))
    finally:
        tool.close()
    reply = place.worker.call("adopt", source=source.to_json(), made=str(made), out=str(out))
    line = f"{facts['step']}; {reply['line']}"
    place.say(f"  {line}")
    return replace(source, forms={**source.forms, FORM: str(out)}, because=(*source.because, line))


def read_by(runtime: str) -> frozenset[str]:
    """Return the forms that the runtime's back-ends read."""
    return frozenset(form for reads in _reads(runtime) for form in reads)


def failed(source: Source, runtime: str) -> str | None:
    """Return why the source has no form that the runtime's back-ends read, None where nothing was tried."""
    return next((source.absent[form] for form in sorted(read_by(runtime)) if form in source.absent), None)


def why(source: Source, runtime: str) -> str | None:
    """Return how the environment that `runtime` needs for this source is made, None where none is needed."""
    environment = needed(source, runtime)
    return None if environment is None else how_to_make(environment)
