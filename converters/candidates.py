"""Which builds a profile allows, in the order they are tried, and why the others are left out."""

from __future__ import annotations

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
    precision: str
    scheme: Int8Scheme = field(default_factory=Int8Scheme)
    float_first: int = 0
    float_last: int = 0

    @property
    def key(self) -> str:
        if self.precision != "int8":
            return f"{self.runtime}-{self.precision}"
        s = self.scheme
        bits = f"{s.activation[0]}8{s.weight[0]}8{'c' if s.per_channel else 't'}{'r' if s.reduce_range else ''}"
        return f"{self.runtime}-int8-{bits}-{self.float_first}-{self.float_last}"

    @property
    def variant(self) -> str | None:
        """Return how the build differs from the plain one of its precision."""
        ends = (("first", self.float_first), ("last", self.float_last))
        parts = [f"{end} {count}" for end, count in ends if count]
        return f"{' and '.join(parts)} layers float" if parts else None


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
                precision=precision,
                scheme=profile.int8_scheme(support.name) if precision == "int8" else Int8Scheme(),
            ),
            support=support,
            reason=next(_reasons(profile, support, precision, **facts), None),
        )
        for support in profile.runtimes
        for precision in support.precisions
    ]
    return tuple(sorted(rows, key=lambda a: _rank(a.candidate.precision)))


def _rank(precision: str) -> int:
    return ORDER.index(precision) if precision in ORDER else len(ORDER)


def _reasons(
    profile: Profile,
    support: RuntimeSupport,
    precision: str,
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
    if support.name not in table.names():
        yield f"no back-end builds for {support.name} in this version"
        return
    if precision not in table.plugin(support.name).capabilities["precisions"]:
        yield f"the {support.name} back-end does not build {precision} in this version"
    missing = (*table.missing(support.name), *runtimes.registry().missing(support.name))
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
