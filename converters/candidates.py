"""Which builds a profile allows, in the order they are tried, and why the others are left out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from converters import backends, compilers, environments
from converters.compilers.base import Tool, absent
from converters.environments import bridge
from converters.frontends.base import Source
from converters.reasons import Reason
from converters.recipe import Recipe
from device_profiles.machine import Machine
from device_profiles.probe import runs_here
from device_profiles.profile import Int8Scheme, Profile, RuntimeSupport, version_range
from edge_sdk import runtimes
from edge_sdk.runtimes.versions import in_range

ORDER = ("fp32", "int8", "fp16")
INTEGER = ("int8", "int16x8")
"""Precisions whose ranges come from calibration images; `dynamic` finds its ranges when it runs."""
PLAIN_IO = ("float32", "uint8")
"""What inputs and outputs are where the profile names nothing else that the back-end would use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One build: equal candidates of several profiles are built and verified once.

    `environment` is the one it is verified in, where that is not this one (see converters.environments). `fresh`: the
    scales of `--base` are not used again.
    """

    runtime: str
    backend: str
    form: str
    precision: str
    method: str = ""
    scheme: Int8Scheme = field(default_factory=Int8Scheme)
    float_first: int = 0
    float_last: int = 0
    float_layers: tuple[str, ...] = ()
    io_dtypes: tuple[str, ...] = PLAIN_IO
    provider: str = "CPU"
    compiler: str = ""
    compiler_options: tuple[tuple[str, str], ...] = ()
    environment: str = ""
    fresh: bool = False

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
        if self.io_dtypes != PLAIN_IO:
            parts.append("io_" + "_".join(self.io_dtypes))
        if self.environment:
            parts.append("in_" + self.environment)
        parts += ["fresh"] if self.fresh else []
        if (self.provider, self.compiler) != ("CPU", ""):
            facts = [self.provider, self.compiler, *(f"{k}={v}" for k, v in self.compiler_options)]
            parts += ["on", hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]]
        return "-".join(parts)

    @property
    def plain(self) -> Candidate:
        """Return the candidate without the layers left in float, or the way taken, to rescue it."""
        method = "" if self.method and self.method == self.last_resort else self.method
        return replace(self, float_first=0, float_last=0, float_layers=(), method=method, fresh=False)

    @property
    def last_resort(self) -> str | None:
        """Return the method of the back-end that is tried when the guard has refused all others."""
        resorts = backends.registry().plugin(self.backend).capabilities.get("last_resort", {}) if self.backend else {}
        found: str | None = resorts.get(self.precision)
        return found

    @property
    def variant(self) -> str | None:
        """Return how the build differs from the plain one of its runtime and precision."""
        ends = (("first", self.float_first), ("last", self.float_last))
        parts = [f"{end} {count}" for end, count in ends if count]
        words = [self.provider] if self.provider != "CPU" else []
        words += [f"compiled by {self.compiler}"] if self.compiler else []
        words += [self.method] if self.method else []
        words += ["scales of its own"] if self.fresh else []
        words += [f"{' and '.join(parts)} layers float"] if parts else []
        words += [f"{len(self.float_layers)} sensitive layers float"] if self.float_layers else []
        return ", ".join(words) or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """A candidate of a profile, or the reason why it is none."""

    candidate: Candidate
    support: RuntimeSupport
    reason: str | None = None
    kind: Reason | None = None


def of_profile(
    profile: Profile, recipe: Recipe, source: Source, machine: Machine, *, calibrated: bool
) -> tuple[Allowed, ...]:
    """Return every runtime and precision of the profile, fp32 first; the ones that cannot be tried have a reason."""
    facts: Any = {"recipe": recipe, "source": source, "machine": machine, "calibrated": calibrated}
    rows = [
        _row(profile, support, precision, way, facts)
        for support in profile.runtimes
        for precision in support.precisions
        for way in _ways(support, precision, recipe, source)
    ]
    return tuple(sorted(rows, key=lambda a: _rank(a.candidate.precision)))


def _row(profile: Profile, support: RuntimeSupport, precision: str, way: _Way, facts: Mapping[str, Any]) -> Allowed:
    kind, reason = next(_reasons(profile, support, precision, way, **facts), (None, None))
    candidate = Candidate(
        runtime=support.name,
        backend=way.backend,
        form=way.form,
        precision=precision,
        method=way.method,
        scheme=profile.int8_scheme(support.name) if precision == "int8" else Int8Scheme(),
        io_dtypes=_io(support, precision, way),
        environment=environment_of(support),
        provider=support.provider,
        compiler=support.compiler or "",
        compiler_options=tuple(sorted(support.compiler_options.items())),
    )
    return Allowed(candidate=candidate, support=support, reason=reason, kind=kind)


def environment_of(support: RuntimeSupport) -> str:
    """Return the environment that has the profile's distribution of the runtime; empty where this one has it."""
    name = support.distribution or ""
    return name if name in environments.TABLE else ""


def _io(support: RuntimeSupport, precision: str, way: _Way) -> tuple[str, ...]:
    """Return the dtypes the device takes, sorted; the plain ones where the back-end makes no use of others."""
    can = backends.registry().plugin(way.backend).capabilities if way.backend else {}
    chooses = can.get("chooses_io", ())
    return tuple(sorted(support.io_dtypes)) if precision in chooses else PLAIN_IO


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    backend: str = ""
    form: str = ""
    method: str = ""


