"""What `edge convert` returns, and the errors that say that nothing can or may be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.candidates import Allowed
from converters.reasons import Reason
from converters.search import Outcome
from edge_sdk.errors import ConversionError, EdgeError, GuardrailError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """One artifact with the profile's candidates; `to_json` is what `edge convert --json` prints of it.

    `source` has the metric and the latency of the model as it came; `delta` the bytes of the delta from the base.
    """

    path: Path
    digest: str
    payload_digest: str
    profile: str
    chosen: Outcome
    size_bytes: int
    rows: tuple[Outcome, ...]
    source: Mapping[str, Any]
    parent: str | None = None
    delta: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        chosen = self.chosen
        found = {
            "path": str(self.path),
            "digest": self.digest,
            "payload_digest": self.payload_digest,
            "profile": self.profile,
            "chosen": {
                "runtime": chosen.candidate.runtime,
                "precision": chosen.candidate.precision,
                "backend": chosen.candidate.backend,
                "variant": chosen.candidate.variant,
                "latency_ms": chosen.latency_ms,
                "ram_mb": chosen.ram_mb,
                "options": chosen.options,
                "threads": list(chosen.threads),
                "size_bytes": self.size_bytes,
                "metric": chosen.metric,
                "speedup": self.speedup,
            },
            "source": dict(self.source),
            "candidates": [o.to_json() for o in self.rows],
        }
        return found if self.parent is None else found | {"parent": self.parent, "delta": dict(self.delta or {})}

    @property
    def speedup(self) -> float | None:
        """Return how many times faster the build is than the source as it came, measured in the same rounds."""
        before, after = self.source.get("latency_ms"), self.chosen.latency_ms
        if not before or not after:
            return None
        return round(float(before["p50"]) / max(float(after.get("measured_p50", after["p50"])), 1e-9), 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unbuilt:
    """A profile that has no artifact, the error it would have ended with alone, and its candidates."""

    profile: str
    error: EdgeError
    rows: tuple[Outcome, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "error": self.error.to_json(),
            "candidates": [o.to_json() for o in self.rows],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """The artifacts of one run, and the profiles that have none; there is at least one artifact."""

    done: tuple[Converted, ...]
    unbuilt: tuple[Unbuilt, ...] = ()

    @property
    def error(self) -> EdgeError | None:
        """Return what the command ends with: None where every profile has its artifact."""
        return together(self.unbuilt, of=len(self.done) + len(self.unbuilt)) if self.unbuilt else None

    def to_json(self) -> dict[str, Any]:
        """Return the object of `--json`: `artifacts`, and where profiles have none, `failed` and the `error`."""
        found: dict[str, Any] = {"artifacts": [c.to_json() for c in self.done]}
        if self.error is not None:
            found |= {"failed": [u.to_json() for u in self.unbuilt], "error": self.error.to_json()}
        return found


def together(unbuilt: Sequence[Unbuilt], *, of: int) -> EdgeError:
    """Return one error for all the profiles without an artifact, of the kind with the largest exit code.

    Args:
        of: how many profiles were asked for.
    """
    worst = max((u.error for u in unbuilt), key=lambda e: e.exit_code)
    if of == 1:
        return worst
    head = f"{len(unbuilt)} of {of} profiles have no artifact"
    hints = list(dict.fromkeys(u.error.hint for u in unbuilt if u.error.hint))
    return type(worst)("\n".join([head, *(u.error.message for u in unbuilt)]), hint="; ".join(hints) or None)


def by_use(rows: Sequence[Outcome]) -> list[Outcome]:
    """Return the rows as people look for them: what may be used by latency, then why the rest may not."""
    order = ("chosen", "passed", "refused", "failed", "skipped")
    return sorted(rows, key=lambda o: (order.index(o.status), (o.latency_ms or {}).get("p50", 0.0)))


def nothing_to_try(name: str, rows: Sequence[Allowed]) -> UsageError:
    """Return the error for a profile of whose candidates none can be built."""
    told = [(f"{r.candidate.runtime} {r.candidate.precision}", r.reason or "", r.kind) for r in rows]
    kinds = {r.kind for r in rows} - {Reason.NOT_ASKED} or {Reason.NOT_ASKED}
    ways = [way for kind, way in _WAYS.items() if kind in kinds]
    return UsageError(
        "\n".join([f"the profile `{name}` leaves nothing to build", *_told(told)]),
        hint=", or ".join([*ways, "name another profile"]),
    )


def _told(rows: Sequence[tuple[str, str, Reason | None]]) -> list[str]:
    """Return a line for each reason with the candidates it holds for; those that a flag left out are only counted.

    Args:
        rows: candidate, reason, kind.
    """
    asked = [r for r in rows if r[2] is not Reason.NOT_ASKED]
    reasons: dict[str, list[str]] = {}
    for candidate, reason, _ in asked or rows:
        reasons.setdefault(reason, []).append(candidate)
    lines = [f"  {', '.join(dict.fromkeys(names))}: {reason}" for reason, names in reasons.items()]
    if asked and len(asked) < len(rows):
        lines.append(f"  {len(rows) - len(asked)} more are left out by --runtime, --precision or --backend")
    return lines


_WAYS = {
    Reason.OPSET: "export the model with an opset that the profile reads (PyTorch: --opset)",
    Reason.NEEDS_CALIBRATION: "give --calibration DIR",
    Reason.NEEDS_ENVIRONMENT: "add --make-environments",
    Reason.MISSING_PACKAGE: "install what is missing",
    Reason.COMPILER_MISSING: "install the compiler",
    Reason.CONVERT_ONLY: "add --on ssh://HOST",
    Reason.NOT_ASKED: "lift --runtime, --precision or --backend",
}
"""What lets a candidate be built after all, by the kind of the reason that it cannot."""


def check_any(name: str, rows: Sequence[Outcome]) -> None:
    """Raise the error that fits when no candidate of the profile was chosen."""
    if any(o.status == "chosen" for o in rows):
        return
    told = [(f"{_name(o)} {o.status}", o.reason or "", o.reason_kind) for o in rows]
    text = "\n".join([f"no build for `{name}` may be used", *_told(told)])
    if any(o.status == "refused" for o in rows):
        raise GuardrailError(text, hint="allow fp32, raise --max-drop, or give more calibration images")
    if any(o.status == "failed" for o in rows):
        raise ConversionError(text, hint="run again with -v for what the tools said")
    raise ConversionError(text, hint="give more time with --budget-s")


def _name(outcome: Outcome) -> str:
    c = outcome.candidate
    return f"{c.runtime} {c.precision}" + (f" ({c.variant})" if c.variant else "")
