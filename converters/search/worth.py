"""May a rescue of a refused int8 build be the fastest that a profile can have?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from converters.candidates import Allowed
from converters.search.choose import figures, limited, speed
from converters.search.order import RESCUE
from converters.search.outcome import Outcome
from device_profiles.machine import Machine
from device_profiles.profile import Profile


def twin(refused: Outcome, passed: Sequence[Outcome]) -> str | None:
    """Return why no rescue is needed beside another int8 build of the same runtime and scheme, or None.

    Args:
        refused, passed: outcomes with latency as measured here.
    """
    like = (refused.candidate.runtime, refused.candidate.precision, refused.candidate.scheme)
    same = [o for o in passed if (o.candidate.runtime, o.candidate.precision, o.candidate.scheme) == like]
    return _slower(refused, same)


def hopeless(
    refused: Outcome,
    passed: Sequence[Outcome],
    rows: Mapping[str, Sequence[Allowed]],
    profiles: Sequence[Profile],
    machine: Machine,
    *,
    asked: Sequence[str] = (),
) -> str | None:
    """Return why a rescue can win for none of the profiles that allow the build, or None where it may win for one.

    Builds that a profile does not allow, or that its limits refuse, do not count; a limit on memory is not known yet,
    so under one every rescue is tried.

    Args:
        refused, passed: outcomes with latency as measured on `machine`.
        rows: profile -> its candidates.
        asked: precisions asked for: what is asked for is rescued.
    """
    if refused.candidate.precision in asked:
        return None
    reason = None
    for profile in profiles:
        allowed = {row.candidate for row in rows[profile.name] if row.reason is None}
        if refused.candidate.plain not in allowed:
            continue
        if {c.precision for c in allowed} == {refused.candidate.precision} or profile.limits.ram_mb is not None:
            return None
        here = [figures(o, profile, machine) for o in passed if o.candidate.plain in allowed]
        within = [o for o in here if limited(o, profile).status == "passed"]
        found = _slower(figures(refused, profile, machine), within)
        if found is None:
            return None
        reason = reason or found
    return reason


def _slower(refused: Outcome, others: Sequence[Outcome]) -> str | None:
    best = min(others, key=speed, default=None)
    least = RESCUE * speed(refused)
    if best is None or speed(best) > least:
        return None
    about = "~" if (best.latency_ms or {}).get("kind") == "estimate" else ""
    other = best.candidate
    name = " ".join(filter(None, (other.runtime, other.precision, other.method)))
    return (
        f"not rescued: with layers in float it would take {about}{least:.2f} ms or more, {name} passed with "
        f"{about}{speed(best):.2f} ms"
    )