def _ways(support: RuntimeSupport, precision: str, recipe: Recipe, source: Source) -> list[_Way]:
    """Return each back-end and method that builds the precision for the runtime from a form that the source has.

    One empty way where there is none, so that the table has a row with the reason.
    """
    table = backends.registry()
    ways = []
    for name in table.names():
        can = table.plugin(name).capabilities
        asked = name in recipe.backend
        if (
            can.get("runtime") != support.name
            or (recipe.backend and not asked)
            or (can.get("on_request") and not asked)
        ):
            continue
        form = next((f for f in can["reads"] if f in source.forms), None)
        if form is not None:
            methods = [m for m in can["methods"].get(precision, ()) if _right(can, support, precision, m)]
            if as_it_came(source, form):
                methods = list(can["methods"][precision][:1]) if precision == source.precision else []
            ways += [_Way(backend=name, form=form, method=m) for m in methods]
    return ways or [_Way()]


def as_it_came(source: Source, form: str) -> bool:
    """Say whether the form is the source's own file whose weights are integers already: it can only be kept."""
    return source.quantized and form == source.format


def _right(can: Mapping[str, Any], support: RuntimeSupport, precision: str, method: str) -> bool:
    """Say whether the profile's distribution of the runtime answers rightly with the method."""
    only = can.get("only_on", {}).get((precision, method))
    usual = runtimes.registry().plugin(support.name).capabilities.get("distribution", support.name)
    return only is None or (support.distribution or usual) in only


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
) -> Iterator[tuple[Reason, str]]:
    table = backends.registry()
    if recipe.runtime and support.name not in recipe.runtime:
        yield Reason.NOT_ASKED, f"not asked for: --runtime {' '.join(recipe.runtime)}"
    if recipe.precision and precision not in recipe.precision:
        yield Reason.NOT_ASKED, f"not asked for: --precision {' '.join(recipe.precision)}"
    if not way.backend:
        how = bridge.why(source, support.name)
        if how is not None:
            yield Reason.NEEDS_ENVIRONMENT, how
        if any(as_it_came(source, f) and f in bridge.read_by(support.name) for f in source.forms):
            kept = (
                f"{support.name} keeps it so"
                if source.precision in support.precisions
                else (f"the profile `{profile.name}` has no {source.precision} for {support.name}")
            )
            yield Reason.UNSUPPORTED, f"the source is {source.precision} already: {kept}"
        absent_form = bridge.failed(source, support.name)
        if absent_form is not None:
            yield Reason.UNSUPPORTED, absent_form
        forms = " or ".join(source.forms)
        yield Reason.NO_BACKEND, f"no back-end builds {support.name} {precision} from {forms}"
        return
    for known, name in ((table, way.backend), (runtimes.registry(), support.name)):
        missing = known.missing(name)
        if missing:
            extra = known.plugin(name).extra or "convert"
            yield Reason.MISSING_PACKAGE, f"`{missing[0]}` is not installed here: pip install 'edge-sdk[{extra}]'"
            return
    installed = machine.runtimes.get(support.name)
    if environment_of(support):
        wanted = environments.TABLE[environment_of(support)]
        installed = wanted.version
        if environments.find(wanted) is None and not recipe.make_environments:
            yield Reason.NEEDS_ENVIRONMENT, environments.how_to_make(wanted)
    low, high = version_range(support.versions)
    if installed is not None and not in_range(installed, low, high):
        yield (
            Reason.WRONG_VERSION,
            f"{support.name} {installed} is installed here, the profile `{profile.name}` runs {support.versions}",
        )
    if support.max_opset is not None and source.opset > support.max_opset:
        yield Reason.OPSET, f"the model has opset {source.opset}, the profile reads up to {support.max_opset}"
    if precision in INTEGER and not calibrated and not as_it_came(source, way.form):
        yield Reason.NEEDS_CALIBRATION, f"{precision} needs --calibration"
    yield from _accelerator(profile, support, precision, recipe, machine)


def _accelerator(
    profile: Profile, support: RuntimeSupport, precision: str, recipe: Recipe, machine: Machine
) -> Iterator[tuple[Reason, str]]:
    """Yield why a build for an accelerator can be neither compiled nor verified."""
    there = recipe.on is not None
    if support.compiler is not None:
        tool: Tool = compilers.registry().load(support.compiler)
        missing = absent(tool)
        if missing is not None:
            yield Reason.COMPILER_MISSING, missing
        if tool.where == "device" and not there:
            yield Reason.COMPILER_MISSING, f"the compiler `{tool.name}` runs on the device: add --on ssh://HOST"
        if precision not in tool.precisions:
            yield Reason.UNSUPPORTED, f"the compiler `{tool.name}` takes {' or '.join(tool.precisions)}"
        if tool.device_only and not there:
            yield Reason.CONVERT_ONLY, f"what `{tool.name}` makes runs only on the device: add --on ssh://HOST"
    elif support.provider != "CPU" and not there and not runs_here(profile, machine):
        yield Reason.CONVERT_ONLY, f"{support.provider} is on the device, not here: add --on ssh://HOST to verify there"


def unique(rows: Mapping[str, tuple[Allowed, ...]]) -> list[Candidate]:
    """Return the candidates that may be tried over all profiles, each once, fp32 first."""
    found = dict.fromkeys(row.candidate for allowed in rows.values() for row in allowed if row.reason is None)
    return sorted(found, key=lambda c: _rank(c.precision))
