"""Which builds a profile allows, in the order they are tried, and why the others are left out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from converters import backends
from converters.frontends.base import Source
from converters.recipe import Recipe
from device_profiles.machine import Machine
from device_profiles.profile import Int8Scheme, Profile, RuntimeSupport, version_range
from edge_sdk import runtimes
from edge_sdk.runtimes.versions import in_range

ORDER = ("fp32", "int8", "fp16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One build: equal candidates of several profiles are built and verified once."""

    runtime: str
    backend: str
    form: str
    precision: str
    method: str = ""
    scheme: Int8Scheme = field(default_factory=Int8Scheme)
    float_first: int = 0
    float_last: int = 0
    float_layers: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        parts = [self.backend, self.form, self.precision, *filter(None, [self.method])]
        if self.precision == "int8":
            s = self.scheme
            parts.append(
                f"{s.activation[0]}8{s.weight[0]}8{'c' if s.per_channel else 't'}{'r' if s.reduce_range else ''}"
            )
            parts += [str(self.float_first), str(self.float_last)]
        if self.float_layers:
            parts.append(hashlib.sha256("\n".join(self.float_layers).encode()).hexdigest()[:8])
        return "-".join(parts)

    @property
    def variant(self) -> str | None:
        """Return how the build differs from the plain one of its runtime and precision."""
        ends = (("first", self.float_first), ("last", self.float_last))
        parts = [f"{end} {count}" for end, count in ends if count]
        words = [self.method] if self.method else []
        words += [f"{' and '.join(parts)} layers float"] if parts else []
        words += [f"{len(self.float_layers)} sensitive layers float"] if self.float_layers else []
        return ", ".join(words) or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """A candidate of a profile, or the reason why it is none."""

    candidate: Candidate
    support: RuntimeSupport
    reason: str | None = None


def of_profile(
    profile: Profile, recipe: Recipe, source: Source, machine: Machine, *, calibrated: bool
) -> tuple[Allowed, ...]:
    """Return every runtime and precision of the profile, fp32 first; the ones that cannot be tried have a reason."""
    facts: Any = {"recipe": recipe, "source": source, "machine": machine, "calibrated": calibrated}
    rows = [
        Allowed(
            candidate=Candidate(
                runtime=support.name,
                backend=way.backend,
                form=way.form,
                precision=precision,
                method=way.method,
                scheme=profile.int8_scheme(support.name) if precision == "int8" else Int8Scheme(),
            ),
            support=support,
            reason=next(_reasons(profile, support, precision, way, **facts), None),
        )
        for support in profile.runtimes
        for precision in support.precisions
        for way in _ways(support.name, precision, recipe, source)
    ]
    return tuple(sorted(rows, key=lambda a: _rank(a.candidate.precision)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    backend: str = ""
    form: str = ""
    method: str = ""


def _ways(runtime: str, precision: str, recipe: Recipe, source: Source) -> list[_Way]:
    """Return each back-end and method that builds the precision for the runtime from a form that the source has.

    One empty way where there is none, so that the table has a row with the reason.
    """
    table = backends.registry()
    ways = []
    for name in table.names():
        can = table.plugin(name).capabilities
        asked = name in recipe.backend
        if can.get("runtime") != runtime or (recipe.backend and not asked) or (can.get("on_request") and not asked):
            continue
        form = next((f for f in can["reads"] if f in source.forms), None)
        if form is not None:
            ways += [_Way(backend=name, form=form, method=m) for m in can["methods"].get(precision, ())]
    return ways or [_Way()]


def _rank(precision: str) -> int:
    return ORDER.index(precision) if precision in ORDER else len(ORDER)


def _reasons(
    profile: Profile,
    support: RuntimeSupport,
    precision: str,
    way: _Way,
    *,
    recipe: Recipe,
    source: Source,
    machine: Machine,
    calibrated: bool,
) -> Iterator[str]:
    table = backends.registry()
    if recipe.runtime and support.name not in recipe.runtime:
        yield f"not asked for: --runtime {' '.join(recipe.runtime)}"
    if recipe.precision and precision not in recipe.precision:
        yield f"not asked for: --precision {' '.join(recipe.precision)}"
    if not way.backend:
        yield f"no back-end builds {support.name} {precision} from {' or '.join(source.forms)}"
        return
    missing = (*table.missing(way.backend), *runtimes.registry().missing(support.name))
    if missing:
        yield f"`{missing[0]}` is not installed here: pip install 'edge-sdk[convert]'"
        return
    installed = machine.runtimes.get(support.name)
    low, high = version_range(support.versions)
    if installed is not None and not in_range(installed, low, high):
        yield f"{support.name} {installed} is installed here, the profile `{profile.name}` runs {support.versions}"
    if support.max_opset is not None and source.opset > support.max_opset:
        yield f"the model has opset {source.opset}, the profile reads up to {support.max_opset}"
    if precision == "int8" and not calibrated:
        yield "int8 needs --calibration"


def unique(rows: Mapping[str, tuple[Allowed, ...]]) -> dict[str, list[Candidate]]:
    """Return runtime -> its candidates over all profiles, each once, in the order they are tried."""
    lanes: dict[str, list[Candidate]] = {}
    for allowed in rows.values():
        for row in allowed:
            lane = lanes.setdefault(row.candidate.runtime, [])
            if row.reason is None and row.candidate not in lane:
                lane.append(row.candidate)
    return {name: sorted(lane, key=lambda c: _rank(c.precision)) for name, lane in lanes.items() if lane}
