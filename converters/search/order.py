"""In which order candidates are tried: those that may win first, so that a budget is spent on them.

The model is small and its figures are estimates: expected latency = what fp32 takes in the same runtime, measured
first, times a factor for the precision on the profile's kind of CPU. Precisions that only save storage come last, since
they cannot win on latency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from converters.candidates import Allowed, Candidate
from device_profiles.profile import Profile, RuntimeSupport

INT8_DOT_GAIN = 1.3
"""How much faster int8 networks are with an 8-bit dot product than without: an estimate, from int8 / fp32 of 0.84 to
1.09 with AVX512-VNNI and 1.13 to 1.25 with AVX2 alone (YOLOX-nano, ONNX Runtime and OpenVINO)."""
INT8_WITH_DOT = 0.9
DYNAMIC = {"litert": 1.0}
DYNAMIC_ELSEWHERE = 4.0
"""Ranges found at run time: about as fast as float in LiteRT, 4.9 times as slow for convolutions in ONNX Runtime."""
INT16X8 = 3.0
"""16-bit activations have reference kernels only for many operators."""
RESCUE = 1.05
"""Layers that stay float cost some of what int8 gains."""
_LAST = 100.0


def factor(profile: Profile, support: RuntimeSupport, precision: str) -> float:
    """Return the latency expected of a precision, relative to fp32 in the same runtime on the profile's CPU."""
    if precision == "fp32":
        return 1.0
    if precision == "int8":
        return INT8_WITH_DOT * (1.0 if profile.has_int8_dot else INT8_DOT_GAIN)
    if precision == "dynamic":
        return DYNAMIC.get(support.name, DYNAMIC_ELSEWHERE)
    if precision == "int16x8":
        return INT16X8
    return 0.6 if _computes_in_half(support) else _LAST


def expected(
    candidate: Candidate,
    rows: Mapping[str, Sequence[Allowed]],
    profiles: Mapping[str, Profile],
    baselines: Mapping[str, float],
) -> float:
    """Return the smallest latency that a profile may expect of the candidate, relative to the fastest fp32.

    Args:
        rows: profile -> its candidates.
        baselines: runtime -> milliseconds of its fp32 build; a runtime without one counts as the slowest measured.
    """
    slowest = max(baselines.values(), default=1.0)
    fastest = min(baselines.values(), default=1.0)
    base = baselines.get(candidate.runtime, slowest) / max(fastest, 1e-9)
    plain = candidate.plain
    factors = [
        factor(profiles[name], row.support, candidate.precision)
        for name, allowed in rows.items()
        for row in allowed
        if row.reason is None and row.candidate == plain
    ]
    return base * min(factors, default=1.0) * (RESCUE if candidate != plain else 1.0)


def _computes_in_half(support: RuntimeSupport) -> bool:
    """Return whether 16-bit floats are computed with, not only stored: on accelerators, and where options say so."""
    return support.provider.upper() not in ("", "CPU") or support.options.get("precision") in ("f16", "fp16")
