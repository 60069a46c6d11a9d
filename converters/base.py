"""`--base ARTIFACT`: the artifact that the next version is to be close to, so that its delta is small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from converters.candidates import Candidate
from converters.plan import Plan
from converters.search.job import Base
from device_profiles.profile import Profile
from edge_sdk.artifact import Artifact
from edge_sdk.errors import UsageError


def open_base(path: Path, plan: Plan, profiles: Sequence[Profile], work: Path) -> Base:
    """Open the artifact, check that the model can follow it, and extract its model file.

    Raises:
        ArtifactError: it is none, or a damaged one.
        UsageError: it is for another task, input, decoder, or a runtime that no profile has.
    """
    artifact = Artifact.open(path)
    manifest = artifact.manifest
    ours, base = plan.input, manifest.input
    pairs = [
        ("task", manifest.task, plan.task),
        ("decoder", manifest.decoder.name, plan.decoder),
        ("input size", f"{base.width}x{base.height}", f"{ours.width}x{ours.height}"),
        ("colour order", base.color, ours.color),
    ]
    for what, found, wanted in pairs:
        if found != wanted:
            raise UsageError(
                f"--base {path.name} has the {what} {found}, the model {wanted}",
                hint="give the artifact of an earlier version of this model",
            )
    runtimes = {r.name for p in profiles for r in p.runtimes}
    if manifest.runtime.name not in runtimes:
        raise UsageError(
            f"--base {path.name} runs in {manifest.runtime.name}, the profiles have {', '.join(sorted(runtimes))}",
            hint="give the artifact of an earlier version for this profile",
        )
    folder = work / "base"
    folder.mkdir()
    made = manifest.extra.get("conversion")
    return Base(
        path=path,
        model=artifact.extract_model(folder),
        sha256=artifact.sha256,
        profile=manifest.profile,
        runtime=manifest.runtime.name,
        conversion=made if isinstance(made, dict) else {},
    )


def layers_of(base: Base, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates, those that the base's scales fit with the layers in float that the base has in float."""
    made = base.conversion
    names = tuple(str(n) for n in made.get("float_layers") or ())
    first, last = (int(made.get(k) or 0) for k in ("float_first", "float_last"))
    return [
        replace(c, float_layers=names, float_first=first, float_last=last)
        if c.precision == "int8" and base.fits(c)
        else c
        for c in candidates
    ]


def parent_of(base: Base | None, profile: str, profiles: Sequence[Profile]) -> str | None:
    """Return the digest of the base for artifacts of its own profile, or of the only profile there is."""
    if base is None or (base.profile != profile and len(profiles) > 1):
        return None
    return base.sha256
