"""Why a candidate is not the chosen one: a word for programs beside the sentence for people."""

from __future__ import annotations

from enum import Enum


class Reason(str, Enum):
    """The words that stand as `reason_kind` in the table of candidates (docs/concepts/search.md lists them)."""

    NOT_ASKED = "not_asked"
    NO_BACKEND = "no_backend"
    MISSING_PACKAGE = "missing_package"
    COMPILER_MISSING = "compiler_missing"
    WRONG_VERSION = "wrong_version"
    OPSET = "opset"
    NEEDS_CALIBRATION = "needs_calibration"
    NEEDS_ENVIRONMENT = "needs_environment"
    CONVERT_ONLY = "convert_only"
    BUDGET = "budget"
    FAILED = "failed"
    UNSUPPORTED = "unsupported"
    COLLAPSED = "collapsed"
    NONFINITE = "nonfinite"
    DROP = "drop"
    MIN_METRIC = "min_metric"
    GUARD = "guard"
    DISAGREES = "disagrees"
    NO_GAIN = "no_gain"
    SIZE = "size"
    LATENCY = "latency"
    RAM = "ram"
    SLOWER = "slower"
    EQUAL = "equal"


ABOUT = {
    Reason.NOT_ASKED: "left out by --runtime, --precision or --backend",
    Reason.NO_BACKEND: "no back-end builds this runtime and precision from any form of the source",
    Reason.MISSING_PACKAGE: "a Python package that builds or runs it is not installed here",
    Reason.COMPILER_MISSING: "the vendor's compiler is not installed here",
    Reason.WRONG_VERSION: "the runtime that is installed here is outside the profile's versions",
    Reason.OPSET: "the model's opset is newer than the profile reads",
    Reason.NEEDS_CALIBRATION: "integers need --calibration",
    Reason.NEEDS_ENVIRONMENT: "its tool runs in an environment of its own that is not made yet",
    Reason.CONVERT_ONLY: "the runtime cannot run here, so no build of it can be verified",
    Reason.BUDGET: "the time of --budget-s was spent",
    Reason.FAILED: "the tool failed on this model, took too long or too much memory",
    Reason.UNSUPPORTED: "the back-end or the runtime says that it cannot do it (an operator, a type, an option)",
    Reason.COLLAPSED: "scores stand still: refused whatever drop is allowed",
    Reason.NONFINITE: "an output holds NaN or infinity",
    Reason.DROP: "the metric fell by more than --max-drop",
    Reason.MIN_METRIC: "the metric is below --min-metric",
    Reason.GUARD: "another check of the guard refused it; the reason says which",
    Reason.DISAGREES: "its outputs are too far from the source's on calibration images to be judged on the golden set",
    Reason.NO_GAIN: "no rescue of the refused int8 build was tried: what passed already is faster than it would be",
    Reason.SIZE: "larger than the profile's artifact_mb",
    Reason.LATENCY: "slower than the profile's latency_ms",
    Reason.RAM: "more resident memory than the profile's ram_mb",
    Reason.SLOWER: "it passed, and the chosen build is faster",
    Reason.EQUAL: "it passed and is as fast as the chosen build, which is simpler",
}
"""What each word means, for the documentation."""
