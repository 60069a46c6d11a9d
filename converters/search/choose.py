"""The candidates as they hold for one profile: figures, limits, the fastest, and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from converters.candidates import Allowed
from converters.reasons import Reason
from converters.search.order import INT8_DOT_GAIN
from converters.search.outcome import Outcome
from device_profiles.machine import Machine
from device_profiles.probe import runs_here
from device_profiles.profile import INT8_DOT_FLAGS, Profile

USABLE = ("passed", "chosen")
TIE, TIE_MS = 1.02, 0.005
"""Latencies within 2 % and 5 microseconds are equal: the simpler build wins, so that noise does not choose."""


def for_profile(
    profile: Profile, allowed: Sequence[Allowed], outcomes: Mapping[str, Outcome], machine: Machine
) -> tuple[Outcome, ...]:
    """Return the profile's candidates with figures as they hold for it, its limits applied and the fastest chosen."""
    return choose(rows_of(profile, allowed, outcomes, machine), profile)


def rows_of(
    profile: Profile, allowed: Sequence[Allowed], outcomes: Mapping[str, Outcome], machine: Machine
) -> tuple[Outcome, ...]:
    """Return the profile's candidates, rescues beside what they rescue, with figures as they hold for it."""
    rows: list[Outcome] = []
    for entry in allowed:
        if entry.reason is not None:
            skipped = Outcome(candidate=entry.candidate, status="skipped", reason=entry.reason, reason_kind=entry.kind)
            rows.append(skipped)
            continue
        tried = [o for o in outcomes.values() if o.candidate.plain == entry.candidate]
        rows += [figures(o, profile, machine) for o in tried]
    return tuple(rows)


def choose(rows: Sequence[Outcome], profile: Profile) -> tuple[Outcome, ...]:
    """Return the rows with the profile's limits applied, the fastest chosen and the Pareto front marked."""
    within = [limited(o, profile) for o in rows]
    passed = [o for o in within if o.status == "passed" and o.latency_ms is not None]
    if not passed:
        return tuple(within)
    least = min(speed(o) for o in passed)
    best = min((o for o in passed if as_fast(speed(o), least)), key=_simplicity)
    return front([replace(o, status="chosen") if o is best else _why_not(o, best) for o in within])


def speed(outcome: Outcome) -> float:
    """Return the milliseconds by which builds compete."""
    assert outcome.latency_ms is not None
    return float(outcome.latency_ms["p50"])


def as_fast(ms: float, least: float) -> bool:
    """Return whether a latency is no more above the least than two measurements of one build differ."""
    return ms <= least * TIE + TIE_MS


def _simplicity(outcome: Outcome) -> tuple[bool, bool, bool, int, str]:
    """Return what is least of the build that is taken among equally fast ones: float, plain, small."""
    c = outcome.candidate
    return c.precision != "fp32", bool(c.method), c != c.plain, outcome.size_bytes or 0, c.key


def front(rows: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Return the rows, those marked that no other usable row beats in latency, size and metric together."""
    usable = {id(o): _costs(o) for o in rows if o.status in USABLE and o.latency_ms and o.metric}
    return tuple(
        replace(o, pareto=True)
        if id(o) in usable and not any(_dominates(c, usable[id(o)]) for k, c in usable.items() if k != id(o))
        else o
        for o in rows
    )


def _costs(outcome: Outcome) -> tuple[float, float, float]:
    assert outcome.latency_ms is not None
    assert outcome.metric is not None
    return float(outcome.latency_ms["p50"]), float(outcome.size_bytes or 0), -float(outcome.metric["value"])


def _dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def figures(outcome: Outcome, profile: Profile, machine: Machine) -> Outcome:
    """Return the outcome with its latency and memory marked as measured or as estimates for the profile."""
    here = runs_here(profile, machine)
    kind: dict[str, Any] = {"kind": "measured"} if here else {"kind": "estimate", "measured_on": machine.label()}
    ram = None if outcome.ram_mb is None else outcome.ram_mb | kind
    if outcome.latency_ms is None:
        return replace(outcome, ram_mb=ram)
    latency = dict(outcome.latency_ms)
    if here:
        return replace(outcome, ram_mb=ram, latency_ms=latency | kind)
    factor = 1.0
    if outcome.candidate.precision == "int8":
        dot = bool(INT8_DOT_FLAGS & set(machine.isa))
        factor = INT8_DOT_GAIN ** (dot - profile.has_int8_dot)
    scaled = {k: round(latency[k] * factor, 3) for k in ("p50", "p95")}
    note = kind | {"measured_p50": latency["p50"], "factor": factor}
    return replace(outcome, ram_mb=ram, latency_ms=latency | scaled | note)


def limited(outcome: Outcome, profile: Profile) -> Outcome:
    """Return the outcome, refused where it breaks a limit of the profile.

    Latency counts where it was measured on the profile's kind of machine, of one thread or of the threads that were
    found to be better; memory counts everywhere, since it depends little on the CPU.
    """
    if outcome.status != "passed":
        return outcome
    limits = profile.limits
    size_mb = (outcome.size_bytes or 0) / 2**20
    if limits.artifact_mb is not None and size_mb > limits.artifact_mb:
        reason = f"{size_mb:.1f} MiB, the profile `{profile.name}` allows {limits.artifact_mb:g}"
        return replace(outcome, status="refused", reason_kind=Reason.SIZE, reason=reason)
    ms = _milliseconds(outcome)
    if limits.latency_ms is not None and ms is not None and ms > limits.latency_ms:
        reason = f"{ms:.1f} ms, the profile `{profile.name}` allows {limits.latency_ms:g}"
        return replace(outcome, status="refused", reason_kind=Reason.LATENCY, reason=reason)
    ram = outcome.ram_mb
    if limits.ram_mb is not None and ram is not None and ram["peak"] > limits.ram_mb:
        about = " (an estimate: measured on this machine)" if ram["kind"] == "estimate" else ""
        reason = f"{ram['peak']:.0f} MiB resident{about}, the profile `{profile.name}` allows {limits.ram_mb:g}"
        return replace(outcome, status="refused", reason_kind=Reason.RAM, reason=reason)
    return outcome


def _milliseconds(outcome: Outcome) -> float | None:
    """Return the latency that a limit is compared with, or None where there is only an estimate."""
    latency = outcome.latency_ms
    if latency is None or latency["kind"] != "measured":
        return None
    chosen = next((row for row in outcome.threads if row.get("chosen")), None)
    return float(chosen["latency_ms"]["p50"] if chosen else latency["p50"])


def _why_not(outcome: Outcome, best: Outcome) -> Outcome:
    if outcome.status != "passed" or outcome.latency_ms is None or best.latency_ms is None:
        return outcome
    ratio = speed(outcome) / max(speed(best), 1e-9)
    name = f"{best.candidate.runtime} {best.candidate.precision}"
    if as_fast(speed(outcome), speed(best)):
        return replace(outcome, reason_kind=Reason.EQUAL, reason=f"as fast as {name}, which is simpler")
    return replace(outcome, reason_kind=Reason.SLOWER, reason=f"{ratio:.2f} times the latency of {name}")
